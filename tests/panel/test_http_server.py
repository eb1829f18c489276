"""The server of the standalone hub: it closes every response, whatever the client does."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit

from flask import Flask, Response

from tests.support.panel import served

#: SO_LINGER: closing sends a reset, as a browser does when it no longer needs a response.
RESET = struct.pack("ii", 1, 0)


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
        address = urlsplit(base)
        client = socket.create_connection((address.hostname, address.port))
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.sendall(b"GET / HTTP/1.1\r\nHost: panel\r\n\r\n")
        said = b""
        while not said.endswith(b"all of it"):
            said += client.recv(1000)
        client.close()
        gone.set()
        assert closed.wait(10)
