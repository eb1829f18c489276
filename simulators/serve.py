"""Run a demo system from the command line until it gets a signal to stop."""

import logging
import os
import signal
import threading
from types import TracebackType
from typing import Protocol, Self


class System(Protocol):
    """The interface of every demo system: within a `with` block, it answers at `url`."""

    @property
    def url(self) -> str: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def serve(system: System) -> None:
    """Run until SIGTERM or SIGINT. The first line printed is the address, for the process that started this one."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with system:
        print(system.url, flush=True)
        stop.wait()


def secret_from(variable: str, default: str | None = None) -> str:
    """Return the secret in this environment variable. On a command line, any user of the machine could read it.

    Raises SystemExit with a message if the variable is not set and there is no default.
    """
    value = os.environ.get(variable) or default
    if not value:
        raise SystemExit(f"set the environment variable {variable} first")
    return value
