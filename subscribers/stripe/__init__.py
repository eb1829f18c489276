"""Stripe, over its REST API with form bodies.

| file       | what it holds                                                          |
|------------|------------------------------------------------------------------------|
| `client`   | `Stripe`: the account's settings, calls, webhooks                      |
| `failures` | Stripe's errors -> class of error                                      |
| `objects`  | `StripeSubscriber`: the base class for all kinds of objects            |
| the others | one file per catalogue                                                 |

API reference: "Errors", "Idempotent requests", "Events", and the page of each object; guide "Receive
Stripe events in your webhook endpoint".
"""

from subscribers.stripe.client import RECORD_ID_KEY, Stripe, StripeOptions, form
from subscribers.stripe.customer import StripeCustomer
from subscribers.stripe.invoice import StripeInvoice
from subscribers.stripe.objects import WINDOW_SECONDS, StripeSubscriber
from subscribers.stripe.product import StripeProduct

__all__ = [
    "RECORD_ID_KEY",
    "WINDOW_SECONDS",
    "Stripe",
    "StripeCustomer",
    "StripeInvoice",
    "StripeOptions",
    "StripeProduct",
    "StripeSubscriber",
    "form",
]
