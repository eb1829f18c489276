"""Running a demo system from the command line until it is told to stop."""

import logging
import os
import signal
import threading
from types import TracebackType
from typing import Protocol, Self


class System(Protocol):
    """What every demo system offers: usable in a `with` block, in which it answers at `url`."""

    @property
    def url(self) -> str: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def serve(system: System) -> None:
    """Run until SIGTERM or SIGINT. The first line printed is the address, for whoever started us."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with system:
        print(system.url, flush=True)
        stop.wait()


def secret_from(variable: str, default: str | None = None) -> str:
    """The secret in that environment variable. On a command line, any user of the machine could read it.

    SystemExit with a message when it is not set and there is no default.
    """
    value = os.environ.get(variable) or default
    if not value:
        raise SystemExit(f"set the environment variable {variable} first")
    return value
