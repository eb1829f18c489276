"""The comparison at the end: every record on every side against its expected state. Read-only."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg
import requests
from psycopg.rows import dict_row

from models.catalogues import CATALOGUES
from subscribers.base import Subscriber
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import same
from subscribers.salesforce import SalesforceAccount
from subscribers.stripe import RECORD_ID_KEY, StripeCustomer
from tests.chaos.event_log import HUB, EventLog, RecordHistory
from tests.chaos.fleet import Fleet

SUBSCRIBERS: dict[str, type[Subscriber]] = {"stripe": StripeCustomer, "salesforce": SalesforceAccount}
#: Where each system's record holds the email address and the hub's id.
EMAIL = {"stripe": "email", "salesforce": "Email__c"}
#: The External ID field of the org.
EXTERNAL_ID = "Syncflow_Id__c"


@dataclass(frozen=True)
class Violation:
    """A violation found by the comparison. `kind` is lost, duplicated, differing or unexplained."""

    kind: str
    words: str
    record_ids: frozenset[str] = frozenset()
    external_ids: frozenset[str] = frozenset()


@dataclass
class Snapshot:
    """The contents of every side."""

    customers: list[dict[str, Any]]
    links: list[dict[str, Any]]
    letters: list[dict[str, Any]]
    systems: dict[str, list[dict[str, Any]]]
    journals: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def calls(self) -> int:
        """Return the number of API calls to the systems."""
        return sum(len(calls) for calls in self.journals.values())


def take_snapshot(fleet: Fleet) -> Snapshot:
    """Read every side."""
    with psycopg.connect(fleet.database_url, row_factory=dict_row) as connection:
        customers = connection.execute("SELECT * FROM customer ORDER BY id").fetchall()
        links = connection.execute("SELECT * FROM link ORDER BY id").fetchall()
        letters = connection.execute("SELECT * FROM dead_letter WHERE closed_at IS NULL ORDER BY id").fetchall()
    with requests.Session() as http:
        http.trust_env = False
        http.verify = str(fleet.folder / "certs" / "ca.pem")

        def get(system: str, path: str) -> Any:
            return http.get(f"{fleet.urls[system]}/_control/{path}", timeout=120).json()

        journals = {"stripe": get("stripe", "journal")["calls"], "salesforce": get("salesforce", "journal")}
        if isinstance(journals["salesforce"], dict):
            journals["salesforce"] = next(v for v in journals["salesforce"].values() if isinstance(v, list))
        systems = {
            "stripe": get("stripe", "customers")["customers"],
            "salesforce": get("salesforce", "records/Account"),
        }
    return Snapshot(customers, links, letters, systems, journals)


class Checker:
    """Compare a snapshot with the event log; `violations` holds the result."""

    def __init__(self, snapshot: Snapshot, event_log: EventLog) -> None:
        self.snapshot = snapshot
        self.event_log = event_log
        self.violations: list[Violation] = []
        self.conflicts = 0
        self._links = {(link["subscriber"], link["record_id"]): link for link in snapshot.links}
        self._letters: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for letter in snapshot.letters:
            self._letters[letter["subscriber"], str(letter["record_id"])].append(letter)

    def checker(self) -> list[Violation]:
        """Run all checks."""
        here = _by(self.snapshot.customers, "email")
        there = {system: _by(records, EMAIL[system]) for system, records in self.snapshot.systems.items()}
        for email in sorted(set(here) | {e for found in there.values() for e in found} | set(self.event_log.histories)):
            history = self.event_log.histories.get(email)
            if history is None:
                self._add("unexplained", f"{email} was never created by anybody")
                continue
            self._one(history, here.get(email, []), {system: there[system].get(email, []) for system in there})
        for system in SUBSCRIBERS:
            self._twice_by_our_id(system)
        self._created_twice()
        self._explain_letters()
        return self.violations

    # --- one customer ---------------------------------------------------------------------------------

    def _one(self, history: RecordHistory, here: list[dict[str, Any]], there: dict[str, list[dict[str, Any]]]) -> None:
        ids = [str(row["id"]) for row in here]
        if len(here) > 1:
            self._add("duplicated", f"{history.email} is here {len(here)} times", ids)
        if HUB in history.deleted:
            if not history.restored:  # either may have come last
                self._gone(history, ids, there)
            return
        if not here:
            if history.created_by == HUB or history.created_by not in history.deleted:
                self._add(
                    "lost", f"{history.email}, created in {history.created_by}, is not here", externals=_ids(there)
                )
            return
        self._fields(history, here[0])
        for system, found in there.items():
            self._system(history, system, here[0], found)

    def _gone(self, history: RecordHistory, ids: list[str], there: dict[str, list[dict[str, Any]]]) -> None:
        if ids:
            self._add("unexplained", f"{history.email} was deleted here and is back", ids)
        for system, found in there.items():
            if found:
                words = f"{history.email} was deleted here and is still in {system}"
                self._add("unexplained", words, ids, (one["id"] if "id" in one else one["Id"] for one in found))

    def _fields(self, history: RecordHistory, row: dict[str, Any]) -> None:
        """Check that the last edit of each field won."""
        for column in {edit.column for edit in history.edits}:
            possible = history.possible(column)
            self.conflicts += len(possible) > 1
            if not any(same(row[column], value) for value in possible):
                expected = sorted(map(repr, possible))
                words = f"{history.email}: {column} is {row[column]!r}, and the last edits say {expected}"
                self._add("lost", words, [str(row["id"])])

    def _system(self, history: RecordHistory, system: str, row: dict[str, Any], found: list[dict[str, Any]]) -> None:
        record_id = str(row["id"])
        subscriber = SUBSCRIBERS[system]
        link = self._links.get((subscriber.name(), record_id))
        externals = [_id(one) for one in found]
        about = f"{history.email} (record {record_id}) in {system}"
        if len(found) > 1:
            self._add("duplicated", f"{about}: there {len(found)} times", [record_id], externals)
        if system in history.deleted:
            if found:
                self._add("unexplained", f"{about}: deleted there, and there again", [record_id], externals)
            elif link is None or link["unlinked_at"] is None:
                self._add("differing", f"{about}: deleted there, and the hub does not know", [record_id])
            return
        if not found:
            if not self._excused(history, subscriber.name(), record_id):
                self._add("lost", f"{about}: not there", [record_id])
            return
        if link is None or link["external_id"] not in externals or link["unlinked_at"] is not None:
            self._add("unexplained", f"{about}: not linked", [record_id], externals)
        self._compare(history, system, row, found[0], about)

    def _compare(
        self, history: RecordHistory, system: str, row: dict[str, Any], external: dict[str, Any], about: str
    ) -> None:
        record_id = str(row["id"])
        subscriber = SUBSCRIBERS[system]
        mapper = Mapper(CATALOGUES["customer"], subscriber.field_to_data)
        ours, theirs = mapper.outward(row, strict=False), mapper.flatten(external)
        wrong = [
            f"{path}: ours {ours[path]!r}, theirs {theirs.get(path)!r}"
            for path in ours
            if not same(ours[path], theirs.get(path))
        ]
        if wrong and not self._excused(history, subscriber.name(), record_id):
            self._add("differing", f"{about}: {'; '.join(wrong)}", [record_id], [_id(external)])
        known_as = _our_id(system, external)
        if known_as not in (None, record_id):
            self._add("unexplained", f"{about}: carries our id {known_as}", [record_id], [_id(external)])

    def _excused(self, history: RecordHistory, subscriber: str, record_id: str) -> bool:
        """Return whether an open dead letter explains a difference, for data that the load made invalid on purpose."""
        letters = self._letters[subscriber, record_id]
        return bool(history.poisoned) and any(one["error"] == "Reject" and one["message"] for one in letters)

    # --- all of them ----------------------------------------------------------------------------------

    def _twice_by_our_id(self, system: str) -> None:
        by_id: defaultdict[str, list[str]] = defaultdict(list)
        for external in self.snapshot.systems[system]:
            if our_id := _our_id(system, external):
                by_id[our_id].append(_id(external))
        for our_id, externals in by_id.items():
            if len(externals) > 1:
                self._add("duplicated", f"{system} has record {our_id} as {externals}", [our_id], externals)

    def _created_twice(self) -> None:
        """Find records created twice, even if the duplicate was deleted later. Salesforce's upsert rules this out."""
        creations: defaultdict[str, int] = defaultdict(int)
        for call in self.snapshot.journals["stripe"]:
            done = call["method"] == "POST" and call["path"] == "/v1/customers" and call["status"] == 200
            if done and not call["replayed"]:
                creations[_record_id((call["params"].get("metadata") or {}).get(RECORD_ID_KEY)) or ""] += 1
        for record_id, count in creations.items():
            if count > 1:
                self._add("duplicated", f"stripe was asked {count} times to create record {record_id}", [record_id])

    def _explain_letters(self) -> None:
        emails = {str(row["id"]): row["email"] for row in self.snapshot.customers}
        for letter in self.snapshot.letters:
            history = self.event_log.histories.get(emails.get(str(letter["record_id"]), ""))
            if letter["error"] != "Reject" or not letter["message"] or history is None or not history.poisoned:
                words = f"dead letter {letter['id']} of {letter['subscriber']}: {letter['error']}: {letter['message']}"
                self._add("unexplained", words, [str(letter["record_id"])])

    def _add(self, kind: str, words: str, records: Iterable[str] = (), externals: Iterable[str] = ()) -> None:
        self.violations.append(Violation(kind, words, frozenset(records), frozenset(externals)))


def _by(rows: list[dict[str, Any]], name: str) -> dict[str, list[dict[str, Any]]]:
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        found[str(row[name])].append(row)
    return dict(found)


def _id(external: dict[str, Any]) -> str:
    return str(external["id"] if "id" in external else external["Id"])


def _ids(there: dict[str, list[dict[str, Any]]]) -> list[str]:
    return [_id(one) for found in there.values() for one in found]


def _our_id(system: str, external: dict[str, Any]) -> str | None:
    if system == "stripe":
        return _record_id((external.get("metadata") or {}).get(RECORD_ID_KEY))
    return _record_id(external.get(EXTERNAL_ID))


def _record_id(mark: str | None) -> str | None:
    """Return the id of the record in a mark."""
    return mark.partition("@")[0] if mark else None
