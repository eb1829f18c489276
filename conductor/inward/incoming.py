"""TODO."""

from __future__ import annotations

from dataclasses import dataclass

from subscribers.base import Subscriber
from subscribers.mapping.mapper import Mapper
from subscribers.records import External


class NeedsFetch(Exception):
    """What came in may not be the newest: the record has to be fetched."""


class HeldByDeleteGuard(Exception):
    """The mass-delete guard holds it back until a person says that it is meant."""


@dataclass
class Applied:
    """How one incoming record ended: in words, and what is to be announced after the commit."""

    outcome: str
    words: str
    owed: tuple[str, str] | None = None


@dataclass
class Incoming:
    """One external record on its way in."""

    subscriber: Subscriber
    external: External
    mapper: Mapper
    #: It is known to be the record's newest state (it was just fetched).
    newest: bool = False
    #: The lease under which it was fetched.
    token: str | None = None
    #: What said that it has to be fetched.
    event: External | None = None
    #: The inbox row that told of it.
    inbox_id: int | None = None
