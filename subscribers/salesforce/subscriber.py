"""Records of any object: written 200 a call, each with its own outcome, and polled by SystemModstamp.

REST API developer guide: "sObject Collections", "Query", "sObject Get Deleted".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Literal
from urllib.parse import quote

from subscribers.base import Subscriber
from subscribers.errors import Gone, Reject, Retry, SyncError
from subscribers.http.client import iso_time
from subscribers.records import External, ExternalField, Item, Page
from subscribers.salesforce import bulk, describe
from subscribers.salesforce.failures import by_code
from subscribers.salesforce.system import Salesforce, soql

#: Records may become visible later than their SystemModstamp says; this close to the present they are
#: read again, seconds.
OVERLAP_SECONDS = 60
#: Salesforce tells of deletions no longer ago than 15 days.
DELETED_HISTORY = timedelta(days=14, hours=23)
#: Seconds between two questions for deletions; the query for changes tells of those in the recycle bin.
DELETED_INTERVAL_SECONDS = 900
#: Records that a collection takes.
COLLECTION_SIZE = 200
#: Records in one job of Bulk API 2.0: few enough to be looked up one by one, should nobody learn how it ended.
JOB_SIZE = 5000


class SalesforceSubscriber(Subscriber):
    """Records of one object, `sobject`.

    Only the fields of the mapping in force are read. Where `mergeable`, a record that lost in a merge
    says which one it lives on in.
    """

    system = "salesforce"
    system_class = Salesforce
    sobject: ClassVar[str]
    mergeable: ClassVar[bool] = False
    bulk_size = COLLECTION_SIZE
    poll_seconds = 60

    @classmethod
    def connected(cls, client: Any) -> SalesforceSubscriber | None:
        """Of the objects that ship, only those in SALESFORCE_OBJECTS are kept."""
        return cls(client) if client.options.keeps(cls.sobject) else None

    # --- calls ------------------------------------------------------------------------------------

    def batch_size(self, waiting: int) -> int:
        """Up to a collection; from SALESFORCE_BULK_THRESHOLD records on, a job of Bulk API 2.0."""
        return JOB_SIZE if waiting > max(self.client.options.bulk_threshold, COLLECTION_SIZE) else COLLECTION_SIZE

    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        """Upsert by the External ID, so that repeating it cannot create a second record."""
        records = [self._record(item.data, item) for item in items]
        if len(items) > COLLECTION_SIZE and bulk.can_carry(records):
            outcomes = self._job("upsert", items, records)
        else:
            path = f"composite/sobjects/{self.sobject}/{self.external_id_field}"
            outcomes = self._collections(path, items, records)
        return self._judged(items, outcomes)

    def bulk_update(self, items: Sequence[Item]) -> list[External | SyncError | None]:
        """Send what changed, by Salesforce's own ids."""
        records = [self._record(item.changes, item) for item in items]
        if len(items) > COLLECTION_SIZE and bulk.can_carry(records):
            rows = [record | {"Id": item.linked_id} for item, record in zip(items, records, strict=True)]
            return [*self._judged(items, self._job("update", items, rows))]
        records = [record | {"id": item.linked_id} for item, record in zip(items, records, strict=True)]
        return [*self._judged(items, self._collections("composite/sobjects", items, records))]

    def bulk_delete(self, items: Sequence[Item]) -> list[SyncError | None]:
        """Delete, into the recycle bin."""
        outcomes: list[SyncError | None] = []
        for start in range(0, len(items), COLLECTION_SIZE):
            some = items[start : start + COLLECTION_SIZE]
            ids = ",".join(item.linked_id for item in some)
            params = {"ids": ids, "allOrNone": "false"}
            results = self._collection("DELETE", "composite/sobjects", some, params=params)
            outcomes += [one if isinstance(one, SyncError) else None for one in results]
        return outcomes

    def fetch(self, external_id: str) -> External:
        """The record now. Raises `Gone`."""
        try:
            return self._read(f"sobjects/{self.sobject}/{quote(external_id, safe='')}")
        except Gone as gone:
            raise self._with_merge_target(external_id, gone) from None

    def find(self, item: Item) -> External | None:
        """The record whose External ID is ours."""
        from simple_salesforce.format import format_external_id  # noqa: PLC0415

        by_id = format_external_id(self.external_id_field, item.record_id)
        try:
            return self._read(f"sobjects/{self.sobject}/{by_id}")
        except Gone:
            return None

    def bulk_fetch(self, external_ids: Sequence[str]) -> list[External | SyncError]:
        """Those that are not in the recycle bin, a collection a query."""
        found: dict[str, External] = {}
        select = f"SELECT {', '.join(self.fields())} FROM {self.sobject} WHERE Id IN {{}}"
        for start in range(0, len(external_ids), COLLECTION_SIZE):
            records = list(self._all(soql(select, list(external_ids[start : start + COLLECTION_SIZE]))))
            found |= {one.id: one for one in self._externals(records) if not one.deleted}
        return [found.get(one) or Gone(f"{self.sobject} {one} is deleted there") for one in external_ids]

    def describe(self) -> Mapping[str, ExternalField]:
        """The object's fields."""
        return describe.fields(describe.describe(self.client, self.sobject))

    def missing_permissions(self) -> list[str]:
        """Rights on the object, and the External ID field."""
        return describe.missing_permissions(self.client, self.sobject, [self.external_id_field])

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Changed and deleted records by SystemModstamp, then what left the recycle bin as well.

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
                position["modstamp"] = not_before(since, records[-1]["SystemModstamp"], now)
            yield Page(self._externals(records), dict(position))
            if found["done"]:
                break
            found = self._next(found)
        yield from self._deleted(position, now)

    # --- how it is done -----------------------------------------------------------------------------

    @property
    def external_id_field(self) -> str:
        """The field that carries our record's id."""
        return str(self.client.options.external_id_field)

    def fields(self) -> list[str]:
        """What is read of each record; without repetition, which SOQL refuses."""
        mapped = self.mapper.paths()
        own = ["Id", "SystemModstamp", "IsDeleted", self.external_id_field]
        return [*dict.fromkeys([*own, *(["MasterRecordId"] if self.mergeable else []), *mapped])]

    def own(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What of the data is of the record itself."""
        return dict(data)

    def explain_gone(self, item: Item, gone: SyncError) -> SyncError:
        """What it means that something is gone, as Salesforce does not say what: this record, or one it points to.

        One that was merged into another waits until a poll has told of it, and is then linked to that.
        """
        points = any(self.mapper.references(item.record))
        if item.external_id is None:
            # An upsert by the External ID creates what is gone: so it is another record, or no record at all.
            deleted = points and "ENTITY_IS_DELETED" in str(gone)
            return (
                Retry(f"a record that it points to is deleted there: {gone}")
                if deleted
                else Reject(str(gone), code="reference_missing")
            )
        try:
            if points:
                self.fetch(item.external_id)
                return Retry(f"a record that it points to is deleted there: {gone}")
            gone = self._with_merge_target(item.external_id, gone)
        except Gone as error:
            gone = error
        except SyncError as error:
            return error
        if gone.merged_into is None:
            return gone
        return Retry(f"it was merged there into {gone.merged_into}, as a poll will tell", after=self.poll_seconds)

    def _with_merge_target(self, external_id: str, gone: SyncError) -> SyncError:
        """The same, with the record that it lives on in, if it was merged."""
        query = soql(f"SELECT MasterRecordId FROM {self.sobject} WHERE Id = {{}}", external_id)
        found = next(self._all(query), None) if self.mergeable else None
        return Gone(str(gone), merged_into=found["MasterRecordId"] or None) if found else gone

    def _judged(self, items: Sequence[Item], outcomes: Sequence[External | SyncError]) -> list[External | SyncError]:
        pairs = zip(items, outcomes, strict=True)
        return [
            self.explain_gone(item, one).with_reply(one.reply) if isinstance(one, SyncError) and one.unlinks else one
            for item, one in pairs
        ]

    def _record(self, data: Mapping[str, Any], item: Item) -> dict[str, Any]:
        return {**self.own(data), "attributes": {"type": self.sobject}, self.external_id_field: item.record_id}

    def _externals(self, records: Sequence[Mapping[str, Any]]) -> list[External]:
        """Losers of a merge before the others: one of those is what they live on in."""
        found = [self.client.external(one) for one in records]
        return sorted(found, key=lambda one: one.merged_into is None)

    def _all(self, query: str) -> Iterator[dict[str, Any]]:
        """Everything a query finds, deleted records too."""
        found, _ = self.client.call(lambda org: org.query(query, include_deleted=True))
        yield from found["records"]
        yield from self._more(found)

    def _more(self, found: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """What did not fit the first page."""
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
            raise Retry("the answer is no record")
        return self._externals([record])[0]

    def _job(
        self, operation: Literal["upsert", "update"], items: Sequence[Item], records: Sequence[Mapping[str, Any]]
    ) -> list[External | SyncError]:
        rows = [{name: value for name, value in one.items() if name != "attributes"} for one in records]
        outcomes = bulk.ingest(self.client, self.sobject, operation, self.external_id_field, rows)
        return [
            External(one[0], item.data, at=one[1], record_id=item.record_id) if isinstance(one, tuple) else one
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
        """One outcome an item, of a call for all of them; the same for each where the call itself failed."""
        try:
            results, at = self.client.call(lambda org: org.restful(path, method=method, **body), writes=True)
            if not isinstance(results, list) or len(results) != len(items):
                raise Retry("the answer does not say what became of each record", maybe_done=True)
        except Gone as error:
            return [unknown_address(path, error)] * len(items)
        except SyncError as error:
            return [error] * len(items)
        call = self.client.request_id
        return [
            External(str(result["id"]), item.data, at=at, record_id=item.record_id, request_id=call)
            if result.get("success")
            else by_code(result.get("errors") or [], request_id=call).with_reply(self.client.quote(result))
            for item, result in zip(items, results, strict=True)
        ]

    def _query(self, since: str | None) -> str:
        at = iso_time(since)
        # Records changed exactly then are read again: the times are whole seconds, and several share one.
        where = soql(" WHERE SystemModstamp >= {}", at) if at else ""
        return f"SELECT {', '.join(self.fields())} FROM {self.sobject}{where} ORDER BY SystemModstamp, Id"

    def _deleted(self, position: dict[str, Any], now: datetime) -> Iterator[Page]:
        """A window of deletions: of what is in the recycle bin no more, so it is asked for now and then only."""
        start = max(iso_time(position["deleted"]) or now, now - DELETED_HISTORY).replace(second=0)
        end = now.replace(second=0)  # Salesforce looks at whole minutes only
        if (end - start).total_seconds() < DELETED_INTERVAL_SECONDS:
            return
        window = {"start": start.isoformat(), "end": end.isoformat()}
        path = f"sobjects/{self.sobject}/deleted/"
        found, _ = self.client.call(lambda org: org.restful(path, params=window))
        gone = [
            External(one["id"], {}, at=iso_time(one["deletedDate"]), deleted=True) for one in found["deletedRecords"]
        ]
        yield Page(gone, {**position, "deleted": found["latestDateCovered"]})


def unknown_address(path: str, error: Gone) -> Reject:
    """A whole call whose address is unknown: an object or a field that the org lacks, and no record that is gone."""
    return Reject(f"{path}: {error}", request_id=error.request_id, code="unknown_field").with_reply(error.reply)


def earlier(at: datetime, seconds: float) -> datetime:
    """So many seconds before."""
    return at - timedelta(seconds=seconds)


def not_before(since: str | None, newest: str, now: datetime) -> str:
    """The newest time read, but not so close to the present that a latecomer would be missed."""
    settled = earlier(now, OVERLAP_SECONDS)
    reached = newest if (iso_time(newest) or settled) <= settled else format_time(settled)
    behind = iso_time(since)
    return since if since and behind and behind > (iso_time(reached) or settled) else reached


def format_time(at: datetime) -> str:
    """A time as Salesforce writes it."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%S}.000+0000"
