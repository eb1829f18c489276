"""One Salesforce org: its session, its daily API calls, and its webhooks."""

from __future__ import annotations

import csv
import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import requests

from subscribers.errors import BadSignature, Retry, SyncError, SystemDown
from subscribers.http.client import clock_offset, iso_time, same_secret, secrets_of, server_time
from subscribers.http.failures import network_error
from subscribers.http.rate_limit_headers import Rate
from subscribers.http.transport import new_session
from subscribers.records import Event, External
from subscribers.salesforce import outbound_messages
from subscribers.salesforce.failures import LIMIT_PAUSE_SECONDS, Expired, refusal
from subscribers.salesforce.identifiers import full_id
from subscribers.salesforce.options import SalesforceOptions
from subscribers.system import System

if TYPE_CHECKING:
    from simple_salesforce.api import Salesforce as Client

T = TypeVar("T")

_USAGE = re.compile(r"(?:^|[\s;,])api-usage=(\d+)/(\d+)")


@dataclass(frozen=True)
class Usage:
    """API calls that the org used in the last 24 hours, from the last response (`Sforce-Limit-Info`).

    `read_at` is the monotonic time of that response.
    """

    used: int
    limit: int
    read_at: float

    @property
    def left(self) -> int:
        """The number of remaining calls."""
        return max(self.limit - self.used, 0)

    @property
    def fresh_for(self) -> float:
        """Seconds until the usage is worth reading again: the limit covers the last 24 hours."""
        return max(self.read_at + LIMIT_PAUSE_SECONDS - time.monotonic(), 0.0)


def soql(query: str, *values: Any) -> str:
    """Return a query with these values in place of its `{}`, each quoted as its type requires."""
    from simple_salesforce.format import format_soql  # noqa: PLC0415

    return str(format_soql(query, *values))


class Salesforce(System):
    """One Salesforce org.

    All threads share the login; each has its own simple-salesforce client, since sessions are not
    thread-safe. The clients get a session id and so never log in themselves: the library repeats a
    refused login without end. The library takes 10 MB. It is loaded with the first call, so that a
    process without calls, such as the relay, does not load it.
    """

    Options = SalesforceOptions

    def __init__(self, name: str, options: SalesforceOptions) -> None:
        super().__init__(name, options)
        self._login_lock = threading.Lock()
        self._login: tuple[str, str] | None = None
        self._local = threading.local()
        self._clock_offset: float | None = None
        #: The organisation of the last login.
        self.organization_id: str | None = None
        #: None until the first response.
        self.usage: Usage | None = None

    def call(self, action: Callable[[Client], T], *, writes: bool = False) -> tuple[T, datetime]:
        """Return the result of `action` with a client that is logged in, and the org's time of the response.

        Raises:
          SyncError: by the table of error codes. An expired session is renewed once.
        """
        self._keep_reserve()
        return self._call(action, writes)

    @property
    def rate(self) -> Rate | None:
        """The daily calls, for operators."""
        return Rate(self.usage.left, self.usage.limit) if self.usage is not None else None

    @property
    def clock_offset(self) -> float | None:
        """Seconds by which the org's clock is ahead of ours."""
        return self._clock_offset

    def account(self) -> str | None:
        """Return the id of the organisation. A sandbox that was refreshed is another one."""
        self._logged_in(None, other_organization=True)
        return self.organization_id

    @property
    def request_id(self) -> str | None:
        """The org's id of this thread's last call."""
        response: requests.Response | None = getattr(self._local, "response", None)
        return None if response is None else response.headers.get("X-Request-Id")

    def quote(self, answer: Any) -> str:
        """Return a response, or its part about a record, for the history."""
        return answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)

    def defer_reason(self) -> str | None:
        """Return why polls and backfills wait: they stop at twice the reserve and leave the rest to changes."""
        return self._short_of(2 * self.options.api_reserve)

    def unpack(self, body: bytes, headers: Mapping[str, str]) -> list[tuple[str, bytes]]:
        """Return each event of a callout (JSON) or an outbound message (SOAP), after the check of the shared secret."""
        given = headers.get("x-syncflow-secret", "")
        if not any([same_secret(given, secret) for secret in secrets_of(self.options.webhook_secret)]):
            raise BadSignature(f"{self.name}: the shared secret is wrong")
        return outbound_messages.unpack(body, self.options.organization_id)

    def events(self, body: bytes) -> list[Event]:
        """Return the record that an event is about: `{"id", "sobject", "record": {...}, "deleted"}`."""
        event = outbound_messages.callout(body)
        return [Event(event["sobject"], self.external(event["record"], deleted=event.get("deleted") is True))]

    def acknowledgement(self, body: bytes) -> tuple[str, str] | None:
        """Return the SOAP answer that stops Salesforce from repeating an outbound message; None for a callout."""
        return outbound_messages.ACKNOWLEDGEMENT if outbound_messages.is_soap(body) else None

    def external(self, record: Mapping[str, Any], *, deleted: bool = False) -> External:
        """Return a record of the org as an `External`."""
        data = {name: value for name, value in record.items() if name != "attributes"}
        return External(
            id=full_id(str(record["Id"])),
            data=data,
            at=iso_time(record.get("SystemModstamp")),
            deleted=deleted or record.get("IsDeleted") is True,
            mark=record.get(self.options.external_id_field) or None,
            merged_into=full_id(record.get("MasterRecordId") or "") or None,
        )

    def page_url(self, resource: str, external_id: str) -> str | None:
        """Return the URL of the record's page in Lightning."""
        host = f"https://{self._login[1]}" if self._login else self.options.instance_url
        return f"{host}/lightning/r/{resource}/{quote(external_id, safe='')}/view" if host else None

    # --- the daily calls ----------------------------------------------------------------------------

    def _keep_reserve(self) -> None:
        """Leave the last calls of the day to other programs.

        Raises:
          SystemDown: only the reserve is left. The usage is read again every LIMIT_PAUSE_SECONDS.
        """
        reserve = self.options.api_reserve
        if self.usage is None or self.usage.left > reserve:
            return
        if not self.usage.fresh_for:
            self._call(lambda org: org.limits(), writes=False)
        if why := self._short_of(reserve):
            raise SystemDown(why, after=self.usage.fresh_for)

    def _short_of(self, kept: int) -> str | None:
        usage = self.usage
        if usage is None or usage.left > kept or not usage.fresh_for:
            return None
        return (
            f"{usage.left} of the org's {usage.limit} daily API calls are left, and SALESFORCE_API_RESERVE keeps "
            f"{self.options.api_reserve} for others; it goes on when older calls are a day old"
        )

    def _last_answer(self) -> str | None:
        response: requests.Response | None = getattr(self._local, "response", None)
        return None if response is None else response.text

    # --- the session --------------------------------------------------------------------------------

    def _call(self, action: Callable[[Client], T], writes: bool) -> tuple[T, datetime]:
        login = self._logged_in(None)
        try:
            return self._attempt(action, login, writes)
        except Expired:
            login = self._logged_in(login)
        try:
            return self._attempt(action, login, writes)
        except Expired:
            # The login itself succeeded, so a quick retry locks no user: the session may just have ended.
            raise SystemDown("the login is refused: a new session is not valid") from None

    def _attempt(self, action: Callable[[Client], T], login: tuple[str, str], writes: bool) -> tuple[T, datetime]:
        from simple_salesforce.exceptions import SalesforceError  # noqa: PLC0415

        client = self._client(login)
        self._local.response = None
        try:
            result = action(client)
        except SalesforceError as error:
            meaning = refusal(error, self._local.response, writes)
            if isinstance(meaning, SyncError):
                meaning.request_id = self.request_id
                meaning.with_response(self._last_answer())
            raise meaning from None
        except (ValueError, csv.Error):
            unreadable = Retry("the response is not readable JSON", maybe_done=writes, server_failed=True)
            raise unreadable.with_response(self._last_answer()) from None
        except requests.RequestException as error:
            raise network_error(error, writes=writes) from error
        at = server_time(self._local.response) if self._local.response is not None else None
        return result, at or datetime.now(UTC)

    def _client(self, login: tuple[str, str]) -> Client:
        if getattr(self._local, "login", None) != login:
            from simple_salesforce.api import Salesforce as Client  # noqa: PLC0415

            # A program has to acknowledge the warning of a duplicate rule in advance.
            headers = {"Sforce-Duplicate-Rule-Header": "allowSave=true"} if self.options.allow_duplicates else {}
            session = new_session(self.options.ca_bundle or None, headers, self.max_response_bytes)
            # Its methods return the parsed body only; this keeps the headers, with the org's clock.
            session.hooks["response"].append(self._remember)
            self._local.client = Client(
                session_id=login[0],
                instance_url=f"https://{login[1]}",
                version=self.options.api_version,
                session=session,
            )
            self._local.login = login
        client: Client = self._local.client
        return client

    def _remember(self, response: requests.Response, **_: Any) -> None:
        self._local.response = response
        self._clock_offset = clock_offset(response, self._clock_offset)
        if found := _USAGE.search(response.headers.get("Sforce-Limit-Info", "")):
            self.usage = Usage(int(found[1]), int(found[2]), time.monotonic())

    def _logged_in(self, expired: tuple[str, str] | None, *, other_organization: bool = False) -> tuple[str, str]:
        """Return a login other than the `expired` one: if several threads find it expired, one renews it.

        `other_organization`: it may lead to another organisation than before.
        """
        with self._login_lock:
            if self._login is None or self._login == expired:
                from subscribers.salesforce.login import log_in  # noqa: PLC0415

                self._login = None
                found = log_in(self.options)
                self.logins += 1
                now, before = found.organization_id, self.organization_id
                if not other_organization and now is not None and before not in (None, now):
                    # No call may reach it before the conductor has compared the accounts.
                    raise SystemDown(f"the login leads to the organisation {now} now, not to {before}")
                self._login, self.organization_id = (found.session_id, found.host), now or before
            return self._login
