"""The settings of a running demo, for the other commands: the demo's systems are not in `.env`."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from settings import VAR, system_options

#: The demo locks this file while it runs, so that the file of a demo that was killed is not used.
FILE = VAR / "demo" / "running.json"


@contextmanager
def published(environment: Mapping[str, str]) -> Iterator[None]:
    """Publish these settings to other commands inside the block. They hold secrets of demo systems only."""
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.unlink(missing_ok=True)
    FILE.touch(mode=0o600)
    with FILE.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write(json.dumps(dict(environment)))
        file.flush()
        try:
            yield
        finally:
            FILE.unlink(missing_ok=True)


def join() -> None:
    """Use the settings of the demo that is running, if there is one; the environment and `.env` take precedence.

    A command that configures another database ignores the demo.
    """
    environment = _running()
    if environment is None:
        return
    named = system_options("database").get("url")
    if named not in (None, environment["DATABASE_URL"]):
        return
    own = {prefix for prefix in {name.partition("_")[0] for name in environment} if system_options(prefix)}
    taken = {name: value for name, value in environment.items() if name.partition("_")[0] not in own}
    if taken:
        os.environ.update(taken)
        print("A demo is running: using its settings.", file=sys.stderr)


def _running() -> dict[str, str] | None:
    try:
        with FILE.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found: dict[str, str] = json.loads(file.read())
                return found
    except (FileNotFoundError, ValueError):  # the demo is starting
        pass
    return None
