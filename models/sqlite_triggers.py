"""The capture triggers on SQLite, which has triggers for each row only.

REPLACE (`INSERT OR REPLACE`, `REPLACE INTO`, `UPDATE OR REPLACE`, `ON CONFLICT REPLACE`) deletes the rows whose unique
values the new row takes, without running their DELETE triggers ("The ON CONFLICT Clause" in its manual). A BEFORE
trigger therefore notes them. An AFTER trigger captures those that are gone: it does not run where the new row was
refused or ignored.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from models.capture_sources import Source
from models.record_ids import key_text


@dataclass(frozen=True)
class Unique:
    """A unique index: its columns with the collations by which they are compared."""

    columns: tuple[tuple[str, str], ...]


_CHANGE = """
    INSERT INTO change (catalogue, record_id, operation, origin, unsubscribe, at)
    SELECT '{catalogue}', captured.record, '{operation}',
        (SELECT origin FROM sync_context), (SELECT unsubscribe FROM sync_context),
        strftime('%Y-%m-%d %H:%M:%f000', 'now')
    FROM ({select}) AS captured WHERE captured.record IS NOT NULL;
"""


def statements(source: Source, uniques: Sequence[Unique], quote: sa.sql.compiler.IdentifierPreparer) -> Iterator[str]:
    """Yield the statements that create the triggers of a source, whose table has these unique indexes."""
    made = _Triggers(source, quote)
    yield made.trigger("insert", "AFTER INSERT", made.change("NEW", "created"))
    yield made.trigger("update", "AFTER UPDATE", made.update(), made.differs())
    yield made.trigger("delete", "AFTER DELETE", made.change("OLD", "deleted"))
    if uniques:
        yield from made.displacing("insert", "INSERT", uniques)
        names = dict.fromkeys(name for unique in uniques for name, _ in unique.columns)
        yield from made.displacing("update", f"UPDATE OF {', '.join(map(quote.quote, names))}", uniques)


class _Triggers:
    def __init__(self, source: Source, quote: sa.sql.compiler.IdentifierPreparer) -> None:
        self.source = source
        self.quote = quote.quote
        self.table = quote.quote(source.table.name)

    def trigger(self, name: str, event: str, body: str, when: str = "") -> str:
        condition = f" WHEN {when}" if when else ""
        title = self.quote(self.source.name(name))
        return f"CREATE TRIGGER {title} {event} ON {self.table} FOR EACH ROW{condition} BEGIN {body} END"

    def record(self, row: str) -> str:
        """Return the id of the record of a row, NULL where a child row has none."""
        key = f"{row}.{self.quote(self.source.key.name)}"
        return f"CASE WHEN {key} IS NOT NULL THEN {key_text('sqlite', self.source.key.type, key)} END"

    def capture(self, operation: str, select: str) -> str:
        word = "updated" if self.source.is_child else operation
        return _CHANGE.format(catalogue=self.source.catalogue, operation=word, select=select)

    def change(self, row: str, operation: str, where: str = "") -> str:
        return self.capture(operation, f"SELECT {self.record(row)} AS record{where}")

    def update(self) -> str:
        """Return the body for an update; a changed key is one record deleted and another one created."""
        moved = f"({self.record('OLD')}) COLLATE BINARY IS NOT ({self.record('NEW')})"
        return (
            self.change("OLD", "deleted", f" WHERE {moved}")
            + self.change("NEW", "created", f" WHERE {moved}")
            + self.change("NEW", "updated", f" WHERE NOT ({moved})")
        )

    def differs(self) -> str:
        """Return the condition that a row has changed, byte by byte: a collation such as NOCASE takes no part."""
        return " OR ".join(
            f"OLD.{name} COLLATE BINARY IS NOT NEW.{name} OR typeof(OLD.{name}) <> typeof(NEW.{name})"
            for name in map(self.quote, self.source.columns)
        )

    # --- rows displaced by REPLACE ------------------------------------------------------------------

    def displacing(self, name: str, event: str, uniques: Sequence[Unique]) -> Iterator[str]:
        """Yield the triggers that capture the rows which an INSERT or UPDATE displaces."""
        taken = f"FROM {self.table} AS taken WHERE ({' OR '.join(map(self._takes, uniques))})"
        if self.source.is_child:  # a record whose row is only about to be displaced may count as updated
            rows = f"SELECT {self.record('taken')} AS record {taken}"
            yield self.trigger(f"{name}_displaces", f"BEFORE {event}", self.capture("updated", rows), _exists(taken))
            return
        # The row that is written is no displaced one, also where it keeps a value or takes that of its own key.
        for row in ("NEW", "OLD") if name == "update" else ("NEW",):
            taken += f" AND ({self.record('taken')}) COLLATE BINARY IS NOT ({self.record(row)})"
        key = self.quote(self.source.key.name)
        noted = f"catalogue = '{self.source.catalogue}'"
        note = (
            f"DELETE FROM displaced_row WHERE {noted}; INSERT INTO displaced_row (catalogue, record_id, key) "
            f"SELECT '{self.source.catalogue}', {self.record('taken')}, taken.{key} {taken};"
        )
        left = f"SELECT 1 FROM {self.table} AS kept WHERE kept.{key} = noted.key"
        left += f" AND ({self.record('kept')}) COLLATE BINARY = noted.record_id"
        gone = f"SELECT record_id AS record FROM displaced_row AS noted WHERE {noted} AND NOT EXISTS ({left})"
        captured = self.capture("deleted", gone) + f"DELETE FROM displaced_row WHERE {noted};"
        yield self.trigger(f"{name}_displaces", f"BEFORE {event}", note, _exists(taken))
        yield self.trigger(
            f"{name}_displaced", f"AFTER {event}", captured, _exists(f"FROM displaced_row WHERE {noted}")
        )

    def _takes(self, unique: Unique) -> str:
        """Return the condition that the new row takes the unique values of the row `taken`."""
        pairs = [(self.quote(name), collation) for name, collation in unique.columns]
        return " AND ".join(f"taken.{name} = NEW.{name} COLLATE {collation}" for name, collation in pairs)


def _exists(rows: str) -> str:
    return f"EXISTS (SELECT 1 {rows})"


def uniques_of(connection: sa.Connection, source: Source) -> list[Unique]:
    """Return the unique indexes of a source's table that REPLACE can displace another record by.

    Raises:
      LookupError: an index is over an expression, whose rows cannot be found; the message is its name.
    """
    table = source.table.name
    found = []
    indexes = connection.execute(
        sa.text('SELECT name FROM pragma_index_list(:table) WHERE "unique" = 1'), {"table": table}
    )
    for (name,) in indexes.all():
        columns = sa.text("SELECT cid, name, coll FROM pragma_index_xinfo(:name) WHERE key = 1 ORDER BY seqno")
        parts = connection.execute(columns, {"name": name}).all()
        if any(part.cid == -2 for part in parts):
            raise LookupError(name)
        found.append(Unique(tuple((part.name, part.coll) for part in parts)))
    if source.is_child and _is_rowid(connection, source):
        found.append(Unique(((source.primary_key[0].name, "BINARY"),)))
    return found


def _is_rowid(connection: sa.Connection, source: Source) -> bool:
    """Return whether the primary key is the rowid, which has no index of its own."""
    origins = sa.text("SELECT 1 FROM pragma_index_list(:table) WHERE origin = 'pk'")
    has_index = connection.execute(origins, {"table": source.table.name}).first() is not None
    return len(source.primary_key) == 1 and not has_index
