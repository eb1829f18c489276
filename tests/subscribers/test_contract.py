"""The contract for every included subscriber, run against the simulator of its system."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cli.new_subscriber import write
from models.catalogues import CATALOGUES
from models.session import Database
from settings import ROOT
from simulators.simulators import SalesforceSimulator, ShopSimulator, StripeSimulator
from subscribers.errors import Reject, SystemDown
from subscribers.records import External, Item, Page
from subscribers.registry import REGISTRY
from subscribers.rest import RestSubscriber, RestSystem
from subscribers.salesforce import SalesforceAccount, SalesforceContact, SalesforceInvoice, SalesforceProduct
from subscribers.stripe import StripeCustomer, StripeInvoice, StripeProduct
from tests.subscribers.contract import Bench, Contract

ADA = {"name": "Ada", "email": "ada@x.example", "city": "London", "phone": "1"}
EDIT = {"name": "Ada Lovelace", "phone": "2"}


@pytest.fixture
def sqlite(migrated_sqlite: Path, tmp_path: Path) -> Iterator[Database]:
    shutil.copy(migrated_sqlite, tmp_path / "syncflow.db")
    database = Database(f"sqlite:///{tmp_path / 'syncflow.db'}")
    yield database
    database.close()


class Shop(RestSystem):
    event_type_field = "event"
    event_time_field = "occurred_at"


class ShopContact(RestSubscriber):
    system, catalogue = "shop", "customer"
    system_class = Shop
    resource, path = "contact", "/contacts"
    record_id_field = "external_ref"
    match_on = ("email",)
    poll_seconds = 60
    field_to_data = {"name": "name", "email": "email", "phone": "phone", "notes": "note"}


def generated(name: str, *, own: bool = False) -> type[Contract]:
    """Return the unmodified test class that `./syncflow new-subscriber` generates, with its subscriber."""
    system, _, _ = name.partition(".")
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for part in ("subscribers", "tests/subscribers"):
            (root / part).mkdir(parents=True)
        shutil.copy(ROOT / "subscribers" / "__init__.py", root / "subscribers")
        source, test = write(root, name, own=own)
        loaded = [_load(f"subscribers.{system}", source), _load("generated", test)]
    del sys.modules[f"subscribers.{system}"], REGISTRY[name]  # registered for these tests only
    (found,) = (one for one in vars(loaded[1]).values() if isinstance(one, type) and one.__name__.startswith("Test"))
    return found


def _load(name: str, path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TestShopCustomer = generated("shop.customer")
TestAcmeProduct = generated("acme.product", own=True)


class TestStripeCustomer(Contract):
    subscriber = StripeCustomer
    simulator = StripeSimulator
    record, edit = ADA, EDIT


class TestSalesforceAccount(Contract):
    subscriber = SalesforceAccount
    simulator = SalesforceSimulator
    record, edit = ADA, EDIT


TEAPOT = {"sku": "T-1", "name": "Teapot", "price": 1250, "currency": "eur"}


class TestStripeProduct(Contract):
    subscriber = StripeProduct
    simulator = partial(StripeSimulator, "products")
    record, edit = TEAPOT, {"name": "Tea pot", "price": 1300}
    edit_there = ("name",)  # Stripe replaces prices and never changes them


class TestSalesforceContact(Contract):
    subscriber = SalesforceContact
    simulator = partial(SalesforceSimulator, "Contact")
    record, edit = ADA | {"name": "Ada Byron"}, EDIT
    edit_there = ("phone",)  # Salesforce builds the name from two fields


class TestSalesforceProduct(Contract):
    subscriber = SalesforceProduct
    simulator = partial(SalesforceSimulator, "Product2")
    record, edit = TEAPOT, {"name": "Tea pot", "price": 1300}


class Invoices(Contract):
    """Contract for invoices, which need their customer first."""

    record = {
        "number": "2026-1",
        "currency": "eur",
        "due_date": date(2030, 12, 24),
        "lines": [{"product_id": None, "description": "Tea", "quantity": 2, "unit_price": 450}],
    }
    edit = {"due_date": date(2030, 12, 31)}

    def prepare(self, bench: Bench) -> Mapping[str, Any]:
        with bench.conductor.database.write() as connection:
            return {"customer_id": int(CATALOGUES["customer"].insert(connection, ADA))}


class TestSalesforceInvoice(Invoices):
    subscriber = SalesforceInvoice
    simulator = partial(SalesforceSimulator, "Invoice__c")
    others = (SalesforceAccount,)


class TestStripeInvoice(Invoices):
    subscriber = StripeInvoice
    simulator = partial(StripeSimulator, "invoices")
    others = (StripeCustomer,)

    def changed_there(self, bench: Bench, record_id: str, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the due date as Stripe expects it, in epoch seconds."""
        return {"due_date": int(datetime(2030, 12, 31, tzinfo=UTC).timestamp())}


# --- the contract itself -------------------------------------------------------------------------------


class CreatesAgain(ShopContact):
    """Repeat a create without a search and without an idempotency key."""

    def create(self, item: Item) -> External:
        return super().create(replace(item, key=uuid.uuid4().hex))

    def find(self, item: Item) -> External | None:
        return None


class ForgetsAField(ShopContact):
    def update(self, item: Item) -> External:
        return super().update(replace(item, changes={k: v for k, v in item.changes.items() if k != "note"}))


class DeletesNothing(ShopContact):
    def delete(self, item: Item) -> None:
        return None


class LosesTies(ShopContact):
    """Continue after the newest record, so records with the same time are missed."""

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        for page in super().changed_since(position):
            behind = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
            yield replace(page, position={"since": behind})


class GivesUp(ShopContact):
    """Treat every failure as an error in the record."""

    def update(self, item: Item) -> External:
        try:
            return super().update(item)
        except SystemDown as error:
            raise Reject(str(error)) from None


class SaysTooMuch(ShopContact):
    def update(self, item: Item) -> External:
        logging.getLogger(__name__).info("logged in with %s", self.client.options.token.get_secret_value())
        return super().update(item)


class BelievesEverybody(ShopContact):
    def __init__(self, client: Any) -> None:
        super().__init__(client)
        client.verify = lambda body, headers: json.loads(body)["id"]


@pytest.mark.parametrize(
    "broken, test",
    [
        (CreatesAgain, Contract.test_a_create_whose_answer_is_lost_happens_once),
        (ForgetsAField, Contract.test_it_updates),
        (DeletesNothing, Contract.test_it_deletes_as_it_says),
        (LosesTies, Contract.test_edits_of_the_same_second_all_come_in),
        (LosesTies, Contract.test_it_lists_what_changed_since_a_cursor),
        (GivesUp, lambda self, bench: Contract.test_a_trouble_that_passes_costs_nothing_but_time(self, bench, 429)),
        (BelievesEverybody, Contract.test_a_forged_webhook_is_refused),
    ],
)
def test_a_subscriber_that_breaks_it_is_found(
    broken: type[ShopContact], test: Callable[[Contract, Bench], None], sqlite: Database
) -> None:
    contract = TestShopCustomer()
    with ShopSimulator() as shop, pytest.raises((AssertionError, pytest.fail.Exception)):
        test(contract, Bench(sqlite, broken, (), shop))


def test_a_message_with_a_secret_is_detected(sqlite: Database, caplog: pytest.LogCaptureFixture) -> None:
    with ShopSimulator() as shop, pytest.raises(AssertionError):
        TestShopCustomer().test_no_secret_is_logged_or_stored(Bench(sqlite, SaysTooMuch, (), shop), caplog)
