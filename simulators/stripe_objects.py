"""localstripe's objects, fixed where they differ from Stripe's in ways that affect a connector."""

import importlib
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, NamedTuple, cast

#: The most events that are kept (in Stripe: those of 30 days).
EVENT_LIMIT = 10_000
ADDRESS_PARTS = ("line1", "line2", "city", "state", "postal_code", "country")

_EMAIL = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s.]+")
_loading = threading.Lock()


class LocalStripe(NamedTuple):
    """A private copy of the package: its web app, its objects with their store, its webhook endpoints."""

    server: ModuleType
    resources: ModuleType
    webhooks: ModuleType


class Shown:
    """A finished JSON object, wrapped for code that expects an object of localstripe."""

    def __init__(self, body: dict[str, Any]) -> None:
        self._body = body

    def _export(self) -> dict[str, Any]:
        return dict(self._body)


def load_localstripe() -> LocalStripe:
    """Import a new copy of the package. It keeps its data in module globals, so each system needs its own copy."""
    with _loading, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # its handlers are plain functions; they still work
        try:
            modules = [importlib.import_module(f"localstripe.{name}") for name in LocalStripe._fields]
            return LocalStripe(*modules)
        finally:
            for name in [name for name in sys.modules if name.partition(".")[0] == "localstripe"]:
                del sys.modules[name]


def patch(resources: Any, publish: Callable[[Any], None], changed: Callable[[], None]) -> None:
    """Fix one copy. `publish` receives each new event; every write to the store calls `changed`."""
    resources.schedule_webhook = publish
    _patch_store(resources, changed)
    _patch_update(resources)
    _patch_export(resources)
    _patch_writes(resources, resources.Customer)
    for cls in (resources.Customer, resources.Plan, resources.Event):
        _patch_list(resources, cls)


def tombstone(resources: Any, kind: str, id: str) -> Any:
    """Return the remains of a deleted object, or None."""
    return resources.store.get(f"deleted_{kind}:{id}")


def forget_old_events(resources: Any) -> None:
    keys = [key for key in resources.store if key.startswith("event:")]
    for key in keys[: max(0, len(keys) - EVENT_LIMIT)]:
        del resources.store[key]


def invalid(resources: Any, message: str, code: str, param: str) -> Exception:
    """Return an error with status 400 in Stripe's form."""
    error: Exception = resources.UserError(400, message, {"code": code, "param": param})
    return error


def _patch_store(resources: Any, changed: Callable[[], None]) -> None:
    resources.Store.dump_to_disk = lambda _: changed()
    listed = resources.Customer.subscriptions

    def subscriptions(customer: Any) -> Any:
        # The original scans the whole store for every customer returned: seconds for some thousands of customers.
        if resources.store.has_subscriptions:
            return listed.fget(customer)
        return resources.List(f"/v1/customers/{customer.id}/subscriptions")

    original = resources.Store.__setitem__

    def set_item(store: Any, key: str, value: Any) -> None:
        store.has_subscriptions |= key.startswith("subscription:")
        original(store, key, value)

    resources.store.has_subscriptions = False
    resources.Store.__setitem__ = set_item
    resources.Customer.subscriptions = property(subscriptions)


def _patch_update(resources: Any) -> None:
    """Fix updates: empty strings unset, metadata merges, booleans and numbers keep their type, errors name fields."""
    original = resources.StripeObject._update

    def update(obj: Any, **data: Any) -> None:
        for name in data:
            if name.startswith("_") or not hasattr(obj, name):
                raise invalid(resources, f"Received unknown parameter: {name}", "parameter_unknown", name)
        metadata = data.pop("metadata", None)
        if metadata not in (None, "") and not isinstance(metadata, dict):
            raise invalid(resources, "Invalid hash", "parameter_invalid", "metadata")
        typed = {name: _typed(resources, getattr(obj, name), value) for name, value in data.items()}
        original(obj, **typed)
        if metadata is not None:
            merged = {} if metadata == "" else {**(obj.metadata or {}), **metadata}
            obj.metadata = {key: value for key, value in merged.items() if value != ""}

    resources.StripeObject._update = update


def _typed(resources: Any, old: Any, new: Any) -> Any:
    if new == "":
        return None
    if isinstance(new, dict):
        return {key: _typed(resources, None, value) for key, value in new.items()}
    if isinstance(old, bool):
        return resources.try_convert_to_bool(new)
    return resources.try_convert_to_int(new) if isinstance(old, int) else new


def _patch_writes(resources: Any, cls: Any) -> None:
    kind = cls.object
    create, delete = cls._api_create.__func__, cls._api_delete.__func__
    update = resources.StripeObject._api_update.__func__

    def created(cls: Any, **data: Any) -> Any:
        _check_email(resources, data)
        return create(cls, **_without_empty(data))

    def updated(cls: Any, id: str, **data: Any) -> Any:
        _check_email(resources, data)
        before = cls._api_retrieve(id)._export()
        obj = update(cls, id, **data)
        if earlier := previous(before, obj._export()):
            event = resources.Event(f"{kind}.updated", obj)
            event.data["previous_attributes"] = earlier
            resources.schedule_webhook(event)
        return obj

    def deleted(cls: Any, id: str) -> Any:
        obj = cls._api_retrieve(id)
        gone = delete(cls, id)
        gone._created = obj.created
        resources.store[f"deleted_{kind}:{id}"] = gone
        return gone

    cls._api_create = classmethod(cast(Any, created))
    cls._api_update = classmethod(cast(Any, updated))
    cls._api_delete = classmethod(cast(Any, deleted))


def _check_email(resources: Any, data: Mapping[str, Any]) -> None:
    email = data.get("email")
    if isinstance(email, str) and email and not _EMAIL.fullmatch(email):
        raise invalid(resources, f"Invalid email address: {email}", "email_invalid", "email")


def _without_empty(data: Mapping[str, Any]) -> dict[str, Any]:
    cut = {key: _without_empty(value) if isinstance(value, dict) else value for key, value in data.items()}
    return {key: value for key, value in cut.items() if value != ""}


def previous(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the previous values of changed fields; within a hash (metadata, address), of changed keys only."""
    earlier: dict[str, Any] = {}
    for key in before.keys() | after.keys():
        old, new = before.get(key), after.get(key)
        if old == new:
            continue
        earlier[key] = previous(old, new) if isinstance(old, dict) and isinstance(new, dict) else old
    return earlier


def _patch_export(resources: Any) -> None:
    original = resources.Customer._export

    def export(customer: Any, expand: Any = None) -> dict[str, Any]:
        shown: dict[str, Any] = original(customer, expand)
        if shown["address"] is not None:
            shown["address"] = {part: shown["address"].get(part) for part in ADDRESS_PARTS}
        shown["balance"] = -shown.pop("account_balance")
        for name in ("subscriptions", "sources", "tax_ids"):  # current Stripe returns them only on request
            if not any(str(path).startswith(name) for path in expand or ()):
                del shown[name]
        return shown

    resources.Customer._export = export


def _patch_list(resources: Any, cls: Any) -> None:
    """Fix lists: newest first, `created[gte]` etc., `ending_before`, and an error for an unknown cursor."""
    original = cls._api_list_all.__func__

    def listed(
        cls: Any,
        url: str,
        created: Any = None,
        limit: Any = None,
        starting_after: str | None = None,
        ending_before: str | None = None,
        **filters: Any,
    ) -> Any:
        size = page_size(resources, limit)
        types = filters.pop("types", None) if cls is resources.Event else None
        page = original(cls, url, limit=size, **filters)
        if types is not None:
            page._list = [one for one in page._list if one.type in types]
        newest_first = [one for one in reversed(page._list) if created_fits(resources, one.created, created)]
        page._list = _after(resources, cls, newest_first, starting_after)
        if ending_before:
            before = newest_first[: _position(resources, cls, newest_first, ending_before)]
            start = max(0, len(before) - size)
            # The objects of the page come first; the rest makes `has_more` true.
            page._list = before[start:] + before[:start]
        return page

    cls._api_list_all = classmethod(cast(Any, listed))


def page_size(resources: Any, limit: Any) -> int:
    size = 10 if limit is None else resources.try_convert_to_int(limit)
    if not isinstance(size, int) or not 1 <= size <= 100:
        raise invalid(resources, "limit must be from 1 to 100", "parameter_invalid_integer", "limit")
    return size


def created_fits(resources: Any, at: int, created: Any) -> bool:
    """Return whether a creation time, in seconds, is in the range of `created[gte]` etc."""
    if created is None:
        return True
    wanted = created if isinstance(created, dict) else {"gte": created, "lte": created}
    tests: dict[str, Callable[[int], bool]] = {
        "gt": lambda t: at > t,
        "gte": lambda t: at >= t,
        "lt": lambda t: at < t,
        "lte": lambda t: at <= t,
    }
    try:
        return all(tests[name](int(value)) for name, value in wanted.items())
    except (KeyError, TypeError, ValueError):
        raise invalid(resources, "Invalid timestamp range", "parameter_invalid", "created") from None


def _after(resources: Any, cls: Any, objects: list[Any], id: str | None) -> list[Any]:
    if not id:
        return objects
    position = _position(resources, cls, objects, id)
    return objects[position + 1 :] if position < len(objects) and objects[position].id == id else objects[position:]


def _position(resources: Any, cls: Any, objects: list[Any], id: str) -> int:
    """Return the position of `id`, also of a deleted one (exact to the second: objects may be repeated)."""
    for position, obj in enumerate(objects):
        if obj.id == id:
            return position
    gone = tombstone(resources, cls.object, id)
    if gone is None:
        raise invalid(resources, f"No such {cls.object}: '{id}'", "resource_missing", "starting_after")
    return next((i for i, obj in enumerate(objects) if obj.created <= gone._created), len(objects))


# --- search ------------------------------------------------------------------------------------------------

_CLAUSE = re.compile(
    r"""\s*(?P<not>-)?(?P<field>\w+)(?:\[(?P<q>['"])(?P<key>[^'"]+)(?P=q)\])?\s*(?P<op>[:~])\s*
        (?:(?P<v>['"])(?P<value>(?:\\.|(?!(?P=v)).)*)(?P=v)|(?P<null>null))\s*""",
    re.VERBOSE | re.IGNORECASE,
)
_JOIN = re.compile(r"(AND|OR)\b", re.IGNORECASE)
_SEARCHABLE = {"email", "name", "phone", "metadata"}


def search(resources: Any, query: str, objects: Iterable[Any]) -> list[Any]:
    """Return the objects that match, e.g. `email:'a@x.org' AND -metadata['plan']:'free'`.

    Clauses are on email, name, phone, metadata['key'], with `:` for equal ignoring case (or null) and `~` for
    contains, joined by AND or by OR, not both. Anything else is a 400, as in Stripe.
    """
    clauses, join = _parse(resources, query)
    fits = all if join == "AND" else any
    return [obj for obj in objects if fits(_clause_fits(clause, obj) for clause in clauses)]


def _parse(resources: Any, query: str) -> tuple[list[re.Match[str]], str]:
    clauses: list[re.Match[str]] = []
    joins: set[str] = set()
    place = 0
    while clause := _CLAUSE.match(query, place):
        if clause["field"] not in _SEARCHABLE or (clause["field"] == "metadata") != (clause["key"] is not None):
            break
        clauses.append(clause)
        place = clause.end()
        if place == len(query):
            break
        if not (join := _JOIN.match(query, place)):
            break
        joins.add(join[1].upper())
        place = join.end()
    if not clauses or place != len(query) or len(joins) > 1 or len(joins) == len(clauses):
        raise invalid(resources, f"We were unable to parse your search query: {query}", "parameter_invalid", "query")
    return clauses, joins.pop() if joins else "AND"


def _clause_fits(clause: re.Match[str], obj: Any) -> bool:
    have = getattr(obj, clause["field"])
    if clause["key"] is not None:
        have = (have or {}).get(clause["key"])
    if clause["null"]:
        fits = have is None
    else:
        wanted = re.sub(r"\\(.)", r"\1", clause["value"]).lower()
        text = "" if have is None else str(have).lower()
        fits = have is not None and (text == wanted if clause["op"] == ":" else wanted in text)
    return fits != bool(clause["not"])


# --- keeping the store in a file ---------------------------------------------------------------------------


def to_json(resources: Any) -> dict[str, Any]:
    """Return the whole store as JSON values. Each stored object is written once; other places refer to it."""
    store = resources.store
    return {key: _encode(resources, value, top=True) for key, value in store.items()}


def from_json(resources: Any, saved: Mapping[str, Any]) -> None:
    """Fill the (empty) store from the result of `to_json`. Raises KeyError or TypeError for anything else."""
    for key, value in saved.items():
        cls = getattr(resources, value["$object"])
        resources.store[key] = cls.__new__(cls)
    for key, value in saved.items():
        vars(resources.store[key]).update(_decode_vars(resources, value["vars"]))


def _encode(resources: Any, value: Any, top: bool = False) -> Any:
    if isinstance(value, resources.StripeObject | resources.Balance):
        key = f"{value.object}:{getattr(value, 'id', '')}"
        if not top and resources.store.get(key) is value:
            return {"$ref": key}
        inside = {name: _encode(resources, one) for name, one in vars(value).items()}
        return {"$object": type(value).__name__, "vars": inside}
    if isinstance(value, dict):
        pairs = {key: _encode(resources, one) for key, one in value.items()}
        return {"$dict": pairs} if any(key.startswith("$") for key in pairs) else pairs
    if isinstance(value, list | tuple):
        return [_encode(resources, one) for one in value]
    return value


def _decode(resources: Any, value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(resources, one) for one in value]
    if not isinstance(value, dict):
        return value
    if "$ref" in value:
        return resources.store[value["$ref"]]
    if "$object" in value:
        cls = getattr(resources, value["$object"])
        obj = cls.__new__(cls)
        vars(obj).update(_decode_vars(resources, value["vars"]))
        return obj
    return {key: _decode(resources, one) for key, one in value.get("$dict", value).items()}


def _decode_vars(resources: Any, saved: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _decode(resources, value) for name, value in saved.items()}
