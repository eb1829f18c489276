"""The properties of a hub that has settled; each check names its property by a letter.

(a) every system holds exactly what its mapping of the internal record yields, unless the ledger or an operator's
action explains the difference;
(b) nothing was created twice, in an external system or in the database;
(c) the hub is at rest: another full round writes and changes nothing;
(d) everything that could not be delivered has a dead letter with the reason;
(e) if only one side wrote a field since the last agreement, the field has the last value of that side;
(f) the ledger is in order;  (g) unsubscriptions were respected, and (h) no two workers wrote a record to one
system at the same time (both are checked at the calls);
(i) a field edited on both sides has the value that its policy says, or an operator is asked;
(j) an outage of a system used up no record's attempts.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import orjson
import sqlalchemy as sa

from models.ledger import Change, Conflict, Cursor, DeadLetter, Delivery, Inbox, Link, System
from subscribers.errors import SyncError
from subscribers.mapping.paths import pick
from subscribers.mapping.values import same
from tests.histories.model_systems import FIELDS, OUTAGE_WORDS, ModelSystem
from tests.support.model_hub import EVERYTHING, ModelHub


@dataclass
class Ledger:
    """The complete ledger of a hub at rest, read once."""

    records: dict[str, dict[str, Any]]
    links: dict[tuple[str, str], Any] = field(default_factory=dict)
    by_external: dict[tuple[str, str], Any] = field(default_factory=dict)
    letters: list[Any] = field(default_factory=list)
    inbox: list[Any] = field(default_factory=list)
    deliveries: list[Any] = field(default_factory=list)
    changes: list[Any] = field(default_factory=list)
    systems: list[Any] = field(default_factory=list)
    conflicts: list[Any] = field(default_factory=list)


def check(hub: ModelHub) -> None:
    """Let the hub settle and check all properties."""
    hub.calm()
    hub.come_to_rest()
    ledger = _read(hub)
    for words in (*_policies_kept(hub, ledger), *_waited(ledger)):
        raise hub.violated(words)
    if _decide(hub, ledger):
        hub.come_to_rest()
        ledger = _read(hub)
    for words in (
        *_in_order(hub, ledger),
        *_explained(hub, ledger),
        *_converged(hub, ledger),
        *_nothing_extra(hub, ledger),
        *_created_once(hub, ledger),
        *_survived(hub, ledger),
    ):
        raise hub.violated(words)
    _rests(hub, ledger)
    _agree(hub, ledger)


def _read(hub: ModelHub) -> Ledger:
    ledger = Ledger(hub.records())
    with hub.engine_read() as connection:

        def rows(table: Any) -> list[Any]:
            return list(connection.execute(sa.select(table.__table__).order_by(table.id)))

        for link in rows(Link):
            ledger.links[link.subscriber, link.record_id] = link
            if link.external_id is not None:
                ledger.by_external[link.subscriber, link.external_id] = link
        ledger.letters, ledger.inbox, ledger.conflicts = rows(DeadLetter), rows(Inbox), rows(Conflict)
        ledger.deliveries, ledger.changes, ledger.systems = rows(Delivery), rows(Change), rows(System)
    return ledger


# --- (f), (d) ---------------------------------------------------------------------------------------------------


def _in_order(hub: ModelHub, ledger: Ledger) -> list[str]:
    wrong = []
    open_letters = {row.id: row for row in ledger.letters if row.closed_at is None}
    for link in ledger.links.values():
        name = f"(f) {link.subscriber} {link.record_id}"
        if link.owed_change < link.synced_change:
            wrong.append(f"{name}: more was synced than owed")
        if link.lease_until is not None or link.lease_owner is not None:
            wrong.append(f"{name}: a lease is left")
        if link.retry_at is not None:
            wrong.append(f"{name}: a retry is left")
        if link.owed_change > link.synced_change and link.dead_at is None:
            wrong.append(f"{name}: something is owed")
        if (link.owed_since is not None) != (link.owed_change > link.synced_change):
            wrong.append(f"{name}: owed since {link.owed_since}, owed {link.owed_change}, synced {link.synced_change}")
        if link.dead_at is not None and link.dead_letter_id not in open_letters:
            wrong.append(f"(d) {link.subscriber} {link.record_id}: dead without a letter")
        if link.dead_letter_id is not None and link.dead_letter_id not in open_letters:
            wrong.append(f"{name}: names a letter that is closed")
    for letter in open_letters.values():
        links = [link.dead_letter_id for link in ledger.links.values() if link.id == letter.link_id]
        if letter.link_id is not None and links != [letter.id]:
            wrong.append(f"(f) letter {letter.id} is of link {letter.link_id}, which names {links}")
        inbox = [row.state for row in ledger.inbox if row.id == letter.inbox_id]
        if letter.inbox_id is not None and inbox != ["dead"]:
            wrong.append(f"(f) letter {letter.id} is of inbox {letter.inbox_id}, which is {inbox}")
    for row in ledger.systems:
        if row.down_since is not None:
            wrong.append(f"(f) {row.name} is still taken to be down")
    return wrong


def _explained(hub: ModelHub, ledger: Ledger) -> list[str]:
    wrong = [f"(d) letter {row.id} says nothing" for row in ledger.letters if not row.message.strip()]
    wrong += [
        f"(d) a bug: {row.message}" for row in ledger.letters if row.code == "bug" and "surprise" not in row.message
    ]
    with_letter = {row.inbox_id for row in ledger.letters}
    wrong += [f"(d) inbox {row.id} is dead without a letter" for row in ledger.inbox if row.state == "dead"
              and row.id not in with_letter]  # fmt: skip
    return wrong


# --- (a) --------------------------------------------------------------------------------------------------------


def _excused(hub: ModelHub, ledger: Ledger, name: str, record: str) -> frozenset[str]:
    """Return the operations that this subscriber may validly have missed for this record."""
    operations: set[str] = set()
    for rule in hub.rules:
        if name in rule.subscribers and (rule.records is None or record in rule.records):
            operations |= {rule.operation} if rule.operation else EVERYTHING
    system = hub.conductor.subscribers[name].system
    newest = max(
        (
            row.id
            for row in ledger.changes
            if row.record_id == record and row.origin != system and (row.id, name) not in hub.left_out
        ),
        default=0,
    )
    for excuse in hub.excuses:
        if excuse.subscriber == name and excuse.record_id in (None, record) and newest <= excuse.upto:
            operations |= excuse.operations
    return frozenset(operations)


def _letter(ledger: Ledger, link: Any) -> bool:
    return link is not None and any(row.link_id == link.id and row.closed_at is None for row in ledger.letters)


def _troubled(hub: ModelHub, ledger: Ledger, system: ModelSystem) -> set[str]:
    """Return the external ids with an incoming event that could not be applied."""
    bodies = {row.body for row in ledger.inbox if row.state == "dead" and row.system == system.name}
    return {_external_id(system, body) for body in bodies} | {
        _external_id(system, body) for body in hub.discarded if _is_of(system, body)
    }


def _is_of(system: ModelSystem, body: str) -> bool:
    return body.startswith("e") or f'"{system.name}_' in body


def _external_id(system: ModelSystem, body: str) -> str:
    if body.startswith("e"):
        number = int(body[1:])
        return system.log[number].id if number < len(system.log) else ""
    return str(orjson.loads(body)["id"])


def _converged(hub: ModelHub, ledger: Ledger) -> list[str]:
    wrong = []
    for system in hub.systems.values():
        name = f"{system.name}.customer"
        mapper, _ = hub.conductor.mappings.latest(name)
        troubled = _troubled(hub, ledger, system)
        for record_id, record in ledger.records.items():
            link = ledger.links.get((name, record_id))
            if _letter(ledger, link):
                continue
            excused = _excused(hub, ledger, name, record_id)
            there = link is not None and link.unlinked_at is None and system.store.get(link.external_id)
            if not there:
                unlinked = (
                    link is not None and link.deleted_remotely and system.profile.on_gone in ("unlink", "archive")
                )
                if "create" not in excused and not unlinked:
                    wrong.append(f"(a) {name} {record_id} is not there: {link}")
                continue
            try:
                flat = mapper.outward(record)
            except SyncError as error:
                wrong.append(f"(d) {name} {record_id} cannot be mapped and has no letter: {error}")
                continue
            differing = {
                path: (pick(there, path), ours)
                for path, ours in flat.items()
                if not same(pick(there, path), system.normal(path, ours))
            }
            if differing and link is not None and "update" not in excused and link.external_id not in troubled:
                wrong.append(f"(a) {name} {record_id} {link.external_id} differs, theirs and ours: {differing}")
    return wrong


def _nothing_extra(hub: ModelHub, ledger: Ledger) -> list[str]:
    wrong = []
    for system in hub.systems.values():
        name = f"{system.name}.customer"
        troubled = _troubled(hub, ledger, system)
        noted = {row.external_id for row in ledger.deliveries if row.subscriber == name and row.outcome == "skipped"
                 and row.direction == "in"}  # fmt: skip
        # A record detached on purpose belongs to no internal record, even if its former record was created again.
        noted |= {row.external_id for row in ledger.deliveries if row.subscriber == name and row.operation == "unlink"}
        aside = _aside(ledger, system)
        for external_id, data in system.store.items():
            link = ledger.by_external.get((name, external_id))
            if external_id in troubled or _letter(ledger, link):
                continue
            if link is None:
                if external_id not in noted and external_id not in aside:
                    wrong.append(f"(a) {name} {external_id} has no record here")
                continue
            policy = system.profile.on_delete
            if link.unlinked_at is None and link.record_id in ledger.records:
                continue
            if "delete" in _excused(hub, ledger, name, link.record_id):
                continue
            if policy == "archive" and link.unlinked_at is None and data.get("phone") == "archived":
                continue
            if policy == "archive" and link.unlinked_at is None and external_id in _edited_since(system, external_id):
                continue
            if policy in ("unlink", "ignore"):
                continue
            wrong.append(f"(a) {name} {external_id} is left over of record {link.record_id}")
    return wrong


def _is_aside(ledger: Ledger, system: ModelSystem, external_id: str, record_id: str) -> bool:
    """Return whether a user restored an external record of a record that is linked to another one by now."""
    link = ledger.links.get((f"{system.name}.customer", record_id))
    return external_id in system.restored and link is not None and link.external_id not in (None, external_id)


def _aside(ledger: Ledger, system: ModelSystem) -> set[str]:
    ours = {key: data.get("hub_id", "").partition("@")[0] for key, data in system.store.items()}
    return {key for key, record_id in ours.items() if _is_aside(ledger, system, key, record_id)}


def _edited_since(system: ModelSystem, external_id: str) -> set[str]:
    """Return a set of the external id if the hub ever archived the record; a user may have edited it since."""
    archived = [row for row in system.log if row.id == external_id and row.data.get("phone") == "archived"]
    return {external_id} if archived else set()


# --- (b) --------------------------------------------------------------------------------------------------------


def _created_once(hub: ModelHub, ledger: Ledger) -> list[str]:
    wrong = []
    here: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    for row in ledger.deliveries:
        if row.direction == "in" and row.operation == "create" and row.outcome == "applied":
            here[row.subscriber, row.external_id].append(row.record_id)
    for (name, external_id), records in here.items():
        system = hub.systems[name.split(".")[0]]
        if external_id in system.reused:
            continue  # it was another record's before
        if len(records) > 1:
            wrong.append(f"(b) {name} {external_id} became the records {records} here")
        elif external_id in system.restored:
            continue  # its record may have been deleted here long ago
        elif external_id in system.ours and system.ours[external_id][0] not in hub.tainted:
            wrong.append(f"(b) {name} {external_id}, created by us for {system.ours[external_id]}, became {records}")
    created = sum(row.operation == "created" for row in ledger.changes)
    applied = sum(len(records) for records in here.values())
    if created != hub.inserted + applied:
        wrong.append(f"(b) {created} records came up here: {hub.inserted} inserted and {applied} from outside")
    return wrong


# --- (c) --------------------------------------------------------------------------------------------------------


def _rests(hub: ModelHub, ledger: Ledger) -> None:
    writes = {name: system.writes() for name, system in hub.systems.items()}
    asked = {name: len(system.calls) for name, system in hub.systems.items()}
    everybody = sorted(hub.incarnations)
    # In full: after a cleanup of the history, systems report all their records and events again.
    with hub.database.plain_write() as connection:
        if not any(_aside(ledger, system) for system in hub.systems.values()):
            connection.execute(sa.delete(Cursor))
        connection.execute(sa.delete(Inbox).where(Inbox.state == "done"))
    hub.clock.tick(100)
    hub.poll_all(again=True)
    for name in hub.subscribers:
        hub.conductor.deliver(name, everybody)
    hub.conductor.sweep(everything=True)
    hub.work_off()
    after = _read(hub)
    for name, system in hub.systems.items():
        # The hub fetches again for a list of past events, but not for current records.
        fetched = [call for call in system.calls[asked[name] :] if call[0] == "fetch"]
        if fetched and not system.profile.eventful:
            raise hub.violated(f"(c) at rest, yet {name} is asked again: {fetched}")
    for name, system in hub.systems.items():
        if new := system.writes()[len(writes[name]) :]:
            raise hub.violated(f"(c) at rest, yet {name} is written to: {new}")
    if new_changes := after.changes[len(ledger.changes) :]:
        raise hub.violated(f"(c) at rest, yet there are changes: {new_changes}")
    if hub.outstanding():
        raise hub.violated("(c) at rest, yet something is owed")


# --- (e) --------------------------------------------------------------------------------------------------------


def _survived(hub: ModelHub, ledger: Ledger) -> list[str]:
    if hub.all_tainted or any(row.state == "dead" for row in ledger.inbox):
        return []
    wrong = []
    known: defaultdict[str, set[tuple[str, str]]] = defaultdict(set)
    for row in ledger.deliveries:
        name = row.subscriber.split(".")[0]
        if row.external_id is not None and not _is_aside(ledger, hub.systems[name], row.external_id, row.record_id):
            known[row.record_id].add((name, row.external_id))
    for record_id, record in ledger.records.items():
        if record_id in hub.tainted:
            continue
        for column in FIELDS:
            allowed, why = _allowed(hub, record_id, column, known[record_id])
            if allowed and not any(_matches(hub, side, value, record[column], column) for side, value in allowed):
                wrong.append(f"(e) {column} of {record_id} is {record[column]!r}, {why}")
    return wrong


def _allowed(
    hub: ModelHub, record_id: str, column: str, externals: set[tuple[str, str]]
) -> tuple[list[tuple[str, Any]], str]:
    """Return (side, value) that the field may have now, with an explanation. An empty list allows any value."""
    base = hub.base.get(record_id)
    writers = {("hub", record_id): hub.written.get(("hub", record_id, column), [])}
    lost = False
    for system, external_id in externals:
        mood = hub.systems[system].profile
        if column == "notes" and mood.direction == "out":
            continue
        writers[system, external_id] = hub.written.get((system, external_id, column), [])
        if writers[system, external_id]:
            lost |= external_id not in hub.systems[system].store or (system, record_id) in hub.unequal
    writers = {who: values for who, values in writers.items() if values}
    allowed = [(who[0], values[-1]) for who, values in writers.items()]
    if lost:
        allowed += [(who[0], value) for who, values in writers.items() for value in values]
    if base is not None and (lost or not writers):
        allowed.append(("hub", base[column]))
    before = f"was {base[column]!r}" if base is not None else "was not there"
    return allowed, f"{before} at the last agreement; written since: {writers}"


def _matches(hub: ModelHub, side: str, expected: Any, found: Any, column: str) -> bool:
    if same(expected, found):
        return True
    if any(same(hub.systems[name].normal(column, expected), found) for name in hub.unanswered):
        return True
    return side != "hub" and same(expected, hub.systems[side].normal(column, found))


# --- (i), (j) ---------------------------------------------------------------------------------------------------


def _policies_kept(hub: ModelHub, ledger: Ledger) -> list[str]:
    if (
        hub.all_tainted
        or any(row.state == "dead" for row in ledger.inbox)
        or any(s.restored for s in hub.systems.values())
    ):
        return []
    open_ones = [row for row in ledger.conflicts if row.resolved_at is None]
    asked = {(row.record_id, row.path.rpartition(".")[2]) for row in open_ones}
    (name, *_) = hub.subscribers
    left_out = {
        record
        for record in ledger.records
        if record in hub.tainted
        or _excused(hub, ledger, name, record)
        or _letter(ledger, ledger.links.get((name, record)))
    }
    return hub.conflicts.violations(ledger.records, asked, left_out)


def _decide(hub: ModelHub, ledger: Ledger) -> bool:
    """Decide all open conflicts, as an operator; return whether there were any."""
    waiting = [row for row in ledger.conflicts if row.resolved_at is None]
    for row in waiting:
        hub.do_decide(0, row.id)
    return bool(waiting)


def _waited(ledger: Ledger) -> list[str]:
    return [
        f"(j) {row.subscriber} {row.record_id} died of an outage: {row.message}"
        for row in ledger.letters
        if any(words in row.message for words in OUTAGE_WORDS)
    ]


def _agree(hub: ModelHub, ledger: Ledger) -> None:
    """Start a new agreement from the current state."""
    hub.conflicts.begin()
    hub.base = ledger.records
    hub.written.clear()
    hub.tainted.clear()
    if any(row.state == "dead" for row in ledger.inbox):
        hub.all_tainted = True
    hub.unequal = {
        (system.name, record_id)
        for system in hub.systems.values()
        for record_id, record in ledger.records.items()
        if not _equal(hub, ledger, system, record_id, record)
    }


def _equal(hub: ModelHub, ledger: Ledger, system: ModelSystem, record_id: str, record: dict[str, Any]) -> bool:
    link = ledger.links.get((f"{system.name}.customer", record_id))
    there = system.store.get(link.external_id) if link is not None and link.unlinked_at is None else None
    if not there:
        return False
    return all(same(there.get(c), system.normal(c, record[c])) for c in FIELDS)


__all__ = ["check"]
