"""The HTTP client: a session for each thread, timeouts for all calls, and failures as `SyncError`s."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import requests
from pydantic import AfterValidator, SecretStr
from requests.auth import AuthBase

from redaction import is_secret, remember
from subscribers.errors import Retry, SyncError
from subscribers.http.answers import is_page
from subscribers.http.failures import (
    STATUSES,
    describe_error,
    http_date,
    is_cut,
    network_error,
    retry_after,
    status_error,
)
from subscribers.http.rate_limit_headers import Rate, rate_of
from subscribers.http.transport import MAX_RESPONSE_BYTES, new_session

#: A difference between two clocks of at most this many seconds counts as none.
_CLOCK_PRECISION_SECONDS = 2.0


def _header_safe(value: SecretStr) -> SecretStr:
    text = value.get_secret_value().strip()
    if not (text.isascii() and text.isprintable()) or " " in text:
        # Refused here: the HTTP library's message would contain the value.
        raise ValueError("has a space or a character that an HTTP header cannot carry")
    return SecretStr(text)


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        raise ValueError("not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("must start with http:// or https://")
    if parts.username or parts.password:
        raise ValueError("must not contain a user or password, because addresses are logged: use the settings for them")
    return value.rstrip("/")


#: A setting that is sent in a header, such as an API key.
Token = Annotated[SecretStr, AfterValidator(_header_safe)]
#: A setting with the URL of a system, without a trailing slash.
Url = Annotated[str, AfterValidator(_http_url)]


class Http:
    """JSON (or form) calls to one base URL, with failures raised as `SyncError`s."""

    def __init__(
        self,
        base_url: str,
        *,
        headers: Mapping[str, str] | None = None,
        auth: AuthBase | None = None,
        secret_headers: Sequence[str] = ("Authorization",),
        ca_bundle: str | None = None,
        describe: Callable[[requests.Response], tuple[str, dict[str, str]]] | None = None,
        classify: Callable[[requests.Response, bool], SyncError | None] | None = None,
        statuses: Mapping[int, type[SyncError]] | None = None,
        request_id_header: str = "x-request-id",
        max_response_bytes: int = MAX_RESPONSE_BYTES,
    ) -> None:
        """`statuses` overrides entries of `STATUSES` for a vendor.

        `classify(response, writes)` may return the error of a response first, where the status is not enough.
        `secret_headers`: they are not sent on to another host by a redirect.
        `max_response_bytes`: a longer answer is an error, see `System.max_response_bytes`.
        """
        self.base_url = base_url.rstrip("/")
        self._headers = dict(headers or {})
        for name, value in self._headers.items():
            if is_secret(name):
                remember(f"headers of {base_url}", value.rpartition(" ")[2])
        self._ca_bundle = ca_bundle
        self._max_response_bytes = max_response_bytes
        self._describe = describe or describe_error
        self._classify = classify
        self._statuses = {**STATUSES, **(statuses or {})}
        #: The rate limit in the last response that reported one.
        self.rate: Rate | None = None
        #: Seconds by which the system's clock is ahead of ours, by the last response with a date.
        self.clock_offset: float | None = None
        self._auth = auth
        # On a redirect to another host `requests` removes this secret header, but no other.
        self._follows = {name.lower() for name in secret_headers} <= {"authorization"}
        self._request_id_header = request_id_header
        self._local = threading.local()

    @property
    def session(self) -> requests.Session:
        """The session of this thread; sessions are not thread-safe."""
        if not hasattr(self._local, "session"):
            self._local.session = new_session(self._ca_bundle, self._headers, self._max_response_bytes)
            self._local.session.auth = self._auth
        session: requests.Session = self._local.session
        return session

    def call(
        self, method: str, path: str, *, statuses: Mapping[int, type[SyncError]] | None = None, **options: Any
    ) -> requests.Response:
        """Make a call and return its successful response; `statuses` are the errors of this call alone.

        Raises:
          SyncError: the call failed; the class says what to do next.
        """
        url = path if path.startswith(("http://", "https://")) else self.base_url + path
        writes = method not in ("GET", "HEAD")
        response = self._send(method, url, writes, options)
        self.clock_offset = clock_offset(response, self.clock_offset)
        self.rate = rate_of(response.headers, response.status_code) or self.rate
        if response.status_code >= 300:
            raise self._error(response, statuses or {}, writes=writes)
        if is_page(response):
            raise Retry(
                f"{method} was answered {response.status_code} with a page instead of JSON",
                maybe_done=writes,
                server_failed=True,
                request_id=self.request_id(response),
            ).with_response(response.text)
        return response

    def _send(self, method: str, url: str, writes: bool, options: dict[str, Any]) -> requests.Response:
        for again in (not writes, False):
            try:
                return self.session.request(method, url, allow_redirects=self._follows and not writes, **options)
            except requests.RequestException as error:
                # The server may have closed an idle connection. Only reads are safe to repeat.
                if again and is_cut(error):
                    continue
                raise network_error(error, writes=writes) from error
        raise AssertionError("unreachable")

    def json(self, method: str, path: str, **options: Any) -> tuple[Any, requests.Response]:
        """Make a call and return its JSON and the response.

        Raises:
          SyncError: the call failed, or has no valid JSON. The outcome of such a write is unknown: the response
            may be cut off.
        """
        response = self.call(method, path, **options)
        try:
            return response.json(), response
        except ValueError:
            raise Retry(
                f"{method} answered {response.status_code} without readable JSON",
                maybe_done=method not in ("GET", "HEAD"),
                server_failed=True,
                request_id=self.request_id(response),
            ) from None

    def request_id(self, response: requests.Response) -> str | None:
        """Return the system's id of the call."""
        return response.headers.get(self._request_id_header)

    def _error(
        self, response: requests.Response, statuses: Mapping[int, type[SyncError]], *, writes: bool
    ) -> SyncError:
        error = self._classify(response, writes) if self._classify else None
        if error is None:
            message, fields = self._describe(response)
            error = status_error(
                response.status_code,
                message,
                fields=fields,
                after=retry_after(response),
                writes=writes,
                request_id=self.request_id(response),
                table={**self._statuses, **statuses},
            )
        return error.with_response(response.text)


def secrets_of(setting: SecretStr) -> Iterator[str]:
    """Yield the secrets in a setting: several, separated by spaces, during a rotation."""
    yield from setting.get_secret_value().split()


def same_secret(given: str, expected: str) -> bool:
    """Compare two secrets in constant time; `given` may contain any characters."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def server_time(response: requests.Response) -> datetime | None:
    """Return the time of the response by the system's clock, in whole seconds."""
    return http_date(response.headers.get("Date", ""))


def clock_offset(response: requests.Response, before: float | None = None) -> float | None:
    """Return the seconds by which the clock of the response's system is ahead of ours; `before` if it has no date.

    The date has whole seconds and is older by the time of the response's way, so up to two seconds count as none.
    """
    at = server_time(response)
    if at is None:
        return before
    seconds = (at - datetime.now(UTC)).total_seconds() + 0.5
    return 0.0 if abs(seconds) <= _CLOCK_PRECISION_SECONDS else float(round(seconds))


def iso_time(value: object) -> datetime | None:
    """Return an ISO 8601 time as an aware datetime, in UTC if it has no offset; None for any other value."""
    try:
        when = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)
