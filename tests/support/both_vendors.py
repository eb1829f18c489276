"""One hub between a simulated Salesforce org and the Stripe-like system."""

from __future__ import annotations

from typing import Any

from pydantic import SecretStr

from conductor import Conductor, Policy
from models.session import Database
from simulators.salesforce import SalesforceSimulator
from simulators.stripe import StripeLike
from subscribers.stripe import Stripe, StripeOptions, StripeProduct
from tests.support.salesforce_hub import SalesforceHub, at_work

KEY = "sk_test_4eC39HqLyjWDarjtT1zdp7dc"


class BothVendorsHub(SalesforceHub):
    """A hub whose products are kept in Salesforce and in Stripe."""

    def __init__(self, database: Database, org: SalesforceSimulator, stripe: StripeLike) -> None:
        super().__init__(database, org)
        self.stripe = stripe
        options = StripeOptions(api_key=SecretStr(KEY), api_base=stripe.url, webhook_secret=SecretStr("whsec_both"))
        products = StripeProduct(Stripe("stripe", options))
        subscribers = {**at_work(self.client), products.name(): products}
        self.conductor = Conductor(database, subscribers, self.publisher, Policy(), org.clock.now)
        self.conductor.breaker.ensure_rows()

    def stripe_prices(self) -> list[dict[str, Any]]:
        """Return the active prices in Stripe, newest first."""
        return list(self.stripe.by_hand("GET", "/v1/prices", active=True)["data"])
