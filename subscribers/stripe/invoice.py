"""Invoices with their lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, date, datetime, time
from typing import Any, ClassVar
from urllib.parse import quote

import requests

from subscribers.errors import Gone, Reject, Retry, Skip, SyncError
from subscribers.mapping import link_to, rows
from subscribers.mapping.fields import Field
from subscribers.mapping.values import describe_fields, same
from subscribers.records import External, Item
from subscribers.registry import register
from subscribers.rules import between, choices, length
from subscribers.stripe.client import RECORD_ID_KEY
from subscribers.stripe.objects import Body, StripeSubscriber, with_mark

#: Key in an invoice's metadata while one of our writes, of several calls, is unfinished.
#: Until it is finished, lines and status are intermediate values and are not merged.
WRITING_KEY = "syncflow_writing"
#: Keys in an item's metadata: its position among the lines, and its product. Stripe orders lines itself,
#: and creates a product for an item with an inline price.
PLACE_KEY = "syncflow_line"
PRODUCT_KEY = "syncflow_product"
#: The most items that Stripe allows on one invoice.
MOST_LINES = 250

#: (position, the present line, the wanted line)
Edit = tuple[int, Body | None, Mapping[str, Any] | None]

#: Stripe's status -> ours. An uncollectible invoice can still be paid or voided.
_STATUS: Mapping[str, str] = {"uncollectible": "open"}
#: (present status, wanted status) -> the next call. Other combinations are impossible.
_MOVES: Mapping[tuple[str, str], str] = {
    ("draft", "open"): "finalize",
    ("draft", "paid"): "finalize",
    ("draft", "void"): "finalize",
    ("open", "paid"): "pay",
    ("open", "void"): "void",
}
_MOVE_DATA: Mapping[str, Mapping[str, Any]] = {
    "finalize": {"auto_advance": False},  # Stripe must not send or collect by itself
    "pay": {"paid_out_of_band": True},  # our record is paid, so the payment was made elsewhere
    "void": {},
}


@register
class StripeInvoice(StripeSubscriber):
    """Invoices as Stripe's invoices, their lines as invoice items. API reference: "Invoices", "Invoice Items".

    Our `open` finalizes an invoice, `void` voids it, `paid` marks it paid out of band; a payment by a
    customer in Stripe is applied inward. A final invoice cannot be edited, and neither can a customer or currency.
    """

    catalogue = "invoice"
    resource = "invoice"
    path = "/v1/invoices"
    match_on = ("number",)
    read_back = "never"  # what its responses leave out is Stripe's own edit, see `_answer`
    find_by = ("customer",)
    more_events: ClassVar[Sequence[str]] = (
        *(f"invoice.{what}" for what in ("finalized", "paid", "payment_failed", "voided", "marked_uncollectible")),
        *(f"invoiceitem.{what}" for what in ("created", "updated", "deleted")),
    )
    field_to_data = {
        "customer_id": link_to("customer", "customer", required=True),
        "number": "number",
        "currency": "currency",
        "due_date": "due_date",
        # A payment or a voiding in Stripe cannot be undone, so Stripe's value wins.
        "status": Field("status", conflict="external"),
        "lines": rows(
            "lines",
            {
                "product_id": link_to("product", "product"),
                "description": "description",
                "quantity": "quantity",
                "unit_price": Field("unit_amount", transform="stripe_amount:column=currency"),
            },
        ),
    }
    rules = {
        "status": [choices("draft", "open", "paid", "void")],
        "lines": [length(max=MOST_LINES)],
        "lines.quantity": [between(min=0)],
    }

    def present(self, body: Body) -> Mapping[str, Any]:
        """Return its status as ours, its due date as a day (UTC), and its lines in our order.

        Its id is its number as long as it has none. While a write of ours is not at its end, status and
        lines are not shown.
        """
        shown = self._as_it_is(body)
        if _is_unfinished(body):
            del shown["status"], shown["lines"]
        return shown

    def _as_it_is(self, body: Body) -> dict[str, Any]:
        return {
            **body,
            "number": body.get("number") or body["id"],
            "status": _now(body),
            "due_date": _day(body.get("due_date")),
            "lines": [_line(line) for line in self._lines(body)],
        }

    def replaces(self, name: str) -> bool:
        """Return False for the lines as well: `update` writes each line."""
        return name != "lines" and super().replaces(name)

    # --- calls ---------------------------------------------------------------------------------------

    def create(self, item: Item) -> External:
        """Create a draft and its items, then set its status. An interrupted creation continues as an update."""
        status = item.data.get("status", "draft")
        if status == "void":
            raise Skip("it is void and was never in Stripe")
        data: dict[str, Any] = {name: item.data.get(name) for name in ("customer", "number", "currency")}
        data |= {"collection_method": "send_invoice", "auto_advance": False, **self._due(item.data.get("due_date"))}
        data["pending_invoice_items_behavior"] = "exclude"
        if item.data.get("lines") or status != "draft":
            data["metadata"] = {WRITING_KEY: "1"}
        body, response = self._create(data, item)
        with _begun():
            return self._answer(*self._finish(body, response, item), item)

    def update(self, item: Item) -> External:
        """Make the invoice equal to the record. Raises `Gone`; `Reject` where Stripe's rules forbid it."""
        body, response = self._read(item.linked_id)
        present = self._as_it_is(body)
        changes = {name: v for name, v in item.changes.items() if not (name in present and same(v, present[name]))}
        self._check_allowed(body, changes)
        _check_reachable(_now(body), _target(body, item))
        head = {"number": changes["number"]} if "number" in changes else {}
        if "due_date" in changes:
            head |= self._due(changes["due_date"])
        steps = sum(map(_count_calls, self._edits(body, item))) + _count_moves(_now(body), _target(body, item))
        if steps > 1 or (steps and head):
            head["metadata"] = {WRITING_KEY: "1"}
        if head:
            body, response = self._send_next(item.linked_id, head, item)
        with _begun():
            return self._answer(*self._finish(body, response, item), item)

    def delete(self, item: Item) -> None:
        """Delete a draft; void a final invoice, because Stripe does not allow deleting it."""
        body, _ = self._read(item.linked_id)
        if body["status"] == "draft":
            for line in self._lines(body):  # otherwise they would wait for the customer's next invoice
                if line.get("invoice_item"):
                    self._remove(line["invoice_item"])
            self.client.pace()
            super().delete(item)
        elif body["status"] == "paid":
            raise Reject(
                "a paid invoice cannot be deleted or voided in Stripe: refund it in Stripe instead", code="wrong_state"
            )
        elif body["status"] != "void":
            self.client.pace()
            self.client.post(self._address(item.linked_id, "/void"), {})

    def is_restored(self, external: External) -> bool:
        """Return False for a void one: `delete` voids a final invoice, and Stripe cannot undo that."""
        return external.data.get("status") != "void"

    # --- the steps -----------------------------------------------------------------------------------

    def _finish(self, body: Body, response: requests.Response, item: Item) -> tuple[Body, requests.Response]:
        """Send the remaining calls: lines, status, and last the removal of `WRITING_KEY`."""
        edited = False
        for edit in self._edits(body, item):
            self._edit(body, item, edit)
            edited = True
        target = _target(body, item)
        while (move := _MOVES.get((_now(body), target))) is not None:
            self.client.pace()
            body, response = self.client.post(self._address(body["id"], f"/{move}"), _MOVE_DATA[move])
            edited = False
        if _is_unfinished(body):
            return self._send_next(body["id"], {"metadata": {WRITING_KEY: ""}}, item)
        if not edited:
            return body, response
        self.client.pace()
        return self._read(body["id"])

    def _edits(self, body: Body, item: Item) -> list[Edit]:
        """Return the differences between the lines of a draft and the wanted lines."""
        if body["status"] != "draft" or not (_is_unfinished(body) or "lines" in item.changes):
            return []
        have, wanted = self._lines(body), item.data.get("lines") or []
        if len(have) == len(wanted) and all(same(_line(h), _known(w)) for h, w in zip(have, wanted, strict=True)):
            return []
        both = min(len(have), len(wanted))
        edits: list[Edit] = [(n, have[n], wanted[n]) for n in range(both) if not _stands(have[n], wanted[n], n)]
        edits += [(n, have[n], None) for n in range(both, len(have))]
        return edits + [(n, None, wanted[n]) for n in range(both, len(wanted))]

    def _edit(self, body: Body, item: Item, edit: Edit) -> None:
        place, have, want = edit
        if have is not None and want is not None and _count_calls(edit) == 1:
            address = f"/v1/invoiceitems/{quote(have['invoice_item'], safe='')}"
            self.client.pace()
            self.client.post(address, self._item_data(body, item, place, want))
            return
        if have is not None:
            self._remove(have["invoice_item"])
        if want is not None:
            taken = {line.get("invoice_item") for line in self._lines(body)}
            data = {"customer": body["customer"], "invoice": body["id"], **self._item_data(body, item, place, want)}
            if "price_data" not in data:
                data["currency"] = body["currency"]
            self._create_part(
                "/v1/invoiceitems",
                data,
                f"{item.key}-line-{place}",
                lambda one: one["invoice"] == body["id"] and one["id"] not in taken,
            )

    def _item_data(self, body: Body, item: Item, place: int, want: Mapping[str, Any]) -> dict[str, Any]:
        product, amount = want.get("product"), want.get("unit_amount") or 0
        price: dict[str, Any] = {"unit_amount": amount}
        if product:
            price = {"price_data": {"product": product, "currency": body["currency"], "unit_amount": amount}}
        marks = {PLACE_KEY: str(place), PRODUCT_KEY: product or ""}
        data = {"description": want.get("description"), "quantity": want.get("quantity"), **price, "metadata": marks}
        return with_mark(data, item)

    def _remove(self, item_id: str) -> None:
        self.client.pace()
        with suppress(Gone):  # deleted in Stripe in the meantime
            self.client.delete(f"/v1/invoiceitems/{quote(item_id, safe='')}")

    def _check_allowed(self, body: Body, changes: Mapping[str, Any]) -> None:
        wrong = {}
        if body["status"] == "draft":
            wrong = {name: "cannot be changed on an invoice in Stripe" for name in ("customer", "currency")}
            if any(not line.get("invoice_item") for line in self._lines(body)):
                wrong["lines"] = "come from a subscription, and are changed there"
        else:
            why = f"cannot be changed: the invoice is {body['status']} in Stripe, and final. Void it and write another"
            wrong = {name: why for name in changes if name != "status"}
        wrong = {name: text for name, text in wrong.items() if name in changes}
        if wrong:
            raise Reject(describe_fields(wrong), fields=wrong, code="wrong_state")

    def _due(self, day: Any) -> dict[str, Any]:
        """Return the end of that day (UTC), or the default period from now."""
        if not day:
            return {"days_until_due": self.client.options.days_until_due}
        end = datetime.combine(date.fromisoformat(str(day)), time(23, 59, 59), UTC)
        return {"due_date": int(end.timestamp())}

    # --- reading -------------------------------------------------------------------------------------

    def _answer(self, body: Body, response: requests.Response, item: Item) -> External:
        """Return Stripe's invoice. Values that Stripe set itself arrive with its event, as Stripe's own edit."""
        found = self._as_external(body, response)
        own = {
            name
            for name in ("status", "due_date")
            if name in found.data and not same(found.data[name], item.data.get(name))
        }
        data = {name: value for name, value in found.data.items() if name not in own}
        return External(found.id, data, at=found.at, mark=found.mark, request_id=found.request_id)

    def _lines(self, body: Body) -> list[Body]:
        """Return all lines: ours in our order, then the others, oldest first."""
        lines = body["lines"]["data"]
        if body["lines"]["has_more"]:
            lines = list(self.client.walk(self._address(body["id"], "/lines")))
            body["lines"] = {**body["lines"], "data": lines, "has_more": False}
        return sorted(reversed(lines), key=_place)


@contextmanager
def _begun() -> Iterator[None]:
    """Mark errors between the calls of one write as `maybe_done`: earlier calls have taken effect."""
    try:
        yield
    except Gone as error:
        raise Retry(str(error), maybe_done=True, request_id=error.request_id) from error
    except SyncError as error:
        error.maybe_done = True
        raise


def _is_unfinished(body: Body) -> bool:
    return bool((body.get("metadata") or {}).get(WRITING_KEY))


def _now(body: Body) -> str:
    """Return its status as ours."""
    return _STATUS.get(body["status"], body["status"])


def _target(body: Body, item: Item) -> str:
    return str(item.data["status"]) if "status" in item.changes else _now(body)


def _check_reachable(now: str, target: str) -> None:
    if now == target or (now, target) in _MOVES:
        return
    why = "a final invoice never becomes a draft again" if now == "open" else f"a {now} invoice keeps its status"
    wrong = {"status": f"cannot become {target}: in Stripe it is {now}, and {why}"}
    raise Reject(describe_fields(wrong), fields=wrong, code="wrong_state")


def _count_moves(now: str, target: str) -> int:
    if now == target:
        return 0
    return 2 if now == "draft" and target != "open" else 1


def _count_calls(edit: Edit) -> int:
    """Return the calls of an edit: a line with another product needs a new item, because an item keeps its product."""
    _, have, want = edit
    both = have is not None and want is not None
    return 2 if both and not same(_line(have).get("product"), want.get("product")) else 1  # type: ignore[arg-type, union-attr]


def _line(line: Body) -> dict[str, Any]:
    """Return a line for the mapping, with its product only if it is certainly one of ours."""
    marks, price = line.get("metadata") or {}, line.get("price") or {}
    quantity = 1 if line.get("quantity") is None else line["quantity"]
    unit = price.get("unit_amount")
    if unit is None or unit * quantity != line["amount"]:  # tiers, fractions of a cent, proration
        unit, rest = divmod(line["amount"], quantity or 1)
        quantity, unit = (quantity, unit) if not rest and quantity else (1, line["amount"])
    shown = {"description": line.get("description"), "quantity": quantity, "unit_amount": unit}
    ours = price.get("product") if (price.get("metadata") or {}).get(RECORD_ID_KEY) else None
    product = marks.get(PRODUCT_KEY, ours)
    return {**shown, "product": product} if product else shown


def _known(want: Mapping[str, Any]) -> dict[str, Any]:
    return {name: want.get(name) for name in ("description", "quantity", "unit_amount", "product")}


def _stands(have: Body, want: Mapping[str, Any], place: int) -> bool:
    return _place(have) == place and same(_line(have), _known(want))


def _place(line: Body) -> int:
    place = (line.get("metadata") or {}).get(PLACE_KEY, "")
    return int(place) if place.isdecimal() else MOST_LINES


def _day(timestamp: int | None) -> str | None:
    return None if timestamp is None else datetime.fromtimestamp(timestamp, UTC).date().isoformat()
