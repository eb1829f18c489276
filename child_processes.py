"""Processes that end with the one that started them, however that one ends.

The parent holds a pipe to a guard, a small process of its own. The pipe closes when the parent ends, also by SIGKILL.
The guard then ends the children's process groups, with what they have started.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

#: Seconds until the guard kills what ignores SIGTERM: more than a hub needs to finish its work.
_GRACE_SECONDS = 30.0

#: Seconds between two looks for groups that have ended; the system may use their numbers again.
_LOOK_SECONDS = 1.0

#: Seconds to wait for the guard at the end of the parent.
_LEAVE_SECONDS = 2.0

_lock = threading.Lock()
_guard: subprocess.Popen[bytes] | None = None


def start(command: Sequence[str | Path], **options: Any) -> subprocess.Popen[Any]:
    """Start a process as `subprocess.Popen` does, in a session of its own; its process group ends with this process."""
    process: subprocess.Popen[Any] = subprocess.Popen(command, start_new_session=True, **options)
    watch(process.pid)
    return process


def watch(group: int) -> None:
    """Have a process group ended with this process."""
    global _guard  # noqa: PLW0603 - one for each process
    with _lock:
        if _guard is None or _guard.poll() is not None:
            command = [sys.executable, "-I", "-S", __file__]
            _guard = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
            atexit.register(_leave, _guard)
        assert _guard.stdin is not None
        _guard.stdin.write(f"{group}\n".encode())
        _guard.stdin.flush()


def _leave(guard: subprocess.Popen[bytes]) -> None:
    """Let the guard end: immediately if all children have ended; otherwise it ends them after us."""
    assert guard.stdin is not None
    guard.stdin.close()
    try:
        guard.wait(_LEAVE_SECONDS)
    except subprocess.TimeoutExpired:
        guard.returncode = 0  # it outlives us: nothing to warn of


def is_orphaned() -> Callable[[], bool]:
    """Return a function that tells whether what started this process has ended since.

    Where make started it, that is also what started make. With `nohup` nothing is awaited.
    """
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
        return lambda: False
    parent = os.getppid()
    beyond = _parent_of(parent) if _name_of(parent) in ("make", "gmake") else 0

    def check() -> bool:
        return os.getppid() != parent or (beyond != 0 and _parent_of(parent) != beyond)

    return check


def _parent_of(pid: int) -> int:
    return int(_ps(pid, "ppid") or 0)


def _name_of(pid: int) -> str:
    return os.path.basename(_ps(pid, "comm"))


def _ps(pid: int, column: str) -> str:
    """Return a property of a process; empty if it has ended. A minimal Debian has no `ps`, other systems no /proc."""
    status = Path(f"/proc/{pid}/stat")
    if Path("/proc/self/stat").exists():
        try:
            name, _, others = status.read_text().partition("(")[2].rpartition(")")
        except OSError:
            return ""
        return name if column == "comm" else others.split()[1]
    command = ["ps", "-o", f"{column}=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


# --- the guard --------------------------------------------------------------------------------------------


def _main() -> None:
    """Read process groups from the pipe; when it closes, end those that are left."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    groups: set[int] = set()
    read = b""
    while True:
        if select.select([0], [], [], _LOOK_SECONDS)[0]:
            chunk = os.read(0, 65536)
            if not chunk:
                break
            *lines, read = (read + chunk).split(b"\n")
            groups.update(map(int, lines))
        groups = {group for group in groups if _signal(group, 0)}
    _end(groups)


def _end(groups: set[int]) -> None:
    deadline = time.monotonic() + _GRACE_SECONDS
    groups = {group for group in groups if _signal(group, signal.SIGTERM)}
    while groups and time.monotonic() < deadline:
        time.sleep(0.05)
        groups = {group for group in groups if _signal(group, 0)}
    for group in groups:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    """Send a signal to a process group; return whether the group exists."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


if __name__ == "__main__":
    _main()
