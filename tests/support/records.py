"""Helpers for tests of a `TestHub`: write records, read the ledger, send events of a system."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from models.base import Base
from models.catalogues import Customer, Invoice
from models.ledger import Change, Delivery, Link
from subscribers.errors import Retry
from tests.support.fakes import TestHub

CUSTOMER = Customer.__table__
INVOICE = Invoice.__table__


def insert(hub: TestHub, table: sa.Table, values: dict[str, Any]) -> str:
    """Insert a row and return its id."""
    with hub.conductor.database.write() as connection:
        (key,) = connection.execute(sa.insert(table).values(values)).inserted_primary_key or (None,)
    return str(key)


def add(hub: TestHub, **values: Any) -> str:
    """Insert a customer and return its id."""
    return insert(hub, CUSTOMER, {"name": "Ada", **values})


def add_invoice(hub: TestHub, customer: str, number: str = "R-1") -> str:
    """Insert an invoice of a customer and return its id."""
    return insert(hub, INVOICE, {"customer_id": int(customer), "number": number})


def edit(hub: TestHub, record_id: str, **values: Any) -> None:
    """Update a customer."""
    with hub.conductor.database.write() as connection:
        connection.execute(sa.update(CUSTOMER).where(CUSTOMER.c.id == int(record_id)).values(**values))


def edit_now(hub: TestHub, record_id: str, **values: Any) -> None:
    """Update a customer at the time of the hub's clock: triggers use that of the database."""
    edit(hub, record_id, **values)
    with hub.conductor.database.write() as connection:
        connection.execute(sa.update(Change).where(Change.relayed_at.is_(None)).values(at=hub.clock()))


def record(hub: TestHub, record_id: str = "1") -> Any:
    """Return a customer's row, or None."""
    with hub.conductor.database.read() as connection:
        return connection.execute(sa.select(CUSTOMER).where(CUSTOMER.c.id == int(record_id))).one_or_none()


def rows(hub: TestHub, table: type[Base], *conditions: sa.ColumnElement[bool]) -> Sequence[Any]:
    """Return the rows of a table that meet the conditions, the oldest first."""
    columns = table.__table__
    with hub.conductor.database.read() as connection:
        return connection.execute(sa.select(columns).where(*conditions).order_by(*columns.primary_key)).all()


def one_row(hub: TestHub, table: type[Base], *conditions: sa.ColumnElement[bool]) -> Any:
    """Return the only row of a table that meets the conditions."""
    (found,) = rows(hub, table, *conditions)
    return found


def link(hub: TestHub, system: str, record_id: str = "1") -> Any:
    """Return the link of a customer to a system."""
    return one_row(hub, Link, Link.subscriber == f"{system}.customer", Link.record_id == record_id)


def invoice_link(hub: TestHub, record_id: str = "1") -> Any:
    """Return the link of an invoice to the system `crm`."""
    return one_row(hub, Link, Link.subscriber == "crm.invoice", Link.record_id == record_id)


def bills(hub: TestHub) -> list[dict[str, Any]]:
    """Return the invoices that the system `crm` holds."""
    return [data for data in hub.shown("crm") if "number" in data]


def outcomes(hub: TestHub, **values: Any) -> list[tuple[str, str, str]]:
    """Return direction, operation and outcome of the deliveries with these column values."""
    conditions = [getattr(Delivery, name) == value for name, value in values.items()]
    return [(row.direction, row.operation, row.outcome) for row in rows(hub, Delivery, *conditions)]


def mark(hub: TestHub, record_id: object) -> str:
    """Return the mark that the hub writes to the external record of this one."""
    return f"{record_id}@{hub.conductor.identity.hub_id()}"


def webhook(hub: TestHub, system: str, event: str, external_id: str) -> bool:
    """Send the webhook of a changed record; return False if the event is stored already."""
    return hub.conductor.store_webhook(system, f"{event} {external_id}".encode(), {"X-Fake": "signed"})


def lose_answer(hub: TestHub, *, after: bool) -> None:
    """Lose the answer of the next call to `crm`: after the call took effect, or before."""
    hub.systems["crm"].fail(Retry("the connection was cut", maybe_done=True), after=after)


def retry_due(hub: TestHub) -> None:
    """Wait until every retry and lease is due, then process everything."""
    hub.clock.tick(100)
    hub.conductor.sweep()
    hub.run()


def settle(hub: TestHub) -> None:
    """Sweep and process everything four times, with 5 seconds in between."""
    for _ in range(4):
        hub.clock.tick(5)
        hub.conductor.sweep()
        hub.run()
