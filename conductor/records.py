"""Editing a record by hand: where mending the data is what mends a dead letter.

The edit is written like any program's: without an origin, so that it is captured and flows to every system.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from i18n import gettext
from models.catalogues import CATALOGUES, Catalogue, Record
from models.ledger import Change, Link
from subscribers.mapping.coercion import coerce
from subscribers.mapping.values import same

#: What a form can hold in one field.
_EDITABLE = (str, int, float, bool)


class EditRefused(Exception):
    """The edit was not made; `problems` are the words per column."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in problems.items()))
        self.problems = dict(problems)


class EditConflict(Exception):
    """Somebody else changed these columns meanwhile: name -> its value by now, as a form shows it."""

    def __init__(self, moved: Mapping[str, str]) -> None:
        names = ", ".join(moved)
        super().__init__(gettext("somebody changed {names} meanwhile; look at it and edit again", names=names))
        self.moved = moved


def editable(catalogue: Catalogue) -> list[sa.Column[Any]]:
    """The columns a person may edit: plain values, but not the key and not what points to other records."""
    return [
        column
        for column in catalogue.table.c
        if column.name in catalogue.columns
        and not column.primary_key
        and not column.foreign_keys
        and issubclass(column.type.python_type, _EDITABLE)
    ]


def read_value(column: sa.Column[Any], text: str) -> Any:
    """What a person typed, as the column takes it; empty means no value.

    Raises:
      ValueError: it does not fit; the message says why.
    """
    kind = column.type.python_type
    if text == "":
        return coerce(column, None)
    if kind is bool:
        return text in ("true", "on", "yes")
    if kind in (int, float):
        try:
            return coerce(column, kind(text))
        except ValueError:
            raise ValueError(gettext("{value!r} is no number", value=text)) from None
    return coerce(column, text)


class Records:
    """Changes records on a person's behalf."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def edit(self, catalogue: str, record_id: str, typed: Mapping[str, str], seen: Mapping[str, str], by: str) -> int:
        """Set these columns as a person typed them; returns how many have changed.

        `seen` is what the form showed: a column that has another value by now is not overwritten.

        Raises:
          ValueError: there is no such record.
          EditRefused: a value does not fit.
          EditConflict: the record was changed meanwhile.
        """
        about = CATALOGUES[catalogue]
        columns = {column.name: column for column in editable(about)}
        with self.context.database.write() as connection:
            record = about.read(connection, [record_id], lock=True).get(record_id)
            if record is None:
                raise ValueError(
                    gettext("there is no {catalogue} {record_id}", catalogue=catalogue, record_id=record_id)
                )
            values = self._values(columns, record, typed, seen)
            if values:
                before = {name: record[name] for name in values}
                about.update(connection, record_id, values)
                self.context.audit(
                    connection, by, "record.edit", f"{catalogue} {record_id}", before=before, after=dict(values)
                )
        return len(values)

    def sync(self, catalogue: str, record_id: str, by: str) -> None:
        """Have a record looked at by all its subscribers, as if it had just changed.

        Raises:
          ValueError: there is no such record.
        """
        with self.context.database.write() as connection:
            exists = record_id in CATALOGUES[catalogue].read(connection, [record_id])
            linked = sa.select(Link.id).where(Link.record_id == record_id, Link.subscriber.like(f"%.{catalogue}"))
            if not exists and connection.execute(linked.limit(1)).first() is None:
                raise ValueError(
                    gettext("there is no {catalogue} {record_id}", catalogue=catalogue, record_id=record_id)
                )
            change = {
                "catalogue": catalogue,
                "record_id": record_id,
                "operation": "updated",
                "at": self.context.clock(),
            }
            connection.execute(sa.insert(Change).values(**change))
            self.context.audit(connection, by, "record.sync", f"{catalogue} {record_id}")

    @staticmethod
    def _values(
        columns: Mapping[str, sa.Column[Any]], record: Record, typed: Mapping[str, str], seen: Mapping[str, str]
    ) -> Record:
        values: Record = {}
        wrong: dict[str, str] = {}
        moved: dict[str, str] = {}
        for name, text in typed.items():
            if name not in columns or text == seen.get(name):
                continue
            try:
                value = read_value(columns[name], text)
            except ValueError as error:
                wrong[name] = str(error)
                continue
            if (now := as_typed(record[name])) != seen.get(name, now):
                moved[name] = now
            elif not same(value, record[name]):
                values[name] = value
        if wrong:
            raise EditRefused(wrong)
        if moved:
            raise EditConflict(moved)
        return values


def as_typed(value: Any) -> str:
    """A column's value as a form shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).replace("\r\n", "\n")
