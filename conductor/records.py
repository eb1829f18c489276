"""What an operator does with a record: edit it, sync it with its systems now.

An edit has no origin, like any program's write: it is captured and delivered to every system.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from conductor.unsubscriptions import require_target
from i18n import gettext
from models.catalogues import CATALOGUES, Catalogue, Record, UnreadableRecord, is_generated
from models.ledger import Change, Link
from subscribers.mapping.coercion import coerce
from subscribers.mapping.column_values import python_type
from subscribers.mapping.values import same

#: Types of columns that one field of a form can hold.
_EDITABLE = (str, int, float, bool)


class EditRefused(Exception):
    """A submitted value does not fit; `problems` gives the reason by column. Nothing was written."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {text}" for name, text in problems.items()))
        self.problems = dict(problems)


class EditConflict(Exception):
    """These columns changed after the form was shown: name -> current value, as a form shows it."""

    def __init__(self, moved: Mapping[str, str]) -> None:
        names = ", ".join(moved)
        super().__init__(gettext("{names} changed in the meantime; check the record, then edit it again", names=names))
        self.moved = moved


def editable(catalogue: Catalogue) -> list[sa.Column[Any]]:
    """Return the columns an operator may edit: plain values, but neither the key nor references to other records."""
    return [
        column
        for column in catalogue.table.c
        if column.name in catalogue.columns
        and not column.primary_key
        and not column.foreign_keys
        and not is_generated(column)
        and issubclass(python_type(column.type), _EDITABLE)
    ]


def read_value(column: sa.Column[Any], text: str) -> Any:
    """Return typed text as a value of the column; empty text means no value.

    Raises:
      ValueError: it does not fit; the message gives the reason.
    """
    kind = python_type(column.type)
    if text == "":
        return coerce(column, None)
    if kind is bool:
        return text in ("true", "on", "yes")
    if kind in (int, float):
        try:
            return coerce(column, kind(text))
        except ValueError:
            raise ValueError(gettext("{value!r} is not a number", value=text)) from None
    return coerce(column, text)


class Records:
    """Edits and syncs records; each action writes its audit row."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def edit(self, catalogue: str, record_id: str, typed: Mapping[str, str], seen: Mapping[str, str], by: str) -> int:
        """Set these columns to the typed values; return how many changed.

        `seen` holds the values that the form showed: a column that has changed since is not overwritten.

        Raises:
          ValueError: there is no such record.
          EditRefused: a value does not fit.
          EditConflict: one of these columns has changed since.
        """
        about = CATALOGUES[catalogue]
        columns = {column.name: column for column in editable(about)}
        with self.context.database.write() as connection:
            record = about.read(connection, [record_id], lock=True).get(record_id)
            if record is None:
                raise ValueError(_no_record(catalogue, record_id))
            values = self._values(columns, record, typed, seen)
            if values:
                before = {name: record[name] for name in values}
                about.update(connection, record_id, values)
                self.context.audit(
                    connection, by, "record.edit", f"{catalogue} {record_id}", before=before, after=dict(values)
                )
        return len(values)

    def push(self, catalogue: str, record_id: str, unsubscribe: Iterable[str], by: str) -> int:
        """Have a record delivered to all its subscribers except these, as if it had just changed.

        Return the id of the change row, which takes the same way as a captured change.

        Raises:
          ValueError: there is no such catalogue or record, or no such system or subscriber to unsubscribe.
        """
        names = list(unsubscribe)
        for name in names:
            require_target(self.context, name)
        with self.context.database.write() as connection:
            if not self._is_known(connection, catalogue, record_id):
                raise ValueError(_no_record(catalogue, record_id))
            change = sa.insert(Change).values(
                catalogue=catalogue,
                record_id=record_id,
                operation="updated",
                unsubscribe=",".join(names) or None,
                at=self.context.clock(),
            )
            number = connection.execute(change.returning(Change.id)).scalar_one()
            details = {"unsubscribe": names} if names else {}
            self.context.audit(connection, by, "record.push", f"{catalogue} {record_id}", **details)
        return int(number)

    @staticmethod
    def _is_known(connection: sa.Connection, catalogue: str, record_id: str) -> bool:
        """Return whether the record exists, or a link that outlived it: its deletion may still be pending."""
        if catalogue not in CATALOGUES:
            return False
        if read_record(connection, CATALOGUES[catalogue], record_id) is not None:
            return True
        linked = sa.select(Link.id).where(Link.record_id == record_id, Link.subscriber.like(f"%.{catalogue}"))
        return connection.execute(linked.limit(1)).first() is not None

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


def _no_record(catalogue: str, record_id: str) -> str:
    return gettext("there is no {catalogue} {record_id}", catalogue=catalogue, record_id=record_id)


def read_record(connection: sa.Connection, catalogue: Catalogue, record_id: str) -> Record | None:
    """Return the record with this id; None if there is none, or no such id is possible.

    Of a record that cannot be read the columns are texts, as the database writes them.
    """
    try:
        key = catalogue.key_of(record_id)
    except (ValueError, ArithmeticError):
        return None
    if isinstance(key, int) and not -(2**63) <= key < 2**63:
        return None
    try:
        return catalogue.read(connection, [record_id]).get(record_id)
    except UnreadableRecord:
        return catalogue.texts(connection, record_id)


def as_typed(value: Any) -> str:
    """Return a column's value as a form shows it."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value).replace("\r\n", "\n")
