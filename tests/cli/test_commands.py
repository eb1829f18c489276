"""The command line as users see it: real processes, readable errors, exit statuses for scripts."""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import dramatiq
import pytest
import sqlalchemy as sa

from cli import COMMANDS, demo_settings, main
from conductor.tasks.runner import TaskRunner
from models import capture
from models.catalogues import Customer
from models.ledger import AuditEntry, Change, DeadLetter, Link, Task
from models.schema import is_current, migrate
from models.session import Database
from settings import ROOT, Settings, get_settings
from simulators.simulators import StripeSimulator


@dataclass(frozen=True)
class Done:
    """The result of a command."""

    returncode: int
    stdout: str
    stderr: str


Run = Callable[..., Done]

#: Prefixes of the variables that would expose the machine's own settings to a test.
OURS = ("DATABASE_URL", "BROKER_URL", "SECRET_KEY", "STRIPE_", "SALESFORCE_", "SYNCFLOW_", "LOG_")


@pytest.fixture
def run(
    sqlite_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """Return a function that runs `main` with the test's own SQLite database and no `.env`."""
    for name in list(os.environ):
        if name.startswith(OURS):
            monkeypatch.delenv(name)
    monkeypatch.setitem(Settings.model_config, "env_file", tmp_path / ".env")
    handlers, level = logging.root.handlers[:], logging.root.level
    broker, encoder = dramatiq.broker.global_broker, dramatiq.get_encoder()

    def run(*arguments: str, **variables: str) -> Done:
        get_settings.cache_clear()
        before = dict(os.environ)
        with monkeypatch.context() as patch:
            for name, value in {"DATABASE_URL": sqlite_url, "BROKER_URL": "memory://", **variables}.items():
                patch.setenv(name, value)
            try:
                status = main(arguments)
            except SystemExit as ended:
                status = int(ended.code or 0)
        os.environ.clear()  # while a demo runs, a command copies its settings
        os.environ.update(before)
        said = capsys.readouterr()
        return Done(status, said.out, said.err)

    yield run
    get_settings.cache_clear()
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)
    dramatiq.broker.global_broker = broker
    dramatiq.set_encoder(encoder)


def process(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `./syncflow` as a separate process, from another directory."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(OURS)} | variables
    return subprocess.run(
        [sys.executable, str(ROOT / "syncflow"), *arguments],
        env=env,
        check=False,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
    )


STRIPE = {"STRIPE_API_KEY": "sk_test_s3cret", "STRIPE_API_BASE": "http://127.0.0.1:9"}


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: ./syncflow {name}") and COMMANDS[name].help in " ".join(said.split())


def test_help_lists_every_command(run: Run) -> None:
    done = run("--help")
    assert done.returncode == 0
    assert all(f"    {name}" in done.stdout for name in COMMANDS)


def test_no_command_and_an_unknown_one(run: Run) -> None:
    for arguments in ([], ["fly"], ["poll"], ["capture", "paint"]):
        done = run(*arguments)
        assert done.returncode == 2 and done.stderr.startswith("usage: ./syncflow")


@pytest.mark.skipif(not (ROOT / ".venv").exists(), reason="these tests run outside .venv")
def test_the_script_continues_with_its_own_packages(tmp_path: Path, sqlite_url: str) -> None:
    """Called from any directory with a Python that lacks its packages, the script continues in .venv."""
    done = subprocess.run(
        [sys.base_prefix + "/bin/python3", "-I", str(ROOT / "syncflow"), "migrate"],
        env={"PATH": "/usr/bin:/bin", "DATABASE_URL": sqlite_url, "BROKER_URL": "memory://"},
        cwd=tmp_path,
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "The database is up to date.\n", "")


def test_a_process_reports_an_error_and_exits_with_its_status() -> None:
    for name in ("migrate", "status"):
        done = process(name, DATABASE_URL="postgresql://u:p@h:s3cret/d")
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("DATABASE_URL: ") and done.stderr.count("\n") == 1
        assert "s3cret" not in done.stderr


# --- migrate and capture ----------------------------------------------------------------------------------


def test_migrate_up_down_and_up_again(run: Run, sqlite_url: str) -> None:
    database = Database(sqlite_url)
    done = run("migrate")
    assert (done.returncode, done.stdout) == (0, "The database is up to date.\n")
    assert is_current(database)
    done = run("migrate", "--to", "base")
    assert (done.returncode, done.stdout) == (0, "The database is at revision base.\n")
    assert not is_current(database)
    assert run("migrate").returncode == 0 and is_current(database)
    database.close()


def test_migrate_to_a_revision_that_does_not_exist(run: Run) -> None:
    assert run("migrate").returncode == 0
    done = run("migrate", "--to", "9876")
    assert done.returncode == 2 and "9876" in done.stderr


def test_migrate_makes_the_folder_of_a_new_database(run: Run, tmp_path: Path) -> None:
    done = run("migrate", DATABASE_URL=f"sqlite:///{tmp_path}/deep/down/syncflow.db")
    assert done.returncode == 0 and (tmp_path / "deep/down/syncflow.db").exists()


def test_capture_is_installed_and_removed(run: Run, sqlite_url: str) -> None:
    migrate(sqlite_url)
    database = Database(sqlite_url)

    def triggers() -> list[str]:
        with database.read() as connection:
            return capture.installed(connection)

    names = triggers()
    done = run("capture", "remove")
    assert done.returncode == 0 and done.stdout.startswith(f"{len(names)} triggers removed\n") and triggers() == []
    done = run("capture", "install")
    assert done.returncode == 0 and done.stdout.split("\n")[0] == f"{len(names)} triggers installed"
    assert triggers() == names and all(f"  {name}\n" in done.stdout for name in names)
    with database.write() as connection:
        connection.execute(sa.text("INSERT INTO customer (name) VALUES ('Ada')"))
        assert connection.execute(sa.select(sa.func.count()).select_from(Change)).scalar() == 1
    database.close()


def test_capture_before_migrate_asks_for_a_migration(run: Run) -> None:
    done = run("capture", "install")
    assert done.returncode == 2 and "./syncflow migrate" in done.stderr


# --- status, poll, retry ----------------------------------------------------------------------------------


def test_status_without_systems_says_how_to_get_one(run: Run, sqlite_url: str) -> None:
    migrate(sqlite_url)
    done = run("status")
    assert done.returncode == 0 and "No external system is configured" in done.stdout


def test_status_shows_pending_records_and_dead_letters(run: Run, sqlite_url: str) -> None:
    migrate(sqlite_url)
    database = Database(sqlite_url)
    done = run("status", **STRIPE)
    assert done.returncode == 0 and "everything is in sync" in done.stdout and "s3cret" not in done.stdout
    with database.write() as connection:
        connection.execute(sa.text("INSERT INTO customer (name) VALUES ('Ada')"))
    done = run("status", **STRIPE)
    assert done.returncode == 0 and "waiting: 1 captured change" in done.stdout
    with database.write() as connection:
        letter = {"subscriber": "stripe.customer", "error": "Reject", "fingerprint": "f", "message": "no"}
        connection.execute(sa.insert(DeadLetter).values(**letter))
    done = run("status", **STRIPE)
    assert done.returncode == 1 and "failing" in done.stdout and "dead letters 1" in done.stdout
    database.close()


def test_poll_of_an_unknown_system_is_refused(run: Run, sqlite_url: str) -> None:
    migrate(sqlite_url)
    done = run("poll", "nosuch")
    assert done.returncode == 2 and "unknown system 'nosuch'; known systems: none" in done.stderr
    done = run("poll", "nosuch", **STRIPE)
    assert done.returncode == 2 and "known systems: stripe" in done.stderr


def test_poll_of_a_system_that_does_not_answer(run: Run, sqlite_url: str) -> None:
    migrate(sqlite_url)
    nobody = f"http://127.0.0.1:{closed_port()}"
    done = run("poll", "stripe", **{**STRIPE, "STRIPE_API_BASE": nobody})
    assert done.returncode == 1 and f"stripe.customer: cannot connect to {nobody[7:]}\n" in done.stderr


def _dead_links(database: Database) -> list[int]:
    with database.read() as connection:
        return list(connection.scalars(sa.select(Link.id).where(Link.dead_at.is_not(None)).order_by(Link.id)))


def test_retry_takes_effect_without_a_scheduler(run: Run, sqlite_url: str) -> None:
    migrate(sqlite_url)
    database = Database(sqlite_url)
    with database.write() as c:
        for number in (1, 2, 3):
            link = {"subscriber": "stripe.customer", "record_id": str(number), "owed_change": 1}
            insert = sa.insert(Link).values(**link, dead_at=sa.func.now()).returning(Link.id)
            key = c.execute(insert).scalar_one()
            error = "Retry" if number == 3 else "Reject"
            letter = {"subscriber": "stripe.customer", "error": error, "fingerprint": "f", "message": "no"}
            c.execute(sa.insert(DeadLetter).values(**letter, id=number, record_id=str(number), link_id=key))
    assert run("retry", "--subscriber", "shop.customer").stdout == "Retrying 0 dead letters\n"
    assert run("retry", "--id", "1").stdout == "Retrying 1 dead letter\n"
    assert _dead_links(database) == [2, 3]
    assert run("retry", "--error", "Retry").stdout == "Retrying 1 dead letter\n"
    assert _dead_links(database) == [2]
    # The first two letters are open until their records are delivered.
    assert run("retry").stdout == "Retrying 3 dead letters\n"
    assert _dead_links(database) == []
    with database.read() as c:
        assert c.scalars(sa.select(Task.total).order_by(Task.id)).all() == [0, 1, 3]
    database.close()


def test_push_delivers_a_record_except_to_the_unsubscribed(run: Run, sqlite_url: str, stripe: StripeSimulator) -> None:
    customers(sqlite_url, "Ada")
    done = run("push", "customer", "1", "--unsubscribe", "stripe, stripe.customer", **settings(stripe))
    assert (done.returncode, done.stdout) == (0, "customer 1: push started, except to stripe, stripe.customer\n")
    with Database(sqlite_url).read() as c:
        change = c.execute(sa.select(Change.catalogue, Change.record_id, Change.operation, Change.unsubscribe)).one()
        entry = c.execute(sa.select(AuditEntry.who, AuditEntry.action, AuditEntry.target, AuditEntry.details)).one()
    assert tuple(change) == ("customer", "1", "updated", "stripe,stripe.customer")
    assert entry.who.endswith(" (command line)")
    assert tuple(entry)[1:] == ("record.push", "customer 1", {"unsubscribe": ["stripe", "stripe.customer"]})


@pytest.mark.parametrize(
    "given,reason",
    [
        (["customer", "7"], "there is no customer 7"),
        (["customer", "x"], "there is no customer x"),
        (["client", "1"], "there is no client 1"),
        (["customer", "1", "--unsubscribe", "strpe"], "unknown system or subscriber 'strpe'; known: stripe, "),
    ],
)
def test_push_refuses_what_does_not_exist(
    run: Run, sqlite_url: str, stripe: StripeSimulator, given: list[str], reason: str
) -> None:
    customers(sqlite_url, "Ada")
    done = run("push", *given, **settings(stripe))
    assert done.returncode == 2 and done.stderr.startswith(reason)


def test_a_copy_of_a_database_gets_a_new_hub_id(run: Run, sqlite_url: str) -> None:
    migrate(sqlite_url)
    former = run("status").stdout.rpartition("hub id: ")[2].strip()
    refused = run("new-hub-id", "00000000")
    assert refused.returncode == 2 and f"the id of this hub is {former}" in refused.stderr
    done = run("new-hub-id", former)
    fresh = run("status").stdout.rpartition("hub id: ")[2].strip()
    assert done.returncode == 0 and fresh != former and f"hub id: {fresh}" in done.stdout
    with Database(sqlite_url).read() as c:
        entry = c.execute(sa.select(AuditEntry.action, AuditEntry.target, AuditEntry.details)).one()
    assert tuple(entry) == ("hub.new_id", fresh, {"former": former})


def test_create_admin(run: Run, sqlite_url: str) -> None:
    migrate(sqlite_url)
    done = run("create-admin", "ann@example.org", SYNCFLOW_PASSWORD="correct horse battery staple")
    assert done.returncode == 0 and "ann@example.org" in done.stdout
    done = run("create-admin", "ann@example.org", SYNCFLOW_PASSWORD="correct horse battery staple")
    assert done.returncode == 1 and done.stderr.strip()


# --- errors a user can fix are reported without a traceback -----------------------------------------------

NEEDS_TABLES = ["status", "relay", "worker", "scheduler", "web", "standalone", "poll", "push", "retry"]


GIVEN = {"poll": ["stripe"], "push": ["customer", "1"], "capture": ["install"], "create-admin": ["ann@x.org"]}


def arguments(name: str) -> list[str]:
    return [name, *GIVEN.get(name, [])]


@pytest.mark.parametrize("name", NEEDS_TABLES)
def test_an_empty_database_says_to_migrate(run: Run, name: str) -> None:
    broker = "amqp://u:p@127.0.0.1:1/" if name in ("relay", "worker", "scheduler") else "memory://"
    done = run(*arguments(name), BROKER_URL=broker, SECRET_KEY="0123456789" * 4)
    assert done.returncode == 2
    assert done.stderr.startswith("DATABASE_URL: ") and "./syncflow migrate" in done.stderr


@pytest.mark.parametrize("name", ["migrate", "status", "capture", "standalone", "create-admin"])
def test_a_database_that_does_not_answer(run: Run, name: str) -> None:
    url = f"postgresql://u:s3cret@127.0.0.1:{closed_port()}/d"
    done = run(*arguments(name), DATABASE_URL=url, SYNCFLOW_PASSWORD="correct horse battery staple")
    assert done.returncode == 2
    assert done.stderr.startswith("DATABASE_URL: ") and "s3cret" not in done.stderr
    assert "migrate" not in done.stderr, "that would not help"


@pytest.mark.parametrize("value", ["nonsense", "mysql://u:s3cret@h/d", "postgresql://u:p@h:s3cret/d"])
def test_a_wrong_database_url(run: Run, value: str) -> None:
    for name in ("migrate", "status", "capture", "standalone"):
        done = run(*arguments(name), DATABASE_URL=value)
        assert done.returncode == 2
        assert done.stderr.startswith("DATABASE_URL: ") and "s3cret" not in done.stderr


@pytest.mark.parametrize("value", ["redis://h", "amqp://u:p@h:s3cret/"])
def test_a_wrong_broker_url(run: Run, value: str) -> None:
    done = run("status", BROKER_URL=value)
    assert done.returncode == 2 and done.stderr.startswith("BROKER_URL: ") and "s3cret" not in done.stderr


@pytest.mark.parametrize("name", ["relay", "worker", "scheduler"])
def test_a_process_of_the_fleet_needs_rabbitmq(run: Run, sqlite_url: str, name: str) -> None:
    migrate(sqlite_url)
    done = run(name)
    assert done.returncode == 2
    assert done.stderr.startswith("BROKER_URL: ") and "run ./syncflow standalone" in done.stderr


def test_a_system_configured_in_part(run: Run, sqlite_url: str) -> None:
    migrate(sqlite_url)
    done = run("status", STRIPE_API_BASE="http://127.0.0.1:9")
    assert done.returncode == 2 and done.stderr.startswith("STRIPE_API_KEY: missing")


# --- backfill, check, new subscribers ----------------------------------------------------------------------


@pytest.fixture
def stripe() -> Iterator[StripeSimulator]:
    with StripeSimulator() as stripe:
        yield stripe


def settings(stripe: StripeSimulator) -> dict[str, str]:
    return {"STRIPE_API_KEY": stripe.KEY, "STRIPE_API_BASE": stripe.stripe.url}


def customers(url: str, *names: str) -> None:
    """Create customers without captured changes, as if they existed before Syncflow."""
    migrate(url)
    database = Database(url)
    with database.write() as c:
        c.execute(sa.insert(Customer.__table__), [{"name": name, "email": f"{name}@x.example"} for name in names])
        c.execute(sa.delete(Change))
    database.close()


def test_backfill_links_existing_records_and_prints_its_result(
    run: Run, sqlite_url: str, stripe: StripeSimulator
) -> None:
    customers(sqlite_url, "ada", "grace")
    for name in ("ada", "grace"):
        stripe.add({"name": name, "email": f"{name}@x.example"})
    done = run("backfill", "stripe.customer", **settings(stripe))
    assert done.returncode == 0 and done.stdout.splitlines() == [
        "No worker is running, so nothing is delivered yet: start ./syncflow standalone, or ./syncflow worker.",
        "0 sent, 2 existed already",
    ]
    done = run("reconcile", "stripe.customer", **settings(stripe))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "no drift")
    stripe.edit(stripe.ids()[0], {"name": "Ada Lovelace"})
    done = run("reconcile", "stripe.customer", **settings(stripe))
    assert done.returncode == 1 and done.stdout.splitlines()[-2:] == [
        f"record 1, external record {stripe.ids()[0]}: name: ours 'ada', theirs 'Ada Lovelace'",
        "1 record differs: name 1",
    ]


def test_an_interrupted_backfill_is_continued_by_the_same_command(
    run: Run, sqlite_url: str, stripe: StripeSimulator, monkeypatch: pytest.MonkeyPatch
) -> None:
    customers(sqlite_url, "ada")
    with monkeypatch.context() as patch:
        run_some = TaskRunner.run_some

        def interrupted(self: TaskRunner) -> bool:
            run_some(self)
            raise KeyboardInterrupt

        patch.setattr(TaskRunner, "run_some", interrupted)
        done = run("backfill", "stripe.customer", "--where", "name=ada", **settings(stripe))
    assert done.returncode == 130 and "Stopped at 0 of 1; run the same command to continue" in done.stdout
    done = run("backfill", "stripe.customer", "--where", "name=ada", "--background", **settings(stripe))
    assert (done.returncode, done.stdout) == (0, "Started task #1\n")


def test_invalid_arguments_of_backfill_and_reconcile_are_refused(
    run: Run, sqlite_url: str, stripe: StripeSimulator
) -> None:
    migrate(sqlite_url)
    for arguments, words in (
        (("backfill", "stripe.thing"), "unknown subscriber 'stripe.thing'; known subscribers: stripe.customer"),
        (("backfill", "stripe.customer", "--where", "land=DE"), "customer has no column 'land'"),
        (("backfill", "stripe.customer", "--where", "country"), "write COLUMN=VALUE, with each column once"),
        (("reconcile", "stripe.thing"), "unknown subscriber 'stripe.thing'"),
        (("check", "stipe"), "unknown system 'stipe'; known systems: stripe"),
    ):
        done = run(*arguments, **settings(stripe))
        assert done.returncode == 2 and words in done.stderr


def test_check_reports_missing_permissions(run: Run, sqlite_url: str, stripe: StripeSimulator) -> None:
    migrate(sqlite_url)
    stripe.add({"name": "Ada", "email": "ada@x.example"})
    done = run("check", "stripe", **settings(stripe))
    assert done.returncode == 0 and "  ok    name <-> name (text)" in done.stdout.splitlines()
    assert "STRIPE_WEBHOOK_SECRET is empty" in done.stdout
    stripe.fail(401, times=50)
    done = run("check", **settings(stripe))
    assert done.returncode == 1 and "  wrong the login does not work" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Fix ") and stripe.KEY not in done.stdout


def test_new_subscriber_writes_its_files_once(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("subscribers", "tests/subscribers"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(ROOT / "subscribers/__init__.py", tmp_path / "subscribers")
    monkeypatch.setattr("cli.new_subscriber.ROOT", tmp_path)
    done = run("new-subscriber", "acme.product", "--own")
    assert done.returncode == 0 and "Wrote subscribers/acme.py" in done.stdout
    assert (tmp_path / "tests/subscribers/test_acme.py").exists()
    assert len((tmp_path / "subscribers/acme.py").read_text().splitlines()) <= 100
    for name, words in (
        ("acme.customer", "subscribers/acme.py exists already"),
        ("Acme", "write system and catalogue in lower case"),
        ("../x.customer", "write system and catalogue in lower case"),
        ("acme.thing", "unknown catalogue 'thing'; known catalogues: customer"),
        ("books.invoice", "invoice requires customer_id"),
    ):
        done = run("new-subscriber", name)
        assert done.returncode == 2 and words in done.stderr


# --- while a demo runs ------------------------------------------------------------------------------------------


@pytest.fixture
def demo_var(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_settings, "FILE", tmp_path / "demo" / "running.json")


@pytest.mark.usefixtures("demo_var")
def test_commands_use_the_settings_of_a_running_demo(run: Run, sqlite_url: str, tmp_path: Path) -> None:
    migrate(sqlite_url)
    with StripeSimulator() as stripe:
        options = {f"STRIPE_{name}".upper(): str(value) for name, value in stripe.options().items()}
        with demo_settings.published({"DATABASE_URL": sqlite_url, "BROKER_URL": "memory://", **options}):
            done = run("status")
            assert "stripe" in done.stdout and "A demo is running" in done.stderr
            another = f"sqlite:///{tmp_path / 'another.db'}"
            migrate(another)
            done = run("status", DATABASE_URL=another)
            assert "No external system is configured" in done.stdout and done.stderr == ""
            # The user's own account takes precedence over the demo's.
            assert run(
                "check", "stripe", STRIPE_API_KEY="sk_test_mine", STRIPE_API_BASE="http://127.0.0.1:1"
            ).returncode
        assert "it is not configured here" in run("status").stdout
        # A killed demo leaves its file, but no lock.
        demo_settings.FILE.write_text(json.dumps({"DATABASE_URL": sqlite_url, **options}))
        assert "it is not configured here" in run("status").stdout


# --- mistyped names ---------------------------------------------------------------------------------------


def test_unknown_names_in_env_are_reported(run: Run, sqlite_url: str, tmp_path: Path) -> None:
    migrate(sqlite_url)
    lines = ["STRIPE_API_KEY=", "STRPE_API_KEY=sk", "LEASE_SECOND=1", "SYNCFLOW_VAR=x", "POSTGRES_PASSWORD=s3cret"]
    tmp_path.joinpath(".env").write_text("\n".join(lines))
    assert run("status").stderr.splitlines() == [
        "STRPE_API_KEY: is in .env, but there is no such setting; did you mean STRIPE_API_KEY?",
        "LEASE_SECOND: is in .env, but there is no such setting; did you mean LEASE_SECONDS?",
        "SYNCFLOW_VAR: set it in the environment; it has no effect in .env",
        "POSTGRES_PASSWORD: is in .env, but there is no such setting",
    ]


def test_a_missing_systems_file_is_reported_with_its_folder(run: Run) -> None:
    done = run("status", SYNCFLOW_SYSTEMS="nothing.toml")
    assert done.returncode == 2
    assert done.stderr == (f"SYNCFLOW_SYSTEMS: there is no such file; a relative path starts at {ROOT}\n")


#: Configuration of a folder as a system.
FOLDER = """
[systems.erp]
kind = "files"

[systems.erp.subscribers.customer]
path = "customers"
key_field = "number"
new_key = "S{id}"
poll_seconds = 60

[systems.erp.subscribers.customer.field_to_data]
name = "name"
"""


def test_a_folder_that_was_fixed_is_polled_immediately(sqlite_url: str, tmp_path: Path) -> None:
    """A poll by hand does not wait for the next probe."""
    migrate(sqlite_url)
    systems = tmp_path / "systems.toml"
    systems.write_text(FOLDER)
    variables = {"SYNCFLOW_SYSTEMS": str(systems), "ERP_FOLDER": str(tmp_path / "erp"), "DATABASE_URL": sqlite_url}
    assert process("poll", "erp", **variables).returncode == 1
    done = process("status", **variables)
    assert done.returncode == 1 and "if this is fixed, run ./syncflow poll erp to retry now" in done.stdout
    tmp_path.joinpath("erp").mkdir()
    assert process("poll", "erp", **variables).returncode == 0
    assert process("status", **variables).returncode == 0


def test_comparing_needs_no_worker(run: Run, sqlite_url: str) -> None:
    migrate(sqlite_url)
    with StripeSimulator() as stripe:
        variables = {f"STRIPE_{name}".upper(): str(value) for name, value in stripe.options().items()}
        assert "No worker is running" not in run("reconcile", "stripe.customer", **variables).stdout
        assert "No worker is running" in run("reconcile", "stripe.customer", "--repair", **variables).stdout
