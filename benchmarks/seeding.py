"""Fill a migrated database with a long past: records, links and history of any size, in minutes.

Every row is made by the database itself, from its number `i`, so that both kinds of database get the same rows.
Indexes are made after their table is full, as a restored backup makes them.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

import models.users  # noqa: F401 - its tables belong to the metadata
from models import capture, search
from models.base import Base
from models.catalogues import Customer
from models.ledger import (
    AuditEntry,
    Change,
    Conflict,
    Cursor,
    DeadLetter,
    Delivery,
    Inbox,
    JobRun,
    Link,
    Process,
    RefusedWebhook,
    System,
    Task,
    Throughput,
    ThroughputWatermark,
    Unsubscription,
    UnsubscriptionRecord,
)
from models.session import Database

#: To be raised with every change of what the rows are: ledgers of an older one are filled anew.
VERSION = 1

_DAY_SECONDS = 24 * 3600
_DIALECT: sa.Dialect = postgresql.dialect()  # type: ignore[no-untyped-call]

#: Days the history reaches back; less than a hub keeps by default, so that nothing of it is due to be removed.
HISTORY_DAYS = 80

#: Twenty links in a row belong to these subscribers: so many each.
SHARES = {"shop.customer": 14, "crm.customer": 5, "desk.customer": 1}
_TURN = sum(SHARES.values())

#: The record with a long history: every so many changes and deliveries are its own.
HOT = "1"
HOT_EVERY = 200

_FIRST = (
    "Ada Grace Alan Edsger Barbara Donald Frances Niklaus "
    "Margaret Tony Radia Ken Hedy Linus Katherine Dennis"
)  # fmt: skip
_LAST = (
    "Lovelace Hopper Turing Dijkstra Liskov Knuth Allen Wirth Hamilton Hoare Perlman Thompson Lamarr Torvalds Johnson "
    "Ritchie Shannon Neumann Backus Kay Lamport Milner Naur Cerf Postel Berners Sutherland Engelbart Cray Boole"
)
_CITIES = "London Vienna Lyon Porto Ghent Turin Graz Basel Malmo Delft Cork Bergen"

#: How the errors of dead letters read, and how many of a hundred read so.
_ERRORS = [
    (60, "Reject", "email: is not an accepted address"),
    (25, "Reject", "address.city: no such city"),
    (10, "Retry", "504 Gateway Timeout"),
    (4, "Retry", "KeyError: 'country'"),
    (1, "Reject", "name: too long"),
]


@dataclass(frozen=True)
class Size:
    """How many rows there are of each kind; a catalogue record may have several links."""

    records: int
    links: int
    deliveries: int
    changes: int
    inbox: int
    audit: int
    #: Closed ones are history; open ones wait for an operator.
    closed_letters: int
    open_letters: int
    closed_conflicts: int
    open_conflicts: int
    #: Links of a paused system that are owed something, and those an unsubscription keeps back.
    owed: int
    kept_back: int
    tasks: int


FULL = Size(
    records=1_000_000,
    links=1_000_000,
    deliveries=10_000_000,
    changes=5_000_000,
    inbox=1_000_000,
    audit=500_000,
    closed_letters=100_000,
    open_letters=20_000,
    closed_conflicts=50_000,
    open_conflicts=2_000,
    owed=20_000,
    kept_back=20_000,
    tasks=300,
)
SHORT = Size(
    records=100_000,
    links=100_000,
    deliveries=1_000_000,
    changes=500_000,
    inbox=100_000,
    audit=50_000,
    closed_letters=10_000,
    open_letters=2_000,
    closed_conflicts=5_000,
    open_conflicts=200,
    owed=2_000,
    kept_back=2_000,
    tasks=300,
)
QUICK = Size(
    records=2_000,
    links=2_000,
    deliveries=20_000,
    changes=10_000,
    inbox=2_000,
    audit=1_000,
    closed_letters=200,
    open_letters=100,
    closed_conflicts=100,
    open_conflicts=20,
    owed=100,
    kept_back=50,
    tasks=20,
)


def fill(database: Database, size: Size) -> None:
    """Fill the tables of a freshly migrated database, make its indexes, and let it gather its statistics."""
    with database.engine.connect() as connection:
        if database.is_sqlite:
            # No other process uses it, and an incomplete database is thrown away: no journal is needed.
            raw: Any = connection.connection.driver_connection
            for pragma in ("journal_mode=OFF", "synchronous=OFF", "cache_size=-500000"):
                raw.execute(f"PRAGMA {pragma}")
        else:
            connection.execute(sa.text("SET maintenance_work_mem = '512MB'"))
            connection.execute(sa.text("SET synchronous_commit = off"))
        _Filler(connection, size).run()
        connection.commit()
        if database.is_sqlite:
            raw.execute("PRAGMA journal_mode=WAL")
            connection.invalidate()
    if not database.is_sqlite:
        vacuum(database)


def vacuum(database: Database) -> None:
    """What PostgreSQL's autovacuum would have done after a while."""
    with database.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(sa.text("VACUUM (ANALYZE)"))


def freshen(database: Database) -> None:
    """Bring what a page shows of the last hours up to now, however old the rest is: charts and heartbeats."""
    with database.write() as connection:
        filler = _Filler(connection, QUICK)
        filler.throughput()
        filler.processes()


class _Filler:
    """Writes the rows, table by table. `i` counts from 0; SQL is such that both databases understand it."""

    def __init__(self, connection: sa.Connection, size: Size) -> None:
        self.connection = connection
        self.size = size
        self.is_sqlite = connection.dialect.name == "sqlite"
        self.now = int(time.time())

    def run(self) -> None:
        size = self.size
        capture.remove(self.connection)
        self._customers(size.records)
        self._links(size.links)
        self._changes(size.changes)
        self._deliveries(size.deliveries)
        self._inbox(size.inbox)
        self._letters()
        self._conflicts()
        self._audit(size.audit)
        self._others()
        self.throughput()
        self.processes()
        capture.install(self.connection)

    # --- what a page is about ---------------------------------------------------------------------------

    def _customers(self, count: int) -> None:
        first, last = self._one_of(_FIRST, "i"), self._one_of(_LAST, f"i / {len(_FIRST.split())}")
        words = "words_of_customer"
        if self.is_sqlite:
            for verb in ("insert", "update", "delete"):
                self._run(f"DROP TRIGGER IF EXISTS {words}_{verb}")
            self._run(f"DROP TABLE IF EXISTS {words}")
        else:
            self._run(f"DROP INDEX IF EXISTS {words}")
        self._rows(Customer, count, {
            "name": f"{first} || ' ' || {last} || ' ' || {_text('i')}",
            "email": f"lower({first} || '.' || {last}) || {_text('i + 1')} || '@example.com'",
            "phone": f"'+43 1 ' || {_text('1000000 + i')}",
            "city": self._one_of(_CITIES, "i"),
            "country": "'AT'",
            "active": "TRUE",
            "created_at": self._ago(f"{HISTORY_DAYS * _DAY_SECONDS}"),
            "updated_at": self._ago(f"{HISTORY_DAYS * _DAY_SECONDS}"),
        })  # fmt: skip
        search.install(self.connection)

    def _links(self, count: int) -> None:
        share, start = (_per_subscriber({name: str(row[at]) for name, row in _places().items()}) for at in (0, 1))
        record = f"(i / {_TURN} * ({share}) + i % {_TURN} - ({start}) + 1)"
        owed = f"({_subscriber()} = 'crm.customer' AND i < {self.size.owed * _TURN // SHARES['crm.customer']})"
        kept = f"({_subscriber()} = 'desk.customer' AND i < {self.size.kept_back * _TURN // SHARES['desk.customer']})"
        # Tried in vain, and due again later than anybody measures here.
        failing = f"({_subscriber()} = 'shop.customer' AND i % 1400 = 7)"
        self._rows(Link, count, {
            "subscriber": _subscriber(),
            "record_id": _text(record),
            "external_id": f"{_prefix()} || {_text(record)}",
            "owed_change": f"i + 1 + CASE WHEN {owed} OR {failing} THEN 1 ELSE 0 END",
            "synced_change": "i + 1",
            "owed_since": f"CASE WHEN {owed} OR {failing} THEN {self._ago(f'{_DAY_SECONDS} - i * 0.01')} END",
            "published_at": self._at("i", count),
            "synced_at": self._at("i", count),
            "base": self._json(_payload(record)),
            "last_seen_at": self._at("i", count),
            "last_write_at": self._at("i", count),
            "deleted_remotely": "FALSE",
            "attempts": f"CASE WHEN {failing} THEN 2 ELSE 0 END",
            "retry_at": f"CASE WHEN {failing} THEN {self._ago(f'-{3650 * _DAY_SECONDS}')} END",
            "unsubscription_id": f"CASE WHEN {kept} THEN 1 END",
            "open_conflicts": "0",
        })  # fmt: skip

    def _changes(self, count: int) -> None:
        catalogue = "CASE WHEN i % 40 = 7 THEN 'product' WHEN i % 40 = 8 THEN 'invoice' ELSE 'customer' END"
        record = f"CASE WHEN i % {HOT_EVERY} = 0 THEN 1 ELSE 1 + i * 7919 % {self.size.records} END"
        self._rows(Change, count, {
            "catalogue": catalogue,
            "record_id": _text(record),
            "operation": f"CASE WHEN i < {self.size.records} THEN 'created' ELSE 'updated' END",
            "origin": "CASE WHEN i % 5 = 4 THEN 'shop' END",
            "at": self._at("i", count),
            "relayed_at": self._at("i", count),
        })  # fmt: skip

    def _deliveries(self, count: int) -> None:
        turn = f"(i / {_TURN})"
        records = _per_subscriber({name: str(self.size.links * share // _TURN) for name, share in SHARES.items()})
        record = f"CASE WHEN i % {HOT_EVERY} = 0 THEN 1 ELSE 1 + ({turn} * 7919 + i % {_TURN}) % ({records}) END"
        out = f"{turn} % 10 < 8"
        outcome = (
            f"CASE WHEN {out} THEN CASE WHEN {turn} % 1000 = 1 THEN 'dead' WHEN {turn} % 100 = 2 THEN 'failed' "
            f"WHEN {turn} % 50 = 3 THEN 'skipped' WHEN {turn} % 40 = 4 THEN 'unchanged' "
            f"WHEN i = {count // 3} THEN 'waiting' ELSE 'delivered' END "
            f"WHEN {turn} % 10 = 8 THEN 'applied' ELSE 'echo' END"
        )
        values = f"({outcome}) IN ('delivered', 'applied', 'failed')"
        reply = f'\'{{"id":"cus_\' || {_text("i")} || \'","object":"customer"}}\''
        self._rows(Delivery, count, {
            "subscriber": _subscriber(),
            "record_id": _text(f"({record})"),
            "external_id": f"{_prefix()} || {_text(f'({record})')}",
            "direction": f"CASE WHEN {out} THEN 'out' ELSE 'in' END",
            "operation": f"CASE WHEN i < {self.size.links} THEN 'create' ELSE 'update' END",
            "outcome": outcome,
            "reason": f"CASE WHEN {turn} % 100 = 2 THEN '504 Gateway Timeout' WHEN {turn} % 50 = 3 "
            "THEN 'unsubscription #1 (frozen) covers it' END",
            "error": f"CASE WHEN {turn} % 100 = 2 THEN 'Retry' END",
            "payload": f"CASE WHEN {values} THEN {self._json(_payload('i'))} END",
            "response": f"CASE WHEN {values} AND {out} THEN {reply} END",
            "inbox_id": f"CASE WHEN NOT ({out}) AND i % 2 = 1 THEN 1 + i % {self.size.inbox} END",
            "attempt": "1",
            "request_id": f"'req_' || {_text('i')}",
            "at": self._at("i", count),
            "duration": "40.0 + i % 200",
        })  # fmt: skip
        self.connection.execute(sa.insert(ThroughputWatermark).values(id=1, counted_to=count, top=count))

    def _inbox(self, count: int) -> None:
        # Of those at the end some are dead, and some wait for the system that is paused.
        dead, waiting = self._dead_inbox(count), f"i >= {count - count // 5000 - 1}"
        self._rows(Inbox, count, {
            "system": f"CASE WHEN {waiting} THEN 'crm' ELSE 'shop' END",
            "event_id": f"'evt_' || {_text('i')}",
            "kind": "'customer.updated'",
            "body": f"'{{\"id\":\"evt_' || {_text('i')} || '\",\"type\":\"customer.updated\",\"data\":' || "
            f"{_payload('i')} || '}}'",
            "headers": self._json("'{\"content-type\":\"application/json\",\"user-agent\":\"Shop/1.0\"}'"),
            "received_at": self._at("i", count),
            "state": f"CASE WHEN {waiting} THEN 'waiting' WHEN {dead} THEN 'dead' ELSE 'done' END",
            "attempts": "1",
            "retry_at": f"CASE WHEN {waiting} THEN {self._ago(f'-{3650 * _DAY_SECONDS}')} END",
            "finished_at": self._at("i", count),
            "result": f"CASE WHEN NOT ({waiting}) THEN 'customer ' || {_text('i')} || ': applied' END",
        })  # fmt: skip

    def _dead_inbox(self, count: int) -> str:
        return f"(i >= {count // 2} AND i < {count // 2 + self._from_inbox()})"

    def _from_inbox(self) -> int:
        """Open dead letters of the inward direction; the others are outward."""
        return self.size.open_letters // 20

    def _letters(self) -> None:
        """Closed ones first, then the open ones, of a few kinds and very different numbers."""
        closed, total = self.size.closed_letters, self.size.closed_letters + self.size.open_letters
        is_open, n = f"i >= {closed}", f"(i - {closed})"
        incoming = f"({is_open} AND {n} < {self._from_inbox()})"
        # The n-th record of the first shop links but the hot one, far from those that fail.
        record = f"(2 + {n} * 3)"
        of_link = f"SELECT id FROM link WHERE subscriber = 'shop.customer' AND record_id = {_text(record)}"
        whose = f"CASE WHEN {incoming} THEN NULL WHEN {is_open} THEN {_text(record)} ELSE {_text('1 + i')} END"
        error, message = (_of_a_hundred([(share, row[at]) for share, *row in _ERRORS]) for at in (0, 1))
        self._rows(DeadLetter, total, {
            "subscriber": "'shop.customer'",
            "record_id": whose,
            "link_id": f"CASE WHEN {is_open} AND NOT {incoming} THEN ({of_link}) END",
            "inbox_id": f"CASE WHEN {incoming} THEN {self.size.inbox // 2 + 1} + {n} END",
            "error": error,
            "fingerprint": _of_a_hundred([(share, f"kind{place:012d}") for place, (share, *_) in enumerate(_ERRORS)]),
            "message": message,
            "fields": self._json("'{\"email\":\"is not an accepted address\"}'"),
            "payload": self._json(_payload("i")),
            "traceback": "CASE WHEN i % 100 >= 95 AND i % 100 < 99 THEN 'Traceback (most recent call last): ...' END",
            "at": self._at("i", total),
            "closed_at": f"CASE WHEN NOT ({is_open}) THEN {self._at('i', total)} END",
            "resolution": f"CASE WHEN NOT ({is_open}) THEN 'delivered' END",
        })  # fmt: skip
        yesterday = self._ago(str(_DAY_SECONDS))
        self._run(
            "UPDATE link SET attempts = 1, owed_change = owed_change + 1, "
            f"owed_since = {yesterday}, dead_at = {yesterday}, retry_at = NULL, dead_letter_id = "
            "(SELECT id FROM dead_letter WHERE link_id = link.id AND closed_at IS NULL) "
            "WHERE id IN (SELECT link_id FROM dead_letter WHERE closed_at IS NULL AND link_id IS NOT NULL)"
        )

    def _conflicts(self) -> None:
        closed, total = self.size.closed_conflicts, self.size.closed_conflicts + self.size.open_conflicts
        is_open = f"i >= {closed}"
        shop = SHARES["shop.customer"]
        self._rows(Conflict, total, {
            # The number of a link of the shop, and of its record.
            "link_id": f"i / {shop} * {_TURN} + i % {shop} + 1",
            "subscriber": "'shop.customer'",
            "record_id": _text("i + 1"),
            "path": "CASE WHEN i % 3 = 0 THEN 'address.city' ELSE 'email' END",
            "base": self._json("'\"base\"'"),
            "ours": self._json("'\"ours\"'"),
            "theirs": self._json("'\"theirs\"'"),
            "at": self._at("i", total),
            "resolved_at": f"CASE WHEN NOT ({is_open}) THEN {self._at('i', total)} END",
            "resolved_by": f"CASE WHEN NOT ({is_open}) THEN 'operator@example.com' END",
            "choice": f"CASE WHEN NOT ({is_open}) THEN 'ours' END",
        })  # fmt: skip
        self._run(
            "UPDATE link SET open_conflicts = 1 WHERE id IN (SELECT link_id FROM conflict WHERE resolved_at IS NULL)"
        )

    def _audit(self, count: int) -> None:
        who = ["ada@example.com", "grace@example.com", "operator@example.com", "admin@example.com"]
        self._rows(AuditEntry, count, {
            "at": self._at("i", count),
            "who": self._one_of(who, "i / 7"),
            "action": self._one_of(["record.edit", "dead_letter.retry", "system.pause", "export"], "i"),
            "target": f"'customer ' || {_text('i')}",
            "details": self._json("'{\"before\":{\"city\":\"London\"},\"after\":{\"city\":\"Vienna\"}}'"),
        })  # fmt: skip

    def _others(self) -> None:
        self._rows(Unsubscription, 40, {
            "target": "CASE WHEN i = 0 THEN 'desk.customer' ELSE 'desk' END", "listed_only": "TRUE",
            "reason": "'frozen'", "created_at": self._ago(str(_DAY_SECONDS)), "created_by": "'operator@example.com'",
        })  # fmt: skip
        self._rows(UnsubscriptionRecord, self.size.kept_back, {
            "unsubscription_id": "1", "record_id": _text("i + 1"),
        }, numbered=False)  # fmt: skip
        self._rows(Task, self.size.tasks, {
            "kind": "'retry'", "argument": self._json("'{\"subscriber\":\"shop.customer\"}'"), "state": "'done'",
            "total": "100", "done": "100", "succeeded": "90", "failed": "10", "message": "'90 of 100 succeeded'",
            "by": "'operator@example.com'", "created_at": self._at("i", self.size.tasks),
            "finished_at": self._at("i", self.size.tasks),
        })  # fmt: skip
        self._rows(RefusedWebhook, 100, {
            "system": "'shop'", "slot": "i", "at": self._at("i", 100), "reason": "'the signature does not match'",
            "headers": self._json("'{\"content-type\":\"application/json\"}'"), "body": "'{\"id\":1}'", "size": "8",
        })  # fmt: skip
        self._rows(JobRun, 2880, {
            "job": "'poll shop.customer'", "slot": self._ago("i * 60"),
        })  # fmt: skip
        paused = "CASE WHEN i = 1 THEN {} END".format
        self._rows(System, len(SHARES), {
            "name": self._one_of([name.partition(".")[0] for name in SHARES], "i"),
            "paused_at": paused(self._ago(str(_DAY_SECONDS))), "paused_by": paused("'operator@example.com'"),
            "pause_reason": paused("'a migration there'"), "webhooks_rejected": "100",
        })  # fmt: skip

    # --- what is of now ---------------------------------------------------------------------------------

    def throughput(self) -> None:
        """What the charts are drawn from, in place of what there was."""
        self._run("DELETE FROM throughput")
        start = 0
        for seconds, count in ((60, 2 * _DAY_SECONDS // 60), (3600, HISTORY_DAYS * 24)):
            for name in SHARES:
                at = f"{self.now // seconds * seconds} - i * {seconds}"
                self._rows(Throughput, count, {
                    "seconds": str(seconds), "at": self._instant(at), "subscriber": f"'{name}'",
                    "delivered": f"{seconds} + i % 60", "received": "i % 20", "failed": "i % 3", "dead": "i % 2",
                }, start=start)  # fmt: skip
                start += count

    def processes(self) -> None:
        """One of each kind, heard of just now; and each subscriber was polled."""
        for table in ("process", "cursor"):
            self._run(f'DELETE FROM "{table}"')
        kinds = self._one_of(["web", "relay", "worker", "scheduler"], "i")
        self._rows(Process, 4, {
            "name": f"{kinds} || '-1'", "kind": kinds, "started_at": self._ago("3600"), "last_seen_at": self._ago("0"),
        })  # fmt: skip
        self._rows(Cursor, len(SHARES), {
            "subscriber": self._one_of(list(SHARES), "i"), "polled_at": self._ago("30"), "result": "'2 records'",
        })  # fmt: skip

    # --- how ---------------------------------------------------------------------------------------------

    def _rows(
        self, of: type[Base], count: int, columns: Mapping[str, str], *, numbered: bool = True, start: int = 0
    ) -> None:
        """Insert `count` rows, of `i` = 0 ..; their ids are `i + 1 + start`. Indexes are made anew after it."""
        table = Base.metadata.tables[of.__tablename__]
        indexes = sorted(table.indexes, key=lambda index: str(index.name)) if count > 10_000 else []
        for index in indexes:
            index.drop(self.connection)
        values = ({"id": f"i + 1 + {start}"} if numbered else {}) | dict(columns)
        names = ", ".join(f'"{name}"' for name in values)
        source = "series" if self.is_sqlite else f"generate_series(0::bigint, {count - 1}) AS series(i)"
        head = f"WITH RECURSIVE series(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM series WHERE i < {count - 1}) "
        self._run(
            f'{head if self.is_sqlite else ""}INSERT INTO "{table.name}" ({names}) '
            f"SELECT {', '.join(values.values())} FROM {source}"
        )
        if numbered and not self.is_sqlite:
            self._run(f"SELECT setval(pg_get_serial_sequence('{table.name}', 'id'), {count + start})")
        for index in indexes:
            index.create(self.connection)

    def _run(self, statement: str) -> None:
        # A colon before a word would be a parameter; there are none.
        self.connection.execute(sa.text(statement.replace(":", "\\:").replace("\\:\\:", "::")))

    def _at(self, i: str, count: int) -> str:
        """The instant of one of `count` rows that came evenly, the last one just now."""
        return self._ago(f"{HISTORY_DAYS * _DAY_SECONDS}.0 * ({count} - {i}) / {count}")

    def _ago(self, seconds: str) -> str:
        return self._instant(f"{self.now} - ({seconds})")

    def _instant(self, epoch: str) -> str:
        if self.is_sqlite:
            return f"(strftime('%Y-%m-%d %H:%M:%f', {epoch}, 'unixepoch') || '000')"
        return f"to_timestamp({epoch})"

    def _json(self, text: str) -> str:
        return f"({text})" if self.is_sqlite else f"CAST({text} AS jsonb)"

    def _one_of(self, among: str | Sequence[str], i: str) -> str:
        words = among.split() if isinstance(among, str) else among
        if self.is_sqlite:
            quoted = ",".join(f'"{word}"' for word in words)
            return f"json_extract('[{quoted}]', '$[' || (({i}) % {len(words)}) || ']')"
        quoted = ",".join(f"'{word}'" for word in words)
        return f"(ARRAY[{quoted}])[1 + ({i}) % {len(words)}]"


def schema() -> str:
    """All tables and indexes as this code makes them: a ledger filled for others is out of date."""
    lines = []
    for table in Base.metadata.sorted_tables:
        lines.append(str(sa.schema.CreateTable(table)))
        lines += sorted(str(sa.schema.CreateIndex(index).compile(dialect=_DIALECT)) for index in table.indexes)
    return "\n".join(lines)


def _places() -> dict[str, tuple[int, int]]:
    """Subscriber -> how many of a turn are its own, and where they begin."""
    ends = itertools.accumulate(SHARES.values())
    return {name: (share, end - share) for (name, share), end in zip(SHARES.items(), ends, strict=True)}


def _per_subscriber(values: Mapping[str, str]) -> str:
    cases = [f"WHEN i % {_TURN} < {start + share} THEN {values[name]}" for name, (share, start) in _places().items()]
    return f"CASE {' '.join(cases)} END"


def _subscriber() -> str:
    return _per_subscriber({name: f"'{name}'" for name in SHARES})


def _prefix() -> str:
    """How a system's ids begin."""
    return _per_subscriber({name: f"'{name.partition('.')[0]}_'" for name in SHARES})


def _of_a_hundred(shares: Sequence[tuple[int, str]]) -> str:
    ends = itertools.accumulate(share for share, _ in shares)
    quoted = ["'" + word.replace("'", "''") + "'" for _, word in shares]
    return f"CASE {' '.join(f'WHEN i % 100 < {end} THEN {word}' for end, word in zip(ends, quoted, strict=True))} END"


def _text(number: str) -> str:
    return f"CAST({number} AS TEXT)"


def _payload(i: str) -> str:
    """What a system is sent of a customer, as a text of JSON."""
    name = f'\'{{"name":"Ada Lovelace \' || {_text(i)} || \'"'
    return f'{name},"email":"ada\' || {_text(i)} || \'@example.com","active":true,"address.city":"London"}}\''
