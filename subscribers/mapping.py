"""`field_to_data`: which internal column is which external field, and how values cross over.

Two shapes of a record's external side are used throughout: *nested*, as the system's JSON has it
(`{"address": {"city": "Rome"}}`), and *flat*, one entry a mapped field keyed by its dotted path
(`{"address.city": "Rome"}`; see `paths`). Comparisons and the ledger use the flat one. Child rows are one field
there, whose value is the list of rows, each nested and with its mapped fields only.

Several columns may make one field and one column several, with a transform for it: their names are
joined by a plus: `{"name": Field("FirstName+LastName", "split_name")}`.
"""

from __future__ import annotations

import difflib
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from i18n import say
from models.catalogues import CATALOGUES, Catalogue, Children, Record, recognise
from subscribers.errors import Reject, clean
from subscribers.fitting import as_key, fit
from subscribers.paths import MISSING, is_plain, nest, parts, pick, problem
from subscribers.transforms import Transform, find

Flat = dict[str, Any]
#: (catalogue, id on one side) -> id on the other side.
Links = Mapping[tuple[str, str], str]
Direction = Literal["both", "out", "in"]
Conflict = Literal["internal", "external", "newest", "ask"]


@dataclass(frozen=True)
class Field:
    """One entry of `field_to_data`; a plain string is short for `Field(path)`.

    `path` is one of the forms in `paths`; `transform` a name of `transforms.TRANSFORMS`, with its
    arguments. `default` is sent where the internal value is empty. `conflict` says who wins where both sides
    changed the field since they last agreed: `internal`, `external`, `newest`, or `ask`: a person
    settles it, and until then neither side is written. `link` names the catalogue whose record the
    column points to: the other system's id of that record travels, see :func:`link_to`. `rows` maps
    the columns of child rows, see :func:`rows`.
    """

    path: str
    transform: str | None = None
    direction: Direction = "both"
    conflict: Conflict = "newest"
    default: Any = None
    required: bool = False
    link: str | None = None
    rows: Mapping[str, Field] | None = None


def link_to(catalogue: str, path: str, *, required: bool = False, direction: Direction = "both") -> Field:
    """A relation: the column holds the key of a record of `catalogue`, `path` the other system's id of it.

    Where that record is not in the system yet it is delivered first, and this one waits without
    using up attempts.
    """
    return Field(path, link=catalogue, required=required, direction=direction)


def rows(
    path: str,
    fields: Mapping[str, Field | str],
    *,
    direction: Direction = "both",
    conflict: Conflict = "newest",
    required: bool = False,
) -> Field:
    """Child rows, such as an invoice's lines: `path` is a list there, `fields` maps the columns of a row.

    They are compared, merged and sent as a whole and in their order, so a direction or a conflict
    policy is theirs together. What a row there holds beside the mapped fields is nobody's business.
    """
    return Field(path, direction=direction, conflict=conflict, required=required, rows=_entries(fields))


def _entries(fields: Mapping[str, Field | str]) -> dict[str, Field]:
    return {column: entry if isinstance(entry, Field) else Field(entry) for column, entry in fields.items()}


class Problem(str):
    """One thing that is wrong with a mapping, as a sentence; with the place for who shows it there.

    `row` counts from 1, `child` too within child rows (None: the row itself), `cell` is the name of a
    field of `FieldRow`.
    """

    row: int
    child: int | None
    cell: str
    reason: str

    def __new__(cls, row: int, cell: str, reason: str, child: tuple[str, int] | None = None) -> Problem:
        where = say("row {n}", n=row)
        if child:
            where = say("row {n}, {column} {place}", n=row, column=child[0], place=child[1])
        made = super().__new__(cls, f"{where}: {reason}")
        made.row, made.child, made.cell, made.reason = row, child and child[1], cell, reason
        return made


class FieldRow(BaseModel):
    """A row of a mapping as the panel edits and the database keeps it."""

    model_config = ConfigDict(extra="forbid")

    column: str
    path: str
    transform: str | None = None
    direction: Direction = "both"
    conflict: Conflict = "newest"
    default: Any = None
    required: bool = False
    link: str | None = None
    #: The fields of child rows, as rows of the same form.
    rows: list[FieldRow] | None = None

    def field(self) -> Field:
        """The same, as a mapping's entry."""
        inner = None if self.rows is None else {row.column: row.field() for row in self.rows}
        return Field(**self.model_dump(exclude={"column", "rows"}), rows=inner)


class Mapper:
    """Carries records over between a catalogue (or the child rows of one) and external fields."""

    def __init__(self, catalogue: Catalogue | Children, fields: Mapping[str, Field | str]) -> None:
        self.catalogue = catalogue
        self.fields = _entries(fields)
        self._column_of = {entry.path: column for column, entry in self.fields.items()}
        self._transforms = {
            column: find(entry.transform) for column, entry in self.fields.items() if entry.transform is not None
        }
        self._inner = {
            column: Mapper(_children(catalogue)[column], entry.rows)
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
        self.is_level = all("+" not in entry.path for _, entry in self._sent)

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

    def points_to(self, record: Record) -> Iterator[tuple[str, str]]:
        """(catalogue, record id) of each record this one, or a child row of it, points to outward."""
        for column, entry in self._pointing:
            value = record.get(column)
            if is_empty(value):
                continue
            if entry.link:
                yield entry.link, str(value)
            elif (inner := self._inner.get(column)) is not None:
                yield from itertools.chain.from_iterable(inner.points_to(row) for row in value or [])

    def points_to_there(self, flat: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
        """(catalogue, the system's id) of each record these external fields point to."""
        for path, value in flat.items():
            column = self._column_of[path]
            if is_empty(value):
                continue
            if link := self.fields[column].link:
                yield link, str(value)
            elif (inner := self._inner.get(column)) is not None and _is_rows(value):
                for row in value:
                    yield from inner.points_to_there(inner.theirs(row))

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
            raise Reject(words(wrong), fields=wrong)
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
        if any(pair not in links for pair in self.points_to(row)):
            raise _Unknown
        return self.outward(row, links=links)

    def theirs(self, data: Mapping[str, Any]) -> Flat:
        """The mapped fields of an external record, by path; one that is not mentioned is left out."""
        found: Flat = {}
        if not data:
            return found
        for column, entry in self.fields.items():
            value = pick(data, entry.path)
            if value is MISSING:
                continue
            if (inner := self._inner.get(column)) is not None and (value is None or _is_rows(value)):
                value = [nest(inner.theirs(row)) for row in value or []]
            found[entry.path] = plain(value)
        return found

    def comes_in(self, path: str) -> bool:
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
            raise Reject(words(wrong), fields=wrong)
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
        return {name: fit(self.catalogue.table.c[name], one) for name, one in zip(names, values, strict=True)}

    def _rows_in(self, column: str, value: Any, keys: Links, now: Record) -> list[Record]:
        inner = self._inner[column]
        if not (is_empty(value) or _is_rows(value)):
            raise ValueError("is no list of objects, as child rows are")
        theirs = [inner.theirs(row) for row in value or []]
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
        raise Reject(words(wrong), fields=wrong)
    return carried


def entry_row(column: str, entry: Field) -> dict[str, Any]:
    """An entry of a mapping in the form of `FieldRow`."""
    inner = None if entry.rows is None else [entry_row(*pair) for pair in entry.rows.items()]
    return {"column": column, **vars(entry), "rows": inner}


#: A cell of a row, and what is wrong with it.
_Wrong = tuple[str, str]


def check_rows(
    rows: Iterable[Mapping[str, Any]], catalogue: Catalogue | Children
) -> tuple[dict[str, Field], list[str]]:
    """The mapping these rows make, and everything wrong with them, one `Problem` each naming row and cell."""
    parsed: list[tuple[int, FieldRow]] = []
    problems: list[str] = []
    for number, raw in enumerate(rows, start=1):
        try:
            parsed.append((number, FieldRow.model_validate(raw)))
        except ValidationError as error:
            for item in error.errors(include_url=False):
                place = ".".join(map(str, item["loc"]))
                words = item["msg"]
                if item["type"] == "extra_forbidden":
                    near = difflib.get_close_matches(place, FieldRow.model_fields, 1)
                    words = say("is no key that is known here") + (say("; {near} is", near=near[0]) if near else "")
                problems.append(Problem(number, place.partition(".")[0], f"{place}: {words}"))
    fields: dict[str, Field] = {}
    for number, row, wrong in _check(parsed, catalogue):
        problems += [Problem(number, cell, reason) for cell, reason in wrong]
        if row.rows is not None and (child := _children(catalogue).get(row.column)) is not None:
            problems += _check_inner(number, row, child)
        if not wrong:
            fields[row.column] = row.field()
    if not fields and not problems:
        problems.append(say("a mapping needs at least one field"))
    return fields, problems


def _check(
    rows: list[tuple[int, FieldRow]], catalogue: Catalogue | Children
) -> Iterator[tuple[int, FieldRow, list[_Wrong]]]:
    paths: set[str] = set()
    columns: set[str] = set()
    for number, row in rows:
        wrong = [*_check_column(row, catalogue), *_check_path(row), *_check_names(row, catalogue)]
        twice = [name for name in parts(row.column) if name in columns]
        wrong += [("column", say("the column {name!r} is mapped twice", name=name)) for name in twice]
        own = parts(row.path) if is_plain(row.path) else [row.path]
        for path in own if is_plain(row.path) else ():
            if any(path.startswith(f"{p}.") or p.startswith(f"{path}.") for p in paths):
                wrong.append(("path", say("{path!r} is inside, or holds, another row's external field", path=path)))
        wrong += [
            ("path", say("the external field {path!r} is used twice", path=path)) for path in own if path in paths
        ]
        columns.update(parts(row.column))
        paths.update(own)
        yield number, row, wrong


def _children(catalogue: Catalogue | Children) -> dict[str, Children]:
    return {child.name: child for child in catalogue.children} if isinstance(catalogue, Catalogue) else {}


def _check_column(row: FieldRow, catalogue: Catalogue | Children) -> Iterator[_Wrong]:
    children = _children(catalogue)
    for column in parts(row.column):
        if column not in catalogue.columns:
            known = ", ".join(catalogue.columns)
            words = say(
                "{name} has no column {column!r}; it has {known}", name=catalogue.name, column=column, known=known
            )
            yield "column", words
        elif column in children and (row.rows is None or column != row.column):
            columns = ", ".join(children[column].columns)
            words = say(
                "{column!r} are child rows: say in `rows` how their columns are mapped ({columns})",
                column=column,
                columns=columns,
            )
            yield "column", words
        elif column not in children and row.rows is not None:
            known = ", ".join(children)
            there_are = (
                say("{name} has child rows {known}", name=catalogue.name, known=known)
                if children
                else say("{name} has no child rows", name=catalogue.name)
            )
            plain_column = say("{column!r} is a plain column and takes no `rows`", column=column)
            yield "column", f"{plain_column}; {there_are}"


def _check_path(row: FieldRow) -> Iterator[_Wrong]:
    if text := problem(row.path):
        yield "path", text
    elif not is_plain(row.path) and row.direction != "in":
        yield (
            "path",
            say("{path!r} is an expression, which can only be read: its direction must be `in`", path=row.path),
        )


def _check_names(row: FieldRow, catalogue: Catalogue | Children) -> Iterator[_Wrong]:
    if row.rows is not None and (row.transform or row.link or row.default is not None):
        yield "transform", say("child rows as a whole have no transform, relation or default: their own fields have")
    if row.link and row.link not in CATALOGUES:
        yield (
            "link",
            say("no catalogue {link!r} to link to; there are {known}", link=row.link, known=", ".join(CATALOGUES)),
        )
    transform = Transform(plain, plain)
    if row.transform:
        try:
            transform = find(row.transform)
        except ValueError as error:
            yield "transform", str(error)
            return
        if row.link:
            yield "transform", say("a relation takes no transform: the system's own id travels")
    here, there = len(parts(row.column)), len(parts(row.path)) if is_plain(row.path) else 1
    if row.rows is None and (here, there) != (transform.here, transform.there):
        takes: dict[str, Any] = {"made": transform.there, "of": transform.here, "here": here, "there": there}
        takes |= {"column": row.column, "path": row.path}
        if row.transform:
            yield (
                "transform",
                say(
                    "the transform {name} makes {made} there of {of} here, "
                    "but {column!r} and {path!r} are {here} and {there}",
                    name=row.transform,
                    **takes,
                ),
            )
        else:
            yield (
                "transform",
                say(
                    "without a transform a row makes {made} there of {of} here, "
                    "but {column!r} and {path!r} are {here} and {there}",
                    **takes,
                ),
            )
    if there > 1 and row.default is not None:
        yield "default", say("several external fields take no default")
    if transform.column is not None and transform.column not in _columns_around(catalogue):
        yield (
            "transform",
            say(
                "{transform}: {name} has no column {column!r}",
                transform=row.transform,
                name=catalogue.name,
                column=transform.column,
            ),
        )


def _columns_around(catalogue: Catalogue | Children) -> set[str]:
    """The columns a transform may depend on: the record's own, for a child row those of its record too."""
    around = {column.name for column in catalogue.table.c}
    for parent in CATALOGUES.values():
        if catalogue in parent.children:
            around |= {column.name for column in parent.table.c}
    return around


def _check_inner(number: int, row: FieldRow, child: Children) -> list[str]:
    numbered = list(enumerate(row.rows or [], start=1))
    problems: list[str] = []
    for count, _one, wrong in _check([pair for pair in numbered if is_plain(pair[1].path)], child):
        problems += [Problem(number, cell, reason, (row.column, count)) for cell, reason in wrong]
    for count, one in numbered:
        inside = (row.column, count)
        if not is_plain(one.path):
            says = say("{path!r} is no field name or dotted path, as the fields of child rows are", path=one.path)
            problems.append(Problem(number, "path", says, inside))
        if one.direction != "both" or one.conflict != "newest":
            says = say("child rows are sent and merged as a whole: direction and conflict belong to the list")
            problems.append(Problem(number, "direction", says, inside))
    if not numbered:
        problems.append(Problem(number, "column", say("child rows need at least one field")))
    return problems


#: Values that are compared, and written as JSON, as they stand: nearly all there are.
_SIMPLE = frozenset({str, int, float, bool, type(None)})


def same(one: Any, other: Any) -> bool:
    """Whether two values mean the same to a person: empty text and nothing do, 12 and 12.0 do.

    In lists and objects too; a key that is not there is an empty one.
    """
    if type(one) is type(other) and type(one) in _SIMPLE:
        return bool(one == other)
    if is_empty(one) and is_empty(other):
        return True
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(same(one.get(key), other.get(key)) for key in {*one, *other})
    if isinstance(one, bool) is not isinstance(other, bool):
        return False
    return bool(one == other)


def is_empty(value: Any) -> bool:
    """None, empty text and a list without rows."""
    return not value and (value is None or value in ("", []))


def plain(value: Any) -> Any:
    """A value as JSON can carry it, the same way each time."""
    kind = type(value)
    if kind is str:
        return value if value.isascii() and "\x00" not in value else clean(value)
    if kind in _SIMPLE:
        return value
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, datetime | date):
        return value.isoformat()
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    return value


def words(wrong: Mapping[str, str]) -> str:
    """Complaints per field as one sentence."""
    return "; ".join(f"{name}: {text}" for name, text in wrong.items())
