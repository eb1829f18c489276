"""The HTTP session of all clients: each call has a time limit in total, and each response a largest size.

A read timeout alone limits neither: it begins again with every byte, and a small answer may decompress to any size.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError

from subscribers.calls import seconds_for_call

#: Seconds to connect, and seconds without a byte of the response.
TIMEOUT = (5.0, 30.0)

#: Bytes of a response, decompressed, unless its system sets another limit. As JSON they may take 30 times as much.
MAX_RESPONSE_BYTES = 16 * 1024 * 1024

#: Bytes of an error's answer that are read; the rest is cut off, so that its status still counts.
MAX_ERROR_BYTES = 1024 * 1024

#: Bytes of the largest response to a login.
MAX_LOGIN_BYTES = 1024 * 1024


class TooLarge(requests.RequestException):
    """The response has more than `most` bytes; the rest was not read."""

    def __init__(self, most: int, **about: Any) -> None:
        super().__init__(f"the response has more than {most:,} bytes", **about)
        self.most = most


# --- time -----------------------------------------------------------------------------------------------


class TimeLimit:
    """The time limit of the calls inside one `time_limit()`; at its end their connections are shut down."""

    def __init__(self) -> None:
        self.ends_at = time.monotonic() + seconds_for_call()
        self.is_over = False
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] | None = []

    def extend(self) -> None:
        """Begin the limit again, after a part of a long transfer."""
        self.ends_at = time.monotonic() + seconds_for_call()

    def watch(self, connection: int) -> None:
        """Include this connection, given by its file descriptor."""
        # A duplicate: it shuts the connection down whatever wraps the original, such as TLS.
        duplicate = socket.socket(fileno=os.dup(connection))
        with self._lock:
            if self._sockets is not None:
                self._sockets.append(duplicate)
                if self.is_over:  # the next call of a redirect
                    _shut_down(duplicate)
                return
        duplicate.close()

    def end(self) -> None:
        """End the calls that are under way."""
        with self._lock:
            self.is_over = self._sockets is not None
            for one in self._sockets or ():
                _shut_down(one)

    def close(self) -> None:
        """Watch no more."""
        with self._lock:
            sockets, self._sockets = self._sockets or (), None
        for one in sockets:
            one.close()


def _shut_down(connection: socket.socket) -> None:
    with suppress(OSError):  # it is closed already
        connection.shutdown(socket.SHUT_RDWR)


class _Watchdog:
    """A thread that ends the calls whose time is over; it runs while there are any."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._limits: set[TimeLimit] = set()
        self._thread: threading.Thread | None = None
        #: When the thread looks again.
        self._looks_at = 0.0

    def add(self, limit: TimeLimit) -> None:
        with self._changed:
            self._limits.add(limit)
            if self._thread is None or not self._thread.is_alive():  # also after a fork
                self._thread = threading.Thread(target=self._run, name="time limits", daemon=True)
                self._thread.start()
            elif limit.ends_at < self._looks_at:
                self._changed.notify()

    def remove(self, limit: TimeLimit) -> None:
        with self._changed:
            self._limits.discard(limit)

    def _run(self) -> None:
        with self._changed:
            while self._limits:
                now = time.monotonic()
                for limit in [one for one in self._limits if one.ends_at <= now]:
                    self._limits.discard(limit)
                    limit.end()
                self._looks_at = min((one.ends_at for one in self._limits), default=now)
                if self._limits:
                    self._changed.wait(self._looks_at - now)
            self._thread = None


_watchdog = _Watchdog()
_current: ContextVar[TimeLimit | None] = ContextVar("time_limit", default=None)


@contextmanager
def time_limit() -> Iterator[TimeLimit]:
    """Limit the time of all calls inside the block, in total; within another block, that one's limit applies.

    A session's call has a limit of its own. A block is needed only around a response that is streamed, and has to be
    extended with each part of it.

    Raises:
      requests.ReadTimeout: the time was over.
    """
    if (outer := _current.get()) is not None:
        yield outer
        return
    with closing(TimeLimit()) as limit:
        token = _current.set(limit)
        _watchdog.add(limit)
        try:
            yield limit
        except (requests.RequestException, OSError) as error:
            # The error is that of a connection that was shut down, unless there was none yet.
            if limit.is_over and not isinstance(error, requests.ConnectTimeout):
                raise requests.ReadTimeout("the time limit of the call is over") from None
            raise
        finally:
            _watchdog.remove(limit)
            _current.reset(token)
        if limit.is_over:  # a response without a length seems to be complete
            raise requests.ReadTimeout("the time limit of the call is over")


def _watch_new(connection: Any, opened: socket.socket) -> socket.socket:
    """Include a connection before TLS begins: its handshake may be slow as well."""
    if (limit := _current.get()) is not None:
        if time.monotonic() >= limit.ends_at:  # a host with many addresses, each with its own timeout
            opened.close()
            raise ConnectTimeoutError(connection, "the time limit of the call is over")
        limit.watch(opened.fileno())
    return opened


def _watch_pooled(connection: Any) -> None:
    limit, opened = _current.get(), getattr(connection, "sock", None)
    if limit is not None and opened is not None and opened.fileno() >= 0:
        limit.watch(opened.fileno())


class _Connection(HTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _watch_new(self, super()._new_conn())


class _TlsConnection(HTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _watch_new(self, super()._new_conn())


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection

    def _make_request(self, conn: Any, *arguments: Any, **options: Any) -> Any:
        _watch_pooled(conn)
        return super()._make_request(conn, *arguments, **options)


class _TlsPool(HTTPSConnectionPool):
    ConnectionCls = _TlsConnection

    def _make_request(self, conn: Any, *arguments: Any, **options: Any) -> Any:
        _watch_pooled(conn)
        return super()._make_request(conn, *arguments, **options)


_POOLS = {"http": _Pool, "https": _TlsPool}


# --- size -----------------------------------------------------------------------------------------------


class _Body:
    """The body of a response of which at most `most` bytes are read. `requests` reads it by `stream` only."""

    def __init__(self, raw: Any, most: int, *, cut: bool) -> None:
        """`cut`: what exceeds the limit is cut off, instead of an error."""
        self._raw, self._most, self._cut = raw, most, cut

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def stream(self, size: int, decode_content: bool | None = None) -> Iterator[bytes]:
        left = self._most
        for part in self._raw.stream(size, decode_content=decode_content):
            if len(part) > left:
                self._raw.close()  # the rest stays unread
                if not self._cut:
                    raise TooLarge(self._most)
                yield part[:left]
                return
            left -= len(part)
            yield part


# --- sessions -------------------------------------------------------------------------------------------


class Adapter(HTTPAdapter):
    """An adapter with a timeout and a largest response for every call, and the CA bundle of the system, if any."""

    def __init__(self, ca_bundle: str | None = None, max_response_bytes: int = MAX_RESPONSE_BYTES) -> None:
        super().__init__(pool_maxsize=4)
        self.ca_bundle = ca_bundle
        self.max_response_bytes = max_response_bytes

    def init_poolmanager(self, *arguments: Any, **options: Any) -> None:
        """Use connections whose time is limited."""
        super().init_poolmanager(*arguments, **options)
        self.poolmanager.pool_classes_by_scheme = _POOLS

    def proxy_manager_for(self, *arguments: Any, **options: Any) -> Any:
        """Use connections whose time is limited."""
        manager = super().proxy_manager_for(*arguments, **options)
        manager.pool_classes_by_scheme = _POOLS
        return manager

    def send(self, request: Any, **options: Any) -> requests.Response:  # type: ignore[override]
        """Send the request with TIMEOUT, unless the caller gives another timeout.

        A streamed answer (`stream=True`) has no largest size: its caller reads it in parts.
        """
        if options.get("timeout") is None:
            options["timeout"] = TIMEOUT
        if self.ca_bundle:
            # Not on the session: REQUESTS_CA_BUNDLE would take precedence over its setting.
            options["verify"] = self.ca_bundle
        response = super().send(request, **options)
        failed = response.status_code >= 300
        if failed or not options.get("stream"):
            most = min(MAX_ERROR_BYTES, self.max_response_bytes) if failed else self.max_response_bytes
            response.raw = _Body(response.raw, most, cut=failed)
        return response


class LimitedSession(requests.Session):
    """A session of which each call has a time limit, with its redirects and the token it may need."""

    def send(self, request: requests.PreparedRequest, **options: Any) -> requests.Response:
        """Send a request."""
        with time_limit():
            return super().send(request, **options)


def limit_session(session: requests.Session, ca_bundle: str | None = None, most: int = MAX_RESPONSE_BYTES) -> None:
    """Give a session the adapters of this module."""
    for scheme in ("https://", "http://"):
        session.mount(scheme, Adapter(ca_bundle, most))


def new_session(
    ca_bundle: str | None = None, headers: Mapping[str, str] | None = None, max_response_bytes: int = MAX_RESPONSE_BYTES
) -> requests.Session:
    """Return a session whose calls are limited in time and size, and verify TLS."""
    session = LimitedSession()
    limit_session(session, ca_bundle, max_response_bytes)
    session.headers["User-Agent"] = "syncflow"
    session.headers.update(headers or {})
    return session
