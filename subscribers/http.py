"""One HTTP client for all REST-like systems: a session per thread, timeouts everywhere, errors by class."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import requests
from pydantic import AfterValidator, SecretStr
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase
from urllib3.exceptions import ConnectTimeoutError, NewConnectionError, ReadTimeoutError

from subscribers.errors import LONGEST_REPLY, Gone, Reject, Retry, SyncError, SystemDown, clean
from subscribers.rates import Rate, rate_of

#: Seconds to connect, and seconds without a byte of the answer.
TIMEOUT = (5.0, 30.0)


def _header_safe(value: SecretStr) -> SecretStr:
    text = value.get_secret_value().strip()
    if not (text.isascii() and text.isprintable()) or " " in text:
        # Refused here: the HTTP library's own complaint would quote the value.
        raise ValueError("holds a blank or a character that no HTTP header carries")
    return SecretStr(text)


def _http_url(value: str) -> str:
    try:
        parts = urlsplit(value)
        parts.port  # noqa: B018 - reading it checks it
    except ValueError:
        raise ValueError("not a URL") from None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("an address starting with http:// or https:// is needed")
    if parts.username or parts.password:
        raise ValueError("must not hold a user or password: addresses are logged, so there are settings for those")
    return value.rstrip("/")


#: A setting that travels in a header: an API key, a token.
Token = Annotated[SecretStr, AfterValidator(_header_safe)]
#: A setting that is the address of a system, without a slash at its end.
Url = Annotated[str, AfterValidator(_http_url)]


class Adapter(HTTPAdapter):
    """Gives every call a timeout, and a CA bundle of the system's own where one is configured."""

    def __init__(self, ca_bundle: str | None = None) -> None:
        super().__init__(pool_maxsize=4)
        self.ca_bundle = ca_bundle

    def send(self, request: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        """As the base class does, within TIMEOUT unless the caller says otherwise."""
        if options.get("timeout") is None:
            options["timeout"] = TIMEOUT
        if self.ca_bundle:
            # Here and not on the session: REQUESTS_CA_BUNDLE would win over the session's own.
            options["verify"] = self.ca_bundle
        return super().send(request, **options)


def new_session(ca_bundle: str | None = None, headers: Mapping[str, str] | None = None) -> requests.Session:
    """A session whose every call has a timeout and verifies TLS."""
    session = requests.Session()
    for scheme in ("https://", "http://"):
        session.mount(scheme, Adapter(ca_bundle))
    session.headers["User-Agent"] = "syncflow"
    session.headers.update(headers or {})
    return session


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
    ) -> None:
        """`statuses` is a vendor's own table of statuses, laid over `STATUSES`.

        `classify(response, writes)` decides before it, where more than the status counts; or answers None.
        `secret_headers`: what these carry may be quoted back to us, but no message of ours repeats it.
        """
        self.base_url = base_url.rstrip("/")
        self._headers = dict(headers or {})
        self._ca_bundle = ca_bundle
        self._describe = describe or describe_error
        self._classify = classify
        self._statuses = {**STATUSES, **(statuses or {})}
        #: What the last answer that told of a limit said of it.
        self.rate: Rate | None = None
        self._auth = auth
        self._secret_headers = tuple(secret_headers)
        # On its way to another host `requests` takes away this header, and no other that is a secret.
        self._follows = {name.lower() for name in secret_headers} <= {"authorization"}
        self._request_id_header = request_id_header
        self._local = threading.local()

    @property
    def session(self) -> requests.Session:
        """This thread's session: they are not safe to share."""
        if not hasattr(self._local, "session"):
            self._local.session = new_session(self._ca_bundle, self._headers)
            self._local.session.auth = self._auth
        session: requests.Session = self._local.session
        return session

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        """One call; the answer, if it is a success.

        Raises:
          SyncError: of the class that says what to do next.
        """
        url = path if path.startswith(("http://", "https://")) else self.base_url + path
        writes = method not in ("GET", "HEAD")
        response = self._send(method, url, writes, options)
        self.rate = rate_of(response.headers, response.status_code) or self.rate
        if response.status_code >= 300:
            raise self._error(response, writes=writes)
        return response

    def _send(self, method: str, url: str, writes: bool, options: dict[str, Any]) -> requests.Response:
        for again in (not writes, False):
            try:
                return self.session.request(method, url, allow_redirects=self._follows and not writes, **options)
            except requests.RequestException as error:
                # A kept connection may have been closed meanwhile. Only reading is safe to repeat unasked.
                if again and is_cut(error):
                    continue
                raise network_error(error, writes=writes) from error
        raise AssertionError("the second try answers or raises")

    def json(self, method: str, path: str, **options: Any) -> tuple[Any, requests.Response]:
        """One call whose answer must be JSON, and the answer itself.

        A success without a readable body may be an answer cut on its way: its outcome is unknown.
        """
        response = self.call(method, path, **options)
        try:
            return response.json(), response
        except ValueError:
            raise Retry(
                f"{method} answered {response.status_code} without readable JSON",
                maybe_done=method not in ("GET", "HEAD"),
                request_id=self.request_id(response),
            ) from None

    def request_id(self, response: requests.Response) -> str | None:
        """The system's own id of the call."""
        return response.headers.get(self._request_id_header)

    def _error(self, response: requests.Response, *, writes: bool) -> SyncError:
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
                table=self._statuses,
            )
        reply = clean(response.text[: 2 * LONGEST_REPLY])
        for secret in self._secrets(response):  # an answer may quote them, whoever reads the answer
            error.args = (str(error).replace(secret, "***"),)
            reply = reply.replace(secret, "***")
            if isinstance(error, Reject):
                error.fields = {name: text.replace(secret, "***") for name, text in error.fields.items()}
        return error.with_reply(reply)

    def _secrets(self, response: requests.Response) -> Iterator[str]:
        for sent in (*response.history, response):
            for name in self._secret_headers:
                if secret := (sent.request.headers.get(name) or "").rpartition(" ")[2]:
                    yield secret


#: HTTP status -> what to do next (RFC 9110, 15; RFC 6585). Of the others 5xx is `Retry` and the rest `Reject`.
STATUSES: Mapping[int, type[SyncError]] = {
    401: SystemDown,
    403: SystemDown,
    404: Gone,
    408: Retry,
    410: Gone,
    412: Retry,
    423: Retry,
    425: Retry,
    429: SystemDown,
    503: SystemDown,
}


def status_error(
    status: int,
    message: str,
    *,
    fields: Mapping[str, str] | None = None,
    after: float | None = None,
    writes: bool = True,
    request_id: str | None = None,
    table: Mapping[int, type[SyncError]] = STATUSES,
) -> SyncError:
    """HTTP status -> what to do next, by `table`."""
    text = f"{status}: {message}" if message else str(status)
    kind = table.get(status, Retry if status >= 500 else Reject)
    if issubclass(kind, SystemDown):
        text = f"the login is refused ({text})" if status in (401, 403) else text
        return kind(text, after=after, request_id=request_id)
    if issubclass(kind, Retry):
        return kind(text, after=after, maybe_done=writes and status >= 500, request_id=request_id)
    if issubclass(kind, Reject):
        return kind(text, fields=fields, request_id=request_id)
    return kind(text, request_id=request_id)


def is_cut(error: requests.RequestException) -> bool:
    """Whether the connection was made and broke before the answer."""
    slow = isinstance(error, requests.Timeout) or isinstance(error.args[0] if error.args else None, ReadTimeoutError)
    if slow or isinstance(error, requests.exceptions.SSLError):
        return False
    return isinstance(error, requests.ConnectionError | requests.exceptions.ChunkedEncodingError) and not _unsent(error)


def _unsent(error: requests.RequestException) -> bool:
    reason = getattr(error.args[0] if error.args else None, "reason", None)
    refused = isinstance(reason, NewConnectionError | ConnectTimeoutError)
    return refused or isinstance(error, requests.ConnectTimeout)


def network_error(error: requests.RequestException, *, writes: bool) -> SyncError:
    """A failed call without an answer -> what to do next. The URL's query, which may hold secrets, is left out."""
    if _unsent(error):
        return SystemDown(f"cannot connect{_where(error)}")
    if isinstance(error, requests.exceptions.SSLError):
        return SystemDown("the TLS certificate is not trusted (or the connection is not TLS)")
    if isinstance(error, requests.exceptions.InvalidURL | requests.exceptions.MissingSchema):
        return SystemDown("the configured URL is not a URL")
    if isinstance(error, requests.Timeout):
        return Retry("no answer in time", maybe_done=writes, unanswered=True)
    return Retry("the connection was cut before the answer", maybe_done=writes, unanswered=True)


def _where(error: requests.RequestException) -> str:
    """To which host and port the call went, after a blank; nothing where that is not known."""
    try:
        parts = urlsplit((error.request and error.request.url) or "")
        host = parts.hostname and (f"{parts.hostname}:{parts.port}" if parts.port else parts.hostname)
    except ValueError:
        return ""
    unknown = ": there is no such host" if "NameResolutionError" in repr(error) else ""
    return f" to {host}{unknown}" if host else ""


def secrets_of(setting: SecretStr) -> Iterator[str]:
    """The secrets in one setting: several are separated by blanks, so that they can be rotated."""
    yield from setting.get_secret_value().split()


def same_secret(given: str, expected: str) -> bool:
    """Compare in constant time, whatever characters a stranger sends."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


def retry_after(response: requests.Response) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, 10.2.3)."""
    value = response.headers.get("Retry-After", "")
    if value.isdecimal():
        return float(value)
    when = http_date(value)
    return None if when is None else max(0.0, (when - datetime.now(UTC)).total_seconds())


def server_time(response: requests.Response) -> datetime | None:
    """When the answer was made, by the system's own clock (whole seconds)."""
    return http_date(response.headers.get("Date", ""))


def iso_time(value: object) -> datetime | None:
    """An ISO 8601 time as an instant (UTC where it names no offset); None for anything else."""
    try:
        when = datetime.fromisoformat(value if isinstance(value, str) else "")
    except ValueError:
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def http_date(value: str) -> datetime | None:
    """An HTTP date as an instant, or None."""
    try:
        when = parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    return when.replace(tzinfo=UTC) if when.tzinfo is None else when.astimezone(UTC)


def describe_error(
    response: requests.Response, errors_in: Callable[[Any], Any] = lambda body: body.get("errors")
) -> tuple[str, dict[str, str]]:
    """(message, words per field) of the usual shapes of a JSON error body; else the start of the text.

    `errors_in` finds the object of field names and their words.
    """
    try:
        body = response.json()
    except ValueError:
        return _one_line(response.text), {}
    if not isinstance(body, dict):
        return _one_line(str(body)), {}
    raw = errors_in(body)
    fields = {str(name): _words(value) for name, value in raw.items()} if isinstance(raw, dict) else {}
    message = body.get("message") or body.get("error") or body.get("detail") or ""
    if fields:
        message = "; ".join(f"{name}: {text}" for name, text in fields.items())
    return _one_line(str(message or body)), fields


def _words(value: Any) -> str:
    if isinstance(value, list):
        return "; ".join(map(_words, value))
    return str(value.get("message") or value) if isinstance(value, dict) else str(value)


def _one_line(text: str) -> str:
    return " ".join(text.split())[:500]
