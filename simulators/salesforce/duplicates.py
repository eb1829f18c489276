"""Duplicate rules: they block a record, or warn and let it be saved if the caller allows that.

REST API guide: "Duplicate Rule Header". Jobs of Bulk API 2.0 have no such header.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from .errors import SalesforceError
from .wire import Request

#: Whether the call that runs allows to save a record that a rule only warns about.
_allow_save: ContextVar[bool] = ContextVar("allow_save", default=False)


@dataclass(frozen=True)
class DuplicateRule:
    """Two records of an object with the same value of a field are duplicates; `blocks`: they are never saved."""

    object: str
    field: str
    blocks: bool = False

    def check(self, object_name: str, values: Mapping[str, Any], find: Callable[[str, str, Any], list[Any]]) -> None:
        """Raise DUPLICATES_DETECTED if another record has the value; `find` returns the records with a value."""
        value = values.get(self.field)
        if object_name != self.object or value is None or (_allow_save.get() and not self.blocks):
            return
        if any(other["Id"] != values.get("Id") for other in find(self.object, self.field, value)):
            raise SalesforceError("DUPLICATES_DETECTED", "Use one of these records?", fields=[])


def note_header(request: Request) -> None:
    """Note what the header of a call says about duplicates."""
    header = request.headers.get("sforce-duplicate-rule-header", "").replace(" ", "").lower()
    _allow_save.set("allowsave=true" in header.split(";") and "/jobs/" not in request.path)
