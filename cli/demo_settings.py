"""Commands beside a demo that runs: its systems stand in no `.env`, so it leaves its settings where they find them."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from settings import VAR, system_options

#: Locked by the demo for as long as it runs: what one that was killed has left is not mistaken for it.
FILE = VAR / "demo" / "running.json"


@contextmanager
def published(environment: Mapping[str, str]) -> Iterator[None]:
    """Let other commands find these settings, as long as this lasts. They hold secrets of demo systems only."""
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
    """Take the settings of the demo that runs here, if one does. What the environment or `.env` says goes before.

    It is left alone by whoever names another database.
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
        print("A demo is running here: this goes with its settings.", file=sys.stderr)


def _running() -> dict[str, str] | None:
    try:
        with FILE.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                found: dict[str, str] = json.loads(file.read())
                return found
    except (FileNotFoundError, ValueError):  # it is just beginning
        pass
    return None
