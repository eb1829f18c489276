"""The network between the hub and one system: a TCP proxy on loopback that can be cut, slowed and reset.

It does not interpret the data, so TLS passes through.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from typing import Literal, Self, TypeVar

Mode = Literal["open", "refuse", "cut", "slow", "reset"]

#: mode -> its effect on a client
MODES: dict[Mode, str] = {
    "open": "everything passes",
    "refuse": "connection refused; those that were open are reset",
    "cut": "nothing passes: no byte, no answer, no refusal",
    "slow": "every chunk of an answer takes a while",
    "reset": "the connection is reset somewhere in the middle of an answer",
}

HOST = "127.0.0.1"
#: The longest delay before a chunk in slow mode, seconds.
SLOWEST = 0.6
#: Most bytes of an answer before it is reset; a TLS handshake alone has about 3000.
RESET_WITHIN = 6000

_NO_LINGER = struct.pack("ii", 1, 0)
T = TypeVar("T")


class Proxy:
    """Listen on `port` and forward to `target`, another local port, according to `mode`."""

    def __init__(self, port: int, target: int, seed: int) -> None:
        self.port = port
        self.target = target
        self.mode: Mode = "open"
        self.connections = 0
        self._random = random.Random(seed)
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"proxy-{target}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._run(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._shut)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def lead_to(self, target: int) -> None:
        """Forward to another port from now on; open connections are reset."""
        self.target = target
        self._run(self._reset_all)

    def set(self, mode: Mode) -> None:
        """Change the mode; open connections are reset, except when the new mode is slow."""
        self._run(lambda: self._set(mode))

    def _run(self, work: Callable[[], object]) -> None:
        async def run() -> None:
            result = work()
            if asyncio.iscoroutine(result):
                await result

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, HOST, self.port)

    async def _set(self, mode: Mode) -> None:
        self.mode = mode
        if mode == "refuse":
            self._close_server()
        else:
            await self._listen()
        if mode not in ("slow", "reset"):
            self._reset_all()

    async def _shut(self) -> None:
        self._close_server()
        self._reset_all()
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _reset_all(self) -> None:
        for writer in list(self._open):
            _reset(writer)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._open.add(writer)
        try:
            while self.mode == "cut" and not writer.transport.is_closing():
                await asyncio.sleep(0.05)
            if not writer.transport.is_closing():
                await self._connect(reader, writer)
        except OSError:
            _reset(writer)
        finally:
            self._open.discard(writer)
            writer.close()

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, theirs = await asyncio.open_connection(HOST, self.target)
        self._open.add(theirs)
        try:
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(reader, theirs, answer=False))
                both.create_task(self._pump(there, writer, answer=True))
        except* (OSError, asyncio.IncompleteReadError):
            _reset(writer)
        finally:
            self._open.discard(theirs)
            theirs.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answer: bool) -> None:
        left = self._random.randrange(RESET_WITHIN)
        while chunk := await reader.read(65536):
            while self.mode == "cut":
                await asyncio.sleep(0.05)
            if answer and self.mode == "slow":
                await asyncio.sleep(self._random.uniform(0.0, SLOWEST))
            if answer and self.mode == "reset":
                left -= len(chunk)
                if left < 0:
                    writer.write(chunk[: len(chunk) + left])
                    raise ConnectionResetError
            writer.write(chunk)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset (RST) instead of a normal shutdown."""
    raw: socket.socket | None = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    writer.transport.abort()
