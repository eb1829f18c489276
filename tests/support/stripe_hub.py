"""A hub and the Stripe-like system, driven step by step over real HTTP."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import requests
import sqlalchemy as sa
from pydantic import SecretStr
from stripe import WebhookSignature

from conductor import Conductor
from models.base import utcnow
from models.catalogues import CATALOGUES, Customer, Invoice, InvoiceLine, Product
from models.ledger import Cursor, DeadLetter, Delivery, Inbox
from models.session import Database
from simulators.stripe import StripeLike
from subscribers.stripe import Stripe, StripeCustomer, StripeInvoice, StripeOptions, StripeProduct
from tests.support.fakes import Clock, RecordingPublisher, TestHub

KEY = "sk_test_4eC39HqLyjWDarjtT1zdp7dc"
SECRET = "whsec_world"
TABLES: Mapping[str, Any] = {
    "customer": Customer.__table__,
    "product": Product.__table__,
    "invoice": Invoice.__table__,
    "line": InvoiceLine.__table__,
}


def emptied(stripe: StripeLike) -> StripeLike:
    """Return the system without records, faults and noted calls."""
    stripe.reset()
    stripe.faults.clear()
    stripe.journal.clear()
    return stripe


class Died(BaseException):
    """Raised when the worker is killed."""


class MortalStripe(Stripe):
    """A client whose process dies right after its `dies_after`-th write takes effect."""

    dies_after = 0
    writes = 0
    #: How many times the client waited before a call.
    paces = 0

    def pace(self) -> None:
        self.paces += 1

    def post(self, path: str, data: Mapping[str, Any], key: str | None = None) -> Any:
        answer = super().post(path, data, key)
        self._count()
        return answer

    def delete(self, path: str) -> None:
        super().delete(path)
        self._count()

    def _count(self) -> None:
        self.writes += 1
        if self.writes == self.dies_after:
            raise Died


class StripeHub(TestHub):
    """A hub with the three shipped subscribers; its clock is the real one, and can be advanced."""

    def __init__(self, database: Database, stripe: StripeLike) -> None:
        self.database, self.stripe = database, stripe
        self.clock = _Real()
        self.publisher = RecordingPublisher()
        options = StripeOptions(api_key=SecretStr(KEY), api_base=stripe.url, webhook_secret=SecretStr(SECRET))
        self.client = MortalStripe("stripe", options)
        kinds = (StripeCustomer, StripeProduct, StripeInvoice)
        self.conductor = Conductor(
            database, {k.name(): k(self.client) for k in kinds}, self.publisher, None, self.clock
        )
        self.conductor.breaker.ensure_rows()
        self._told: set[str] = set()

    # --- the database -------------------------------------------------------------------------------

    def add(self, what: str, **values: Any) -> int:
        with self.database.write() as c:
            key: Any = c.execute(sa.insert(TABLES[what]).values(**values)).inserted_primary_key
            return int(key[0])

    def edit(self, what: str, id: int, **values: Any) -> None:
        table = TABLES[what]
        with self.database.write() as c:
            c.execute(sa.update(table).where(table.c.id == id).values(**values))

    def remove(self, what: str, id: int) -> None:
        with self.database.write() as c:
            CATALOGUES[what].delete(c, str(id))

    def record(self, what: str, id: int) -> dict[str, Any]:
        with self.database.read() as c:
            return CATALOGUES[what].read(c, [str(id)])[str(id)]

    def records(self, what: str) -> list[dict[str, Any]]:
        with self.database.read() as c:
            return [dict(row) for row in c.execute(sa.select(TABLES[what])).mappings()]

    def letters(self) -> list[str]:
        with self.database.read() as c:
            return list(c.execute(sa.select(DeadLetter.message).where(DeadLetter.closed_at.is_(None))).scalars())

    def deliveries(self, subscriber: str) -> list[Any]:
        with self.database.read() as c:
            return list(c.execute(sa.select(Delivery.__table__).where(Delivery.subscriber == subscriber)))

    def inbox(self) -> list[Any]:
        with self.database.read() as c:
            return list(c.execute(sa.select(Inbox.__table__)))

    def forget_cursor(self, subscriber: str, position: dict[str, Any] | None) -> None:
        with self.database.write() as c:
            c.execute(sa.delete(Cursor).where(Cursor.subscriber == subscriber))
            if position is not None:
                c.execute(sa.insert(Cursor).values(subscriber=subscriber, position=position))

    # --- the external system ------------------------------------------------------------------------

    def there(self, path: str, **params: Any) -> Any:
        reply = requests.get(f"{self.stripe.url}/v1/{path}", params={"limit": 100, **params}, auth=(KEY, ""), timeout=5)
        reply.raise_for_status()
        return reply.json()

    def all(self, what: str) -> list[dict[str, Any]]:
        """Return all objects of a kind, oldest first."""
        return list(reversed(self.there(what)["data"]))

    # --- synchronisation ----------------------------------------------------------------------------

    def news(self) -> list[dict[str, Any]]:
        """Return the events not returned before, oldest first."""
        fresh = [one for one in self.all("events") if one["id"] not in self._told]
        self._told |= {one["id"] for one in fresh}
        return fresh

    def webhook(self, event: Mapping[str, Any]) -> bool:
        body = json.dumps(event)
        header = WebhookSignature.generate_signature_header(body, SECRET, int(time.time()))
        return self.conductor.store_webhook("stripe", body.encode(), {"Stripe-Signature": header})

    def settle(self, rounds: int = 12) -> None:
        """Deliver changes and send all webhooks, repeatedly, until there are no new events."""
        for _ in range(rounds):
            self.run()
            news = self.news()
            if not news:
                return
            for event in news:
                self.webhook(event)
        raise AssertionError("it does not come to rest: an echo?")

    def die_after(self, write: int) -> bool:
        """Work until the worker dies at this write; return False if there was no such write."""
        self.client.writes, self.client.dies_after = 0, write
        try:
            self.run()
        except Died:
            self.client.dies_after = 0
            return True
        self.client.dies_after = 0
        return False

    def take_up(self) -> None:
        """Let the lease of a dead worker expire, and complete its work."""
        self.clock.tick(120)
        self.conductor.sweep()
        self.settle()


class _Real(Clock):
    def __init__(self) -> None:
        self._ahead = timedelta()

    def __call__(self) -> datetime:
        return utcnow() + self._ahead

    def tick(self, seconds: float = 1.0) -> datetime:
        self._ahead += timedelta(seconds=seconds)
        return self()
