"""The web pages of the Stripe-like system, its dashboard. Changes made there are no API calls, but cause events."""

from collections.abc import Callable, Mapping
from typing import Any

from aiohttp import web

from simulators import stripe_objects as objects
from simulators.pages import PAGE_HEADERS, render_form, render_list
from simulators.stripe_billing import Billing

#: Records on a page.
SHOWN = 200

_ADDRESS = [f"address_{part}" for part in objects.ADDRESS_PARTS]
_LISTED = {
    "customers": ["id", "name", "email", "phone", "description", "metadata"],
    "products": ["id", "name", "price", "currency", "active", "metadata"],
    "invoices": ["id", "number", "customer", "status", "total", "currency", "metadata"],
}
_EDITED = {
    "customers": ["name", "email", "phone", "description", *_ADDRESS],
    "products": ["name", "description", "price", "currency", "active"],
    "invoices": ["number", "status"],
}
#: The form of a new invoice has other fields: its only line, of `amount` cents.
_NEW = {**_EDITED, "invoices": ["customer", "currency", "line", "amount"]}
#: The status that a user enters -> the operation on the invoice.
_MOVES: Mapping[str, tuple[str, dict[str, str]]] = {
    "open": ("finalize", {}),
    "paid": ("pay", {"source": "card"}),
    "void": ("void", {}),
}

Form = Mapping[str, str]


class Pages:
    """The lists and forms of customers, products and invoices."""

    def __init__(self, resources: Any, billing: Billing, customers: Callable[[], list[Any]]) -> None:
        self._resources, self._billing, self._customers = resources, billing, customers

    async def answer(self, request: web.Request) -> web.Response:
        """The page for this request; 404 where there is none."""
        parts = request.path.strip("/").split("/")
        kind = parts[1] if len(parts) > 1 else "customers"
        if kind not in _LISTED or request.method not in ("GET", "HEAD", "POST"):
            return web.Response(status=404, text="Page not found.")
        if len(parts) < 3:
            return _html(self._list(kind))
        form = {key: str(value) for key, value in (await request.post()).items()}
        try:
            return self._one(request.method, kind, parts[2], parts[3:], form)
        except self._resources.UserError as error:
            message = error.body["error"].get("message", "Refused")
            return _html(_form_page(kind, parts[2], form, message), error.code)

    def _list(self, kind: str) -> str:
        if kind == "customers":
            everything = self._customers()
            records = [one._export() for one in reversed(everything[-SHOWN:])]
        else:
            everything = self._billing.of(kind.removesuffix("s"))
            records = [self._record(kind, one["id"]) for one in reversed(everything[-SHOWN:])]
        return render_list(
            f"{kind.capitalize()} in the Stripe-like system",
            records,
            _LISTED[kind],
            lambda record: f"/ui/{kind}/{record['id']}",
            new_url=f"/ui/{kind}/new",
            total=len(everything),
            others={other.capitalize(): f"/ui/{other}" for other in _LISTED if other != kind},
        )

    def _one(self, method: str, kind: str, id: str, rest: list[str], form: Form) -> web.Response:
        before = {} if id == "new" else self._record(kind, id)
        if method != "POST":
            return _html(_form_page(kind, id, before))
        save = {"customers": self._save_customer, "products": self._save_product, "invoices": self._save_invoice}
        if rest == ["delete"]:
            self._delete(kind, id)
        else:
            save[kind](id, before, form)
        return web.Response(status=303, headers={"Location": "/" if kind == "customers" else f"/ui/{kind}"})

    def _record(self, kind: str, id: str) -> dict[str, Any]:
        if kind == "customers":
            customer = self._resources.Customer._api_retrieve(id)._export()
            address = customer.get("address") or {}
            return {**customer, **{f"address_{part}": address.get(part) for part in objects.ADDRESS_PARTS}}
        body = self._ask("GET", f"{kind}/{id}")
        price = self._billing.objects.get(body.get("default_price") or "", {})
        return {**body, "price": price.get("unit_amount"), "currency": price.get("currency", body.get("currency"))}

    def _ask(self, method: str, path: str, **params: Any) -> dict[str, Any]:
        return self._billing.answer(method, f"/v1/{path}", params) or {}

    def _delete(self, kind: str, id: str) -> None:
        if kind == "customers":
            self._resources.Customer._api_delete(id)
        else:
            self._ask("DELETE", f"{kind}/{id}")

    def _save_customer(self, id: str, before: Mapping[str, Any], form: Form) -> None:
        customer = self._resources.Customer
        changed: dict[str, Any] = _changed("customers", before, form)
        if any(column in changed for column in _ADDRESS):
            address = {part: form.get(f"address_{part}", "").strip() for part in objects.ADDRESS_PARTS}
            changed["address"] = address if any(address.values()) else ""
        changed = {column: value for column, value in changed.items() if column not in _ADDRESS}
        if id == "new":
            customer._api_create(**changed)
        elif changed:
            customer._api_update(id, **changed)

    def _save_product(self, id: str, before: Mapping[str, Any], form: Form) -> None:
        changed = _changed("products", before, form)
        price = {"unit_amount": form.get("price", "").strip(), "currency": form.get("currency", "").strip() or "eur"}
        repriced = bool({"price", "currency"} & changed.keys()) and bool(price["unit_amount"])
        changed = {name: value for name, value in changed.items() if name not in ("price", "currency")}
        if id == "new":
            self._ask("POST", "products", **changed, **({"default_price_data": price} if repriced else {}))
            return
        old = before.get("default_price")
        if repriced:
            changed["default_price"] = self._ask("POST", "prices", product=id, **price)["id"]
        if changed:
            self._ask("POST", f"products/{id}", **changed)
        if repriced and old:
            self._ask("POST", f"prices/{old}", active=False)

    def _save_invoice(self, id: str, before: Mapping[str, Any], form: Form) -> None:
        if id == "new":
            common = {
                "customer": form.get("customer", "").strip(),
                "currency": form.get("currency", "").strip() or "eur",
            }
            made = self._ask("POST", "invoices", **common)["id"]
            line = {"description": form.get("line", ""), "amount": form.get("amount", "").strip() or "0"}
            self._ask("POST", "invoiceitems", invoice=made, **common, **line)
            return
        changed = _changed("invoices", before, form)
        if "number" in changed:
            self._ask("POST", f"invoices/{id}", number=changed["number"])
        if "status" in changed:
            move, params = _MOVES.get(changed["status"], ("finalize", {}))
            self._ask("POST", f"invoices/{id}/{move}", **params)


def _form_page(kind: str, id: str, record: Mapping[str, Any], error: str | None = None) -> str:
    action, name = f"/ui/{kind}/{id}", kind.removesuffix("s")
    title = f"New {name}" if id == "new" else f"{name.capitalize()} {id}"
    return render_form(
        title,
        dict(record),
        (_NEW if id == "new" else _EDITED)[kind],
        action,
        list_url="/" if kind == "customers" else f"/ui/{kind}",
        delete_action=None if id == "new" else f"{action}/delete",
        error=error,
    )


def _changed(kind: str, before: Mapping[str, Any], form: Form) -> dict[str, str]:
    """Return the changes of a form as parameters of a call; a cleared field is an empty string."""
    return {
        column: form[column].strip()
        for column in _EDITED[kind]
        if column in form and form[column].strip() != _text(before.get(column))
    }


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _html(page: str, status: int = 200) -> web.Response:
    return web.Response(text=page, status=status, headers=PAGE_HEADERS)
