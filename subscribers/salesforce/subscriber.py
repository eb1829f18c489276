"""Records of any object: written 200 per call, each with its own outcome, and polled by SystemModstamp.

REST API developer guide: "sObject Collections", "Query", "sObject Get Deleted".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from subscribers.base import Subscriber
from subscribers.errors import BatchTooLarge, Gone, Reject, Retry, SyncError
from subscribers.http.client import iso_time
from subscribers.mapping.paths import is_plain
from subscribers.records import External, ExternalField, Item, Page
from subscribers.salesforce import bulk, describe
from subscribers.salesforce.failures import by_code
from subscribers.salesforce.identifiers import full_id
from subscribers.salesforce.system import Salesforce, soql

#: Salesforce reports deletions of the last 15 days only.
DELETED_HISTORY = timedelta(days=14, hours=23)
#: Seconds between two requests for deletions; the query for changes returns those still in the recycle bin.
DELETED_INTERVAL_SECONDS = 900
#: Maximum number of records in a collection.
COLLECTION_SIZE = 200
#: Records in one job of Bulk API 2.0: few enough to look up each one if the result of the job stays unknown.
JOB_SIZE = 5000


class SalesforceSubscriber(Subscriber):
    """Records of one object, `sobject`.

    Only the fields of the active mapping are read. If `mergeable`, a record that was merged into another
    holds the id of that one.
    """

    system = "salesforce"
    system_class = Salesforce
    sobject: ClassVar[str]
    mergeable: ClassVar[bool] = False
    bulk_size = COLLECTION_SIZE
    poll_seconds = 60

    @classmethod
    def connected(cls, client: Any) -> SalesforceSubscriber | None:
        """Return the subscriber if its object is synchronized: an included one must be in SALESFORCE_OBJECTS."""
        return cls(client) if client.options.keeps(cls.sobject) else None

    # --- calls ------------------------------------------------------------------------------------

    def batch_size(self, waiting: int) -> int:
        """Return the size of a collection; from SALESFORCE_BULK_THRESHOLD records on, of a job of Bulk API 2.0.

        A job cannot allow duplicates, so it is not used if SALESFORCE_ALLOW_DUPLICATES is set.
        """
        if self.client.options.allow_duplicates:
            return COLLECTION_SIZE
        return JOB_SIZE if waiting > max(self.client.options.bulk_threshold, COLLECTION_SIZE) else COLLECTION_SIZE

    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        """Upsert by the External ID, so that a repeated call cannot create a second record."""
        records = [self._record(item.data, item) for item in items]
        if len(items) > COLLECTION_SIZE and bulk.can_carry(records):
            outcomes = self._job("upsert", items, records)
        else:
            path = f"composite/sobjects/{self.sobject}/{self.external_id_field}"
            outcomes = self._collections(path, items, records)
        return self._judged(items, outcomes)

    def bulk_update(self, items: Sequence[Item]) -> list[External | SyncError | None]:
        """Send the changes, by Salesforce's ids."""
        records = [self._record(item.changes, item) for item in items]
        if len(items) > COLLECTION_SIZE and bulk.can_carry(records):
            rows = [record | {"Id": item.linked_id} for item, record in zip(items, records, strict=True)]
            return [*self._judged(items, self._job("update", items, rows))]
        records = [record | {"id": item.linked_id} for item, record in zip(items, records, strict=True)]
        return [*self._judged(items, self._collections("composite/sobjects", items, records))]

    def bulk_delete(self, items: Sequence[Item]) -> list[SyncError | None]:
        """Move records to the recycle bin."""
        outcomes: list[SyncError | None] = []
        for start in range(0, len(items), COLLECTION_SIZE):
            some = items[start : start + COLLECTION_SIZE]
            ids = ",".join(item.linked_id for item in some)
            params = {"ids": ids, "allOrNone": "false"}
            results = self._collection("DELETE", "composite/sobjects", some, params=params)
            outcomes += [one if isinstance(one, SyncError) else None for one in results]
        return outcomes

    def fetch(self, external_id: str) -> External:
        """Return the current record. Raises `Gone`."""
        try:
            return self._read(f"sobjects/{self.sobject}/{quote(external_id, safe='')}")
        except Gone as gone:
            raise self._with_merge_target(external_id, gone) from None

    def find(self, item: Item) -> External | None:
        """Return the record whose External ID is ours."""
        from simple_salesforce.format import format_external_id  # noqa: PLC0415

        by_id = format_external_id(self.external_id_field, item.mark)
        try:
            return self._read(f"sobjects/{self.sobject}/{by_id}")
        except Gone:
            return None

    def find_matching(self, item: Item) -> list[External]:
        """Return up to two records with the same match values."""
        wanted = self.match_values(item.data)
        if not wanted or not all(map(is_plain, wanted)):
            return []
        where = " AND ".join(f"{path} = {{}}" for path in wanted)
        query = f"SELECT {', '.join(self.fields())} FROM {self.sobject} WHERE {where} LIMIT 2"
        records = list(self._all(soql(query, *wanted.values())))
        return [one for one in self._externals(records) if not one.deleted]

    def bulk_fetch(self, external_ids: Sequence[str]) -> list[External | SyncError]:
        """Return the records that are not in the recycle bin; one query per collection."""
        found: dict[str, External | SyncError] = {}
        select = f"SELECT {', '.join(self.fields())} FROM {self.sobject} WHERE Id IN {{}}"
        for start in range(0, len(external_ids), COLLECTION_SIZE):
            records = list(self._all(soql(select, list(external_ids[start : start + COLLECTION_SIZE]))))
            for one in self._externals(records):
                found[one.id] = self._gone(one.id, one.merged_into) if one.deleted else one
        return [found.get(full_id(one)) or self._gone(one) for one in external_ids]

    def describe(self) -> Mapping[str, ExternalField]:
        """Return the object's fields."""
        return describe.fields(describe.describe(self.client, self.sobject))

    def missing_permissions(self) -> list[str]:
        """Return the missing permissions on the object and the External ID field."""
        return describe.missing_permissions(self.client, self.sobject, [self.external_id_field])

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Yield changed and deleted records by SystemModstamp, then deletions that left the recycle bin.

        Position: `{"modstamp": time, "deleted": time}`, as Salesforce writes times.
        """
        position = dict(position or {})
        since = position.get("modstamp")
        again = "deleted" in position
        found, now = self.client.call(lambda org: org.query(self._query(since), include_deleted=again))
        position.setdefault("deleted", format_time(now))
        while True:
            records = found["records"]
            if records:
                settled = earlier(now, self.client.overlap_seconds)
                position["modstamp"] = not_before(since, records[-1]["SystemModstamp"], settled)
            yield Page(self._externals(records), dict(position))
            if found["done"]:
                break
            found = self._next(found)
        yield from self._deleted(position, now)

    def replaces(self, name: str) -> bool:
        """Return False: Salesforce changes the given fields only, also those of a compound address."""
        return False

    # --- helpers --------------------------------------------------------------------------------------

    @property
    def mark_path(self) -> str:
        """The field with our mark."""
        return self.external_id_field

    @property
    def external_id_field(self) -> str:
        """The field that holds `Item.mark`."""
        return str(self.client.options.external_id_field)

    def fields(self) -> list[str]:
        """Return the fields to read, without duplicates, which SOQL refuses."""
        mapped = self.mapper.paths()
        own = ["Id", "SystemModstamp", "IsDeleted", self.external_id_field]
        return [*dict.fromkeys([*own, *(["MasterRecordId"] if self.mergeable else []), *mapped])]

    def own(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the data that belongs to the record itself."""
        return dict(data)

    def explain_gone(self, item: Item, gone: SyncError) -> SyncError:
        """Return the error for a missing record; whether a linked one is gone, a fetch shows.

        An upsert by the External ID creates a missing record, so another record is missing, or none at all.
        """
        if item.external_id is not None:
            return gone
        if any(self.mapper.references(item.record)) and "ENTITY_IS_DELETED" in str(gone):
            return Retry(f"a record that it points to is deleted there: {gone}")
        return Reject(str(gone), code="reference_missing")

    def _gone(self, external_id: str, merged_into: str | None = None) -> Gone:
        return Gone(f"{self.sobject} {external_id} is deleted there", merged_into=merged_into)

    def _with_merge_target(self, external_id: str, gone: SyncError) -> SyncError:
        """Return the error with the record into which the missing one was merged, if any."""
        query = soql(f"SELECT MasterRecordId FROM {self.sobject} WHERE Id = {{}}", external_id)
        found = next(self._all(query), None) if self.mergeable else None
        return Gone(str(gone), merged_into=found["MasterRecordId"] or None) if found else gone

    def _judged(self, items: Sequence[Item], outcomes: Sequence[External | SyncError]) -> list[External | SyncError]:
        pairs = zip(items, outcomes, strict=True)
        return [
            self.explain_gone(item, one).with_response(one.response)
            if isinstance(one, SyncError) and one.unlinks
            else one
            for item, one in pairs
        ]

    def _record(self, data: Mapping[str, Any], item: Item) -> dict[str, Any]:
        return {**self.own(data), "attributes": {"type": self.sobject}, self.external_id_field: item.mark}

    def _externals(self, records: Sequence[Mapping[str, Any]]) -> list[External]:
        """Return the records; those merged into another come first, so that the other one is linked after them."""
        found = [self.client.external(one) for one in records]
        return sorted(found, key=lambda one: one.merged_into is None)

    def _all(self, query: str) -> Iterator[dict[str, Any]]:
        """Yield all results of a query, including deleted records."""
        found, _ = self.client.call(lambda org: org.query(query, include_deleted=True))
        yield from found["records"]
        yield from self._more(found)

    def _more(self, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the results after the first page."""
        while not found["done"]:
            found = self._next(found)
            yield from found["records"]

    def _next(self, found: Mapping[str, Any]) -> dict[str, Any]:
        more, _ = self.client.call(lambda org: org.query_more(found["nextRecordsUrl"], identifier_is_url=True))
        return dict(more)

    def _read(self, path: str) -> External:
        parameters = {"fields": ",".join(self.fields())}
        record, _ = self.client.call(lambda org: org.restful(path, params=parameters))
        if not isinstance(record, Mapping) or "Id" not in record:
            raise Retry("the response is not a record")
        return self._externals([record])[0]

    def _job(
        self, operation: Literal["upsert", "update"], items: Sequence[Item], records: Sequence[Mapping[str, Any]]
    ) -> list[External | SyncError]:
        rows = [{name: value for name, value in one.items() if name != "attributes"} for one in records]
        outcomes = bulk.ingest(self.client, self.sobject, operation, self.external_id_field, rows)
        return [
            External(one[0], item.data, at=one[1], mark=item.mark) if isinstance(one, tuple) else one
            for item, one in zip(items, outcomes, strict=True)
        ]

    def _collections(
        self, path: str, items: Sequence[Item], records: Sequence[Mapping[str, Any]]
    ) -> list[External | SyncError]:
        outcomes: list[External | SyncError] = []
        for start in range(0, len(items), COLLECTION_SIZE):
            some = slice(start, start + COLLECTION_SIZE)
            body = {"allOrNone": False, "records": records[some]}
            outcomes += self._collection("PATCH", path, items[some], json=body)
        return outcomes

    def _collection(self, method: str, path: str, items: Sequence[Item], **body: Any) -> list[External | SyncError]:
        """Return the outcome of each item of one call; if the whole call failed, its error for each."""
        try:
            results, at = self.client.call(lambda org: org.restful(path, method=method, **body), writes=True)
            if not isinstance(results, list) or len(results) != len(items):
                raise Retry("the response does not contain a result for each record", maybe_done=True)
        except Gone as error:
            return [unknown_address(path, error)] * len(items)
        except SyncError as error:
            return [error] * len(items)
        call = self.client.request_id
        return [
            External(str(result["id"]), item.data, at=at, mark=item.mark, request_id=call)
            if result.get("success")
            else by_code(result.get("errors") or [], request_id=call).with_response(self.client.quote(result))
            for item, result in zip(items, results, strict=True)
        ]

    def _query(self, since: str | None) -> str:
        at = iso_time(since)
        # Records with exactly this time are read again: times are whole seconds, and several records may share one.
        where = soql(" WHERE SystemModstamp >= {}", at) if at else ""
        return f"SELECT {', '.join(self.fields())} FROM {self.sobject}{where} ORDER BY SystemModstamp, Id"

    def _deleted(self, position: dict[str, Any], now: datetime) -> Iterator[Page]:
        """Yield a window of deletions. Only those that left the recycle bin need it, so requests are infrequent."""
        since = iso_time(position["deleted"]) or now
        start = max(since, now - DELETED_HISTORY).replace(second=0)
        end = now.replace(second=0)  # Salesforce uses whole minutes only.
        if (end - start).total_seconds() < DELETED_INTERVAL_SECONDS:
            return
        try:
            found = self._deleted_between(start, end)
        except Reject as error:
            if "INVALID_REPLICATION_DATE" not in str(error):
                raise
            # Salesforce reports nothing of this time, and will not later: continue from now.
            yield Page([], {**position, "deleted": format_time(end)}, gap=_gap(since, now))
            return
        gone = [
            External(full_id(one["id"]), {}, at=iso_time(one["deletedDate"]), deleted=True)
            for one in found["deletedRecords"]
        ]
        kept_since = max(now - DELETED_HISTORY, iso_time(found.get("earliestDateAvailable")) or start)
        is_lost = since < kept_since - timedelta(minutes=1)
        gap = _gap(since, kept_since) if is_lost else ""
        yield Page(gone, {**position, "deleted": found["latestDateCovered"]}, gap=gap)

    def _deleted_between(self, start: datetime, end: datetime) -> dict[str, Any]:
        """Return the deletions of this time, or of its beginning if there are too many for one response."""
        path = f"sobjects/{self.sobject}/deleted/"
        while True:
            window = {"start": start.isoformat(), "end": end.isoformat()}
            try:
                found, _ = self.client.call(lambda org, window=window: org.restful(path, params=window))
                return dict(found)
            except BatchTooLarge:
                half = (start + (end - start) / 2).replace(second=0, microsecond=0)
                if half <= start:
                    raise
                end = half


def _gap(since: datetime, until: datetime) -> str:
    return (
        f"deletions between {since:%Y-%m-%d %H:%M} and {until:%Y-%m-%d %H:%M} UTC may be missing, "
        "because Salesforce no longer reports them"
    )


def unknown_address(path: str, error: Gone) -> Reject:
    """Return the error for a call with an unknown address: the org lacks the object or field; no record is missing."""
    return Reject(f"{path}: {error}", request_id=error.request_id, code="unknown_field").with_response(error.response)


def earlier(at: datetime, seconds: float) -> datetime:
    """Return the time this many seconds earlier."""
    return at - timedelta(seconds=seconds)


def not_before(since: str | None, newest: str, settled: datetime) -> str:
    """Return the newest time read, at most `settled`, so that records that become visible late are not missed."""
    reached = newest if (iso_time(newest) or settled) <= settled else format_time(settled)
    behind = iso_time(since)
    return since if since and behind and behind > (iso_time(reached) or settled) else reached


def format_time(at: datetime) -> str:
    """Return a time in Salesforce's format."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.000+0000"
