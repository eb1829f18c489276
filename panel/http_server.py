"""Serve the panel: from threads of this process, for standalone mode and for tests, or in gunicorn's workers.

Both have a fixed number of threads, and give them complete requests only, see `panel.receiving`.
"""

from __future__ import annotations

import io
import logging
import selectors
import threading
from queue import SimpleQueue
from typing import Any

from flask import Flask
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler

from panel.receiving import Incoming, Receiver

logger = logging.getLogger(__name__)

#: Requests that are handled at the same time.
THREADS = 16


class CannotListen(Exception):
    """The system does not let this process listen; the message says why."""


class _Handler(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, incoming: Incoming, server: BaseWSGIServer) -> None:
        self._received = io.BytesIO(bytes(incoming.data))
        super().__init__(incoming.sock, incoming.address, server)

    def setup(self) -> None:
        super().setup()
        self.rfile.close()
        self.rfile = self._received

    def log_request(self, *_arguments: Any) -> None:
        """Log nothing for a request."""

    def log_error(self, format: str, *arguments: Any) -> None:
        """Log nothing for a request that is no HTTP: it was answered."""


class PanelServer(BaseWSGIServer):
    """A server with `THREADS` threads."""

    multithread = True

    def __init__(self, host: str, port: int, app: Flask) -> None:
        super().__init__(host, port, app, _Handler)
        self._requests: SimpleQueue[Incoming | None] = SimpleQueue()
        self._stop, self._ended = threading.Event(), threading.Event()

    def server_bind(self) -> None:
        """Bind the socket.

        Raises:
          CannotListen: the port is in use, or the address is not one of this machine.
        """
        try:
            super().server_bind()
        except OSError as error:  # werkzeug would end the process
            raise CannotListen(error.strerror or str(error)) from None

    def serve_forever(self, poll_interval: float = 0.5) -> None:
        """Serve until `shutdown`."""
        for number in range(THREADS):
            threading.Thread(target=self._work, name=f"web-{number}", daemon=True).start()
        with selectors.DefaultSelector() as selector:
            receiver = Receiver(selector, self._requests.put)
            self.socket.setblocking(False)
            selector.register(self.socket, selectors.EVENT_READ, lambda _file: self._accept(receiver))
            try:
                while not self._stop.is_set():
                    for key, _events in selector.select(poll_interval):
                        key.data(key.fileobj)
                    receiver.expire()
            finally:
                receiver.close()
                for _ in range(THREADS):
                    self._requests.put(None)
                self.server_close()
                self._ended.set()

    def shutdown(self) -> None:
        """Stop accepting requests, and wait until none is received any more."""
        self._stop.set()
        self._ended.wait()

    def _accept(self, receiver: Receiver) -> None:
        try:
            sock, address = self.get_request()
        except OSError:
            return  # the client has gone
        receiver.add(sock, address)

    def _work(self) -> None:
        while (incoming := self._requests.get()) is not None:
            try:
                _Handler(incoming, self)
            except Exception:
                logger.exception("a request failed")
            finally:
                incoming.linger()
                self.shutdown_request(incoming.sock)


def threaded_server(app: Flask, host: str, port: int) -> PanelServer:
    """Return a server of the app; start it with `serve_forever`."""
    return PanelServer(host, port, app)
