"""The capture triggers on PostgreSQL; see "CREATE TRIGGER" in its manual.

A trigger runs once for each statement and compares its transition tables, so that a bulk write costs one INSERT.
Only the triggers of each row are inherited by partitions, also by those attached later, and run for writes through
either table. A table that is partitioned, or is a partition, therefore has those.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import sqlalchemy as sa

from models.capture_sources import Source
from models.postgresql import AWAKE_LOCK, CHANNEL, NOTIFY_SETTING
from models.record_ids import key_text, kind_of_key

#: Names of the settings a writer sets for its transaction, e.g. `SELECT set_config('syncflow.origin', 'stripe', true)`.
ORIGIN_SETTING = "syncflow.origin"
UNSUBSCRIBE_SETTING = "syncflow.unsubscribe"


@dataclass(frozen=True)
class Place:
    """A source in the database: its quoted name with its schema, that of the ledger's schema, and its partitions."""

    table: str
    ledger: str
    #: Whether it has triggers for each row.
    by_row: bool = False
    #: All tables that hold its rows, at any depth, as quoted names.
    partitions: tuple[str, ...] = ()


# SECURITY DEFINER: an application that writes its own table needs no access to the ledger. Every name outside of
# pg_catalog has its schema, so that no table or function of the writer can take its place.
# jit = off: the planner overestimates the cost of the join, and compiling takes longer than running it.
# row_security = off: a policy that hides rows from TRUNCATE's query raises an error instead of losing them.
#
# The writer's statement never fails because of us: what cannot be captured is noted, and at worst there is a warning.
# Errors of class 40 (deadlock, serialization) are the writer's own, whose transaction has to be repeated.
_FUNCTION = """
CREATE FUNCTION {function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET jit = off SET row_security = off AS $syncflow${body}$syncflow$
"""

_BODY = """
DECLARE
    captured bigint := 0;
    wakes boolean := false;
    lost boolean := false;
    why_code text;
    why text;
BEGIN
    BEGIN
        {insert}
        GET DIAGNOSTICS captured = ROW_COUNT;
        {wakes}
    EXCEPTION WHEN transaction_rollback THEN RAISE;
    WHEN OTHERS THEN
        why_code := SQLSTATE;
        why := SQLERRM;
        wakes := false;
        BEGIN
            {insert_keys}
        EXCEPTION WHEN transaction_rollback THEN RAISE;
        WHEN OTHERS THEN
            lost := true;
            why_code := SQLSTATE;
            why := SQLERRM;
        END;
        BEGIN
            {note}
        EXCEPTION WHEN transaction_rollback THEN RAISE;
        WHEN OTHERS THEN
            IF lost THEN
                RAISE WARNING USING
                    MESSAGE = 'Syncflow did not capture a write to ' || TG_RELID::regclass::text || ': ' || why,
                    HINT = 'Correct the cause, then run: ./syncflow capture install';
            END IF;
        END;
    END;
    IF wakes THEN
        PERFORM pg_notify('{channel}', '');
    END IF;
    RETURN NULL;
END """

# A notification makes commits wait for one another, forbids PREPARE TRANSACTION and fails where the queue is full
# ("NOTIFY" in the manual). None is sent while the relay looks by itself: it then holds this lock.
_WAKES = """IF captured > 0 AND current_setting('max_prepared_transactions') = '0'
            AND current_setting('{setting}', true) IS DISTINCT FROM 'off' THEN
            IF pg_try_advisory_lock_shared({lock}) THEN
                PERFORM pg_advisory_unlock_shared({lock});
                wakes := pg_notification_queue_usage() < 0.5;
            END IF;
        END IF;"""

# One row for each kind of fault is enough; concurrent writers may add the same one. The lock keeps a known row until
# this write is committed: if it was deleted before, the comparison that follows might not see the write.
_NOTE = """PERFORM FROM {ledger}.capture_fault AS known WHERE known.catalogue = '{catalogue}'
                AND known.source = TG_RELID::regclass::text AND known.event = '{event}'
                AND (known.is_lost OR NOT lost) FOR KEY SHARE;
            IF NOT FOUND THEN
                INSERT INTO {ledger}.capture_fault (catalogue, source, event, is_lost, code, reason, at)
                VALUES ('{catalogue}', TG_RELID::regclass::text, '{event}', lost, why_code, left(why, 500),
                    clock_timestamp());
            END IF;"""

_INSERT = """INSERT INTO {ledger}.change (catalogue, record_id, operation, origin, unsubscribe, at)
    SELECT '{catalogue}', captured.record, captured.operation,
        nullif(current_setting('{origin}', true), ''), nullif(current_setting('{unsubscribe}', true), ''),
        clock_timestamp()
    FROM ({select}) AS captured (record, operation)
    WHERE captured.record IS NOT NULL"""

_OF_ONE_ROW = {
    "insert": "WITH new_rows AS (SELECT NEW.*) ",
    "update": "WITH old_rows AS (SELECT OLD.*), new_rows AS (SELECT NEW.*) ",
    "delete": "WITH old_rows AS (SELECT OLD.*) ",
}
_TRANSITION_TABLES = {
    "insert": "REFERENCING NEW TABLE AS new_rows",
    "update": "REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows",
    "delete": "REFERENCING OLD TABLE AS old_rows",
}


@dataclass(frozen=True)
class Trigger:
    """A trigger function with the tables that it watches: names as SQL quotes them, and the text of the function."""

    name: str
    function: str
    body: str
    event: str
    tables: tuple[str, ...]


def triggers(source: Source, place: Place, quote: sa.sql.compiler.IdentifierPreparer) -> Iterator[Trigger]:
    """Yield the triggers of a source, as they have to be."""
    exact, keys = _captured(source, quote), _captured(source, quote, compares=False)
    for event, select in exact.items():
        name = quote.quote(source.name(event))
        known = {"ledger": place.ledger, "catalogue": source.catalogue, "event": event}
        body = _BODY.format(
            insert=_insert(event, select, source, place),
            insert_keys=_insert(event, keys[event], source, place),
            wakes=_WAKES.format(setting=NOTIFY_SETTING, lock=AWAKE_LOCK),
            note=_NOTE.format(**known),
            channel=CHANNEL,
        )
        tables = (place.table, *place.partitions) if event == "truncate" else (place.table,)
        yield Trigger(name, f"{place.ledger}.{name}", body, event, tables)


def statements(source: Source, place: Place, quote: sa.sql.compiler.IdentifierPreparer) -> Iterator[str]:
    """Yield the statements that create the functions and triggers of a source."""
    for one in triggers(source, place, quote):
        yield _FUNCTION.format(function=one.function, body=one.body)
        for table in one.tables:
            yield f"CREATE TRIGGER {one.name} {_when(one.event, table, place)} EXECUTE FUNCTION {one.function}()"


def _insert(event: str, select: str, source: Source, place: Place) -> str:
    insert = _INSERT.format(
        ledger=place.ledger,
        catalogue=source.catalogue,
        origin=ORIGIN_SETTING,
        unsubscribe=UNSUBSCRIBE_SETTING,
        select=select,
    )
    if event == "truncate":  # TRUNCATE runs the trigger of each table that it empties, partitions included
        return f"EXECUTE replace($sql${insert}$sql$, '<table>', TG_RELID::regclass::text);"
    return (_OF_ONE_ROW[event] if place.by_row else "") + insert + ";"


def _when(event: str, table: str, place: Place) -> str:
    if event == "truncate":
        return f"BEFORE TRUNCATE ON {table} FOR EACH STATEMENT"
    if place.by_row:
        return f"AFTER {event.upper()} ON {table} FOR EACH ROW"
    return f"AFTER {event.upper()} ON {table} {_TRANSITION_TABLES[event]} FOR EACH STATEMENT"


def _captured(source: Source, quote: sa.sql.compiler.IdentifierPreparer, *, compares: bool = True) -> dict[str, str]:
    """Return for each event the query of (record, operation) over `old_rows` and `new_rows`.

    Without a comparison each updated row counts as changed; no column but the keys is read.
    """

    def record(row: str) -> str:
        return key_text("postgresql", source.key.type, f"{row}.{quote.quote(source.key.name)}")

    created, updated, deleted = ("updated",) * 3 if source.is_child else ("created", "updated", "deleted")
    # A row without a counterpart had its key changed: one record deleted, another created. PostgreSQL never uses
    # a nested loop for a FULL JOIN. It keeps a session's first plan, which may be for a single row, and a nested
    # loop would take half a minute for 10,000 rows.
    pairs = f"old_rows o FULL JOIN new_rows n ON {_same_row(source, quote)}"
    if source.is_child:  # a row that moves changes both parents
        parents = f"(VALUES ({record('o')}), ({record('n')})) AS of_either (parent)"
        update = f"SELECT DISTINCT of_either.parent, '{updated}' FROM {pairs} CROSS JOIN LATERAL {parents}"
    else:
        gone, come = (f"{row}.{quote.quote(source.key.name)} IS NULL" for row in "no")
        update = (
            f"SELECT coalesce({record('n')}, {record('o')}), CASE WHEN {come} THEN '{created}' "
            f"WHEN {gone} THEN '{deleted}' ELSE '{updated}' END FROM {pairs}"
        )
    if compares:
        update += f" WHERE {_differs(source, quote)}"
    distinct = "DISTINCT " if source.is_child else ""
    return {
        "insert": f"SELECT {distinct}{record('n')}, '{created}' FROM new_rows n",
        "update": update,
        "delete": f"SELECT {distinct}{record('o')}, '{deleted}' FROM old_rows o",
        "truncate": f"SELECT {distinct}{record('o')}, '{deleted}' FROM ONLY <table> o",
    }


def _same_row(source: Source, quote: sa.sql.compiler.IdentifierPreparer) -> str:
    """Return the condition that two rows are the same one: their primary keys are, byte by byte."""
    conditions = []
    for column in source.primary_key:
        sides = [f"{row}.{quote.quote(column.name)}" for row in "on"]
        if kind_of_key(column.type) not in ("integer", "uuid"):  # equal values of other types may differ in bytes
            sides = [f'({key_text("postgresql", column.type, side)}) COLLATE "C"' for side in sides]
        conditions.append(" = ".join(sides))
    return " AND ".join(conditions)


def _differs(source: Source, quote: sa.sql.compiler.IdentifierPreparer) -> str:
    """Return the condition that a row has changed, byte by byte.

    Equality is no measure: `citext` and collations may ignore case, 1.0 equals 1.00, and `json` has no equality.
    "Row Comparison" in the manual describes the operator.
    """
    rows = [f"ROW({', '.join(f'{row}.{quote.quote(name)}' for name in source.columns)})::record" for row in "no"]
    return " OPERATOR(pg_catalog.*<>) ".join(rows)
