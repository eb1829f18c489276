"""One HTTP client for all REST-like systems: a session per thread, timeouts everywhere, errors by class."""

from __future__ import annotations

import hmac
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any
from urllib.parse import urlsplit

import requests
from pydantic import AfterValidator, SecretStr
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from subscribers.errors import LONGEST_REPLY, Retry, SyncError, clean
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
            error.fields = {name: text.replace(secret, "***") for name, text in error.fields.items()}
        return error.with_reply(reply)

    def _secrets(self, response: requests.Response) -> Iterator[str]:
        for sent in (*response.history, response):
            for name in self._secret_headers:
                if secret := (sent.request.headers.get(name) or "").rpartition(" ")[2]:
                    yield secret


def secrets_of(setting: SecretStr) -> Iterator[str]:
    """The secrets in one setting: several are separated by blanks, so that they can be rotated."""
    yield from setting.get_secret_value().split()


def same_secret(given: str, expected: str) -> bool:
    """Compare in constant time, whatever characters a stranger sends."""
    return hmac.compare_digest(given.encode("utf-8", "surrogateescape"), expected.encode())


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
