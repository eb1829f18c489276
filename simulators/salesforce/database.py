"""The SQLite database of the simulated org: one table per object, created from the schema.

Text comparison ignores case, as in a real org. The module defines its own collation, because SQLite's
NOCASE handles only ASCII.
"""

from __future__ import annotations

import functools
import re
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .schema import ID_KINDS, NUMBER_KINDS, OBJECTS, Field, SObject


class Database:
    """One connection, used by one request thread at a time: simple, and fast enough for a simulator."""

    def __init__(self, path: str | Path | None) -> None:
        if path is not None:
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        self.lock = threading.RLock()
        self.connection = sqlite3.connect(path or ":memory:", check_same_thread=False, isolation_level=None)
        self.connection.row_factory = sqlite3.Row
        self.connection.create_collation("org", _compare)
        self.connection.create_function("soql_like", 2, _like, deterministic=True)
        self.connection.execute("PRAGMA journal_mode = WAL")
        self.connection.execute("PRAGMA synchronous = NORMAL")
        self._depth = 0
        self._committed: list[Any] = []
        #: Called after every commit with everything passed to `tell` in that transaction.
        self.on_commit: Callable[[list[Any]], None] = lambda changes: None
        with self.transaction():
            self._create_tables()

    def close(self) -> None:
        with self.lock:
            self.connection.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Run the block in a transaction. Transactions may be nested: an exception undoes only the inner one."""
        with self.lock:
            name, planned = f"level_{self._depth}", len(self._committed)
            self.connection.execute(f"SAVEPOINT {name}" if self._depth else "BEGIN IMMEDIATE")
            self._depth += 1
            try:
                yield self.connection
            except BaseException:
                del self._committed[planned:]
                self._leave(f"ROLLBACK TO {name}", f"RELEASE {name}", "ROLLBACK")
                raise
            else:
                self._leave(f"RELEASE {name}", "", "COMMIT")
                if not self._depth:
                    changes, self._committed = self._committed, []
                    if changes:
                        self.on_commit(changes)

    def tell(self, what: Any) -> None:
        """Pass a value to `on_commit` after the commit; a rollback drops it."""
        self._committed.append(what)

    def _leave(self, inner: str, then: str, outermost: str) -> None:
        self._depth -= 1
        for statement in (inner, then) if self._depth else (outermost,):
            if statement:
                self.connection.execute(statement)

    def next_number(self, prefix: str) -> int:
        """Return the next number of a key prefix. Numbers are never reused, even after a reset."""
        row = self.connection.execute(
            "INSERT INTO _counter (prefix, last) VALUES (?, 1)"
            " ON CONFLICT (prefix) DO UPDATE SET last = last + 1 RETURNING last",
            (prefix,),
        ).fetchone()
        return int(row[0])

    def _create_tables(self) -> None:
        self.connection.execute("CREATE TABLE IF NOT EXISTS _counter (prefix TEXT PRIMARY KEY, last INTEGER)")
        for one in OBJECTS.values():
            columns = ", ".join(_column(field) for field in one.fields.values())
            self.connection.execute(f'CREATE TABLE IF NOT EXISTS "{one.name}" ({columns})')
            self._add_missing_columns(one)
            for field in one.fields.values():
                if field.external_id or field.kind == "reference" or field.name == "SystemModstamp":
                    index = f'"{one.name}_{field.name}" ON "{one.name}" ("{field.name}")'
                    self.connection.execute(f"CREATE INDEX IF NOT EXISTS {index}")

    def _add_missing_columns(self, one: SObject) -> None:
        # The schema may have gained fields since the file was written.
        have = {row["name"] for row in self.connection.execute(f'PRAGMA table_info("{one.name}")')}
        for field in one.fields.values():
            if field.name not in have:
                self.connection.execute(f'ALTER TABLE "{one.name}" ADD COLUMN {_column(field)}')


def _column(field: Field) -> str:
    if field.kind == "id":
        return f'"{field.name}" TEXT PRIMARY KEY'
    if field.kind == "boolean":
        return f'"{field.name}" INTEGER NOT NULL DEFAULT {int(bool(field.default))}'
    if field.kind in NUMBER_KINDS:
        return f'"{field.name}" {"INTEGER" if field.kind == "int" else "REAL"}'
    if field.kind in ID_KINDS or field.kind in ("date", "datetime"):
        return f'"{field.name}" TEXT'
    return f'"{field.name}" TEXT COLLATE org'


def _compare(left: str, right: str) -> int:
    a, b = left.casefold(), right.casefold()
    return (a > b) - (a < b)


def _like(pattern: str, value: str | None) -> bool:
    return value is not None and _like_regex(pattern).fullmatch(value.casefold()) is not None


@functools.lru_cache(maxsize=256)
def _like_regex(pattern: str) -> re.Pattern[str]:
    """Return a SOQL pattern as a regular expression: % matches any text, _ any character, unless escaped."""
    pieces: list[str] = []
    characters = iter(pattern.casefold())
    for char in characters:
        if char == "\\":
            pieces.append(re.escape(next(characters, "\\")))
        else:
            pieces.append({"%": ".*", "_": "."}.get(char, re.escape(char)))
    return re.compile("".join(pieces), re.DOTALL)
