"""What capturing costs the writer: the same writes with and without the triggers, on both databases."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

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

WITHOUT = "without triggers"
WITH = "with triggers"


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
    ratio = figures["postgresql_bulk_update"]["ratio"]
    goal = Goal(f"bulk UPDATE of {rows:,} rows, PostgreSQL", "<= 2 x", f"{ratio:.2f} x", ratio <= 2)
    columns = ("database", "what", "without, ms", "with, ms", "ratio")
    return Result("capture", columns, table, figures, settings, [goal])


def _candidates(database: Database, rows: int, work: Callable[[Database], None]) -> dict[str, Callable[[], float]]:
    def timed(captured: bool) -> float:
        _prepare(database, rows, captured)
        start = time.perf_counter()
        work(database)
        return time.perf_counter() - start

    return {WITHOUT: lambda: timed(False), WITH: lambda: timed(True)}


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
