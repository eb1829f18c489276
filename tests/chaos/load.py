"""The load: a program that writes to the internal database by plain SQL, and people who work in both systems.

Their calls go to the demo systems' pages and controls, past the proxies: people have a network of their own.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import requests
from psycopg.rows import dict_row

from tests.chaos.event_log import HUB, EventLog
from tests.chaos.fleet import Fleet

logger = logging.getLogger(__name__)

#: Changes a second that each side makes at most, on average.
HUB_RATE = 12.0
PEOPLE_RATE = 5.0

#: Columns edited one by one. The email stays: it is how the event log knows a customer everywhere.
COLUMNS = ("name", "phone", "notes", "street", "city", "postal_code")

#: Columns that may be emptied.
EMPTIED = ("phone", "notes")

#: Column -> its name on Salesforce's record.
SALESFORCE = {
    "name": "Name",
    "email": "Email__c",
    "phone": "Phone",
    "street": "BillingStreet",
    "city": "BillingCity",
    "postal_code": "BillingPostalCode",
    "country": "BillingCountry",
    "notes": "Description",
}

#: Column -> its name on the form of the Stripe-like system. Its address is edited as a whole.
STRIPE = {"name": "name", "email": "email", "phone": "phone", "notes": "description"}
STRIPE_ADDRESS = {
    "street": "address_line1",
    "city": "address_city",
    "postal_code": "address_postal_code",
    "country": "address_country",
}

COUNTRIES = ("IE", "IT", "DE", "PL", "SE")

#: Longer than Salesforce takes for a city, and no longer than the column.
POISON_CITY = "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysiliogogogoch"

_BUSY = (psycopg.OperationalError, psycopg.InterfaceError)


class Load:
    """Works in threads of its own between `start` and `stop`."""

    def __init__(self, fleet: Fleet, event_log: EventLog, seed: int) -> None:
        self.fleet = fleet
        self.event_log = event_log
        self._stop = threading.Event()
        self._linked: dict[str, list[tuple[str, str]]] = {"stripe": [], "salesforce": []}
        self._threads = [
            threading.Thread(target=self._work, args=(Program(self, random.Random(seed)), HUB_RATE), name="program"),
            threading.Thread(target=self._work, args=(StripePeople(self, random.Random(seed + 1)), PEOPLE_RATE)),
            threading.Thread(target=self._work, args=(SalesforcePeople(self, random.Random(seed + 2)), PEOPLE_RATE)),
            threading.Thread(target=self._look, name="look"),
        ]
        self.failed: list[BaseException] = []

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.daemon = True
            thread.start()

    def stop(self) -> None:
        """End; what was begun is finished. A mistake of the load's own is raised here."""
        self._stop.set()
        for thread in self._threads:
            thread.join(60)
        if self.failed:
            raise self.failed[0]

    def linked(self, system: str) -> list[tuple[str, str]]:
        """(email, external id) of what is linked there, as of a moment ago."""
        return self._linked[system]

    def values(self, columns: tuple[str, ...], pick: random.Random) -> dict[str, str]:
        """Return a value for each of these columns that was not used before."""
        number = self.event_log.unique()
        made = {
            "name": f"Zoë Ünïque {number}",
            "phone": f"+{number:012d}",
            "notes": f"note {number} — “quoted” 'n' \\ 😀",
            "street": f"{number} Rue de l'Été",
            "city": f"City {number}",
            "postal_code": f"P{number}",
            "country": pick.choice(COUNTRIES),
        }
        return {column: made[column] for column in columns}

    def _work(self, worker: Any, rate: float) -> None:
        try:
            while not self._stop.wait(worker.pick.expovariate(rate)):
                worker.once()
        except Exception as error:
            logger.exception("the load is broken")
            self.failed.append(error)
        finally:
            worker.close()

    def _look(self) -> None:
        """What people would see in a list: who is there in their system by now."""
        query = """SELECT l.subscriber, c.email, l.external_id FROM link l JOIN customer c ON c.id::text = l.record_id
                   WHERE l.external_id IS NOT NULL AND l.unlinked_at IS NULL"""
        while not self._stop.wait(0.5):
            try:
                with psycopg.connect(self.fleet.database_url, connect_timeout=3) as connection:
                    rows = connection.execute(query).fetchall()
            except _BUSY:
                continue
            for system in self._linked:
                self._linked[system] = [(email, id) for name, email, id in rows if name.startswith(f"{system}.")]


class Program:
    """A program that knows nothing of Syncflow and writes plain SQL."""

    def __init__(self, load: Load, pick: random.Random) -> None:
        self.load, self.pick, self.event_log = load, pick, load.event_log
        self._connection: psycopg.Connection[dict[str, Any]] | None = None
        self._told: list[Callable[[], None]] = []
        self._transaction("CREATE TABLE IF NOT EXISTS chaos_done (id bigint PRIMARY KEY)", lambda _: None)
        self._table: list[tuple[Callable[[], None], int]] = [
            (self._insert_one, 18), (self._insert_many, 2), (self._update_one, 50), (self._update_some, 8),
            (self._update_many, 4), (self._delete_one, 4), (self._touch_nothing, 3), (self._roll_back, 3),
            (self._poison, 3), (self._mend, 4),
        ]  # fmt: skip

    def once(self) -> None:
        """One transaction."""
        actions, weights = zip(*self._table, strict=True)
        self.pick.choices(actions, weights)[0]()

    def close(self) -> None:
        """Leave the database: a server that stops waits for its clients."""
        if self._connection is not None:
            self._connection.close()

    # --- what it does -------------------------------------------------------------------------------

    def _insert_one(self) -> None:
        self._insert(1)

    def _insert_many(self) -> None:
        self._insert(25)

    def _insert(self, count: int) -> None:
        rows = []
        for _ in range(count):
            values = self.load.values((*COLUMNS, "country"), self.pick)
            rows.append({**values, "email": f"hub{self.event_log.unique()}@chaos.example"})

        def work(connection: Any) -> Callable[[], None]:
            marks = ", ".join(["(%s, %s, %s, %s, %s, %s, %s, %s)"] * len(rows))
            columns = (*COLUMNS, "country", "email")
            values = [row[column] for row in rows for column in columns]
            connection.execute(f"INSERT INTO customer ({', '.join(columns)}) VALUES {marks}", values)

            def log_change() -> None:
                for row in rows:
                    self.event_log.created(HUB, row["email"], {c: row[c] for c in COLUMNS})

            return log_change

        self._transaction(None, work)

    def _update_one(self) -> None:
        column = self.pick.choice(COLUMNS)
        values: dict[str, Any] = dict(self.load.values((column,), self.pick))
        if column in EMPTIED and self.pick.random() < 0.15:
            values[column] = None
        self._update("ORDER BY random() LIMIT 1", values)

    def _update_some(self) -> None:
        columns = tuple(self.pick.sample(COLUMNS, 3))
        self._update("ORDER BY random() LIMIT 1", dict(self.load.values(columns, self.pick)))

    def _update_many(self) -> None:
        """A bulk update of a seventh of the table, in one statement."""
        column = self.pick.choice(("notes", "street", "name"))
        stamp = self.event_log.unique()
        chosen = self.pick.randrange(7)

        def work(connection: Any) -> Callable[[], None]:
            where = "WHERE id %% 7 = %s"
            before = connection.execute(
                f"SELECT id, email, {column} AS old FROM customer {where} ORDER BY id FOR UPDATE", [chosen]
            ).fetchall()
            connection.execute(
                f"UPDATE customer SET {column} = 'bulk ' || %s || ' ' || id WHERE id = ANY(%s)",
                [str(stamp), [row["id"] for row in before]],
            )

            def log_change() -> None:
                for row in before:
                    value = f"bulk {stamp} {row['id']}"
                    self.event_log.edited(HUB, row["email"], {column: value}, {column: row["old"]})

            return log_change

        self._transaction(None, work)

    def _update(self, which: str, values: dict[str, Any], poison: bool = False) -> None:
        def work(connection: Any) -> Callable[[], None] | None:
            row = connection.execute(f"SELECT * FROM customer {which} FOR UPDATE").fetchone()
            if row is None:
                return None
            sets = ", ".join(f"{column} = %s" for column in values)
            connection.execute(f"UPDATE customer SET {sets} WHERE id = %s", [*values.values(), row["id"]])

            def log_change() -> None:
                self.event_log.edited(HUB, row["email"], values, {column: row[column] for column in values})
                if poison:
                    self.event_log.poisoned(row["email"], values)

            return log_change

        self._transaction(None, work)

    def _poison(self) -> None:
        """A value that one system refuses: its neighbours must not be held up."""
        self._update("ORDER BY random() LIMIT 1", {"city": f"{POISON_CITY} {self.event_log.unique()}"}, poison=True)

    def _mend(self) -> None:
        values = dict(self.load.values(("city",), self.pick))
        self._update(f"WHERE city LIKE '{POISON_CITY}%%' ORDER BY random() LIMIT 1", values)

    def _delete_one(self) -> None:
        def work(connection: Any) -> Callable[[], None] | None:
            row = connection.execute(
                "DELETE FROM customer WHERE id = (SELECT id FROM customer ORDER BY random() LIMIT 1) RETURNING email"
            ).fetchone()
            return (lambda: self.event_log.deleted(HUB, row["email"])) if row else None

        self._transaction(None, work)

    def _touch_nothing(self) -> None:
        self._transaction("UPDATE customer SET updated_at = now(), name = name WHERE id % 11 = 3", lambda _: None)

    def _roll_back(self) -> None:
        with self._connected() as connection:
            try:
                with connection.transaction():
                    connection.execute("UPDATE customer SET notes = 'never happened' WHERE id % 5 = 1")
                    raise psycopg.Rollback
            except _BUSY:
                self._disconnect()

    # --- how it commits -------------------------------------------------------------------------------

    def _transaction(self, statement: str | None, work: Callable[[Any], Callable[[], None] | None]) -> None:
        """Commit and log the change; if the connection breaks at the commit, find out whether it happened."""
        number = self.event_log.unique()
        log_change: Callable[[], None] | None = None
        with self._connected() as connection:
            try:
                with connection.transaction():
                    if statement:
                        connection.execute(statement)
                    log_change = work(connection)
                    connection.execute("INSERT INTO chaos_done VALUES (%s)", [number])
                happened = True
            except psycopg.errors.DeadlockDetected:
                return
            except _BUSY:
                self._disconnect()
                happened = log_change is not None and self._happened(number)
        if happened and log_change is not None:
            log_change()

    def _happened(self, number: int) -> bool:
        while True:
            with self._connected() as connection:
                try:
                    with connection.transaction():
                        query = "SELECT 1 FROM chaos_done WHERE id = %s"
                        return connection.execute(query, [number]).fetchone() is not None
                except _BUSY:
                    self._disconnect()

    @contextmanager
    def _connected(self) -> Iterator[Any]:
        while self._connection is None:
            try:
                self._connection = psycopg.connect(
                    self.load.fleet.database_url, autocommit=True, row_factory=dict_row, connect_timeout=3
                )
            except _BUSY:
                time.sleep(0.2)
        yield self._connection

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        time.sleep(0.1)


class People:
    """People who work in one system. Subclasses know its pages."""

    system: str

    def __init__(self, load: Load, pick: random.Random) -> None:
        self.load, self.pick, self.event_log = load, pick, load.event_log
        self.url = load.fleet.urls[self.system]
        self.http = requests.Session()
        self.http.trust_env = False
        certificates = load.fleet.folder / "certs" / "ca.pem"
        self.http.verify = str(certificates) if self.url.startswith("https") else True
        #: What was deleted there: email and external id.
        self._deleted: list[tuple[str, str]] = []

    def close(self) -> None:
        """Leave the system."""
        self.http.close()

    def once(self) -> None:
        """One edit, creation, deletion or restoration."""
        what = self.pick.choices(("create", "edit", "delete", "restore"), (14, 76, 6, 4))[0]
        if what == "restore":
            self._restore()
        elif what == "create":
            email = f"{self.system}{self.event_log.unique()}@chaos.example"
            values = self.load.values((*COLUMNS, "country"), self.pick)
            self.create({**values, "email": email})
            self.event_log.created(self.system, email, {column: values[column] for column in COLUMNS})
        elif known := self.load.linked(self.system):
            email, id = self.pick.choice(known)
            (self._edit if what == "edit" else self._delete)(email, id)

    def _edit(self, email: str, id: str) -> None:
        before = self.read(id)
        if before is None:
            return
        values = self.change(id, before)
        if values:
            self.event_log.edited(self.system, email, values, before)

    def _delete(self, email: str, id: str) -> None:
        if self.delete(id):
            self.event_log.deleted(self.system, email)
            self._deleted.append((email, id))

    def _restore(self) -> None:
        """Restore a record, unless it was deleted by the program as well."""
        alive = [one for one in self._deleted if HUB not in self.event_log.histories[one[0]].deleted]
        if not alive:
            return
        email, id = self.pick.choice(alive)
        if self.restore(id):
            self._deleted.remove((email, id))
            self.event_log.restored(self.system, email)

    def some_value(self, columns: tuple[str, ...]) -> dict[str, str]:
        """A new value for one column, or an empty one."""
        column = self.pick.choice(columns)
        values = self.load.values((column,), self.pick)
        if column in EMPTIED and self.pick.random() < 0.15:
            values[column] = ""
        return values

    def create(self, values: dict[str, str]) -> None:
        """A new customer."""
        raise NotImplementedError

    def read(self, id: str) -> dict[str, Any] | None:
        """By column, what the system holds; None if it is not there."""
        raise NotImplementedError

    def change(self, id: str, before: dict[str, Any]) -> dict[str, Any]:
        """Edit something; by column what was set, empty if it was refused."""
        raise NotImplementedError

    def delete(self, id: str) -> bool:
        """Delete; False if it was not there."""
        raise NotImplementedError

    def restore(self, id: str) -> bool:
        """Restore what was deleted; False if the system has nothing to restore it from."""
        return False


class StripePeople(People):
    """People at the pages of the Stripe-like system."""

    system = "stripe"

    def create(self, values: dict[str, str]) -> None:
        names = {**STRIPE, **STRIPE_ADDRESS}
        reply = self._post("new", {names[column]: value for column, value in values.items()})
        assert reply.status_code == 303, reply.text

    def read(self, id: str) -> dict[str, Any] | None:
        reply = self.http.get(f"{self.url}/_control/customers", params={"id": id}, timeout=30)
        found = reply.json()["customers"]
        if not found:
            return None
        address = found[0].get("address") or {}
        plain = {column: found[0].get(name) for column, name in STRIPE.items()}
        return plain | {column: address.get(name.removeprefix("address_")) for column, name in STRIPE_ADDRESS.items()}

    def change(self, id: str, before: dict[str, Any]) -> dict[str, Any]:
        if self.pick.random() < 0.25:
            values: dict[str, Any] = dict(self.load.values(("street", "city", "postal_code"), self.pick))
            form = {STRIPE_ADDRESS[column]: value for column, value in values.items()}
            form["address_country"] = before["country"] or ""
        else:
            values = dict(self.some_value(("name", "phone", "notes")))
            form = {STRIPE[column]: value for column, value in values.items()}
        return values if self._post(id, form).status_code == 303 else {}

    def delete(self, id: str) -> bool:
        return self._post(f"{id}/delete", {}).status_code == 303

    def _post(self, path: str, form: dict[str, str]) -> requests.Response:
        return self.http.post(f"{self.url}/ui/customers/{path}", data=form, timeout=30, allow_redirects=False)


class SalesforcePeople(People):
    """People in the simulated org."""

    system = "salesforce"

    def create(self, values: dict[str, str]) -> None:
        fields = {SALESFORCE[column]: value for column, value in values.items()}
        reply = self._post("edit", {"object": "Account", "fields": fields})
        assert reply.status_code == 201, reply.text

    def read(self, id: str) -> dict[str, Any] | None:
        reply = self.http.get(f"{self.url}/_control/records/Account", params={"id": id}, timeout=30)
        return {column: reply.json()[0].get(name) for column, name in SALESFORCE.items()} if reply.ok else None

    def change(self, id: str, before: dict[str, Any]) -> dict[str, Any]:
        values = dict(self.some_value(COLUMNS))
        fields = {SALESFORCE[column]: value for column, value in values.items()}
        return values if self._post("edit", {"object": "Account", "id": id, "fields": fields}).ok else {}

    def delete(self, id: str) -> bool:
        return self._post("delete", {"object": "Account", "id": id}).ok

    def restore(self, id: str) -> bool:
        return self._post("restore", {"object": "Account", "id": id}).ok

    def _post(self, path: str, body: dict[str, Any]) -> requests.Response:
        return self.http.post(f"{self.url}/_control/{path}", json=body, timeout=30)
