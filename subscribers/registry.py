"""The table of subscriber classes, and the subscribers whose systems are configured."""

from __future__ import annotations

from collections.abc import Mapping

from models.catalogues import CATALOGUES
from subscribers.base import Subscriber
from subscribers.mapping.fields import as_fields, entry_row
from subscribers.mapping.validation import check_rows
from subscribers.system import System

#: Every registered subscriber class by name: the receivers of the fan-out.
REGISTRY: dict[str, type[Subscriber]] = {}


def register(subscriber: type[Subscriber]) -> type[Subscriber]:
    """Class decorator: add a subscriber to the fan-out.

    Raises:
      ValueError: the class is incomplete or its mapping is wrong, or its name is taken.
    """
    for attribute in ("system", "catalogue"):
        if not getattr(subscriber, attribute, None):
            raise ValueError(f"{subscriber.__name__}: set the class attribute {attribute!r}")
    if subscriber.catalogue not in CATALOGUES:
        raise ValueError(
            f"{subscriber.__name__}: unknown catalogue {subscriber.catalogue!r}; "
            f"known catalogues: {', '.join(CATALOGUES)}"
        )
    if problems := _mapping_problems(subscriber):
        raise ValueError(f"{subscriber.__name__}: field_to_data: {'; '.join(problems)}")
    taken = REGISTRY.get(subscriber.name())
    if taken is not None and taken.__qualname__ != subscriber.__qualname__:
        raise ValueError(f"{subscriber.name()} is registered twice: {taken.__name__} and {subscriber.__name__}")
    REGISTRY[subscriber.name()] = subscriber
    return subscriber


def _mapping_problems(subscriber: type[Subscriber]) -> list[str]:
    catalogue = CATALOGUES[subscriber.catalogue]
    entries = as_fields(subscriber.field_to_data)
    _, problems = check_rows([entry_row(column, entry) for column, entry in entries.items()], catalogue)
    unknown = [column for column in subscriber.match_on if column not in catalogue.table.c]
    return problems + [f"match_on: {catalogue.name} has no column {column!r}" for column in unknown]


def connect(registry: Mapping[str, type[Subscriber]] | None = None) -> dict[str, Subscriber]:
    """Return the subscribers whose systems are configured, by name; those of one system share its client.

    Raises:
      SettingsError: the settings of a system are incomplete or wrong.
    """
    systems: dict[str, System | None] = {}
    subscribers = {}
    for name, subscriber in (REGISTRY if registry is None else registry).items():
        if subscriber.system not in systems:
            systems[subscriber.system] = subscriber.system_class.from_environment(subscriber.system)
        client = systems[subscriber.system]
        connected = subscriber.connected(client) if client is not None else None
        if connected is not None:
            subscribers[name] = connected
    return subscribers
