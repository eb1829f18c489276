"""What capturing costs the writer: the same writes with and without the triggers, on both databases."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import sqlalchemy as sa

from benchmarks.hub import Workbench
from benchmarks.records import customer
from benchmarks.report import Goal, Result, interleaved, median, postgres_settings
from benchmarks.scale import Scale
from models import capture
from models.catalogues import Customer
from models.session import Database

#: Rows of the table, all of which the bulk UPDATE changes; and writes of one row each.
COUNTS = (100_000, 1_000)
SHORT_COUNTS = (50_000, 500)
QUICK_COUNTS = (1_000, 50)

#: Concurrent pgbench clients on PostgreSQL, the seconds of each round, and the goal: the rate with triggers divided by
#: the rate without.
WRITERS = 8
SECONDS, SHORT_SECONDS, QUICK_SECONDS = 5, 2, 1
WRITERS_AIM = 0.85

WITHOUT = "without triggers"
WITH = "with triggers"
#: The relay sleeps: each commit notifies it.
NOTIFYING = "with triggers, notifying"

_NOTE = (
    f"The last line is UPDATEs of one row, a commit each, by {WRITERS} clients of pgbench, in ms for each commit; the "
    "relay is busy, as it is at such a rate. If each commit notified it: {{notifying:.2f}} x."
)


def run(rounds: int, scale: Scale) -> Result:
    """Seconds of each kind of write, with and without the triggers."""
    rows, writes = scale.of(COUNTS, SHORT_COUNTS, QUICK_COUNTS)
    kinds: dict[str, Callable[[Database], None]] = {
        f"UPDATE of {rows:,} rows in one statement": _bulk_update,
        f"{writes:,} UPDATEs of one row, a commit each": lambda database: _updates(database, writes),
        f"{writes:,} UPDATEs of one row, one commit": lambda database: _updates(database, writes, together=True),
        f"{writes:,} INSERTs of one row, a commit each": lambda database: _inserts(database, writes),
    }
    names = ("bulk_update", "single_updates", "single_updates_one_commit", "single_inserts")
    table: list[tuple[object, ...]] = []
    figures: dict[str, dict[str, float]] = {}
    with Workbench() as bench:
        settings: dict[str, object] = {"rows": rows, "writes": writes, "rounds": rounds}
        settings |= postgres_settings(bench.postgres_server)
        for kind in ("sqlite", "postgresql"):
            with bench.database(kind) as url, _filled(url, rows) as database:
                for name, (what, work) in zip(names, kinds.items(), strict=True):
                    taken = interleaved(_candidates(database, rows, work), rounds)
                    without, with_them = (median(taken[which]) * 1000 for which in (WITHOUT, WITH))
                    ratio = with_them / without
                    table.append((kind, what, without, with_them, f"{ratio:.2f}"))
                    figures[f"{kind}_{name}"] = {"without_ms": without, "with_ms": with_them, "ratio": ratio}
                if kind == "postgresql" and (program := _pgbench()) is not None:
                    seconds = scale.of(SECONDS, SHORT_SECONDS, QUICK_SECONDS)
                    rates = interleaved(_writers(database, rows, program, seconds), rounds)
                    without, with_them, notifying = (
                        1000 / median(rates[which]) for which in (WITHOUT, WITH, NOTIFYING)
                    )
                    found = {"without_ms": without, "with_ms": with_them, "ratio": with_them / without}
                    figures["postgresql_writers"] = found | {"notifying_ratio": notifying / without}
                    table.append((kind, f"{WRITERS} writers", without, with_them, f"{found['ratio']:.2f}"))
    ratio = figures["postgresql_bulk_update"]["ratio"]
    goals, notes = [Goal(f"bulk UPDATE of {rows:,} rows, PostgreSQL", "<= 2 x", f"{ratio:.2f} x", ratio <= 2)], []
    if (writers := figures.get("postgresql_writers")) is not None:
        rate = 1 / writers["ratio"]
        what = f"{WRITERS} writers on PostgreSQL, their rate with the triggers"
        goals.append(Goal(what, f">= {WRITERS_AIM} x", f"{rate:.2f} x", rate >= WRITERS_AIM))
        notes.append(_NOTE.format(notifying=writers["notifying_ratio"]))
    columns = ("database", "what", "without, ms", "with, ms", "ratio")
    return Result("capture", columns, table, figures, settings, goals, notes)


def _candidates(database: Database, rows: int, work: Callable[[Database], None]) -> dict[str, Callable[[], float]]:
    def timed(captured: bool) -> float:
        _prepare(database, rows, captured)
        start = time.perf_counter()
        work(database)
        return time.perf_counter() - start

    return {WITHOUT: lambda: timed(False), WITH: lambda: timed(True)}


def _pgbench() -> str | None:
    """Return the path of pgbench, which comes with PostgreSQL's server."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/pgbench"))
    return str(found[-1]) if found else shutil.which("pgbench")


def _writers(database: Database, rows: int, program: str, seconds: int) -> dict[str, Callable[[], float]]:
    """Return the functions that measure the commits a second of several writers."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    script = f"\\set id random(1, {rows})\nUPDATE customer SET city = 'City ' || random()::text WHERE id = :id;\n"

    def rate(captured: bool, busy: bool) -> float:
        _prepare(database, rows, captured)
        listener = database.listener()
        listener.stay_awake(busy)
        try:
            command = [program, "-n", "-f", "-", "-c", str(WRITERS), "-j", "2", "-T", str(seconds), "-d", url]
            done = subprocess.run(command, input=script, capture_output=True, text=True, check=True)
        finally:
            listener.close()
        return float(done.stdout.rpartition("tps = ")[2].split()[0])

    return {
        WITHOUT: lambda: rate(False, True),
        WITH: lambda: rate(True, True),
        NOTIFYING: lambda: rate(True, False),
    }


# --- the writes -----------------------------------------------------------------------------------


def _bulk_update(database: Database) -> None:
    with database.write() as connection:
        connection.execute(sa.update(Customer).values(city=_new()))


def _updates(database: Database, count: int, *, together: bool = False) -> None:
    statement, value = sa.update(Customer).where(Customer.id == sa.bindparam("key")), _new()
    statement = statement.values(city=sa.bindparam("value"))
    if together:
        with database.write() as connection:
            for key in range(1, count + 1):
                connection.execute(statement, {"key": key, "value": value})
        return
    for key in range(1, count + 1):
        with database.write() as connection:
            connection.execute(statement, {"key": key, "value": value})


def _inserts(database: Database, count: int) -> None:
    for number in range(count):
        with database.write() as connection:
            connection.execute(sa.insert(Customer), customer(number))


def _new() -> str:
    return f"City {time.time_ns()}"


# --- the databases --------------------------------------------------------------------------------


@contextmanager
def _filled(url: str, rows: int) -> Iterator[Database]:
    database = Database(url)
    try:
        with database.write() as connection:
            capture.remove(connection)
            for start in range(0, rows, 10_000):
                connection.execute(
                    sa.insert(Customer), [customer(number) for number in range(start, min(start + 10_000, rows))]
                )
        yield database
    finally:
        database.close()


def _prepare(database: Database, rows: int, captured: bool) -> None:
    """The same beginning for every run: the same rows, no changes, nothing for the server to tidy meanwhile."""
    with database.write() as connection:
        capture.remove(connection)
        connection.exec_driver_sql("DELETE FROM change" if database.is_sqlite else "TRUNCATE change")
        connection.execute(sa.delete(Customer).where(Customer.id > rows))
        if captured:
            capture.install(connection)
    with database.engine.connect() as connection:
        if database.is_sqlite:
            connection.exec_driver_sql("COMMIT")  # a checkpoint is not possible inside a transaction
            connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.exec_driver_sql("BEGIN")
        else:
            alone = connection.execution_options(isolation_level="AUTOCOMMIT")
            alone.exec_driver_sql("VACUUM ANALYZE customer")
            alone.exec_driver_sql("CHECKPOINT")
