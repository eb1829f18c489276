"""JSON objects that behave like Stripe's: ids by kind, merged metadata, lists newest first, expansion, errors."""

import secrets
import time
from collections.abc import Mapping
from typing import Any

from simulators import stripe_objects as objects

Body = dict[str, Any]

_PREFIX = {"product": "prod_", "price": "price_", "invoice": "in_", "invoiceitem": "ii_"}


#: Parameters that are objects; an empty string unsets one.
_HASHES = {"default_price_data", "metadata", "price_data", "recurring"}


class Store:
    """Holds objects by id, in order of creation."""

    def __init__(self, resources: Any) -> None:
        self.objects: dict[str, Body] = {}
        #: Creation times of deleted objects: a list may continue after such an object.
        self.gone: dict[str, int] = {}
        self._resources = resources

    def of(self, kind: str) -> list[Body]:
        """Return all objects of a kind, oldest first."""
        return [one for one in self.objects.values() if one["object"] == kind]

    def clear(self) -> None:
        """Remove all objects."""
        self.objects.clear()
        self.gone.clear()

    def _refuse(self, message: str, code: str = "parameter_invalid", param: str = "", status: int = 400) -> Exception:
        details = {"code": code, **({"param": param} if param else {})}
        error: Exception = self._resources.UserError(status, message, details)
        return error

    def _check_known(self, params: Mapping[str, Any], known: set[str]) -> None:
        for name in params:
            if name not in known:
                raise self._refuse(f"Received unknown parameter: {name}", "parameter_unknown", name)
            if name in _HASHES and not isinstance(params[name], Mapping) and params[name] != "":
                raise self._refuse("Invalid hash", "parameter_invalid", name)

    def _find(self, kind: str, id: str) -> Body:
        body = self.objects.get(id)
        if body is None or body["object"] != kind:
            raise self._refuse(f"No such {kind}: '{id}'", "resource_missing", "id", 404)
        return body

    def _referred(self, kind: str, id: Any, param: str) -> Body:
        body = self.objects.get(str(id))
        if body is None or body["object"] != kind:
            raise self._refuse(f"No such {kind}: '{id}'", "resource_missing", param)
        return body

    def _whole(self, value: Any, param: str, least: int | None = None) -> int:
        number = self._resources.try_convert_to_int(value)
        if not isinstance(number, int) or (least is not None and number < least):
            raise self._refuse(f"Invalid integer: {value}", "parameter_invalid_integer", param)
        return number

    def _metadata(self, old: Mapping[str, str], new: Any) -> dict[str, str]:
        if new == "":
            return {}
        if not isinstance(new, Mapping):
            raise self._refuse("Invalid hash", "parameter_invalid", "metadata")
        return {key: value for key, value in {**old, **new}.items() if value != ""}

    def _add(self, kind: str, values: Body, id: str | None = None) -> Body:
        id = id or _PREFIX[kind] + secrets.token_hex(7)
        if id in self.objects:
            raise self._refuse(f"{kind} already exists.", "resource_already_exists", "id")
        self.objects[id] = {"id": id, "object": kind, "created": int(time.time()), "livemode": False, **values}
        return self.objects[id]

    def _page(self, url: str, newest_first: list[Body], params: Mapping[str, Any]) -> Body:
        size = objects.page_size(self._resources, params.get("limit"))
        if after := params.get("starting_after"):
            newest_first = newest_first[self._place(newest_first, after, "starting_after", 1) :]
        if before := params.get("ending_before"):
            earlier = newest_first[: self._place(newest_first, before, "ending_before", 0)]
            page, more = earlier[-size:], len(earlier) > size
        else:
            page, more = newest_first[:size], len(newest_first) > size
        return {"object": "list", "url": url, "data": page, "has_more": more}

    def _place(self, bodies: list[Body], id: str, param: str, beyond: int) -> int:
        for place, one in enumerate(bodies):
            if one["id"] == id:
                return place + beyond
        if id not in self.gone:
            raise self._refuse(f"No such object: '{id}'", "resource_missing", param)
        return next((n for n, one in enumerate(bodies) if one["created"] <= self.gone[id]), len(bodies))

    def _expanded(self, body: Body, expand: Any) -> Body:
        shown = dict(body)
        for path in expand if isinstance(expand, list) else []:
            top, _, rest = str(path).partition(".")
            if top == "data" and shown.get("object") == "list":
                shown["data"] = [self._expanded(one, [rest]) for one in shown["data"]]
            elif top in shown and (shown[top] is None or shown[top] in self.objects):
                shown[top] = shown[top] and dict(self.objects[shown[top]])
            else:
                raise self._refuse(f"This property cannot be expanded ({path}).", param="expand")
        return shown
