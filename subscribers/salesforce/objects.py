"""Accounts, contacts, products and invoices. Object reference: "Account", "Contact", "Product2"; names in __c are
objects and fields of your own, see docs/howto/salesforce.md.
"""

from __future__ import annotations

from typing import Any

from subscribers.mapping.fields import Field, link_to, rows
from subscribers.registry import register
from subscribers.rules import length, required
from subscribers.salesforce.line_items import SalesforceWithLineItems
from subscribers.salesforce.subscriber import SalesforceSubscriber


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
    #: The object's limits where our own columns are wider.
    rules = {
        "Name": [required()],
        "Email__c": [length(max=80)],
        "BillingCity": [length(max=40)],
        "Description": [length(max=32_000)],
    }

    @classmethod
    def connected(cls, client: Any) -> SalesforceSubscriber | None:
        """One of the two: both would be one subscriber of one catalogue."""
        return SalesforceContact(client) if client.options.keeps("Contact") else super().connected(client)


class SalesforceContact(SalesforceSubscriber):
    """Customers as contacts, for those who sell to persons: `salesforce.customer` in place of accounts."""

    catalogue = "customer"
    sobject = resource = "Contact"
    mergeable = True
    match_on = ("email",)
    field_to_data = {
        "name": Field("FirstName+LastName", "split_name"),
        "email": "Email",
        "phone": "Phone",
        "street": "MailingStreet",
        "city": "MailingCity",
        "postal_code": "MailingPostalCode",
        "country": "MailingCountry",
        "notes": "Description",
        "active": "Active__c",
    }
    rules = {
        "FirstName": [length(max=40)],
        "LastName": [required(), length(max=80)],
        "Email": [length(max=80)],
        "MailingCity": [length(max=40)],
        "Description": [length(max=32_000)],
    }


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
        "price": Field("Price__c", transform="amount:column=currency"),
        "currency": Field("Currency__c", transform="upper"),
        "active": "IsActive",
    }
    rules = {"Name": [required()], "Description": [length(max=4000)]}
    poll_seconds = 300


@register
class SalesforceInvoice(SalesforceWithLineItems):
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
                "unit_price": Field("Unit_Price__c", transform="amount:column=currency"),
            },
        ),
    }
