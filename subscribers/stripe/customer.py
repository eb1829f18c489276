"""Customers."""

from __future__ import annotations

from subscribers.registry import register
from subscribers.rules import length
from subscribers.stripe.objects import StripeSubscriber


@register
class StripeCustomer(StripeSubscriber):
    """Customers as Stripe's customers. API reference: "Customers"."""

    catalogue = "customer"
    resource = "customer"
    path = "/v1/customers"
    match_on = ("email",)
    find_by = ("email",)
    field_to_data = {
        "name": "name",
        "email": "email",
        "phone": "phone",
        "street": "address.line1",
        "city": "address.city",
        "postal_code": "address.postal_code",
        "country": "address.country",
        "notes": "description",
    }

    #: Stripe's limits that are shorter than our columns.
    rules = {"phone": [length(max=20)], "description": [length(max=5000)]}
