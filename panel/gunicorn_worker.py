"""Gunicorn's worker with threads, which only get requests that have arrived completely."""

from __future__ import annotations

import errno
from typing import Any

from gunicorn.workers.gthread import TConn, ThreadWorker  # type: ignore[import-untyped]

from panel.receiving import Incoming, Receiver


class _Nothing:
    """In the place of a socket: there is nothing more to receive."""

    def recv(self, _size: int) -> bytes:
        return b""


class PanelWorker(ThreadWorker):  # type: ignore[misc]
    """Gunicorn's own worker gives a thread to each client that has sent a first byte, until it has sent all.

    Needs `--keep-alive 0`: each connection has one request.
    """

    def run(self) -> None:
        """Serve until stopped."""
        self._receiver = Receiver(self.poller, self._handle, self._dropped)
        super().run()

    def accept(self, listener: Any) -> None:
        """Receive a request from a new client."""
        try:
            sock, address = listener.accept()
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.ECONNABORTED, errno.EWOULDBLOCK):
                raise
            return
        self.nr_conns += 1
        self._receiver.add(sock, address)

    def murder_pending(self) -> None:
        """Disconnect clients whose time is over. Gunicorn calls this about every second."""
        super().murder_pending()
        self._receiver.expire()

    def _handle(self, incoming: Incoming) -> None:
        connection = TConn(self.cfg, incoming.sock, incoming.address, incoming.sock.getsockname())
        connection.data_ready = True
        connection.init()
        connection.parser.unreader.unread(bytes(incoming.data))
        connection.parser.unreader.sock = _Nothing()
        connection.incoming = incoming
        self.enqueue_req(connection)

    def handle(self, conn: Any) -> None:
        """Handle a request, in a thread."""
        super().handle(conn)
        conn.incoming.linger()

    def finish_request(self, conn: Any, fs: Any) -> None:
        """Close the connection. Gunicorn's own method waits for the client, in the thread that accepts all others."""
        self.nr_conns -= 1
        conn.close()

    def _dropped(self) -> None:
        self.nr_conns -= 1
