"""The servers of standalone and of the web process: what clients that send or read slowly can and cannot do."""

from __future__ import annotations

import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests
from flask import Flask, Response
from hypothesis import given, settings
from hypothesis import strategies as st

from panel import http_server, receiving
from tests.panel.small_app import app as small_app
from tests.support.panel import served

#: SO_LINGER: closing sends a reset, as a browser does when it no longer needs a response.
RESET = struct.pack("ii", 1, 0)

GET = b"GET / HTTP/1.1\r\nHost: panel\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: panel\r\nContent-Length: 4\r\n\r\nbody"
CHUNKED = b"POST / HTTP/1.1\r\nHost: panel\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nbo\r\n2\r\ndy\r\n0\r\n\r\n"

#: Where a client stops sending.
HALVES = [b"", b"G", GET[:-2], POST[:-1], POST[:-4], CHUNKED[:-1], CHUNKED[:-5], CHUNKED[:-9], CHUNKED[:-17]]


@contextmanager
def _gunicorn(app: str) -> Iterator[str]:
    """Run gunicorn as `./syncflow web` does, with one process of two threads."""
    from cli.processes import gunicorn_arguments  # noqa: PLC0415 - it configures nothing

    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    command = [sys.executable, *gunicorn_arguments(app, f"127.0.0.1:{port}", 5), "--workers", "1", "--threads", "2"]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2])
    try:
        base = f"http://127.0.0.1:{port}"
        while True:
            assert process.poll() is None
            try:
                requests.get(base, timeout=5)
                break
            except requests.ConnectionError:
                time.sleep(0.05)
        yield base
    finally:
        process.terminate()
        process.wait()


@pytest.fixture(scope="module", params=["standalone", "web"])
def base(request: pytest.FixtureRequest) -> Iterator[str]:
    running = served(small_app) if request.param == "standalone" else _gunicorn("tests.panel.small_app:app")
    with running as address:
        yield address


def _connect(base: str) -> socket.socket:
    address = urlsplit(base)
    return socket.create_connection((str(address.hostname), address.port or 0))


def _answer(base: str, *parts: bytes) -> bytes:
    """Send a request in parts and return the response."""
    with _connect(base) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            client.sendall(part)
        return b"".join(iter(lambda: client.recv(65536), b""))


def test_w07_half_sent_requests_stop_nobody(base: str) -> None:
    requests.get(base, timeout=10)
    before = threading.active_count()
    with ExitStack() as stack:
        for number in range(100):
            client = stack.enter_context(_connect(base))
            client.sendall(HALVES[number % len(HALVES)])
        assert requests.get(base, timeout=10).text == "a page"
        assert requests.post(base, b"body", timeout=10).text == "4"
        assert threading.active_count() <= before


@pytest.mark.parametrize("request_", [POST, CHUNKED], ids=["length", "chunked"])
def test_a_request_may_arrive_in_any_parts(base: str, request_: bytes) -> None:
    for size in (1, 7, len(request_)):
        parts = [request_[start : start + size] for start in range(0, len(request_), size)]
        assert _answer(base, *parts).endswith(b"4"), size


def test_w07_who_keeps_the_connection_open_stops_nobody(base: str) -> None:
    with ExitStack() as stack:
        for _ in range(100):
            client = stack.enter_context(_connect(base))
            client.sendall(GET)
            assert client.recv(12) == b"HTTP/1.1 200"


def test_what_follows_a_request_is_not_read(base: str) -> None:
    for extra in (b"x", GET, GET[:9]):
        assert _answer(base, POST + extra).count(b"HTTP/1.1 200") == 1


def test_a_client_that_waits_to_be_asked_for_its_body(base: str) -> None:
    head = POST.replace(b"Host", b"Expect: 100-continue\r\nHost").removesuffix(b"body")
    with _connect(base) as client:
        client.sendall(head)
        assert client.recv(65536).startswith(b"HTTP/1.1 100 Continue")
        client.sendall(b"body")
        assert b"".join(iter(lambda: client.recv(65536), b"")).endswith(b"4")


def test_large_requests(base: str) -> None:
    assert requests.post(base, bytes(4 * 1024 * 1024), timeout=10).text == str(4 * 1024 * 1024)
    assert requests.post(base, bytes(8 * 1024 * 1024), timeout=10).status_code == 413
    assert _answer(base, b"POST / HTTP/1.1\r\nHost: p\r\nContent-Length: 99999999\r\n\r\n").startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "wrong",
    [b"\r\n\r\n", b"x\r\n\r\n", b"GET /\r\n\r\n", b"\x00" * 70000,
     b"POST / HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n" + b"z" * 2000],
)  # fmt: skip
def test_what_is_no_request_does_no_harm(base: str, wrong: bytes) -> None:
    with _connect(base) as client:
        client.sendall(wrong)
        client.shutdown(socket.SHUT_WR)
        assert b" 200 " not in b"".join(iter(lambda: client.recv(65536), b""))
    assert requests.get(base, timeout=10).text == "a page"


def test_w07_who_sends_too_slowly_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "SECONDS", 0.2)
    with served(small_app) as base:
        for half in HALVES:
            assert _answer(base, half) == b""


def test_w07_the_oldest_waiting_client_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MOST", 3)
    with served(small_app) as base, ExitStack() as stack:
        clients = [stack.enter_context(_connect(base)) for _ in range(5)]
        assert [client.recv(10) for client in clients[:2]] == [b"", b""]
        clients[4].sendall(GET)
        assert clients[4].recv(12) == b"HTTP/1.1 200"


def test_w07_bytes_that_wait_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "MOST_BYTES", 100_000)
    with served(small_app) as base, ExitStack() as stack:
        clients = [stack.enter_context(_connect(base)) for _ in range(3)]
        for client in clients:
            client.sendall(b"POST / HTTP/1.1\r\nHost: p\r\nContent-Length: 60001\r\n\r\n" + bytes(60_000))
        clients[2].sendall(b"x")
        assert clients[2].recv(12) == b"HTTP/1.1 200"
        with suppress(ConnectionResetError):
            assert clients[0].recv(1) == b"", "the oldest was disconnected"


def test_w07_who_does_not_read_the_response_is_disconnected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "_SEND_SECONDS", 1)
    monkeypatch.setattr(http_server, "THREADS", 1)
    with served(small_app) as base, _connect(base) as client:
        client.sendall(GET.replace(b"/ ", b"/large "))
        assert requests.get(base, timeout=30).text == "a page"


@given(st.lists(st.binary(min_size=1, max_size=9), max_size=5), st.sampled_from([b"", b"T: 1\r\n"]), st.data())
@settings(max_examples=50, deadline=None)
def test_the_end_of_a_chunked_body_is_found(chunks: list[bytes], trailer: bytes, data: st.DataObject) -> None:
    body = b"".join(b"%x;a=b\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks)
    request_ = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n" + body + b"0\r\n" + trailer + b"\r\n"
    with socket.socket() as sock:
        incoming, cut = receiving.Incoming(sock, None), data.draw(st.integers(1, len(request_) - 1))
        assert not incoming.add(request_[:cut])
        assert incoming.add(request_[cut:])


def test_an_answer_is_closed_although_the_client_reset_the_connection() -> None:
    app, gone, closed = Flask(__name__), threading.Event(), threading.Event()

    @app.get("/")
    def answer() -> Response:
        def body() -> Iterator[bytes]:
            yield b"all of it"
            gone.wait(10)

        made = Response(body(), headers={"Content-Length": "9"})
        made.call_on_close(closed.set)
        return made

    with served(app) as base:
        client = _connect(base)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.sendall(GET)
        said = b""
        while not said.endswith(b"all of it"):
            said += client.recv(1000)
        client.close()
        gone.set()
        assert closed.wait(10)
