"""Convert records to external values and back, by the entries of `field_to_data`.

An external record has two shapes: *nested*, as in the system's JSON (`{"address": {"city": "Rome"}}`),
and *flat*, with an entry for each mapped field by its dotted path (`{"address.city": "Rome"}`; see
`paths`). Comparisons and the ledger use the flat shape. Child rows are one flat field: the list of
rows, each nested and with its mapped fields only.

A transform may map several columns to one field, or one column to several. Their names are joined
by a plus: `{"name": Field("FirstName+LastName", "split_name")}`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

from models.catalogues import Catalogue, ChildRows, Record, children_by_name, is_generated, recognise
from models.record_ids import text_of
from subscribers.errors import Reject
from subscribers.mapping.coercion import as_key, coerce
from subscribers.mapping.column_values import to_json
from subscribers.mapping.fields import Field, as_fields, entry_row
from subscribers.mapping.paths import MISSING, fill, is_plain, nest, parts, pick
from subscribers.mapping.transforms import Transform, find
from subscribers.mapping.values import FieldErrors, Flat, Links, is_empty, plain, same, without_empty


class Mapper:
    """The mapping between the columns of a catalogue, or of its child rows, and external fields."""

    def __init__(self, catalogue: Catalogue | ChildRows, fields: Mapping[str, Field | str]) -> None:
        self.catalogue = catalogue
        self.fields = as_fields(fields)
        self._columns = {column.name: column for column in catalogue.table.c}
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
        #: Columns that are sent unchanged.
        self._direct = {
            column
            for column, entry in self._sent
            if not (entry.transform or entry.link or entry.rows is not None or "+" in column)
        }
        #: Columns that hold the key of another record, or child rows.
        self._referring = [(column, entry) for column, entry in self._sent if entry.link or entry.rows is not None]
        #: Whether each sent value is one external field, so that its flat and nested shapes are equivalent.
        self.paths_are_single = all("+" not in entry.path for _, entry in self._sent)

    def rows(self) -> list[dict[str, Any]]:
        """Return the mapping as rows for the panel and the database."""
        return [entry_row(column, entry) for column, entry in self.fields.items()]

    def path_of(self, column: str) -> str | None:
        """Return the path of the field that a column is mapped to, alone or with others; None if it is not mapped."""
        return next((entry.path for name, entry in self.fields.items() if column in parts(name)), None)

    def paths(self) -> list[str]:
        """Return the plain dotted path of every mapped field, except those of child rows."""
        plain_ones = [entry.path for entry in self.fields.values() if is_plain(entry.path) and entry.rows is None]
        return list(dict.fromkeys(part for path in plain_ones for part in parts(path)))

    def relations(self) -> set[str]:
        """Return the catalogues that the records refer to."""
        own = {entry.link for entry in self.fields.values() if entry.link}
        return own.union(*(inner.relations() for inner in self._inner.values()))

    def references(self, record: Record) -> Iterator[tuple[str, str]]:
        """Yield (catalogue, record id) of each record that this one, or a child row of it, refers to."""
        for column, entry in self._referring:
            value = record.get(column)
            if is_empty(value):
                continue
            if entry.link:
                yield entry.link, self._id_of(column, value)
            elif (inner := self._inner.get(column)) is not None:
                yield from itertools.chain.from_iterable(inner.references(row) for row in value or [])

    def without_references(self, record: Record, links: Links, required: Collection[str] = ()) -> Record:
        """Return the record without its references to records that have no id in `links`, as far as they may be empty.

        `required` names fields, besides those of the mapping, that may not be empty.
        """
        emptied: Record = {}
        for column, entry in self._referring:
            value = record.get(column)
            if (inner := self._inner.get(column)) is not None:
                needed = {path.removeprefix(f"{entry.path}.") for path in required}
                emptied[column] = value and [inner.without_references(row, links, needed) for row in value]
            elif not (is_empty(value) or entry.required or entry.path in required):
                is_known = (entry.link, self._id_of(column, value)) in links
                emptied[column] = value if is_known else None
        return {**record, **emptied}

    def _id_of(self, column: str, key: Any) -> str:
        return text_of(self.catalogue.table.c[column].type, key)

    def external_references(self, flat: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """Yield (catalogue, external id) of each record that these external fields refer to."""
        for path, value in flat.items():
            column = self._column_of[path]
            if is_empty(value):
                continue
            if link := self.fields[column].link:
                yield link, str(value)
            elif (inner := self._inner.get(column)) is not None and _is_rows(value):
                for row in value:
                    yield from inner.external_references(inner.flatten(row))

    def optional_references(self, flat: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
        """Yield (path, catalogue, external id) of each reference of the record itself that may be empty here."""
        for path, value in flat.items():
            column = self._column_of[path]
            entry = self.fields[column]
            if not entry.link or is_empty(value) or not self.accepts_inward(path):
                continue
            if not entry.required and self.catalogue.table.c[column].nullable:
                yield path, entry.link, str(value)

    def outward(self, record: Record, *, strict: bool = True, links: Links | None = None) -> Flat:
        """Return the external values of a record, flat.

        `links` maps (catalogue, record id) of related records to their external ids; a relation
        without one is left out.

        Raises:
          Reject: a value cannot be mapped, or a required one is empty; `fields` has the messages.
            Without `strict`, the other values are returned instead.
        """
        flat: Flat = {}
        wrong = FieldErrors()
        for column, entry in self._sent:
            try:
                if column in self._direct:
                    value = self._stored(column, record)
                    value = entry.default if is_empty(value) else value
                else:
                    value = self._value_out(column, record, links or {})
                if entry.required and is_empty(value):
                    wrong.add(entry.path, f"is required, but {column} is empty", "required_field_missing")
                flat[entry.path] = plain(value)
            except _Unknown:
                continue
            except Reject as error:
                wrong.add_nested(error)
            except ValueError as error:
                wrong.add_value(entry.path, error)
        if strict:
            wrong.raise_if_any()
        return flat

    def _value_out(self, column: str, record: Record, links: Links) -> Any:
        entry, value = self.fields[column], _value_of(record, column)
        if (inner := self._inner.get(column)) is not None:
            return _each_row(entry.path, value or [], lambda row: nest(inner._whole({**record, **row}, links)))
        if is_empty(value):
            return entry.default
        if entry.link:
            if (entry.link, self._id_of(column, value)) not in links:
                raise _Unknown
            return links[entry.link, self._id_of(column, value)]
        if column in self._transforms:
            for name in parts(column):
                self._stored(name, record)  # refuses what is no value of the column's type
            return self._transforms[column].of(record).forward(value)
        return value

    def _stored(self, name: str, record: Record) -> Any:
        """Return the JSON form of the value that a record has in a column."""
        value, column = record.get(name), self._columns.get(name)
        return value if column is None else to_json(column, value)

    def _whole(self, row: Record, links: Links) -> Flat:
        """Return the external values of a child row. Raises `_Unknown` if a related record has no external id."""
        if any(pair not in links for pair in self.references(row)):
            raise _Unknown
        return self.outward(row, links=links)

    def flatten(self, data: Mapping[str, Any]) -> Flat:
        """Return the mapped fields of an external record, flat; fields that are not in the data are left out."""
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

    def completed(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return a record in which each mapped field that is missing is None, also in child rows.

        Fields that are only sent stay missing: a system need not return what it was sent.
        """
        complete = dict(data)
        for column, entry in self.fields.items():
            if entry.direction == "out":
                continue
            value = pick(complete, entry.path)
            if value is MISSING:
                complete = fill(complete, entry.path)
            elif (inner := self._inner.get(column)) is not None and is_plain(entry.path) and _is_rows(value):
                complete = nest({entry.path: [inner.completed(row) for row in value]}, onto=complete)
        return complete

    def onto(self, theirs: Any, ours: Any, path: str = "") -> Any:
        """Return our nested values merged onto the external ones at a path: what is not mapped stays as it is.

        Child rows are merged with the objects that they are recognised as; a mapped value replaces the external one.
        """
        column = self._column_of.get(path)
        if column in self._inner and _is_rows(theirs) and _is_rows(ours):
            inner = self._inner[column]
            wanted = [without_empty(inner.flatten(row)) for row in ours]
            known = recognise(list(map(inner.flatten, theirs)), wanted, same)
            pairs = zip(known, ours, strict=True)
            return [inner.onto(theirs[index], row) if index >= 0 else row for index, row in pairs]
        if column is not None or not (isinstance(theirs, Mapping) and isinstance(ours, Mapping)):
            return ours
        at = f"{path}." if path else ""
        return {**theirs, **{name: self.onto(theirs.get(name), value, at + name) for name, value in ours.items()}}

    def inward_value(self, column: str, flat: Mapping[str, Any]) -> Any:
        """Return the value of one column in these external fields; None if there is none, or it cannot be converted."""
        path = self.path_of(column)
        if path is None or is_empty(flat.get(path)):
            return None
        try:
            return self.inward({path: flat[path]}).get(column)
        except Reject:
            return None

    def accepts_inward(self, path: str) -> bool:
        """Return whether a change of this external field is applied to the internal record."""
        if path not in self._column_of or self.entry(path).direction == "out":
            return False
        columns = (self._columns.get(name) for name in parts(self._column_of[path]))
        return not any(column is not None and is_generated(column) for column in columns)

    def entry(self, path: str) -> Field:
        """Return the entry of an external field."""
        return self.fields[self._column_of[path]]

    def inward(self, flat: Mapping[str, Any], keys: Links | None = None, record: Record | None = None) -> Record:
        """Return the column values for these external fields.

        `keys` maps (catalogue, external id) of related records to our ids. `record` is the internal
        record as it is now. A transform may lose details (the end of a long text, the format of a
        phone number), so a column keeps its value if that value maps to the external one.

        Raises:
          Reject: a value cannot be converted to its column; `fields` has the messages.
        """
        values: Record = {}
        wrong = FieldErrors()
        # Columns that depend on another one come after it, and child rows last.
        for path, value in sorted(flat.items(), key=lambda item: self._order(self._column_of[item[0]])):
            column = self._column_of[path]
            try:
                values |= self._values_in(column, value, keys or {}, {**(record or {}), **values})
            except Reject as error:
                wrong.add_nested(error)
            except ValueError as error:
                wrong.add_value(path, error)
        wrong.raise_if_any()
        return values

    def _order(self, column: str) -> int:
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
            if _maps_to(transform, now, column, value):
                return {name: now.get(name) for name in names}
            value = transform.of(now).inverse(value)
        values = [value] if len(names) == 1 else value or [None] * len(names)
        return {name: coerce(self.catalogue.table.c[name], one) for name, one in zip(names, values, strict=True)}

    def _rows_in(self, column: str, value: Any, keys: Links, now: Record) -> list[Record]:
        inner = self._inner[column]
        if not (is_empty(value) or _is_rows(value)):
            raise ValueError("must be a list of objects: it is mapped to child rows")
        theirs = [inner.flatten(row) for row in value or []]
        here: list[Record] = now.get(column) or []
        # The transform of a row may depend on columns of its record. A new row has no values of its own yet.
        around = {name: one for name, one in now.items() if name not in inner.catalogue.columns}
        links = {(catalogue, ours): there for (catalogue, there), ours in keys.items()}
        as_there = [inner.outward({**around, **row}, strict=False, links=links) for row in here]
        known = recognise(as_there, theirs, same)

        def carry(pair: tuple[int, Flat]) -> Record:
            return inner.inward(pair[1], keys, {**around, **(here[pair[0]] if pair[0] >= 0 else {})})

        return _each_row(self.fields[column].path, zip(known, theirs, strict=True), carry)


def _value_of(record: Record, column: str) -> Any:
    """Return the value of a column; for several columns a list, or None if all are empty."""
    if "+" not in column:
        return record.get(column)
    values = [record.get(name) for name in parts(column)]
    return None if all(map(is_empty, values)) else values


def _maps_to(transform: Transform, record: Record, column: str, theirs: Any) -> bool:
    """Return whether the present value of a column maps to this external value."""
    value = _value_of(record, column)
    try:
        return not is_empty(value) and same(plain(transform.of(record).forward(value)), theirs)
    except ValueError:
        return False


class _Unknown(Exception):
    """A related record has no external id yet."""


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(row, Mapping) for row in value)


def _each_row(path: str, given: Iterable[Any], carry: Callable[[Any], Record]) -> list[Record]:
    """Convert each child row; raise one `Reject` with the messages of all rows, by row and field."""
    carried: list[Record] = []
    wrong = FieldErrors()
    for number, row in enumerate(given):
        try:
            carried.append(carry(row))
        except Reject as error:
            wrong.add_nested(error, f"{path}[{number}].")
    wrong.raise_if_any()
    return carried
