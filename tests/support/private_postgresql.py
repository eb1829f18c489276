"""PostgreSQL servers of one's own: a primary with a standby, and PgBouncer in front of the tests' server."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import psycopg

import child_processes
from tests.acceptance.processes import free_port
from tests.support import services
from tests.support.runtimes import until

_BINARIES = Path("/usr/lib/postgresql")


def _owner() -> str | None:
    """Return the user to run servers as: PostgreSQL and PgBouncer refuse to run as root."""
    return "postgres" if os.geteuid() == 0 else None


@contextmanager
def private_postgresql(name: str, **settings: int) -> Iterator[int]:
    """Yield the port of a private cluster. It is started, and stopped at the end, unless it runs already.

    `settings` are those that PostgreSQL reads only at its start: the first start stores them.
    """
    if settings:
        with services.private("postgresql", name) as url, psycopg.connect(url, autocommit=True) as connection:
            for setting, value in settings.items():
                connection.execute(f"ALTER SYSTEM SET {setting} = {value}")
    with services.private("postgresql", name) as url:
        yield int(urlsplit(url).port or 0)


@contextmanager
def standby_of(port: int) -> Iterator[int]:
    """Yield the port of a streaming standby of the server at `port`."""
    binaries = max(_BINARIES.glob("*/bin"), key=lambda path: float(path.parent.name))
    with _folder() as folder:
        data, log = folder / "data", (folder / "log").open("ab")
        copy: list[str | Path] = [
            binaries / "pg_basebackup",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-U",
            "postgres",
            "-D",
            data,
        ]
        subprocess.run([*copy, "-R", "-c", "fast"], user=_owner(), cwd="/", check=True, stdout=log, stderr=log)
        mine = free_port()
        # A standby accepts no fewer connections than its primary.
        options = [f"--port={mine}", "--listen_addresses=127.0.0.1", "--unix_socket_directories=", "--fsync=off"]
        options.append("--max_connections=200")
        server: list[str | Path] = [binaries / "postgres", "-D", data, *options]
        with _running(server, log), log:
            until(lambda: _answers(mine))
            yield mine


@contextmanager
def pgbouncer(server_url: str, pool_mode: str = "transaction") -> Iterator[int]:
    """Yield the port of PgBouncer, with two connections to all databases of a server."""
    binary = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if binary is None:
        services.missing("no PgBouncer for the tests; install it (Debian: apt-get install pgbouncer)")
    server = urlsplit(server_url)
    with _folder() as folder:
        port = free_port()
        users, settings = folder / "users", folder / "pgbouncer.ini"
        users.write_text(f'"{server.username}" "{server.password or ""}"\n')
        settings.write_text(
            f"[databases]\n* = host={server.hostname} port={server.port or 5432}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {users}\npool_mode = {pool_mode}\ndefault_pool_size = 10\n"
        )
        with (folder / "log").open("ab") as log, _running([binary, settings], log):
            until(lambda: _answers(port, server.username or "postgres"))
            yield port


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder that the servers' user can reach."""
    folder = Path(tempfile.mkdtemp(prefix="syncflow-", dir="/var/tmp"))
    if owner := _owner():
        shutil.chown(folder, owner)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _running(command: list[str | Path], log: IO[bytes]) -> Iterator[None]:
    server = child_processes.start(command, user=_owner(), cwd="/", stdout=log, stderr=log)
    try:
        yield
    finally:
        server.terminate()
        server.wait(30)


def _answers(port: int, user: str = "postgres") -> bool:
    try:
        psycopg.connect(f"postgresql://{user}@127.0.0.1:{port}/postgres", connect_timeout=5).close()
    except psycopg.Error:
        return False
    return True
