"""Records with child rows, such as invoices and their lines: two objects in Salesforce, one record in the hub.

A record and its rows are written completely or not at all (REST API developer guide, "Composite Graph"), so that
a poll never reads a partial one. A new row is upserted by an External ID made from the record's id and a number; a row
that is there already is recognised by its values, and keeps its own fields wherever it moves.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, ClassVar
from urllib.parse import quote

from models.catalogues import recognise
from subscribers.errors import Gone, Reject, Retry, SyncError
from subscribers.http.client import iso_time
from subscribers.mapping.paths import tops
from subscribers.mapping.values import same, without_empty
from subscribers.records import External, ExternalField, Item, Page
from subscribers.salesforce import describe
from subscribers.salesforce.failures import by_code
from subscribers.salesforce.subscriber import (
    COLLECTION_SIZE,
    SalesforceSubscriber,
    earlier,
    format_time,
    not_before,
    unknown_address,
)
from subscribers.salesforce.system import soql

#: Maximum number of graphs in one call, and of records in all of them.
MAX_GRAPHS = 75
MAX_NODES = 500
#: Records whose rows are read with one query: its address must not become too long.
PARENTS_PER_QUERY = 300

Json = dict[str, Any]
#: A record and the requests that write it.
Graph = tuple[Item, list[Json]]


class SalesforceWithLineItems(SalesforceSubscriber):
    """`row_sobject` holds the rows, `row_parent` is its field that refers to the record, and `row_place` the number of
    the row in the record, from 1. The mapping has one list, by `rows(...)`.
    """

    row_sobject: ClassVar[str]
    row_parent: ClassVar[str]
    row_place: ClassVar[str]

    # --- calls ------------------------------------------------------------------------------------

    def batch_size(self, waiting: int) -> int:
        """Return the size of a collection: Bulk API 2.0 writes one object at a time, so it is not used here."""
        return COLLECTION_SIZE

    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        """Create each record that has rows as one graph, and the others like any record."""
        return self._divided(
            items, [bool(item.data.get(self.rows_path)) for item in items], self._create_whole, super().bulk_create
        )

    def bulk_update(self, items: Sequence[Item]) -> list[External | SyncError | None]:
        """Update each record whose rows changed as one graph, and the others like any record."""
        return self._divided(
            items, [self.rows_path in item.changes for item in items], self._update_whole, super().bulk_update
        )

    def describe(self) -> Mapping[str, ExternalField]:
        """Return the object's fields, with its rows as one list."""
        return {**super().describe(), self.rows_path: ExternalField("list")}

    def missing_permissions(self) -> list[str]:
        """Return the missing permissions on the object and on its rows."""
        inner = next((one.rows for one in self.mapper.fields.values() if one.rows is not None), None) or {}
        names = [self.external_id_field, self.row_parent, self.row_place, *(one.path for one in inner.values())]
        return super().missing_permissions() + describe.missing_permissions(self.client, self.row_sobject, names)

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Yield records with a changed or deleted row first, as that does not change the record itself; then as usual.

        Position: as for any record, and `"rows"`, also a time.
        """
        position = dict(position or {})
        since = iso_time(position.get("rows"))
        if since is None:
            _, now = self.client.call(lambda org: org.query(f"SELECT Id FROM {self.row_sobject} LIMIT 1"))
            position["rows"] = format_time(earlier(now, self.client.overlap_seconds))
        else:
            yield from self._with_changed_rows(position, since)
        yield from super().changed_since(position)

    # --- reading ----------------------------------------------------------------------------------

    @property
    def rows_path(self) -> str:
        """The path of the rows in the active mapping; empty if it has none."""
        return next((entry.path for entry in self.mapper.fields.values() if entry.rows is not None), "")

    def own(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data without the rows, which are separate records in Salesforce."""
        return {name: value for name, value in data.items() if name != self.rows_path}

    def _externals(self, records: Sequence[Mapping[str, Any]]) -> list[External]:
        """Return the records with their rows; the time of each is the newest of the record and its rows."""
        found = super()._externals(records)
        if not self.rows_path:
            return found
        rows = self._rows([one.id for one in found if not one.deleted])
        return [one if one.deleted else self._whole(one, rows.get(one.id, [])) for one in found]

    def _whole(self, one: External, rows: Sequence[Json]) -> External:
        times = [one.at, *(iso_time(row["SystemModstamp"]) for row in rows)]
        there = [row for row in rows if not row["IsDeleted"]]
        return replace(one, data={**one.data, self.rows_path: there}, at=max((t for t in times if t), default=None))

    def _rows(self, ids: Sequence[str]) -> dict[str, list[Json]]:
        """Return the rows of these records, in order. Deleted ones are included for the time of the last change."""
        entry = next(entry for entry in self.mapper.fields.values() if entry.rows is not None)
        own = ["Id", "IsDeleted", "SystemModstamp", self.external_id_field, self.row_parent, self.row_place]
        fields = dict.fromkeys([*own, *tops(inner.path for inner in (entry.rows or {}).values())])
        found: dict[str, list[Json]] = {}
        for start in range(0, len(ids), PARENTS_PER_QUERY):
            query = soql(
                f"SELECT {', '.join(fields)} FROM {self.row_sobject} WHERE {self.row_parent} IN {{}} "
                f"ORDER BY {self.row_place} NULLS LAST, CreatedDate, Id",
                list(ids[start : start + PARENTS_PER_QUERY]),
            )
            for row in self._all(query):
                found.setdefault(row[self.row_parent], []).append(row)
        return found

    def _with_changed_rows(self, position: dict[str, Any], since: datetime) -> Iterator[Page]:
        where = soql("WHERE SystemModstamp >= {}", since)
        query = f"SELECT SystemModstamp, {self.row_parent} FROM {self.row_sobject} {where} ORDER BY SystemModstamp"
        found, now = self.client.call(lambda org: org.query(query, include_deleted=True))
        changed = [*found["records"], *self._more(found)]
        ids = list(dict.fromkeys(row[self.row_parent] for row in changed if row[self.row_parent]))
        newest = changed[-1]["SystemModstamp"] if changed else position["rows"]
        reached = not_before(position["rows"], newest, earlier(now, self.client.overlap_seconds))
        for start in range(0, len(ids), PARENTS_PER_QUERY):
            select = f"SELECT {', '.join(self.fields())} FROM {self.sobject} WHERE Id IN {{}}"
            records = list(self._all(soql(select, ids[start : start + PARENTS_PER_QUERY])))
            yield Page(self._externals(records), dict(position))
        position["rows"] = reached

    # --- writing ----------------------------------------------------------------------------------

    @staticmethod
    def _divided(items: Sequence[Item], whole: Sequence[bool], graphs: Any, plain: Any) -> list[Any]:
        """Write some items with `graphs` and the others with `plain`; return all outcomes in the order of the items."""
        outcomes: dict[str, Any] = {}
        for is_whole, write in ((True, graphs), (False, plain)):
            chosen = [item for item, one in zip(items, whole, strict=True) if one is is_whole]
            if chosen:
                outcomes |= dict(zip((item.record_id for item in chosen), write(chosen), strict=True))
        return [outcomes[item.record_id] for item in items]

    def _create_whole(self, items: Sequence[Item]) -> list[External | SyncError]:
        key = self.external_id_field
        graphs = []
        for item in items:
            body = self.own(item.data)
            address = f"{self.sobject}/{key}/{quote(item.mark, safe='')}"
            parent = self._node("PATCH", address, "record", body)
            graphs.append((item, [parent, *self._row_nodes(item, "@{record.id}")]))
        outcomes = self._written(graphs)
        # A record that existed before may have old rows, which must be deleted.
        there = [
            replace(item, external_id=one.id, changes={self.rows_path: item.data[self.rows_path]})
            for item, one in zip(items, outcomes, strict=True)
            if isinstance(one, _Existing)
        ]
        tidied = dict(zip((item.record_id for item in there), self._update_whole(there), strict=True))
        return [tidied.get(item.record_id, one) for item, one in zip(items, outcomes, strict=True)]

    def _update_whole(self, items: Sequence[Item]) -> list[External | SyncError]:
        if not items:
            return []
        try:
            present = self._rows([item.linked_id for item in items])
        except SyncError as error:
            return [error] * len(items)
        graphs = []
        for item in items:
            body = {**self.own(item.changes), self.external_id_field: item.mark}
            there = [row for row in present.get(item.linked_id, []) if not row["IsDeleted"]]
            known = self._recognised(there, item.data[self.rows_path] or [])
            surplus = [row["Id"] for index, row in enumerate(there) if index not in known]
            nodes = [
                self._node("PATCH", f"{self.sobject}/{quote(item.linked_id, safe='')}", "record", body),
                *self._row_nodes(
                    item, item.linked_id, [there[index] if index >= 0 else None for index in known], there
                ),
                *(
                    self._node("DELETE", f"{self.row_sobject}/{row_id}", f"gone{number}")
                    for number, row_id in enumerate(surplus)
                ),
            ]
            graphs.append((item, nodes))
        return self._written(graphs)

    def _recognised(self, there: Sequence[Json], wanted: Sequence[Json]) -> list[int]:
        """Return for each wanted row the index of the same row in Salesforce, or -1: fields that are not mapped belong
        to a row, whatever its place."""
        return recognise(there, [without_empty(row) for row in wanted], same)

    def _row_nodes(
        self, item: Item, parent: str, known: Sequence[Json | None] = (), there: Sequence[Json] = ()
    ) -> list[Json]:
        """Return the requests that write the rows; `known` are those in Salesforce that keep their External IDs."""
        taken = {row[self.external_id_field] for row in there}
        keys = (key for number in itertools.count(1) if (key := f"{item.mark}-{number}") not in taken)
        nodes = []
        wanted = item.data[self.rows_path] or []
        for place, (row, old) in enumerate(itertools.zip_longest(wanted, known[: len(wanted)]), start=1):
            body = {**row, self.row_parent: parent, self.row_place: place}
            key = f"{self.external_id_field}/{quote(next(keys), safe='')}" if old is None else old["Id"]
            nodes.append(self._node("PATCH", f"{self.row_sobject}/{key}", f"row{place}", body))
        return nodes

    def _node(self, method: str, address: str, name: str, body: Json | None = None) -> Json:
        url = f"/services/data/v{self.client.options.api_version}/sobjects/{address}"
        return {"method": method, "url": url, "referenceId": name} | ({} if body is None else {"body": body})

    def _written(self, graphs: Sequence[Graph]) -> list[External | SyncError]:
        outcomes: dict[str, External | SyncError] = {}
        for some in _payloads(graphs):
            if len(some[0][1]) > MAX_NODES:
                item, nodes = some[0]
                outcomes[item.record_id] = Reject(
                    f"{len(nodes) - 1} rows, but Salesforce takes {MAX_NODES - 1}", code="too_long"
                )
                continue
            outcomes |= zip((item.record_id for item, _ in some), self._call_graphs(some), strict=True)
        return [outcomes[item.record_id] for item, _ in graphs]

    def _call_graphs(self, some: Sequence[Graph]) -> list[External | SyncError]:
        graphs = [{"graphId": str(number), "compositeRequest": nodes} for number, (_, nodes) in enumerate(some)]
        try:
            reply, at = self.client.call(
                lambda org: org.restful("composite/graph", method="POST", json={"graphs": graphs}), writes=True
            )
            answers = {one["graphId"]: one for one in reply["graphs"]}
            if set(answers) != {graph["graphId"] for graph in graphs}:
                raise Retry("the response does not contain a result for each record", maybe_done=True)
        except Gone as error:
            return [unknown_address("composite/graph", error)] * len(some)
        except SyncError as error:
            return [error] * len(some)
        return [self._outcome(item, answers[str(number)], at) for number, (item, _) in enumerate(some)]

    def _outcome(self, item: Item, answer: Json, at: datetime) -> External | SyncError:
        answers = answer["graphResponse"]["compositeResponse"]
        if answer["isSuccessful"]:
            body = answers[0]["body"] or {}
            kind = _Existing if body.get("created") is False else External
            there = str(body.get("id") or item.linked_id)
            return kind(there, item.data, at=at, mark=item.mark, request_id=self.client.request_id)
        place, errors = next(
            (number, one["body"])
            for number, one in enumerate(answers)
            if one["httpStatusCode"] >= 300 and not _is_halted(one["body"])
        )
        return self._refused(item, place, errors).with_response(self.client.quote(answers[place]))

    def _refused(self, item: Item, place: int, errors: Sequence[Any]) -> SyncError:
        """Return the error for a failed position in a graph: the record is 0, its rows follow."""
        if not all(isinstance(one, dict) for one in errors):
            return Reject("several records there carry this External ID", code="ambiguous_match")
        error = by_code(errors, request_id=self.client.request_id)
        if place == 0:
            return self.explain_gone(item, error) if error.unlinks else error
        if error.unlinks:
            return Retry(f"row {place}, or a record that it points to, was deleted there: {error}")
        if error.is_terminal:
            where = f"{self.rows_path}[{place - 1}]"
            fields = {f"{where}.{name}": text for name, text in error.fields.items()}
            return Reject(f"{where}: {error}", fields=fields, code=error.code)
        return error


class _Existing(External):
    """A record that existed before the call to create it."""


def _is_halted(errors: Any) -> bool:
    """Return whether a request only failed because another one in its graph did."""
    return bool(errors) and isinstance(errors[0], dict) and errors[0].get("errorCode") == "PROCESSING_HALTED"


def _payloads(graphs: Sequence[Graph]) -> Iterator[list[Graph]]:
    """Yield the graphs in groups that fit into one call."""
    some: list[Graph] = []
    for graph in graphs:
        if some and (len(some) == MAX_GRAPHS or sum(len(nodes) for _, nodes in [*some, graph]) > MAX_NODES):
            yield some
            some = []
        some.append(graph)
    if some:
        yield some
