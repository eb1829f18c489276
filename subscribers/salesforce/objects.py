"""Accounts, contacts, products and invoices. Object reference: "Account", "Contact", "Product2"; names in __c are
objects and fields of your own, see docs/salesforce.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from subscribers.base import register
from subscribers.mapping import Field, link_to, rows
from subscribers.salesforce.subscriber import SalesforceSubscriber
from subscribers.salesforce.with_rows import SalesforceWithRows


@register
class SalesforceAccount(SalesforceSubscriber):
    """Customers as accounts; as contacts where SALESFORCE_OBJECTS says so."""

    catalogue = "customer"
    sobject = resource = "Account"
    mergeable = True
    match_on = ("email",)
    field_to_data = {
        "name": "Name",
        "email": "Email__c",
        "phone": "Phone",
        "street": "BillingStreet",
        "city": "BillingCity",
        "postal_code": "BillingPostalCode",
        "country": "BillingCountry",
        "notes": "Description",
        "active": "Active__c",
    }
    lengths = {"Email__c": 80, "BillingCity": 40, "Description": 32_000}
    required = ("Name",)

    @classmethod
    def connected(cls, client: Any) -> SalesforceSubscriber | None:
        """One of the two: both would be one subscriber of one catalogue."""
        return SalesforceContact(client) if "Contact" in client.options.objects else super().connected(client)


class SalesforceContact(SalesforceSubscriber):
    """Customers as contacts, for those who sell to persons: `salesforce.customer` in place of accounts.

    A contact's Name cannot be written: it is put together from FirstName and LastName, and so is taken
    apart at its last blank.
    """

    catalogue = "customer"
    sobject = resource = "Contact"
    mergeable = True
    match_on = ("email",)
    field_to_data = {
        "name": "Name",
        "email": "Email",
        "phone": "Phone",
        "street": "MailingStreet",
        "city": "MailingCity",
        "postal_code": "MailingPostalCode",
        "country": "MailingCountry",
        "notes": "Description",
        "active": "Active__c",
    }
    lengths = {"Email": 80, "MailingCity": 40, "Description": 32_000}
    required = ("Name",)

    def validate(self, data: Mapping[str, Any]) -> None:
        """Beside the rest, that both parts of the name fit."""
        super().validate(data)
        if "Name" in data:
            self.refuse({"FirstName": 40, "LastName": 80}, self.outgoing(data))

    def outgoing(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """With both parts of the name in place of the whole."""
        parts = dict(data)
        if "Name" in parts:
            first, _, last = " ".join((parts.pop("Name") or "").split()).rpartition(" ")
            parts |= {"FirstName": first or None, "LastName": last or None}
        return parts


@register
class SalesforceProduct(SalesforceSubscriber):
    """Products as Product2, with their one price: Price__c, since price books have entries of their own."""

    catalogue = "product"
    sobject = resource = "Product2"
    match_on = ("sku",)
    field_to_data = {
        "sku": "ProductCode",
        "name": "Name",
        "description": "Description",
        "price": Field("Price__c", transform="amount"),
        "currency": Field("Currency__c", transform="upper"),
        "active": "IsActive",
    }
    lengths = {"Description": 4000}
    required = ("Name",)
    poll_seconds = 300


@register
class SalesforceInvoice(SalesforceWithRows):
    """Invoices and their lines, which are a custom object each. Customer__c points to what customers are kept as."""

    catalogue = "invoice"
    sobject = resource = "Invoice__c"
    row_sobject, row_parent, row_place = "Invoice_Line__c", "Invoice__c", "Position__c"
    match_on = ("number",)
    field_to_data = {
        "number": "Name",
        "customer_id": link_to("customer", "Customer__c", required=True),
        "status": "Status__c",
        "currency": Field("Currency__c", transform="upper"),
        "due_date": Field("Due_Date__c", transform="date"),
        "lines": rows(
            "Lines__r",
            {
                "product_id": link_to("product", "Product__c"),
                "description": "Description__c",
                "quantity": "Quantity__c",
                "unit_price": Field("Unit_Price__c", transform="amount"),
            },
        ),
    }
    required = ("Name",)
