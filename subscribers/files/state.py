"""The known state of the external system behind a folder of files: a small SQLite file in that folder.

A file cannot be queried for the current external values. The state therefore keeps the last row received for each
key, to distinguish changes from repeated values (for a row that we created: our first export of it). It
also keeps the external values including our exports since.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from subscribers.errors import SystemDown

Flat = dict[str, Any]

_TABLE = """
PRAGMA synchronous = NORMAL;
CREATE TABLE IF NOT EXISTS row (
    key TEXT PRIMARY KEY, said TEXT, held TEXT NOT NULL, at TEXT NOT NULL,
    mark TEXT, deleted INTEGER NOT NULL DEFAULT 0, file TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS row_mark ON row (mark);
"""
#: Seconds to wait for another process that writes.
_LOCK_TIMEOUT_SECONDS = 30.0


@dataclass(frozen=True)
class Known:
    """One key: the last row received (`said`; None: a deletion), the current external values, the mark of the row."""

    key: str
    said: Flat | None
    held: Flat
    at: datetime
    mark: str | None
    deleted: bool


class FileState:
    """The keys of one folder. Transactions are short, so that several processes may use it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(self.path, timeout=_LOCK_TIMEOUT_SECONDS)) as connection:
                connection.executescript(_TABLE)
                with connection:
                    yield connection
        except sqlite3.Error as error:
            raise SystemDown(f"{self.path.name}: {error}", maybe_done=True) from error

    def clear(self) -> None:
        """Delete all keys."""
        with self._open() as connection:
            connection.execute("DELETE FROM row")

    def get(self, keys: Sequence[str]) -> dict[str, Known]:
        """Return the known state of these keys."""
        marks = ",".join("?" * len(keys))
        return {known.key: known for known in self._select(f"key IN ({marks})", keys)}

    def marked(self, mark: str) -> Known | None:
        """Return the known row with this mark; None if there is none."""
        return next(iter(self._select("mark = ? AND NOT deleted", [mark])), None)

    def _select(self, condition: str, values: Sequence[str]) -> list[Known]:
        query = f"SELECT key, said, held, at, mark, deleted FROM row WHERE {condition}"
        with self._open() as connection:
            return [
                Known(
                    k, json.loads(said) if said else None, json.loads(held), datetime.fromisoformat(at), r, bool(gone)
                )
                for k, said, held, at, r, gone in connection.execute(query, values)
            ]

    def hold(self, rows: Iterable[tuple[str, Flat, datetime, str | None]]) -> None:
        """Store the values that the system holds from now on; without a mark the known one stays."""
        with self._open() as connection:
            connection.executemany(
                "INSERT INTO row (key, held, at, mark) VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE SET "
                "held = excluded.held, at = excluded.at, deleted = 0, "
                "mark = coalesce(excluded.mark, mark)",
                [(key, json.dumps(held), at.isoformat(), mark) for key, held, at, mark in rows],
            )

    def said(self, rows: Iterable[tuple[str, Flat | None]]) -> None:
        """Store the last applied row of each key (None: a deletion)."""
        values = [(None if flat is None else json.dumps(flat), key) for key, flat in rows]
        with self._open() as connection:
            connection.executemany("UPDATE row SET said = ? WHERE key = ?", values)

    def gone(self, keys: Iterable[str], at: datetime) -> None:
        """Mark these keys as deleted externally; their last received rows stay until the deletion is applied."""
        with self._open() as connection:
            connection.executemany(
                "INSERT INTO row (key, held, at, deleted) VALUES (?, '{}', ?, 1) ON CONFLICT (key) DO UPDATE SET "
                "held = '{}', at = excluded.at, deleted = 1, mark = NULL",
                [(key, at.isoformat()) for key in keys],
            )

    def in_file(self, keys: Iterable[str], file: str) -> None:
        """Record that this file contains these keys."""
        with self._open() as connection:
            connection.executemany("UPDATE row SET file = ? WHERE key = ?", [(file, key) for key in keys])

    def missing_in(self, file: str, limit: int) -> list[str]:
        """Return keys that an earlier file contained, that are not deleted, and that this file does not contain."""
        query = "SELECT key FROM row WHERE said IS NOT NULL AND file IS NOT NULL AND file <> ? ORDER BY key LIMIT ?"
        with self._open() as connection:
            return [key for (key,) in connection.execute(query, (file, limit))]


__all__ = ["FileState", "Known"]
