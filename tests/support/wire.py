"""A TCP proxy between a client and a server that can be cut, frozen and led to another server."""

from __future__ import annotations

import socket
import threading


class Wire:
    """A proxy on a port of its own.

    While it is frozen, connections stay open and new ones are accepted, but no byte passes.
    """

    def __init__(self, host: str, port: int) -> None:
        self.target = host, port
        self.server = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.server.getsockname()[1])
        self.ends: list[socket.socket] = []
        self._flows = threading.Event()
        self._flows.set()
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(self.target)
            except OSError:
                client.close()
                continue
            self.ends += [client, server]
            for one, other in ((client, server), (server, client)):
                thread = threading.Thread(target=self._carry, args=(one, other))
                self.threads.append(thread)
                thread.start()

    def _carry(self, one: socket.socket, other: socket.socket) -> None:
        try:
            while data := one.recv(65536):
                self._flows.wait()
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def freeze(self) -> None:
        """Let no byte pass."""
        self._flows.clear()

    def thaw(self) -> None:
        """Let everything pass again, also what has waited."""
        self._flows.set()

    def cut(self) -> None:
        """Close all current connections."""
        ends, self.ends = self.ends, []
        for end in ends:
            try:
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                continue
            finally:
                end.close()

    def close(self) -> None:
        """Close the port and all connections."""
        self.server.shutdown(socket.SHUT_RDWR)
        self.server.close()
        self.thaw()
        self.cut()
        for thread in self.threads:
            thread.join()
