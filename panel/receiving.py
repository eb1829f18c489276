"""Receive requests without a thread for each: one is handled when it has arrived completely.

A client that sends slowly, or stops in the middle, holds a socket and its bytes, but none of the threads that answer.
It is disconnected after `SECONDS`.
"""

from __future__ import annotations

import re
import selectors
import socket
import struct
import time
from collections.abc import Callable
from functools import partial
from typing import Any

#: A request must arrive within this time.
SECONDS = 20.0

#: Bytes of the largest head, and of the largest request. A larger one is handled without its body, and so refused.
LARGEST_HEAD = 64 * 1024
LARGEST_REQUEST = 5 * 1024 * 1024

#: Requests that arrive at the same time, and their bytes. Beyond either limit the oldest one is disconnected.
MOST = 500
MOST_BYTES = 64 * 1024 * 1024

#: A client must take some of the response within this time.
_SEND_SECONDS = 30

#: How long a client that sends more than is read may take to see why it is refused.
_LINGER_SECONDS = 0.5

_CHUNK = re.compile(rb"([0-9a-fA-F]{1,8})[ \t]*(?:;[^\r\n]*)?\r\n")
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d{1,18})[ \t]*\r\n", re.IGNORECASE)
_IS_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[^\r\n]*chunked", re.IGNORECASE)
_EXPECTS = re.compile(rb"\r\nexpect:[ \t]*100-continue", re.IGNORECASE)


class Incoming:
    """A request that arrives on a socket."""

    def __init__(self, sock: socket.socket, address: Any) -> None:
        self.sock = sock
        self.address = address
        self.data = bytearray()
        self.deadline = time.monotonic() + SECONDS
        self._head = 0  # bytes of the head, once it has arrived
        self._end: int | None = None  # where a body of known length ends
        self._too_long = False
        self._next_chunk = 0

    def add(self, data: bytes) -> bool:
        """Add received bytes; return whether the request is complete, or larger than is read."""
        searched = max(0, len(self.data) - 3)
        self.data += data
        if not self._head:
            end = self.data.find(b"\r\n\r\n", searched)
            if end < 0:
                return len(self.data) > LARGEST_HEAD
            self._read_head(end + 4)
        return len(self.data) > LARGEST_REQUEST or self._too_long or self._is_complete()

    def _is_complete(self) -> bool:
        if not self._head or self._too_long:
            return False
        return self._has_all_chunks() if self._end is None else len(self.data) >= self._end

    def linger(self) -> None:
        """Let the client see the response to a request that was not read to its end.

        A socket that is closed with unread data resets the connection, and the response may be lost.
        """
        if self._is_complete():
            return
        until = time.monotonic() + _LINGER_SECONDS
        try:
            self.sock.shutdown(socket.SHUT_WR)
            self.sock.settimeout(_LINGER_SECONDS)
            while time.monotonic() < until and self.sock.recv(256 * 1024):
                pass
        except OSError:
            pass  # the client has gone, or sends nothing

    def _read_head(self, size: int) -> None:
        self._head = self._next_chunk = size
        head = bytes(self.data[:size])
        if not _IS_CHUNKED.search(head):
            self._end = size + (int(found[1]) if (found := _LENGTH.search(head)) else 0)
            self._too_long = self._end > LARGEST_REQUEST
        if not self._too_long and not self._is_complete() and _EXPECTS.search(head):
            self.sock.send(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _has_all_chunks(self) -> bool:
        """Return whether the last chunk and the trailers have arrived (RFC 9112, 7.1)."""
        while line := _CHUNK.match(self.data, self._next_chunk):
            size = int(line[1], 16)
            if size == 0:
                # The blank line after the trailers, or immediately after the last chunk.
                ended = self.data.find(b"\r\n\r\n", line.end() - 2) >= 0
                return ended or len(self.data) - line.end() > LARGEST_HEAD
            if len(self.data) < line.end() + size + 2:
                return False
            self._next_chunk = line.end() + size + 2
        # A line that can be no chunk's is refused by the one that reads the request.
        return len(self.data) - self._next_chunk > 1024


class Receiver:
    """Receives requests through a selector, and passes each that is complete to `handle`, which owns its socket then.

    The caller runs the selector: it calls the data of each key that is ready, with the key's file, and `expire` about
    every second. `dropped` is called for each client that is disconnected before.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        handle: Callable[[Incoming], None],
        dropped: Callable[[], None] = lambda: None,
    ) -> None:
        self._selector = selector
        self._handle = handle
        self._dropped = dropped
        self._arriving: dict[socket.socket, Incoming] = {}  # the oldest first
        self._bytes = 0

    def add(self, sock: socket.socket, address: Any) -> None:
        """Receive a request from a new client."""
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", _SEND_SECONDS, 0))
        self._arriving[sock] = incoming = Incoming(sock, address)
        self._selector.register(sock, selectors.EVENT_READ, partial(self._receive, incoming))
        self._make_room()

    def expire(self) -> None:
        """Disconnect clients whose time is over."""
        now = time.monotonic()
        while (oldest := next(iter(self._arriving.values()), None)) and oldest.deadline <= now:
            self._drop(oldest)

    def close(self) -> None:
        """Disconnect all clients."""
        for incoming in list(self._arriving.values()):
            self._drop(incoming)

    def _receive(self, incoming: Incoming, _file: object) -> None:
        if incoming.sock not in self._arriving:
            return  # it was dropped in this round
        try:
            data = incoming.sock.recv(256 * 1024)
            self._bytes += len(data)
            complete = bool(data) and incoming.add(data)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(incoming)
        elif complete:
            self._forget(incoming)
            incoming.sock.setblocking(True)
            self._handle(incoming)
        else:
            self._make_room()

    def _make_room(self) -> None:
        while len(self._arriving) > MOST or self._bytes > MOST_BYTES:
            self._drop(next(iter(self._arriving.values())))

    def _drop(self, incoming: Incoming) -> None:
        self._forget(incoming)
        incoming.sock.close()
        self._dropped()

    def _forget(self, incoming: Incoming) -> None:
        del self._arriving[incoming.sock]
        self._bytes -= len(incoming.data)
        self._selector.unregister(incoming.sock)
