"""Products with their price."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from subscribers.errors import Gone
from subscribers.mapping.fields import Field
from subscribers.records import External, Item
from subscribers.registry import register
from subscribers.rules import between
from subscribers.stripe.client import RECORD_ID_KEY
from subscribers.stripe.objects import Body, StripeSubscriber

#: The key in a product's metadata with the replaced default price, until that price is archived. While it is
#: set, a change of price is incomplete.
REPLACED_KEY = "syncflow_replaced"


@register
class StripeProduct(StripeSubscriber):
    """Products as Stripe's products, their price as the product's default price. API reference: "Products", "Prices".

    Stripe's prices cannot change: another amount is a new price, which becomes the default, and the
    old one is archived. A default price that is missing, tiered or in fractions of a cent is not
    mapped; it stays until a price is set in the database.
    """

    catalogue = "product"
    resource = "product"
    path = "/v1/products"
    expand = ("default_price",)
    match_on = ("sku",)
    field_to_data = {
        "sku": "metadata.sku",
        "name": "name",
        "description": "description",
        "active": "active",
        "price": Field("default_price.unit_amount", transform="stripe_amount:column=currency"),
        "currency": "default_price.currency",
    }
    rules = {"default_price.unit_amount": [between(min=0)]}

    def present(self, body: Body) -> Mapping[str, Any]:
        """Return the product with its price if it can be mapped, and with its id as sku if it has none."""
        shown = {**body, "metadata": {"sku": body["id"], **(body.get("metadata") or {})}}
        if not _is_flat(body.get("default_price")) or shown["metadata"].get(REPLACED_KEY):
            shown.pop("default_price", None)
        return shown

    def replaces(self, name: str) -> bool:
        """Return False for the default price as well: `update` replaces it by another price."""
        return name != "default_price" and super().replaces(name)

    def create(self, item: Item) -> External:
        """Create the product, and its price in the same call."""
        data = dict(item.data)
        price = data.pop("default_price", None) or {}
        if price.get("unit_amount"):
            data["default_price_data"] = _with_mark(price, item)
        return self._as_external(*self._create(data, item))

    def update(self, item: Item) -> External:
        """Send the changes. A change of price takes several calls; each finds the results of those before it."""
        changes = dict(item.changes)
        if changes.pop("default_price", None) is None:
            return self._as_external(*self._send(item.linked_id, changes, item))
        product, _ = self._read(item.linked_id)
        if replaced := (product.get("metadata") or {}).get(REPLACED_KEY):
            self._archive(replaced)
        old, wanted = product.get("default_price"), item.data["default_price"]
        if _fits(old, wanted) or (not _is_flat(old) and not wanted.get("unit_amount")):
            marks = {REPLACED_KEY: ""} if replaced else {}
            return self._as_external(*self._send_next(item.linked_id, _and_marks(changes, marks), item))
        changes["default_price"] = self._price(item, wanted, old)["id"]
        if old is None:
            return self._as_external(*self._send_next(item.linked_id, changes, item))
        self._send_next(item.linked_id, _and_marks(changes, {REPLACED_KEY: old["id"]}), item)
        self._archive(old["id"])
        return self._as_external(*self._send_next(item.linked_id, {"metadata": {REPLACED_KEY: ""}}, item))

    def delete(self, item: Item) -> None:
        """Delete the product; archive it if it has prices, because Stripe does not delete it then."""
        body, _ = self.client.get("/v1/prices", product=item.linked_id, limit=1)
        if body["data"]:
            self._send_next(item.linked_id, {"active": False}, item)
        else:
            self.client.pace()
            super().delete(item)

    def is_restored(self, external: External) -> bool:
        """Return False for an archived one: `delete` leaves a product with prices like that."""
        return external.data.get("active") is not False

    def _price(self, item: Item, wanted: Mapping[str, Any], old: Body | None) -> Body:
        """Return a price of the wanted amount to become the default: one from an earlier attempt, or a new one."""
        kept = {name: old[name] for name in ("nickname", "recurring", "tax_behavior") if old.get(name)} if old else {}
        if recurring := kept.get("recurring"):
            kept["recurring"] = {name: recurring[name] for name in ("interval", "interval_count")}
        if kept.get("tax_behavior") == "unspecified":
            del kept["tax_behavior"]
        for one in self.client.walk("/v1/prices", product=item.linked_id, active=True):
            ours = (one.get("metadata") or {}).get(RECORD_ID_KEY) == item.mark
            if ours and _fits(one, wanted) and bool(one.get("recurring")) is bool(recurring):
                return dict(one)
        data = {"product": item.linked_id, **kept, **_with_mark(wanted, item)}
        key = f"{item.key}-price-{old['id'] if old else 'first'}"
        return self._create_part("/v1/prices", data, key, lambda price: price["active"] is True)

    def _archive(self, price_id: str) -> None:
        self.client.pace()
        with suppress(Gone):  # Then it no longer needs archiving.
            self.client.post(f"/v1/prices/{price_id}", {"active": False})


def _with_mark(price: Mapping[str, Any], item: Item) -> dict[str, Any]:
    """Return a price with the mark of our product, by which a line of an invoice finds its product."""
    return {
        "unit_amount": price.get("unit_amount") or 0,
        "currency": price.get("currency"),
        "metadata": {RECORD_ID_KEY: item.mark},
    }


def _and_marks(changes: Mapping[str, Any], marks: Mapping[str, str]) -> dict[str, Any]:
    return {**changes, "metadata": {**(changes.get("metadata") or {}), **marks}}


def _is_flat(price: Any) -> bool:
    return isinstance(price, Mapping) and isinstance(price.get("unit_amount"), int)


def _fits(price: Any, wanted: Mapping[str, Any]) -> bool:
    return (
        _is_flat(price)
        and price.get("active") is not False
        and price["unit_amount"] == wanted.get("unit_amount")
        and price["currency"] == str(wanted.get("currency")).lower()
    )
