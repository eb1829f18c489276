"""Products, prices, invoices and invoice items as Stripe has them (API version 2024-06-20).

They replace the objects of localstripe, which model an older Stripe: its plans could change, and its invoices
had no drafts and existed only for subscriptions. Rules from the API reference of each object: prices cannot
change and a default price cannot be archived; a product that has prices cannot be deleted; an invoice can be
edited, extended by items and deleted only as a draft; a paid or void invoice stays so.
"""

import itertools
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

from simulators import stripe_objects as objects
from simulators.stripe_store import Body, Store

#: The API version whose object shapes are returned.
API_VERSION = "2024-06-20"
#: How many lines an invoice contains; the others are only in its list of lines.
LINES_SHOWN = 10

#: publish(type of event, current object, previous values)
Publish = Callable[[str, Body, Body | None], None]

_KINDS = {"products": "product", "prices": "price", "invoices": "invoice", "invoiceitems": "invoiceitem"}
_CREATES: dict[str, set[str]] = {
    "product": {"id", "name", "active", "description", "metadata", "default_price_data"},
    "price": {"product", "currency", "unit_amount", "active", "nickname", "metadata", "recurring", "tax_behavior"},
    "invoice": {
        *("customer", "number", "currency", "collection_method", "due_date", "days_until_due", "description"),
        *("auto_advance", "pending_invoice_items_behavior", "metadata"),
    },
    "invoiceitem": {
        *("customer", "invoice", "description", "quantity", "unit_amount", "amount", "currency", "price"),
        *("price_data", "metadata"),
    },
}
_UPDATES: dict[str, set[str]] = {
    "product": {"name", "active", "description", "metadata", "default_price"},
    "price": {"active", "nickname", "metadata", "tax_behavior"},
    "invoice": {"number", "due_date", "days_until_due", "description", "auto_advance", "collection_method", "metadata"},
    "invoiceitem": {"description", "quantity", "unit_amount", "amount", "price", "price_data", "metadata"},
}
#: Fields that can still be set on an invoice that is no longer a draft.
_ALWAYS_EDITABLE = {"metadata", "auto_advance", "description"}
_FILTERS = {
    "product": {"active"},
    "price": {"product", "active", "currency"},
    "invoice": {"customer", "status", "collection_method"},
    "invoiceitem": {"customer", "invoice"},
}
_LISTING = {"limit", "starting_after", "ending_before", "created"}


class Billing(Store):
    """The objects and the operations on them."""

    def __init__(self, resources: Any, publish: Publish, changed: Callable[[], None]) -> None:
        super().__init__(resources)
        self._publish, self._changed = publish, changed

    def answer(self, method: str, path: str, params: Mapping[str, Any]) -> Body | None:
        """Return Stripe's reply; None for a path that this class does not serve. Raises localstripe's UserError."""
        _, *parts = path.strip("/").split("/")
        kind = _KINDS.get(parts[0]) if parts else None
        if kind is None or (parts[0] == "invoices" and parts[1:] == ["upcoming"]):
            return None
        given = dict(params)
        expand = given.pop("expand", [])
        body = self._route(method, kind, parts[1:], given)
        if body is not None and method != "GET":
            self._changed()
        return body and self._expanded(body, expand)

    def _route(self, method: str, kind: str, rest: list[str], params: Body) -> Body | None:
        if not rest:
            known = _CREATES[kind] if method == "POST" else _FILTERS[kind] | _LISTING
            self._check_known(params, known)
            if method == "POST":
                return self._shown(getattr(self, f"_create_{kind}")(params))
            return self._listed(kind, params) if method == "GET" else None
        body = self._find(kind, rest[0])
        if len(rest) == 1 and method == "GET":
            return self._shown(body)
        if len(rest) == 1 and method == "POST":
            self._check_known(params, _UPDATES[kind])
            return self._update(body, params)
        if len(rest) == 1 and method == "DELETE" and kind != "price":
            return self._delete(body)
        if kind == "invoice" and rest[1:] == ["lines"] and method == "GET":
            return self._page(f"/v1/invoices/{rest[0]}/lines", self._lines(body), params)
        moves = {"finalize": self._finalize, "pay": self._pay, "void": self._void}
        if kind == "invoice" and len(rest) == 2 and rest[1] in moves and method == "POST":
            return moves[rest[1]](body, params)
        return None

    # --- creating ------------------------------------------------------------------------------------------

    def _create_product(self, params: Body) -> Body:
        if not params.get("name"):
            raise self._refuse("Missing required param: name.", "parameter_missing", "name")
        price = params.pop("default_price_data", None)
        if price:
            self._price_values({**price, "product": "to be made"})  # reject it before anything is created
        body = self._add(
            "product",
            {
                "name": params["name"],
                "active": _yes(params.get("active", True)),
                "description": params.get("description") or None,
                "default_price": None,
                "metadata": self._metadata({}, params.get("metadata", {})),
                "updated": int(time.time()),
            },
            params.get("id"),
        )
        if price:
            made = self._add("price", self._price_values({**price, "product": body["id"]}))
            body["default_price"] = made["id"]
            self._tell("price.created", made)
        self._tell("product.created", body)
        return body

    def _create_price(self, params: Body) -> Body:
        self._referred("product", params.get("product"), "product")
        body = self._add("price", self._price_values(params))
        self._tell("price.created", body)
        return body

    def _price_values(self, params: Body, *, active: bool = True) -> Body:
        recurring = params.get("recurring")
        amount = params.get("unit_amount")
        return {
            "product": params["product"],
            "currency": self._currency(params),
            "unit_amount": None if amount is None else self._whole(amount, "unit_amount", 0),
            "active": _yes(params.get("active", active)),
            "nickname": params.get("nickname") or None,
            "metadata": self._metadata({}, params.get("metadata", {})),
            "recurring": {"interval_count": 1, "usage_type": "licensed", **recurring} if recurring else None,
            "type": "recurring" if recurring else "one_time",
            "billing_scheme": "per_unit",
            "tax_behavior": params.get("tax_behavior") or "unspecified",
        }

    def _currency(self, params: Mapping[str, Any]) -> str:
        currency = str(params.get("currency", "")).lower()
        if len(currency) != 3:
            raise self._refuse(f"Invalid currency: {currency}", "parameter_invalid", "currency")
        return currency

    def _create_invoice(self, params: Body) -> Body:
        customer = self._customer(params.get("customer"))
        method = params.get("collection_method", "charge_automatically")
        if method == "send_invoice" and not {"due_date", "days_until_due"} & params.keys():
            raise self._refuse(
                "If invoice collection method is 'send_invoice', you must specify 'due_date' or 'days_until_due'."
            )
        values = {
            "customer": customer,
            "currency": self._currency({"currency": params.get("currency", "usd")}),
            "collection_method": method,
            "status": "draft",
            "auto_advance": _yes(params.get("auto_advance", False)),
            "description": params.get("description") or None,
            "billing_reason": "manual",
            "number": self._number(params.get("number")),
            "due_date": self._due(params),
            "metadata": self._metadata({}, params.get("metadata", {})),
            "amount_paid": 0,
            "paid_out_of_band": False,
            "status_transitions": dict.fromkeys(("finalized_at", "paid_at", "voided_at", "marked_uncollectible_at")),
        }
        body = self._add("invoice", values)
        if params.get("pending_invoice_items_behavior") == "include":
            for item in self.of("invoiceitem"):
                if item["invoice"] is None and item["customer"] == customer:
                    item["invoice"] = body["id"]
        self._tell("invoice.created", body)
        return body

    def _customer(self, id: Any) -> str:
        if f"customer:{id}" not in self._resources.store:
            raise self._refuse(f"No such customer: '{id}'", "resource_missing", "customer")
        return str(id)

    def _number(self, number: Any, but: str | None = None) -> str | None:
        if number in (None, ""):
            return None
        if any(one["number"] == number and one["id"] != but for one in self.of("invoice")):
            raise self._refuse(f"The invoice number {number} is already in use.", "parameter_invalid", "number")
        return str(number)

    def _due(self, params: Mapping[str, Any]) -> int | None:
        if params.get("due_date") not in (None, ""):
            due = self._whole(params["due_date"], "due_date")
            if due <= time.time():
                raise self._refuse("Invalid due_date: must be in the future.", "parameter_invalid", "due_date")
            return due
        if "days_until_due" in params:
            return int(time.time()) + 86_400 * self._whole(params["days_until_due"], "days_until_due", 0)
        return None

    def _create_invoiceitem(self, params: Body) -> Body:
        customer = self._customer(params.get("customer"))
        invoice = None
        if params.get("invoice"):
            invoice = self._referred("invoice", params["invoice"], "invoice")
            self._check_draft(invoice)
            if invoice["customer"] != customer:
                raise self._refuse("The invoice belongs to another customer.", param="customer")
        values = {
            "customer": customer,
            "invoice": invoice and invoice["id"],
            "description": params.get("description") or None,
            "metadata": self._metadata({}, params.get("metadata", {})),
            **self._amounts(params, {"currency": invoice["currency"]} if invoice else {}),
        }
        if not {"price", "price_data", "currency"} & params.keys():
            raise self._refuse("Missing required param: currency.", "parameter_missing", "currency")
        body = self._add("invoiceitem", values)
        self._tell("invoiceitem.created", body)
        self._touched(body)
        return body

    def _amounts(self, params: Body, old: Mapping[str, Any]) -> Body:
        """Return the price, quantity and amount of an item. An inline price creates a price that cannot be reused."""
        if "amount" in params and {"quantity", "unit_amount", "price", "price_data"} & params.keys():
            raise self._refuse("You may only specify one of these parameters: amount, quantity.", param="amount")
        quantity = self._whole(params.get("quantity", old.get("quantity", 1)), "quantity", 0)
        data = params.get("price_data") or {}
        if "price" in params:
            price = self._referred("price", params["price"], "price")
            if not price["active"] or price["recurring"]:
                raise self._refuse("The price specified is inactive or recurring.", param="price")
        elif {"price_data", "unit_amount", "amount"} & params.keys() or not old.get("price"):
            amount = data.get("unit_amount", params.get("unit_amount", params.get("amount")))
            if amount is None:
                raise self._refuse("You must pass an amount, unit_amount or price.", "parameter_missing", "amount")
            kept = old["price"]["product"] if old.get("price") else "prod_" + secrets.token_hex(7)
            product = self._referred("product", data.get("product"), "product")["id"] if data else kept
            currency = data.get("currency") or params.get("currency") or old.get("currency")
            unit = self._whole(amount, "unit_amount")
            price = {"id": "price_" + secrets.token_hex(7), "object": "price"}
            price |= self._price_values({"product": product, "currency": currency}, active=False)
            price["unit_amount"] = unit
        else:
            price = old["price"]
        if old.get("currency") and price["currency"] != old["currency"]:
            raise self._refuse(f"The currency of the invoice is {old['currency']}.", param="currency")
        return {
            "price": dict(price),
            "quantity": quantity,
            "currency": price["currency"],
            "amount": quantity * price["unit_amount"],
        }

    # --- changing ------------------------------------------------------------------------------------------

    def _update(self, body: Body, params: Body) -> Body:
        before = self._shown(body)
        new = dict(params)
        changed = getattr(self, f"_changed_{body['object']}")(body, new)
        if "metadata" in new:
            changed["metadata"] = self._metadata(body["metadata"], new["metadata"])
        body |= changed
        if body["object"] == "product" and objects.previous(before, body):
            body["updated"] = int(time.time())
        return self._event_of(before, body)

    def _changed_product(self, body: Body, new: Body) -> Body:
        changed: Body = {name: new[name] or None for name in ("name", "description") if name in new}
        if "name" in changed and not changed["name"]:
            raise self._refuse("You passed an empty string for 'name'.", "parameter_invalid_empty", "name")
        if "active" in new:
            changed["active"] = _yes(new["active"])
        if "default_price" in new:
            price = self._referred("price", new["default_price"], "default_price") if new["default_price"] else None
            if price and (price["product"] != body["id"] or not price["active"]):
                raise self._refuse("The price is inactive or of another product.", param="default_price")
            changed["default_price"] = price and price["id"]
        return changed

    def _changed_price(self, body: Body, new: Body) -> Body:
        changed: Body = {name: new[name] or None for name in ("nickname", "tax_behavior") if name in new}
        if "active" in new:
            changed["active"] = _yes(new["active"])
            if not changed["active"] and self.objects.get(body["product"], {}).get("default_price") == body["id"]:
                raise self._refuse(
                    "This price cannot be archived because it is the default price of its product.", param="active"
                )
        return changed

    def _changed_invoice(self, body: Body, new: Body) -> Body:
        if body["status"] != "draft" and (fixed := sorted(new.keys() - _ALWAYS_EDITABLE)):
            raise self._refuse(
                f"Finalized invoices can't be updated in this way: {', '.join(fixed)}", "invoice_not_editable"
            )
        changed: Body = {"description": new["description"] or None} if "description" in new else {}
        if "number" in new:
            changed["number"] = self._number(new["number"], but=body["id"])
        if {"due_date", "days_until_due"} & new.keys():
            if new.get("collection_method", body["collection_method"]) != "send_invoice":
                raise self._refuse("You can only set a due date if collection_method is send_invoice.")
            changed["due_date"] = self._due(new)
        changed |= {name: new[name] for name in ("collection_method",) if name in new}
        changed |= {"auto_advance": _yes(new["auto_advance"])} if "auto_advance" in new else {}
        return changed

    def _changed_invoiceitem(self, body: Body, new: Body) -> Body:
        if body["invoice"]:
            self._check_draft(self.objects[body["invoice"]])
        changed: Body = {"description": new["description"] or None} if "description" in new else {}
        if new.keys() - {"description", "metadata"}:
            changed |= self._amounts(new, body)
        return changed

    def _event_of(self, before: Body, body: Body, *more: str) -> Body:
        """Publish a change as every event type Stripe has for it, and return the current object."""
        after = self._shown(body)
        if previous := objects.previous(before, after):
            for type in (*more, f"{body['object']}.updated"):
                self._publish(type, after, previous if type.endswith(".updated") else None)
            self._touched(body)
        return after

    def _touched(self, body: Body) -> None:
        """Publish an update of the invoice if `body` is one of its items."""
        if body["object"] == "invoiceitem" and body["invoice"]:
            self._tell("invoice.updated", self.objects[body["invoice"]])

    def _tell(self, type: str, body: Body) -> None:
        self._publish(type, self._shown(body), {} if type.endswith(".updated") else None)

    def _delete(self, body: Body) -> Body:
        if body["object"] == "product" and any(one["product"] == body["id"] for one in self.of("price")):
            raise self._refuse("This product cannot be deleted because it has one or more user-created prices.")
        if body["object"] == "invoice":
            self._check_draft(body)
            for item in self.of("invoiceitem"):
                if item["invoice"] == body["id"]:
                    item["invoice"] = None  # it goes on the customer's next invoice
        if body["object"] == "invoiceitem" and body["invoice"]:
            self._check_draft(self.objects[body["invoice"]])
        shown = self._shown(body)
        del self.objects[body["id"]]
        self.gone[body["id"]] = body["created"]
        self._publish(f"{body['object']}.deleted", shown, None)
        self._touched(body)
        return {"id": body["id"], "object": body["object"], "deleted": True}

    # --- the life of an invoice ----------------------------------------------------------------------------

    def _check_draft(self, invoice: Body) -> None:
        if invoice["status"] != "draft":
            raise self._refuse(
                f"The invoice {invoice['id']} is {invoice['status']} and can no longer be edited.",
                "invoice_not_editable",
                "invoice",
            )

    def _finalize(self, invoice: Body, params: Body) -> Body:
        self._check_known(params, {"auto_advance"})
        if invoice["status"] != "draft":
            raise self._refuse("This invoice is already finalized.", "invoice_not_editable")
        taken = {one["number"] for one in self.of("invoice")}
        free = next(name for n in itertools.count(1) if (name := f"STRIPE-{n:04}") not in taken)
        number = invoice["number"] or free
        return self._move(invoice, "open", "finalized_at", "invoice.finalized", number=number)

    def _pay(self, invoice: Body, params: Body) -> Body:
        self._check_known(params, {"paid_out_of_band", "source"})
        if invoice["status"] not in ("open", "uncollectible"):
            raise self._refuse(f"Invoice is {invoice['status']} and cannot be paid.", "invoice_not_editable")
        by_hand = _yes(params.get("paid_out_of_band", False))
        if not by_hand and not params.get("source"):
            self._tell("invoice.payment_failed", invoice)
            raise self._refuse("The customer has no way to pay.", "invoice_payment_intent_requires_action", status=402)
        paid = {"amount_paid": self._total(invoice), "paid_out_of_band": by_hand}
        return self._move(invoice, "paid", "paid_at", "invoice.paid", **paid)

    def _void(self, invoice: Body, params: Body) -> Body:
        self._check_known(params, set())
        if invoice["status"] not in ("open", "uncollectible"):
            raise self._refuse(f"You can only void open invoices; it is {invoice['status']}.", "invoice_not_editable")
        return self._move(invoice, "void", "voided_at", "invoice.voided")

    def _move(self, invoice: Body, status: str, when: str, type: str, **more: Any) -> Body:
        before = self._shown(invoice)
        stamps = {**invoice["status_transitions"], when: int(time.time())}
        invoice |= {"status": status, "status_transitions": stamps, **more}
        shown = self._event_of(before, invoice, type)
        if status == "open" and self._total(invoice) == 0:
            return self._move(invoice, "paid", "paid_at", "invoice.paid")
        return shown

    # --- showing -------------------------------------------------------------------------------------------

    def _total(self, invoice: Body) -> int:
        return sum(item["amount"] for item in self.of("invoiceitem") if item["invoice"] == invoice["id"])

    def _shown(self, body: Body) -> Body:
        if body["object"] != "invoice":
            return dict(body)
        lines, total = self._lines(body), self._total(body)
        due = 0 if body["status"] in ("paid", "void") else total
        return {
            **body,
            "paid": body["status"] == "paid",
            "total": total,
            "subtotal": total,
            "amount_due": total,
            "amount_remaining": due,
            "lines": {
                "object": "list",
                "data": lines[:LINES_SHOWN],
                "has_more": len(lines) > LINES_SHOWN,
                "total_count": len(lines),
                "url": f"/v1/invoices/{body['id']}/lines",
            },
        }

    def _lines(self, invoice: Body) -> list[Body]:
        """Return the lines of an invoice, newest first as in Stripe."""
        items = [item for item in self.of("invoiceitem") if item["invoice"] == invoice["id"]]
        same = ("amount", "currency", "description", "livemode", "metadata", "price", "quantity")
        return [
            {
                **{name: item[name] for name in same},
                "id": "il_" + item["id"].removeprefix("ii_"),
                "object": "line_item",
                "type": "invoiceitem",
                "invoice": invoice["id"],
                "invoice_item": item["id"],
                "description": item["description"] or self._name_of(item["price"]["product"]),
            }
            for item in reversed(items)
        ]

    def _name_of(self, product: str) -> str | None:
        found = self.objects.get(product)
        return found["name"] if found else None

    def _listed(self, kind: str, params: Body) -> Body:
        wanted = {name: params[name] for name in _FILTERS[kind] & params.keys()}
        fitting = [
            one
            for one in reversed(self.of(kind))
            if all(str(one[name]).lower() == str(value).lower() for name, value in wanted.items())
            and objects.created_fits(self._resources, one["created"], params.get("created"))
        ]
        return self._page(f"/v1/{kind}s", [self._shown(one) for one in fitting], params)


def _yes(value: Any) -> bool:
    return value is True or str(value).lower() == "true"
