"""Run SOQL: translate conditions to SQL over the org's tables, and split results into pages.

SOQL and SOSL reference: "Comparison Operators", "fieldExpression Syntax"; REST API guide: "Query",
"QueryAll", "Query More Results".
"""

from __future__ import annotations

import secrets
import sqlite3
import threading
from collections import OrderedDict
from typing import Any

from . import soql
from .date_literals import day_range, is_date_literal
from .errors import SalesforceError
from .identifiers import to_18
from .schema import ID_KINDS, NUMBER_KINDS, OBJECTS, TEXT_KINDS, Field, SObject
from .soql import Both, Comparison, Condition, Not, Query, Value
from .store import Record, Store
from .times import parse_date, parse_datetime, to_wire

#: How many unfinished results the org keeps; it drops the oldest first.
CURSORS_KEPT = 100
_LIMIT_OF_FIELDS = 200
#: The most rows a query may find.
_MOST_ROWS = 50_000_000
_SQL_OPERATORS = {"=": "IS", "!=": "IS NOT"}

Sql = tuple[str, list[Any]]


class Result:
    """The result of a query: the object, the names of the selected fields in order, and the rows."""

    def __init__(self, one: SObject, fields: list[str], rows: list[Record]) -> None:
        self.object = one
        self.fields = fields
        self.rows = rows

    def records(self, base: str) -> list[Record]:
        """Return the rows in the API's form, each with its `attributes`. `base` is `/services/data/v59.0`."""
        return [record_json(self.object, row, base, self.fields) for row in self.rows]


def record_json(one: SObject, row: Record, base: str, fields: list[str] | None = None) -> Record:
    """Return a record with its `attributes`, restricted to `fields` if given."""
    attributes = {"type": one.name, "url": f"{base}/sobjects/{one.name}/{row['Id']}"}
    return {"attributes": attributes, **{name: row[name] for name in fields or row}}


def run(store: Store, text: str, *, deleted_too: bool = False) -> tuple[Query, Result, int]:
    """Run a query, with `deleted_too` as a queryAll. Return (query, result, number of records found)."""
    try:
        return _run(store, text, deleted_too)
    except (
        RecursionError,
        sqlite3.OperationalError,
    ) as error:  # nested or joined too deeply, for us or SQLite
        raise SalesforceError("QUERY_TOO_COMPLICATED", f"the query is too complicated: {error}") from error


def _run(store: Store, text: str, deleted_too: bool) -> tuple[Query, Result, int]:
    query = soql.parse(text)
    one = _object(query)
    compiler = _Compiler(store, one)
    where, parameters = compiler.condition(query.where) if query.where else ("1", [])
    if not deleted_too:
        where = f"({where}) AND IsDeleted = 0"
    if query.count:
        found = store.count_where(one, where, parameters, _tail(query, compiler))
        return query, Result(one, [], []), found
    fields = _selected(query, one)
    rows = store.select(one, where, parameters, _tail(query, compiler))
    return query, Result(one, fields, rows), len(rows)


class Cursors:
    """Results longer than a page, kept until the client has fetched all of them or newer results replace them."""

    def __init__(self) -> None:
        self._results: OrderedDict[str, list[Record]] = OrderedDict()
        self._lock = threading.Lock()

    def first_page(self, records: list[Record], size: int, base: str) -> Record:
        """Return the first page of a result in the API's form."""
        locator = ""
        if len(records) > size:
            locator = f"0r8{secrets.token_hex(8)[:15]}"
            with self._lock:
                self._results[locator] = records
                while len(self._results) > CURSORS_KEPT:
                    self._results.popitem(last=False)
        return _page(records, locator, 0, size, base)

    def next_page(self, locator: str, size: int, base: str) -> Record:
        """Return the page that a `nextRecordsUrl` names. Raises INVALID_QUERY_LOCATOR if it is no longer kept."""
        key, _, start = locator.rpartition("-")
        with self._lock:
            records = self._results.get(key)
        if records is None or not start.isdigit() or int(start) >= len(records):
            raise SalesforceError("INVALID_QUERY_LOCATOR", "invalid query locator")
        return _page(records, key, int(start), size, base)

    def clear(self) -> None:
        with self._lock:
            self._results.clear()


def _page(records: list[Record], locator: str, start: int, size: int, base: str) -> Record:
    end = start + size
    page: Record = {"totalSize": len(records), "done": end >= len(records)}
    if not page["done"]:
        page["nextRecordsUrl"] = f"{base}/query/{locator}-{end}"
    page["records"] = records[start:end]
    return page


def _object(query: Query) -> SObject:
    found = next((one for name, one in OBJECTS.items() if name.lower() == query.object_name.lower()), None)
    if found is None:
        raise SalesforceError(
            "INVALID_TYPE",
            f"sObject type '{query.object_name}' is not supported. If you are attempting to use a custom "
            "object, be sure to append the '__c' after the entity name.",
        )
    return found


def _selected(query: Query, one: SObject) -> list[str]:
    names: list[str] = []
    for name in query.fields:
        if name in ("*all", "*custom") and (query.limit is None or query.limit > _LIMIT_OF_FIELDS):
            raise SalesforceError(
                "MALFORMED_QUERY", f"The SOQL FIELDS function must have a LIMIT of at most {_LIMIT_OF_FIELDS}"
            )
        if name.startswith("*"):
            wanted = (it.name for it in one.fields.values() if name == "*all" or it.custom == (name == "*custom"))
            names.extend(wanted)
        else:
            names.append(_field(one, name).name)
    return names


def _field(one: SObject, name: str) -> Field:
    head, dot, _ = name.partition(".")
    if dot:
        raise SalesforceError(
            "INVALID_FIELD",
            f"Didn't understand relationship '{head}' in field path: the simulator has plain fields",
        )
    try:
        return one.field(name)
    except SalesforceError:
        raise SalesforceError(
            "INVALID_FIELD",
            f"\nERROR at Row:1:Column:1\nNo such column '{name}' on entity '{one.name}'. If you are "
            "attempting to use a custom field, be sure to append the '__c' after the custom field name.",
        ) from None


def _tail(query: Query, compiler: _Compiler) -> str:
    terms = [compiler.order(one) for one in query.order] or ["Id"]
    tail = f"ORDER BY {', '.join(terms)}"
    if query.limit is not None or query.offset:
        limit = -1 if query.limit is None else min(query.limit, _MOST_ROWS)
        tail += f" LIMIT {limit} OFFSET {query.offset}"
    return tail


class _Compiler:
    """Translates conditions to SQL that is never NULL: SOQL logic has two values, and `!= 'x'` matches nulls."""

    def __init__(self, store: Store, one: SObject) -> None:
        self._object = one
        self._now = store.clock.now()

    def condition(self, condition: Condition) -> Sql:
        if isinstance(condition, Comparison):
            return self._comparison(condition)
        if isinstance(condition, Not):
            inner, parameters = self.condition(condition.condition)
            return f"NOT ({inner})", parameters
        return self._both(condition)

    def order(self, one: soql.Order) -> str:
        field = self._filterable(one.field, "sorted")
        nulls = "LAST" if one.nulls_last else "FIRST"
        return f'"{field.name}" {"DESC" if one.descending else "ASC"} NULLS {nulls}'

    def _both(self, both: Both) -> Sql:
        parts = [self.condition(one) for one in both.conditions]
        text = f" {both.word} ".join(f"({part})" for part, _ in parts)
        return text, [parameter for _, parameters in parts for parameter in parameters]

    def _comparison(self, comparison: Comparison) -> Sql:
        field = self._filterable(comparison.field, "filtered")
        if comparison.operator == "like":
            return self._like(field, comparison.values[0])
        if comparison.operator in ("in", "not in"):
            text, parameters = self._in(field, comparison.values)
            return (f"({text})" if comparison.operator == "in" else f"NOT ({text})"), parameters
        return self._simple(field, comparison.operator, comparison.values[0])

    def _in(self, field: Field, values: tuple[Value, ...]) -> Sql:
        """Use one SQL IN for the plain values, which can use an index, and OR conditions for nulls and date spans."""
        special = [one for one in values if one.kind in ("null", "literal") or one.text == ""]
        parts = [self._simple(field, "=", one) for one in special]
        plain = [self._parameter(field, one) for one in values if one not in special]
        if plain:
            marks = ", ".join("?" * len(plain))
            parts.append((f'"{field.name}" IS NOT NULL AND "{field.name}" IN ({marks})', plain))
        text = " OR ".join(f"({part})" for part, _ in parts)
        return text, [parameter for _, parameters in parts for parameter in parameters]

    def _simple(self, field: Field, operator: str, value: Value) -> Sql:
        column = f'"{field.name}"'
        if value.kind == "literal":
            return self._range(field, operator, value)
        if field.kind == "datetime" and value.kind == "date":
            raise _wrong_type(field, "dateTime")
        parameter = None if value.kind == "null" else self._parameter(field, value)
        if operator in _SQL_OPERATORS:
            return f"{column} {_SQL_OPERATORS[operator]} ?", [parameter]
        if parameter is None or field.kind in ("boolean", "id", "reference"):
            raise SalesforceError(
                "INVALID_QUERY_FILTER_OPERATOR", f"invalid operator {operator} for field '{field.name}'"
            )
        return f"({column} IS NOT NULL AND {column} {operator} ?)", [parameter]

    def _range(self, field: Field, operator: str, value: Value) -> Sql:
        """Translate a comparison with a date literal such as TODAY, which means a span of days."""
        if field.kind not in ("date", "datetime") or not is_date_literal(value.text):
            raise SalesforceError("MALFORMED_QUERY", f"unexpected token: '{value.text}'")
        first, after = day_range(value.text, self._now)
        start: str = first.date().isoformat() if field.kind == "date" else to_wire(first)
        end: str = after.date().isoformat() if field.kind == "date" else to_wire(after)
        column = f'"{field.name}"'
        texts: dict[str, Sql] = {
            "=": (f"{column} >= ? AND {column} < ?", [start, end]),
            "!=": (f"NOT ({column} >= ? AND {column} < ?)", [start, end]),
            "<": (f"{column} < ?", [start]),
            "<=": (f"{column} < ?", [end]),
            ">": (f"{column} >= ?", [end]),
            ">=": (f"{column} >= ?", [start]),
        }
        text, parameters = texts[operator]
        if operator == "!=":
            return f"({column} IS NULL OR {text})", parameters
        return f"({column} IS NOT NULL AND {text})", parameters

    def _like(self, field: Field, value: Value) -> Sql:
        if field.kind not in TEXT_KINDS or value.kind != "string":
            raise SalesforceError(
                "INVALID_QUERY_FILTER_OPERATOR",
                f"invalid operator on {field.kind} field '{field.name}': LIKE",
            )
        return f'soql_like(?, "{field.name}")', [value.text]

    def _filterable(self, name: str, what: str) -> Field:
        field = _field(self._object, name)
        if not field.filterable:
            raise SalesforceError("INVALID_FIELD", f"field '{field.name}' can not be {what} in a query call")
        return field

    def _parameter(self, field: Field, value: Value) -> Any:
        """Return a literal in the field's stored form. Raises INVALID_FIELD for a literal of another type."""
        if field.kind in TEXT_KINDS and value.kind == "string":
            return value.text or None
        if field.kind in ID_KINDS and value.kind == "string":
            return _id_parameter(value.text)
        if field.kind in NUMBER_KINDS and value.kind == "number":
            return float(value.text)
        if field.kind == "boolean" and value.kind == "boolean":
            return int(value.text == "true")
        if field.kind == value.kind and field.kind in ("date", "datetime"):
            return _time_parameter(value)
        raise _wrong_type(field, {"textarea": "string", "datetime": "dateTime"}.get(field.kind, field.kind))


def _id_parameter(text: str) -> str | None:
    record_id = to_18(text) if text else None
    if text and record_id is None:
        raise SalesforceError("INVALID_QUERY_FILTER_OPERATOR", f"invalid ID field: {text}")
    return record_id


def _time_parameter(value: Value) -> str:
    try:
        if value.kind == "date":
            return parse_date(value.text).isoformat()
        return to_wire(parse_datetime(value.text))
    except ValueError:
        raise SalesforceError("MALFORMED_QUERY", f"unexpected token: '{value.text}'") from None


def _wrong_type(field: Field, kind: str) -> SalesforceError:
    enclosed = "should be" if field.kind in TEXT_KINDS | ID_KINDS else "should not be"
    return SalesforceError(
        "INVALID_FIELD",
        f"value of filter criterion for field '{field.name}' must be of type {kind} and {enclosed} enclosed in quotes",
    )
