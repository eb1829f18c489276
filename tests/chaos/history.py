"""What is printed of an offending record, so that the cause can be found: all that the ledger and the systems noted.

What tells most comes last: of long logs it is the beginning that gets lost.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import psycopg
from psycopg.rows import dict_row

from tests.chaos.checker import Snapshot, Violation
from tests.chaos.event_log import EventLog
from tests.chaos.fleet import Fleet

#: Violations reported in full, and lines of each system's journal.
TOLD, LINES = 6, 40

#: Characters of a line.
_LONGEST, _LONGEST_INBOX = 1500, 700

_QUERIES = {
    "inbox": "SELECT * FROM inbox WHERE body LIKE ANY(%(bodies)s) ORDER BY id",
    "dead_letter": "SELECT * FROM dead_letter WHERE record_id = ANY(%(ids)s) ORDER BY id",
    "link": "SELECT * FROM link WHERE record_id = ANY(%(ids)s) OR external_id = ANY(%(there)s) ORDER BY id",
    "change": "SELECT * FROM change WHERE record_id = ANY(%(ids)s) ORDER BY id",
    "delivery": "SELECT * FROM delivery WHERE record_id = ANY(%(ids)s) OR external_id = ANY(%(there)s) ORDER BY id",
}


def describe_violations(
    fleet: Fleet, snapshot: Snapshot, event_log: EventLog, violations: list[Violation]
) -> Iterator[str]:
    """Lines about the first of the violations."""
    with psycopg.connect(fleet.database_url, row_factory=dict_row) as connection:
        for violation in violations[:TOLD]:
            yield f"=== {violation.kind}: {violation.words}"
            email = violation.words.partition(" ")[0].rstrip(":")
            ids, there = _widened(snapshot, violation, email)
            for system, calls in snapshot.journals.items():
                words = [*there, *(f'"{one}"' for one in ids)]
                lines = (_line(call, None) for call in calls)
                told = [line[:_LONGEST] for line in lines if any(word in line for word in words)]
                yield from (f"  {system:<10} {line}" for line in told[-LINES:])
            names = {"ids": list(ids), "there": list(there), "bodies": [f"%{one}%" for one in there] or [""]}
            for table, query in _QUERIES.items():
                for row in connection.execute(query, names):
                    yield f"  {table:<10} {_line(row, _LONGEST_INBOX if table == 'inbox' else _LONGEST)}"
            history = event_log.histories.get(email)
            for edit in history.edits if history else ():
                yield f"  edit       {_line(vars(edit))}"
            if history and history.deleted:
                yield f"  deleted    {history.deleted}"


def _widened(snapshot: Snapshot, violation: Violation, email: str) -> tuple[set[str], set[str]]:
    ids = set(violation.record_ids) | {str(row["id"]) for row in snapshot.customers if row["email"] == email}
    linked = {str(link["external_id"]) for link in snapshot.links if link["record_id"] in ids and link["external_id"]}
    there = set(violation.external_ids) | linked
    return ids | {str(link["record_id"]) for link in snapshot.links if link["external_id"] in there}, there


def _line(row: dict[str, Any], longest: int | None = _LONGEST) -> str:
    kept = {name: value for name, value in row.items() if value not in (None, "", [], {}, False) and name != "headers"}
    if (body := kept.pop("body", None)) is not None:
        kept["body"] = body  # the longest comes last
    return json.dumps(kept, default=str, ensure_ascii=False)[:longest]
