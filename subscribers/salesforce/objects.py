"""Accounts, contacts, products and invoices. Object reference: "Account", "Contact", "Product2"; names ending in __c
are custom objects and fields, see docs/howto/salesforce.md.
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
    """Customers as accounts, or as contacts if SALESFORCE_OBJECTS chooses them."""

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
    #: Limits of the object that are shorter than our columns.
    rules = {
        "Name": [required()],
        "Email__c": [length(max=80)],
        "BillingCity": [length(max=40)],
        "Description": [length(max=32_000)],
    }

    @classmethod
    def connected(cls, client: Any) -> SalesforceSubscriber | None:
        """Return the subscriber of contacts if these are chosen, else that of accounts: only one can have the name."""
        return SalesforceContact(client) if client.options.keeps("Contact") else super().connected(client)


class SalesforceContact(SalesforceSubscriber):
    """Customers as contacts, for business with individuals: `salesforce.customer` instead of accounts."""

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
    """Products as Product2, with their single price in Price__c, since price books have separate entries."""

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
    """Invoices and their lines, each a custom object. Customer__c refers to the account or contact."""

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
