"""What an operator gets wrong, said in one sentence that names the setting, with the exit status 2."""

from __future__ import annotations

import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel, SecretStr

from cli.start_warnings import _plain_http
from models.schema import migrate
from models.session import Database

ROOT = Path(__file__).parents[2]

Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run `./syncflow` with settings, and nothing else from the environment."""

    def call(*arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        chosen = {"SYNCFLOW_VAR": str(tmp_path / "var"), "PORT": "0"}
        chosen["SYNCFLOW_PASSWORD"] = "correct horse battery staple"
        return subprocess.run(
            [sys.executable, "syncflow", *arguments],
            cwd=ROOT, env=chosen | settings, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    return call


def _says(done: subprocess.CompletedProcess[str], name: str, *words: str) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith(f"{name}: ") and done.stderr.count("\n") == 1, done.stderr
    assert all(word in done.stderr for word in words)


COMMANDS = [("migrate",), ("status",), ("standalone",), ("create-admin", "ann@example.org")]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_w10_a_folder_for_data_that_cannot_be_written(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "file").touch()  # permissions do not stop root, but a file in the place of a folder does
    done = run(*command, SYNCFLOW_VAR=str(tmp_path / "file" / "var"))
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(("SYNCFLOW_VAR: cannot use ", "DATABASE_URL: "))


def test_w10_a_secret_key_that_cannot_be_kept(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/data.sqlite3"
    migrate(url)
    (tmp_path / "file").touch()
    done = run("standalone", SYNCFLOW_VAR=str(tmp_path / "file" / "var"), DATABASE_URL=url)
    _says(done, "SYNCFLOW_VAR", "cannot use")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_w10_a_file_that_is_no_database(run: Run, tmp_path: Path, command: tuple[str, ...]) -> None:
    (tmp_path / "notes").write_text("these are my notes\n" * 200)
    _says(run(*command, DATABASE_URL=f"sqlite:///{tmp_path}/notes"), "DATABASE_URL", "not an SQLite database")


def _change(url: str, *statements: str) -> None:
    database = Database(url)
    with database.write() as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)
    database.close()


FOREIGN = {
    "tables of another program": ["CREATE TABLE customer (id int)", "CREATE TABLE link (id int)"],
    "a revision of another program": [
        "CREATE TABLE alembic_version (version_num varchar(32))",
        "INSERT INTO alembic_version VALUES ('a1b2c3d4')",
    ],
}
HALF = {
    "a table is missing": ['ALTER TABLE "user" RENAME TO another'],
    "the revision is missing": ["DELETE FROM alembic_version"],
}


@pytest.mark.parametrize("statements", FOREIGN.values(), ids=FOREIGN)
def test_w10_a_foreign_database_is_not_migrated(run: Run, database_url: str, statements: list[str]) -> None:
    _change(database_url, *statements)
    _says(run("migrate", DATABASE_URL=database_url), "DATABASE_URL")
    _says(run("standalone", DATABASE_URL=database_url), "DATABASE_URL", "./syncflow migrate")


@pytest.mark.parametrize("statements", HALF.values(), ids=HALF)
def test_w10_a_migration_that_was_applied_in_part(run: Run, database_url: str, statements: list[str]) -> None:
    migrate(database_url)
    _change(database_url, *statements)
    command = ["create-admin", "ann@example.org"] if "ALTER" in statements[0] else ["migrate"]
    _says(run(*command, DATABASE_URL=database_url), "DATABASE_URL", "not as a migration of Syncflow leaves them")


def test_w10_a_database_that_accepts_no_writes(run: Run, postgres_url: str) -> None:
    migrate(postgres_url)
    read_only = f"{postgres_url}?options=-c%20default_transaction_read_only%3Don"
    for command in (("standalone",), ("create-admin", "ann@example.org"), ("capture", "install")):
        _says(run(*command, DATABASE_URL=read_only), "DATABASE_URL", "accepts no writes")


def test_w10_a_port_that_is_in_use(run: Run, tmp_path: Path) -> None:
    import socket  # noqa: PLC0415

    url = f"sqlite:///{tmp_path}/data.sqlite3"
    migrate(url)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        _says(run("standalone", DATABASE_URL=url, PORT=port), "PORT", port)
    _says(run("standalone", DATABASE_URL=url, HOST="192.0.2.1"), "PORT", "192.0.2.1")


@pytest.mark.parametrize("key", ["a", "short", "x" * 31])
def test_w10_a_weak_secret_key(run: Run, key: str) -> None:
    for command in COMMANDS:
        _says(run(*command, SECRET_KEY=key), "SECRET_KEY", "at least 32")


def test_w10_a_web_process_of_a_fleet_refuses_a_key_of_one_letter(run: Run, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/data.sqlite3"
    migrate(url)
    broker = "amqp://u:p@127.0.0.1:1/"
    done = run("web", DATABASE_URL=url, BROKER_URL=broker, SECRET_KEY="a" * 64)
    assert done.returncode == 2 and "SECRET_KEY: is easy to guess" in done.stderr


def test_w10_nobody_else_reads_the_sqlite_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/data.sqlite3"
    migrate(url)
    database = Database(url)
    with database.write() as connection:
        connection.exec_driver_sql("CREATE TABLE more (id int)")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.iterdir()}
    database.close()
    assert "data.sqlite3-wal" in modes and set(modes.values()) == {0o600}


def test_an_sqlite_file_keeps_the_permissions_it_has(tmp_path: Path) -> None:
    path = tmp_path / "data.sqlite3"
    sqlite3.connect(path).close()
    path.chmod(0o640)
    migrate(f"sqlite:///{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


class _Options(BaseModel):
    url: str
    token: SecretStr = SecretStr("http://token.example")


@pytest.mark.parametrize(
    ("url", "warned"),
    [("http://shop.example/api", True), ("HTTP://10.0.0.7:8080", True), ("https://shop.example", False),
     ("http://127.0.0.1:8430", False), ("http://localhost", False), ("http://[::1]:80", False), ("http://[", False)],
)  # fmt: skip
def test_w10_credentials_are_not_sent_in_the_open_without_a_word(url: str, warned: bool) -> None:
    system: Any = SimpleNamespace(options=_Options(url=url))
    runtime: Any = SimpleNamespace(
        conductor=SimpleNamespace(context=SimpleNamespace(systems={"my-shop": system})),
        settings=SimpleNamespace(standalone=False, management_page=url),
    )
    said = list(_plain_http(runtime))
    assert [line.split(": ")[0] for line in said] == (["MY_SHOP_URL", "RABBITMQ_MANAGEMENT_URL"] if warned else [])


def test_a_fault_of_ours_keeps_its_traceback() -> None:
    from cli import faults  # noqa: PLC0415

    assert faults.of_database(sa.exc.IntegrityError("INSERT", None, Exception("UNIQUE constraint failed"))) is None
    assert faults.of_files(FileNotFoundError(2, "No such file", "/elsewhere")) is None
