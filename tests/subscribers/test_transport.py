"""Every call ends before its time is over, and every answer is read up to a largest size (rows 4 and 5)."""

from __future__ import annotations

import gzip
import re
import socket
import ssl
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from threading import Event, Thread
from typing import Any

import pytest
import requests
from pydantic import SecretStr
from pytest_httpserver import HTTPServer

from simulators.certificates import ensure_certificates
from subscribers import calls
from subscribers.calls import renewed_by
from subscribers.errors import ResponseTooLarge, Retry, SyncError, SystemDown
from subscribers.http.auth import ClientCredentials
from subscribers.http.client import Http
from subscribers.http.transport import MAX_ERROR_BYTES, TimeLimit, TooLarge, new_session
from subscribers.rest import RestOptions, RestSystem
from subscribers.salesforce import bulk
from subscribers.salesforce.login import log_in
from subscribers.salesforce.options import SalesforceOptions
from workers.queue_stats import Management

#: Seconds between two bytes of a slow answer: shorter than any read timeout.
PAUSE = 0.02


@pytest.fixture(autouse=True)
def short_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 0.3)


@contextmanager
def slow_server(fast: bytes, slow: bytes) -> Iterator[tuple[str, Event]]:
    """Run a server that answers `fast`, then repeats `slow` until the client goes; yield its URL and "it has gone"."""
    gone = Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError):
                connection, _ = server.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(fast)
                    connection.settimeout(PAUSE)
                    while not _has_ended(connection):
                        connection.sendall(slow)
            gone.set()

        thread = Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", gone
    thread.join()


def _has_ended(connection: socket.socket) -> bool:
    try:
        return connection.recv(65536) == b""
    except TimeoutError:
        return False


SLOW = {
    "in the status": (b"", b"H"),
    "in the headers": (b"HTTP/1.1 200 OK\r\nX-Slow: ", b"a"),
    "many headers": (b"HTTP/1.1 200 OK\r\n", b"X: a\r\n"),
    "in the body": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b" "),
    "without a length": (b"HTTP/1.1 200 OK\r\n\r\n{}", b" "),
    "in chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n"),
    "in an error": (b"HTTP/1.1 500 Oh\r\nContent-Length: 1000000\r\n\r\n", b" "),
}


@pytest.mark.parametrize("place", SLOW)
def test_s05_a_slow_answer_ends_with_the_time_of_its_call(place: str) -> None:
    with slow_server(*SLOW[place]) as (url, gone):
        with pytest.raises(Retry, match="no response in time") as caught:
            Http(url).json("POST", "/things", json={})
        assert caught.value.maybe_done and caught.value.may_be_outage
        assert gone.wait(10)


def test_s05_a_slow_tls_handshake_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 1.5)  # the certificates are loaded in this time
    hello = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc"  # the beginning of a handshake of 16 kB
    with slow_server(hello, b"a") as (url, gone):
        with pytest.raises(SyncError) as caught:
            Http(url.replace("http:", "https:")).json("POST", "/things", json={})
        assert "no response in time" in str(caught.value)
        assert gone.wait(10)


def test_s05_a_slow_answer_over_tls_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 1.5)
    files = ensure_certificates(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.server, files.server_key)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            with suppress(OSError), context.wrap_socket(server.accept()[0], server_side=True) as connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
                connection.settimeout(PAUSE)
                while not _has_ended(connection):
                    connection.sendall(b" ")

        thread = Thread(target=serve, daemon=True)
        thread.start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(Retry, match="no response in time"):
            Http(url, ca_bundle=str(files.ca)).json("POST", "/things", json={})
        thread.join(10)
        assert not thread.is_alive()


def test_s05_a_read_is_repeated_only_if_its_connection_was_cut_by_the_system() -> None:
    with slow_server(*SLOW["in the body"]) as (url, _), pytest.raises(Retry) as caught:
        Http(url).json("GET", "/things")
    assert not caught.value.maybe_done and "no response in time" in str(caught.value)


def test_s05_a_connection_is_used_again_after_a_call_in_time(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/things").respond_with_json({})
    http = Http(httpserver.url_for(""))
    for _ in range(3):
        http.json("GET", "/things")
    adapter: Any = http.session.get_adapter("http://")
    (pool,) = adapter.poolmanager.pools._container.values()
    assert pool.num_requests == 3 and pool.num_connections <= 3


def test_s05_a_call_takes_at_most_what_is_left_of_the_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 600.0)
    with slow_server(*SLOW["in the body"]) as (url, gone), renewed_by(lambda: None, lambda: 0.2):
        with pytest.raises(Retry, match="no response in time"):
            Http(url).json("POST", "/things", json={})
        assert gone.wait(10)


def test_s05_a_call_does_not_begin_when_the_lease_is_lost(httpserver: HTTPServer) -> None:
    def lost() -> float:
        raise Retry("the lease ran out before the call", maybe_done=True)

    with renewed_by(lambda: None, lost), pytest.raises(Retry, match="the lease ran out"):
        Http(httpserver.url_for("")).json("POST", "/things", json={})
    assert not httpserver.log


def salesforce(url: str) -> SalesforceOptions:
    return SalesforceOptions(consumer_key="key", consumer_secret=SecretStr("secret"), instance_url=url)


def _token(url: str) -> object:
    auth = ClientCredentials(f"{url}/token", "id", SecretStr("client-secret"))
    return auth(requests.Request("GET", url).prepare())


LOGINS: dict[str, Callable[[str], object]] = {
    "oauth": _token,
    "salesforce": lambda url: log_in(salesforce(url)),
    "rabbitmq": lambda url: Management(url, ("guest", "guest"), "/").read(),
}


@pytest.mark.parametrize("login", LOGINS)
def test_s05_logins_end_with_the_time_of_a_call(login: str) -> None:
    with slow_server(*SLOW["in the body"]) as (url, gone):
        with pytest.raises(Exception, match=r"no response in time|cannot log in|does not answer"):
            LOGINS[login](url)
        assert gone.wait(10)


# --- size -----------------------------------------------------------------------------------------------

BIG = 40_000_000


def _twice(content: bytes) -> bytes:
    return gzip.compress(gzip.compress(content))


BOMBS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "plain": (lambda content: content, "identity"),
    "gzip": (gzip.compress, "gzip"),
    "deflate": (zlib.compress, "deflate"),
    "gzip twice": (_twice, "gzip, gzip"),
}


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "CALL_SECONDS", 50.0)


def serve_big(httpserver: HTTPServer, bomb: str, status: int = 200) -> str:
    pack, encoding = BOMBS[bomb]
    content = pack(b'{"data": [' + b"1, " * (BIG // 3) + b"1]}")
    headers = {"Content-Encoding": encoding, "Content-Type": "application/json"}
    httpserver.expect_request("/things").respond_with_data(content, status=status, headers=headers)
    return httpserver.url_for("")


def _peak(action: Callable[[], Any]) -> int:
    """Return the most bytes that were in use at a time during an action."""
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_s04_a_large_answer_is_not_read(httpserver: HTTPServer, bomb: str, method: str) -> None:
    http = Http(serve_big(httpserver, bomb), max_response_bytes=100_000)

    def call() -> None:
        with pytest.raises(ResponseTooLarge, match="100,000 bytes") as caught:
            http.json(method, "/things")
        assert caught.value.maybe_done is (method == "POST")
        assert caught.value.is_terminal and "MAX_RESPONSE_BYTES" in str(caught.value)

    # The server of this test holds its answer, and werkzeug copies it, in the same process.
    allowed = 2 * BIG if bomb == "plain" else BIG // 2
    assert _peak(call) < allowed


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("bomb", BOMBS)
def test_s04_a_large_error_keeps_its_status(httpserver: HTTPServer, bomb: str) -> None:
    http = Http(serve_big(httpserver, bomb, status=503))
    with pytest.raises(SystemDown, match="503"):
        http.json("GET", "/things")


@pytest.mark.usefixtures("patient")
def test_s04_an_answer_of_the_largest_size_is_read(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/things").respond_with_json("x" * 1000)
    url = httpserver.url_for("/things")
    assert new_session(max_response_bytes=1002).get(url).json() == "x" * 1000
    with pytest.raises(TooLarge):
        new_session(max_response_bytes=1001).get(url)


@pytest.mark.usefixtures("patient")
def test_s04_the_setting_of_a_system_counts(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/things").respond_with_json("x" * 5000)

    class Shop(RestSystem):
        auth = "none"

    def read(**more: int) -> Any:
        return Shop("shop", RestOptions(url=httpserver.url_for(""), **more)).http.json("GET", "/things")[0]

    assert read() == "x" * 5000
    with pytest.raises(ResponseTooLarge, match="4,096"):
        read(max_response_bytes=4096)


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("login", LOGINS)
def test_s04_a_large_answer_to_a_login_is_not_read(httpserver: HTTPServer, login: str) -> None:
    content = gzip.compress(b"[" + b"1," * (BIG // 2))
    httpserver.expect_request(re.compile("/.*")).respond_with_data(content, headers={"Content-Encoding": "gzip"})
    url = httpserver.url_for("").rstrip("/")

    def call() -> None:
        with pytest.raises(Exception, match=r"more than|cannot log in|does not answer"):
            LOGINS[login](url)

    assert _peak(call) < 40_000_000


class _Lines:
    """A streamed answer of these parts."""

    def __init__(self, *parts: bytes) -> None:
        self.parts = parts

    def iter_content(self, _size: int) -> Iterator[bytes]:
        yield from self.parts


class _Limit:
    extended = 0

    def extend(self) -> None:
        self.extended += 1


def test_s04_results_of_a_bulk_job_are_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = _Limit()
    parts = _Lines(b"a,b\n1,\xc3", b"\xa9x\n2,", b"y")  # a character in two parts
    assert list(bulk._lines(parts, limit)) == ["a,b\n", "1,\u00e9x\n", "2,y"]  # type: ignore[arg-type]
    assert limit.extended == 3
    monkeypatch.setattr(bulk, "MAX_RESPONSE_BYTES", 10)
    with pytest.raises(TooLarge):
        list(bulk._lines(_Lines(b"a" * 8, b"a" * 8), limit))  # type: ignore[arg-type]


def test_s04_errors_are_cut_to_a_size_of_their_own() -> None:
    assert MAX_ERROR_BYTES <= 1024 * 1024


def test_a_connection_that_is_used_after_the_end_is_shut_down() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs, closing(TimeLimit()) as limit:
        limit.end()
        limit.watch(ours.fileno())  # as for the next call of a redirect
        theirs.settimeout(5)
        assert theirs.recv(1) == b""
