"""The contract of every subscriber that ships, against its system's simulator."""

from __future__ import annotations

from demo.simulators import SalesforceSimulator, ShopSimulator, StripeSimulator
from subscribers.rest import RestSubscriber, RestSystem
from subscribers.salesforce import SalesforceAccount
from subscribers.stripe import StripeCustomer
from tests.contract import Contract

ADA = {"name": "Ada", "email": "ada@x.example", "city": "London", "phone": "1"}
EDIT = {"name": "Ada Lovelace", "phone": "2"}


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


class TestShopContact(Contract):
    subscriber = ShopContact
    simulator = ShopSimulator
    record, edit = ADA, EDIT


class TestStripeCustomer(Contract):
    subscriber = StripeCustomer
    simulator = StripeSimulator
    record, edit = ADA, EDIT


class TestSalesforceAccount(Contract):
    subscriber = SalesforceAccount
    simulator = SalesforceSimulator
    record, edit = ADA, EDIT
