"""Stripe, over its REST API with form bodies.

| file       | what it holds                                                          |
|------------|------------------------------------------------------------------------|
| `client`   | `Stripe`: the account's settings, calls, webhooks                      |
| `currencies` | Stripe's minor units, and the transform of amounts                   |
| `codes`, `failures` | Stripe's error codes, and what follows from a response         |
| `objects`  | `StripeSubscriber`: the base class for all kinds of objects            |
| the others | one file per catalogue                                                 |

API reference: "Errors", "Idempotent requests", "Events", and the page of each object; guide "Receive
Stripe events in your webhook endpoint".
"""

from subscribers.stripe import currencies  # noqa: F401 - adds a transform
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
