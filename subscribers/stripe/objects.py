"""The base class for subscribers of all kinds of Stripe objects: create once, find, poll for changes."""

from __future__ import annotations

import math
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, ClassVar
from urllib.parse import quote

import requests

from subscribers.base import Subscriber
from subscribers.errors import Gone, Reject, Retry, SystemDown
from subscribers.http.client import server_time
from subscribers.records import External, Item, Page
from subscribers.stripe import client
from subscribers.stripe.client import RECORD_ID_KEY, VERBS, Stripe, event_record, external
from subscribers.stripe.codes import KeySpent

#: The number of newest objects that are searched for one with our mark.
FIND_AMONG = 1000
#: Events are read in windows of this many seconds, oldest first, so that a long outage fits in memory.
WINDOW_SECONDS = 3600
#: Stripe keeps events for 30 days. If the position is older than this many seconds, a day less, all objects are
#: read again.
EVENTS_KEPT_SECONDS = 29 * 86_400

#: A Stripe object as received.
Body = dict[str, Any]


class StripeSubscriber(Subscriber):
    """Objects of one kind. `resource` is the prefix of their events' types, `path` the address of their list."""

    system = "stripe"
    system_class = Stripe
    path: ClassVar[str]
    #: References that are expanded with the object.
    expand: ClassVar[Sequence[str]] = ()
    #: Mapped fields by which the list can be filtered; `find` tries these first.
    find_by: ClassVar[Sequence[str]] = ()
    #: Further types of events that report a change.
    more_events: ClassVar[Sequence[str]] = ()
    #: Webhooks report changes immediately; the poll finds the lost ones.
    poll_seconds = 300

    # --- for subclasses -------------------------------------------------------------------------------

    def present(self, body: Body) -> Mapping[str, Any]:
        """Return the object in the shape that its mapping expects."""
        return body

    def replaces(self, name: str) -> bool:
        """Return False for metadata, which Stripe merges by key; other hashes are replaced."""
        return name != "metadata"

    def merge(self, theirs: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """Merge without the empty values of Stripe: a replaced hash has none of them anyway."""
        return super().merge(without_empty(theirs), changes)

    # --- calls ---------------------------------------------------------------------------------------

    def create(self, item: Item) -> External:
        """Create the object, with our mark in its metadata."""
        return self._as_external(*self._create(item.data, item))

    def update(self, item: Item) -> External:
        """Send the changes. Raises `Gone`."""
        return self._as_external(*self._send(item.linked_id, item.changes, item))

    def delete(self, item: Item) -> None:
        """Delete the object permanently. Raises `Gone` if it is already deleted."""
        self.client.delete(self._address(item.linked_id))

    def fetch(self, external_id: str) -> External:
        """Return the current object. Raises `Gone`; for some kinds Stripe itself answers 200 for a deleted one."""
        return self._as_external(*self._read(external_id))

    def changed_at(self, external_id: str, since: datetime | None) -> datetime | None:
        """Return the time of the object's newest event."""
        start = (
            int(time.time()) - WINDOW_SECONDS if since is None else int(since.timestamp()) - self.client.overlap_seconds
        )
        newest = self._read_window(max(start, int(time.time()) - EVENTS_KEPT_SECONDS), None)[0].get(external_id)
        return newest.at if newest is not None else None

    def missing_permissions(self) -> list[str]:
        """Return the missing permissions of a restricted key: to write (tried on an unknown id) or to read events."""
        kind = self.path.rpartition("/")[2]
        missing, unset = self._address("syncflow_check"), {"metadata": {RECORD_ID_KEY: ""}}
        rights: dict[str, Callable[[], object]] = {
            f"write {kind}": lambda: self.client.post(missing, unset),
            "read events, by which polls see updates": lambda: self.client.get("/v1/events", limit=1),
        }
        words = []
        for right, ask in rights.items():
            try:
                ask()
            except Gone:
                continue  # The key may write: Stripe looked for the object.
            except SystemDown as error:
                words.append(f"this key may not {right}: {error}")
        return words

    def find(self, item: Item) -> External | None:
        """Return the object whose metadata holds our mark.

        This reads lists instead of Stripe's search: a search returns an object only some time after its
        creation, and this method looks for objects that may have just been created.
        """
        for name in self.find_by:
            if (value := item.data.get(name)) and (found := self._find_in_list(item, {name: value})):
                return found
        return self._find_in_list(item, {})

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Yield all objects first, then the changes by Stripe's events.

        Position: `{"since": seconds of the epoch}`, and during the first read also `after`, the id of the
        last object read.
        """
        position, gap = dict(position or {}), ""
        if position.get("since", math.inf) < time.time() - EVENTS_KEPT_SECONDS:
            # Stripe no longer has all events since then.
            since = datetime.fromtimestamp(position["since"], UTC)
            position, gap = (
                {},
                f"deletions since {since:%Y-%m-%d %H:%M} UTC may be missing: Stripe keeps events 30 days",
            )
        if "since" not in position or "after" in position:
            for page in self._all_pages(position):
                position = page.position
                yield replace(page, gap=gap)
        yield from self._changed_pages(int(position["since"]))

    # --- one object ----------------------------------------------------------------------------------

    def _address(self, external_id: str, step: str = "") -> str:
        return f"{self.path}/{quote(external_id, safe='')}{step}"

    def _as_external(self, body: Body, response: requests.Response) -> External:
        request_id = self.client.http.request_id(response)
        made = external(self.present(body), at=server_time(response), request_id=request_id)
        return replace(made, is_exact=False)

    def _read(self, external_id: str) -> tuple[Body, requests.Response]:
        body, response = self.client.get(self._address(external_id), **self._expanding())
        if body.get("deleted") is True:
            raise Gone(f"{external_id} was deleted", request_id=self.client.http.request_id(response))
        return body, response

    def _expanding(self, within: str = "") -> dict[str, Any]:
        return {"expand": [within + name for name in self.expand]} if self.expand else {}

    def _create(self, data: Mapping[str, Any], item: Item) -> tuple[Body, requests.Response]:
        """Create the object. A new idempotency key replaces one that Stripe has used up on a failure."""
        sent = {**without_empty(with_mark(data, item)), **self._expanding()}
        try:
            answer: tuple[Body, requests.Response] = self.client.post(self.path, sent, item.key)
        except KeySpent as spent:
            # Stripe repeats its first response for a day, even a 500, and refuses the key for other data. A lookup
            # shows whether that first call took effect; only if it did not, another key may be used.
            self.client.pace()
            if self.find(item) is not None:
                raise Retry(str(spent), maybe_done=True, request_id=spent.request_id) from spent
            self.client.pace()
            answer = self.client.post(self.path, sent, _fresh(item.key))
        return answer

    def _send(self, external_id: str, changes: Mapping[str, Any], item: Item) -> tuple[Body, requests.Response]:
        sent = {**with_mark(changes, item), **self._expanding()}
        body, response = self.client.post(self._address(external_id), sent)
        if body.get("deleted") is True:
            raise Gone(f"{external_id} was deleted", request_id=self.client.http.request_id(response))
        return body, response

    def _send_next(self, external_id: str, changes: Mapping[str, Any], item: Item) -> tuple[Body, requests.Response]:
        """Pace and send a further call for the record: the conductor has paced only the first one."""
        self.client.pace()
        return self._send(external_id, changes, item)

    def _create_part(self, path: str, data: Mapping[str, Any], key: str, lives: Callable[[Body], bool]) -> Body:
        """Create a part of an object (a price, an invoice's item) that a lookup has just not found.

        Stripe answers a repeated call with the result of the first one, even if it was deleted since. If `lives`
        rejects that object, create it again under another key.
        """
        data = without_empty(data)
        self.client.pace()
        try:
            body, response = self.client.post(path, data, key)
        except KeySpent:
            self.client.pace()
            body, response = self.client.post(path, data, _fresh(key))
        if "Idempotent-Replayed" not in response.headers:
            return dict(body)
        self.client.pace()
        try:
            if lives(now := self.client.get(f"{path}/{quote(body['id'], safe='')}")[0]):
                return dict(now)
        except Gone:
            pass  # Deleted since, so the key cannot create it again.
        self.client.pace()
        return dict(self.client.post(path, data, _fresh(key))[0])

    # --- lists and events ----------------------------------------------------------------------------

    def _find_in_list(self, item: Item, filters: Mapping[str, Any]) -> External | None:
        after: dict[str, Any] = {}
        for _ in range(FIND_AMONG // client.PAGE_SIZE):
            body, response = self._page(**filters, **after)
            for one in body["data"]:
                if (one.get("metadata") or {}).get(RECORD_ID_KEY) == item.mark:
                    return self._as_external(one, response)
            if not body["has_more"]:
                break
            self.client.pace()
            after = {"starting_after": body["data"][-1]["id"]}
        return None

    def _page(self, **parameters: Any) -> tuple[Body, requests.Response]:
        page: tuple[Body, requests.Response] = self.client.get(
            self.path, limit=client.PAGE_SIZE, **self._expanding("data."), **parameters
        )
        return page

    def _all_pages(self, position: dict[str, Any]) -> Iterator[Page]:
        """Yield all objects, newest first. The events since the start report changes made in the meantime."""
        while True:
            after = {"starting_after": position["after"]} if "after" in position else {}
            try:
                body, response = self._page(**after)
            except (Gone, Reject):
                if not after:
                    raise
                # The last object read was deleted since, so the list cannot be continued after it.
                position.pop("after")
                continue
            at = server_time(response) or datetime.now(UTC)
            since = position.get("since", int(at.timestamp()) - self.client.overlap_seconds)
            position = {"since": since}
            if body["has_more"]:
                position["after"] = body["data"][-1]["id"]
            yield Page([external(self.present(one), at=at) for one in body["data"]], position)
            if not body["has_more"]:
                return

    def _changed_pages(self, since: int) -> Iterator[Page]:
        while True:
            end = since + WINDOW_SECONDS
            newest_by_id, now = self._read_window(since, end)
            settled = max(since, min(end, now - self.client.overlap_seconds))
            records = sorted(newest_by_id.values(), key=_seconds)
            for start in range(0, len(records), client.PAGE_SIZE):
                chunk = records[start : start + client.PAGE_SIZE]
                # The events of a later window are not known yet.
                yield Page(chunk, {"since": min(settled, max(since, _seconds(chunk[-1])))}, current=now < end)
            yield Page([], {"since": settled})
            if now < end:
                return
            since = end

    def _read_window(self, start: int, end: int | None) -> tuple[dict[str, External], int]:
        """Return the newest event of each object in this window, and Stripe's clock at the first call."""
        window = {"gte": start} if end is None else {"gte": start, "lt": end}
        types = [*(f"{self.resource}.{verb}" for verb in VERBS), *self.more_events]
        newest: dict[str, External] = {}
        now = 0
        after: dict[str, Any] = {}
        while True:
            body, response = self.client.get("/v1/events", types=types, created=window, limit=client.PAGE_SIZE, **after)
            at = server_time(response) or datetime.now(UTC)
            now = now or int(at.timestamp())
            for event in body["data"]:  # Newest first.
                if (received := event_record(event)) is not None:
                    newest.setdefault(received.external.id, received.external)
            if not body["has_more"]:
                return newest, now
            self.client.pace()
            after = {"starting_after": body["data"][-1]["id"]}


def with_mark(data: Mapping[str, Any], item: Item) -> dict[str, Any]:
    """Return the data with our mark in its metadata."""
    return {**data, "metadata": {**(data.get("metadata") or {}), RECORD_ID_KEY: item.mark}}


def without_empty(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return the data without empty values: a new object has nothing to unset, and Stripe may refuse to unset it."""
    cut = {name: without_empty(value) if isinstance(value, Mapping) else value for name, value in data.items()}
    return {name: value for name, value in cut.items() if value not in (None, "", {})}


def _fresh(key: str) -> str:
    return f"{key}-{uuid.uuid4().hex[:12]}"


def _seconds(one: External) -> int:
    return int(one.at.timestamp()) if one.at else 0
