"""Customers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from subscribers.base import register
from subscribers.errors import Reject
from subscribers.mapping import words
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

    #: Stripe's limits, in characters, where our own columns are wider.
    lengths = {"phone": 20, "description": 5000}

    def validate(self, data: Mapping[str, Any]) -> None:
        """Say what Stripe would refuse, all at once."""
        wrong = {
            name: f"longer than {n} characters" for name, n in self.lengths.items() if len(data.get(name) or "") > n
        }
        if wrong:
            raise Reject(words(wrong), fields=wrong)
