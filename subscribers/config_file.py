"""Systems declared in the TOML file that SYNCFLOW_SYSTEMS names.

Each `[systems.NAME]` is a system of kind `rest` or `files`, and each
`[systems.NAME.subscribers.CATALOGUE]` one of its subscribers. The keys are the class attributes of
`RestSystem`, `RestSubscriber`, `FileSystem` and `FileSubscriber`. A system may also have its
settings there, except secrets, which belong in the environment; the environment takes precedence.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, SecretStr, ValidationError, create_model

from models.catalogues import CATALOGUES, Catalogue
from settings import SettingsError
from subscribers import rest
from subscribers.base import Subscriber
from subscribers.files import subscriber
from subscribers.files.subscriber import FileSubscriber
from subscribers.files.system import FileSystem
from subscribers.mapping.fields import Field
from subscribers.mapping.validation import check_rows
from subscribers.options import error_lines, options_of
from subscribers.registry import REGISTRY, register
from subscribers.rest import RestSubscriber, RestSystem
from subscribers.system import System

#: System names are part of queue names, URLs and names of variables.
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,30}")


@dataclass(frozen=True)
class Kind:
    """The base classes for declarations of this kind, and the options of each."""

    system: type[System]
    system_options: tuple[str, ...]
    subscriber: type[Subscriber]
    subscriber_options: tuple[str, ...]


KINDS = {
    "rest": Kind(RestSystem, rest.SYSTEM_OPTIONS, RestSubscriber, rest.SUBSCRIBER_OPTIONS),
    "files": Kind(FileSystem, (), FileSubscriber, subscriber.SUBSCRIBER_OPTIONS),
}


def register_file(path: Path) -> list[type[Subscriber]]:
    """Register the subscribers that a file declares, and return them.

    Raises:
      SettingsError: the file is wrong; the message has a line for each problem with file and place,
        and never contains a value.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path.name}: is not valid TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"SYNCFLOW_SYSTEMS: {path} cannot be read: {error.strerror}") from None
    reader = _Reader(path.name)
    found = reader.read(content)
    if reader.problems:
        raise SettingsError("\n".join(f"{path.name}: {problem}" for problem in reader.problems))
    try:
        return [register(subscriber) for subscriber in found]
    except ValueError as error:
        raise SettingsError(f"{path.name}: {error}") from None


class _Reader:
    """Creates classes from the content of a file, and collects its problems."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.problems: list[str] = []

    def read(self, content: Mapping[str, Any]) -> list[type[Subscriber]]:
        for other in set(content) - {"systems"}:
            self.problems.append(f"{other}: is unknown; write [systems.NAME]")
        return [one for name, table in self._tables(content, "systems") for one in self._system(name, table)]

    def _tables(self, content: Mapping[str, Any], key: str, place: str = "") -> list[tuple[str, dict[str, Any]]]:
        tables = content.get(key, {})
        if not isinstance(tables, dict) or not tables:
            self.problems.append(f"{place}{key}: is empty; write [{place}{key}.NAME]")
            return []
        wrong = [name for name, table in tables.items() if not isinstance(table, dict)]
        self.problems += [f"{place}{key}.{name}: is not a table; write [{place}{key}.{name}]" for name in wrong]
        return [(name, table) for name, table in tables.items() if name not in wrong]

    def _system(self, name: str, table: dict[str, Any]) -> list[type[Subscriber]]:
        place = f"systems.{name}"
        kind = KINDS.get(table.get("kind", "rest"))
        if kind is None:
            self.problems.append(f"{place}.kind: must be one of {', '.join(KINDS)}")
            return []
        if not _NAME.fullmatch(name):
            self.problems.append(
                f"{place}: a name must start with a letter and contain only lower case letters, digits, - and _"
            )
        if any(s.system == name and s.__module__ != __name__ for s in REGISTRY.values()):
            self.problems.append(f"{place}: a system in the code has this name; choose another")
        given = {key: value for key, value in table.items() if key not in ("kind", "subscribers")}
        values = self._checked(place, _system_model(kind), given, _secrets(kind, name))
        settings = {key: value for key, value in values.items() if key in kind.system.Options.model_fields}
        attributes = {key: value for key, value in values.items() if key not in settings}
        client = type(_class_name(name), (kind.system,), {**attributes, "defaults": settings, "__module__": __name__})
        return [
            one
            for catalogue, inner in self._tables(table, "subscribers", f"{place}.")
            if (one := self._subscriber(kind, name, client, catalogue, inner))
        ]

    def _subscriber(
        self, kind: Kind, system: str, client: type, catalogue: str, table: dict[str, Any]
    ) -> type[Subscriber] | None:
        place = f"systems.{system}.subscribers.{catalogue}"
        if catalogue not in CATALOGUES:
            self.problems.append(f"{place}: unknown catalogue; known catalogues: {', '.join(CATALOGUES)}")
            return None
        fields = self._fields(f"{place}.field_to_data", CATALOGUES[catalogue], table.get("field_to_data"))
        given = {key: value for key, value in table.items() if key != "field_to_data"}
        model = options_of(kind.subscriber, kind.subscriber_options)
        before = len(self.problems)
        values = self._checked(place, model, given, {})
        for column in values.get("match_on", ()):
            if fields and column not in fields:  # an empty one is reported already
                self.problems.append(f"{place}.match_on: {column!r} is not in field_to_data")
        if len(self.problems) > before or not fields:
            return None
        name = _class_name(f"{system}-{catalogue}")
        fixed = {"system": system, "catalogue": catalogue, "system_class": client, "field_to_data": fields}
        origin = {"__module__": __name__, "__qualname__": f"{self.file}: {place}"}
        return type(name, (kind.subscriber,), {**values, **fixed, **origin})

    def _fields(self, place: str, catalogue: Catalogue, table: Any) -> dict[str, Field]:
        if not isinstance(table, dict) or not table:
            self.problems.append(f'{place}: is missing; map columns to external fields, such as name = "full_name"')
            return {}
        rows = [{"column": c, **(entry if isinstance(entry, dict) else {"path": entry})} for c, entry in table.items()]
        fields, problems = check_rows(rows, catalogue)
        columns = list(table)
        for problem in problems:
            row = re.match(r"row (\d+): ", problem)
            where = f"{place}.{columns[int(row[1]) - 1]}: {problem[row.end() :]}" if row else f"{place}: {problem}"
            self.problems.append(where)
        return {} if problems else fields

    def _checked(
        self, place: str, model: type[BaseModel], given: dict[str, Any], secrets: Mapping[str, str]
    ) -> dict[str, Any]:
        """Return the validated values, and collect the problems of the others."""
        written = [key for key in given if key in secrets]
        for key in written:
            self.problems.append(f"{place}.{key}: is a secret; set {secrets[key]} in the environment or .env instead")
        try:
            checked = model.model_validate({key: value for key, value in given.items() if key not in secrets})
        except ValidationError as error:
            for wrong in error.errors(include_url=False, include_input=False):
                if wrong["type"] == "extra_forbidden":
                    near = difflib.get_close_matches(str(wrong["loc"][0]), model.model_fields, 1)
                    wrong["msg"] = "is an unknown key" + (f"; did you mean {near[0]}?" if near else "")
                self.problems += [f"{place}.{line}" for line in error_lines([wrong])]
            return {}
        return {key: getattr(checked, key) for key in checked.model_fields_set}


def _system_model(kind: Kind) -> type[BaseModel]:
    """Return a model of a system's options, and of its settings except secrets."""
    settings: dict[str, Any] = {
        name: (Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation, None)
        for name, info in kind.system.Options.model_fields.items()
        if info.annotation is not SecretStr
    }
    attributes = options_of(kind.system, kind.system_options)
    return create_model("System", __base__=attributes, **settings)


def _secrets(kind: Kind, system: str) -> dict[str, str]:
    """Return the secret settings of a system, each with its environment variable."""
    prefix = system.upper().replace("-", "_")
    fields = kind.system.Options.model_fields.items()
    return {name: f"{prefix}_{name.upper()}" for name, info in fields if info.annotation is SecretStr}


def _class_name(name: str) -> str:
    return "".join(part.title() for part in re.split(r"[^A-Za-z0-9]+", name)) or "Declared"


__all__ = ["KINDS", "Kind", "register_file"]
