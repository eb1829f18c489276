"""`field_to_data`: which internal column is which external field, and how values cross over.

Two shapes of a record's external side are used throughout: *nested*, as the system's JSON has it
(`{"address": {"city": "Rome"}}`), and *flat*, one entry a mapped field keyed by its dotted path
(`{"address.city": "Rome"}`; see `paths`). Comparisons and the ledger use the flat one. Child rows are one field
there, whose value is the list of rows, each nested and with its mapped fields only.

Several columns may make one field and one column several, with a transform for it: their names are
joined by a plus: `{"name": Field("FirstName+LastName", "split_name")}`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from models.catalogues import Catalogue, Children, Record, children_by_name, recognise
from subscribers.errors import Reject
from subscribers.mapping.coercion import as_key, coerce
from subscribers.mapping.fields import Field, as_fields, entry_row
from subscribers.mapping.paths import MISSING, is_plain, nest, parts, pick
from subscribers.mapping.transforms import Transform, find
from subscribers.mapping.values import Flat, Links, describe_fields, is_empty, plain, same


class Mapper:
    """Carries records over between a catalogue (or the child rows of one) and external fields."""

    def __init__(self, catalogue: Catalogue | Children, fields: Mapping[str, Field | str]) -> None:
        self.catalogue = catalogue
        self.fields = as_fields(fields)
        self._column_of = {entry.path: column for column, entry in self.fields.items()}
        self._transforms = {
            column: find(entry.transform) for column, entry in self.fields.items() if entry.transform is not None
        }
        self._inner = {
            column: Mapper(children_by_name(catalogue)[column], entry.rows)
            for column, entry in self.fields.items()
            if entry.rows is not None
        }
        self._sent = [(column, entry) for column, entry in self.fields.items() if entry.direction != "in"]
        #: Columns that go out as they are.
        self._direct = {
            column
            for column, entry in self._sent
            if not (entry.transform or entry.link or entry.rows is not None or "+" in column)
        }
        #: Columns that hold a record's key, or child rows.
        self._pointing = [(column, entry) for column, entry in self._sent if entry.link or entry.rows is not None]
        #: Whether nested and flat say the same of what goes out: not where a value is made of several fields.
        self.paths_are_single = all("+" not in entry.path for _, entry in self._sent)

    def rows(self) -> list[dict[str, Any]]:
        """The mapping as rows for the panel and the database."""
        return [entry_row(column, entry) for column, entry in self.fields.items()]

    def path_of(self, column: str) -> str | None:
        """The path of the field that a column goes to, alone or with others; None if it is not mapped."""
        return next((entry.path for name, entry in self.fields.items() if column in parts(name)), None)

    def paths(self) -> list[str]:
        """The plain dotted path of every mapped field there is, those of child rows left out."""
        plain_ones = [entry.path for entry in self.fields.values() if is_plain(entry.path) and entry.rows is None]
        return list(dict.fromkeys(part for path in plain_ones for part in parts(path)))

    def relations(self) -> set[str]:
        """The catalogues to whose records these point."""
        own = {entry.link for entry in self.fields.values() if entry.link}
        return own.union(*(inner.relations() for inner in self._inner.values()))

    def references(self, record: Record) -> Iterator[tuple[str, str]]:
        """(catalogue, record id) of each record this one, or a child row of it, points to outward."""
        for column, entry in self._pointing:
            value = record.get(column)
            if is_empty(value):
                continue
            if entry.link:
                yield entry.link, str(value)
            elif (inner := self._inner.get(column)) is not None:
                yield from itertools.chain.from_iterable(inner.references(row) for row in value or [])

    def external_references(self, flat: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(catalogue, the system's id) of each record these external fields point to."""
        for path, value in flat.items():
            column = self._column_of[path]
            if is_empty(value):
                continue
            if link := self.fields[column].link:
                yield link, str(value)
            elif (inner := self._inner.get(column)) is not None and _is_rows(value):
                for row in value:
                    yield from inner.external_references(inner.flatten(row))

    def outward(self, record: Record, *, strict: bool = True, links: Links | None = None) -> Flat:
        """What the system shall hold of this record, by path.

        `links` gives the system's id of each related record, by (catalogue, record id); where a
        relation's is not known the field is left out.

        Raises:
          Reject: with the words per field, where a value cannot be mapped or a required one is empty;
            without `strict`, what can be mapped is returned instead.
        """
        flat: Flat = {}
        wrong: dict[str, str] = {}
        for column, entry in self._sent:
            try:
                if column in self._direct:
                    value = record.get(column)
                    value = entry.default if is_empty(value) else value
                else:
                    value = self._value_out(column, record, links or {})
                if entry.required and is_empty(value):
                    wrong[entry.path] = f"is required, but {column} is empty"
                flat[entry.path] = plain(value)
            except _Unknown:
                continue
            except Reject as error:
                wrong |= error.fields
            except ValueError as error:
                wrong[entry.path] = str(error)
        if wrong and strict:
            raise Reject(describe_fields(wrong), fields=wrong)
        return flat

    def _value_out(self, column: str, record: Record, links: Links) -> Any:
        entry, value = self.fields[column], _value_of(record, column)
        if (inner := self._inner.get(column)) is not None:
            return _each_row(entry.path, value or [], lambda row: nest(inner._whole({**record, **row}, links)))
        if is_empty(value):
            return entry.default
        if entry.link:
            if (entry.link, str(value)) not in links:
                raise _Unknown
            return links[entry.link, str(value)]
        if column in self._transforms:
            return self._transforms[column].of(record).forward(value)
        return value

    def _whole(self, row: Record, links: Links) -> Flat:
        """A child row outward. Raises `_Unknown` where a relation's id is not known: half a row is none."""
        if any(pair not in links for pair in self.references(row)):
            raise _Unknown
        return self.outward(row, links=links)

    def flatten(self, data: Mapping[str, Any]) -> Flat:
        """The mapped fields of an external record, by path; one that is not mentioned is left out."""
        found: Flat = {}
        if not data:
            return found
        for column, entry in self.fields.items():
            value = pick(data, entry.path)
            if value is MISSING:
                continue
            if (inner := self._inner.get(column)) is not None and (value is None or _is_rows(value)):
                value = [nest(inner.flatten(row)) for row in value or []]
            found[entry.path] = plain(value)
        return found

    def accepts_inward(self, path: str) -> bool:
        """Whether a change of this external field may change the internal record."""
        return path in self._column_of and self.entry(path).direction != "out"

    def entry(self, path: str) -> Field:
        """The mapping entry of an external field."""
        return self.fields[self._column_of[path]]

    def inward(self, flat: Mapping[str, Any], keys: Links | None = None, record: Record | None = None) -> Record:
        """Internal column values for these external fields.

        `keys` gives our id of each related record, by (catalogue, the system's id). `record` is the
        record as it is here now: what a transform loses on the way out (the end of a text that is cut,
        the form of a phone number) stays as it is where they hold just what it becomes there.

        Raises:
          Reject: with the words per field, where a value does not fit its column.
        """
        values: Record = {}
        wrong: dict[str, str] = {}
        # What depends on another column comes after it, and rows after their record.
        for path, value in sorted(flat.items(), key=lambda item: self._turn(self._column_of[item[0]])):
            column = self._column_of[path]
            try:
                values |= self._values_in(column, value, keys or {}, {**(record or {}), **values})
            except Reject as error:
                wrong |= error.fields
            except ValueError as error:
                wrong[path] = str(error)
        if wrong:
            raise Reject(describe_fields(wrong), fields=wrong)
        return values

    def _turn(self, column: str) -> int:
        depends = column in self._transforms and self._transforms[column].column is not None
        return 2 if column in self._inner else int(depends)

    def _values_in(self, column: str, value: Any, keys: Links, now: Record) -> Record:
        entry, transform = self.fields[column], self._transforms.get(column)
        if column in self._inner:
            return {column: self._rows_in(column, value, keys, now)}
        names = parts(column)
        if not is_empty(value) and entry.link:
            value = as_key(self.catalogue.table.c[column], keys.get((entry.link, str(value))))
        elif not is_empty(value) and transform is not None:
            if _becomes(transform, now, column, value):
                return {name: now.get(name) for name in names}
            value = transform.of(now).inverse(value)
        values = [value] if len(names) == 1 else value or [None] * len(names)
        return {name: coerce(self.catalogue.table.c[name], one) for name, one in zip(names, values, strict=True)}

    def _rows_in(self, column: str, value: Any, keys: Links, now: Record) -> list[Record]:
        inner = self._inner[column]
        if not (is_empty(value) or _is_rows(value)):
            raise ValueError("is no list of objects, as child rows are")
        theirs = [inner.flatten(row) for row in value or []]
        here: list[Record] = now.get(column) or []
        # Columns of the record that a row's transform may depend on; a new row has no values of its own yet.
        around = {name: one for name, one in now.items() if name not in inner.catalogue.columns}
        links = {(catalogue, ours): there for (catalogue, there), ours in keys.items()}
        as_there = [inner.outward({**around, **row}, strict=False, links=links) for row in here]
        known = recognise(as_there, theirs, same)

        def carry(pair: tuple[int, Flat]) -> Record:
            return inner.inward(pair[1], keys, {**around, **(here[pair[0]] if pair[0] >= 0 else {})})

        return _each_row(self.fields[column].path, zip(known, theirs, strict=True), carry)


def _value_of(record: Record, column: str) -> Any:
    """A column's value; of several columns the list of them, None if all are empty."""
    if "+" not in column:
        return record.get(column)
    values = [record.get(name) for name in parts(column)]
    return None if all(map(is_empty, values)) else values


def _becomes(transform: Transform, record: Record, column: str, theirs: Any) -> bool:
    """Whether what is here becomes just what they hold."""
    value = _value_of(record, column)
    try:
        return not is_empty(value) and same(plain(transform.of(record).forward(value)), theirs)
    except ValueError:
        return False


class _Unknown(Exception):
    """A related record's id in the system is not known."""


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)


def _each_row(path: str, given: Iterable[Any], carry: Callable[[Any], Record]) -> list[Record]:
    """Each child row carried over; all that is wrong with them at once, by row and field."""
    carried: list[Record] = []
    wrong: dict[str, str] = {}
    for number, row in enumerate(given):
        try:
            carried.append(carry(row))
        except Reject as error:
            wrong |= {f"{path}[{number}].{name}": text for name, text in error.fields.items()}
    if wrong:
        raise Reject(describe_fields(wrong), fields=wrong)
    return carried
