"""The Stripe subscriber against the Stripe-like system: every call and every row of its error table."""

import json
import time
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr
from stripe import WebhookSignature

from settings import SettingsError
from simulators.stripe import StripeLike
from subscribers.errors import BadSignature, BadWebhook, Gone, Reject, Retry, SyncError, SystemDown
from subscribers.mapping.paths import nest
from subscribers.records import External, Item
from subscribers.registry import REGISTRY
from subscribers.stripe import WINDOW_SECONDS, Stripe, StripeCustomer, StripeOptions, StripeProduct, form
from subscribers.stripe.codes import KeySpent
from tests.support.stripe_hub import emptied

KEY = "sk_test_4eC39HqLyjWDarjtT1zdp7dc"
SECRETS = "whsec_new whsec_old"
ANNA = {
    "name": "Anna",
    "email": "anna@example.org",
    "phone": "+49 30 1",
    "street": "Way 1",
    "city": "Rome",
    "country": "IT",
}


@pytest.fixture(scope="module")
def server() -> Iterator[StripeLike]:
    with StripeLike() as stripe:
        yield stripe


@pytest.fixture
def stripe(server: StripeLike) -> StripeLike:
    return emptied(server)


@pytest.fixture
def system(stripe: StripeLike) -> Stripe:
    return Stripe("stripe", options(stripe.url))


@pytest.fixture
def customers(system: Stripe) -> StripeCustomer:
    return StripeCustomer(system)


def options(url: str = "https://api.stripe.com", key: str = KEY) -> StripeOptions:
    return StripeOptions(api_key=SecretStr(key), api_base=url, webhook_secret=SecretStr(SECRETS))


def item(
    record: dict[str, Any], id: str = "7", external_id: str | None = None, changes: Any = None, key: str = "key-7"
) -> Item:
    data = nest(StripeCustomer(Stripe("stripe", options())).default_mapper.outward(record))
    changed = data if changes is None else nest(changes)
    return Item(id, record, data, changed, external_id, key)


def refused(call: Callable[[], Any]) -> SyncError:
    with pytest.raises(SyncError) as caught:
        call()
    return caught.value


# --- calls ----------------------------------------------------------------------------------------


def test_create_and_fetch(stripe: StripeLike, customers: StripeCustomer) -> None:
    made = customers.create(item(ANNA))
    assert made.mark == "7" and made.request_id and made.request_id.startswith("req_")
    assert made.at is not None and abs(datetime.now(UTC) - made.at) < timedelta(seconds=5)
    seen = customers.fetch(made.id)
    assert customers.default_mapper.flatten(seen.data) == customers.default_mapper.outward(ANNA)
    assert seen.mark == "7"
    (call,) = stripe.journal.calls("POST")
    assert call.idempotency_key == "key-7"


def test_an_update_unsets_what_is_empty_and_keeps_the_metadata_of_others(
    stripe: StripeLike, customers: StripeCustomer
) -> None:
    id = stripe.create_customer(email="a@example.org", phone="1", metadata={"theirs": "x"})["id"]
    changed = customers.update(item(ANNA, external_id=id, changes={"phone": None, "address.city": "Köln & Bonn"}))
    assert changed.data["phone"] is None
    assert changed.data["address"]["city"] == "Köln & Bonn"
    assert changed.data["metadata"] == {"theirs": "x", "syncflow_id": "7"}


def test_a_deleted_customer_is_gone_for_every_call(stripe: StripeLike, customers: StripeCustomer) -> None:
    made = customers.create(item(ANNA))
    gone = item(ANNA, external_id=made.id)
    customers.delete(gone)
    for call in (lambda: customers.fetch(made.id), lambda: customers.update(gone), lambda: customers.delete(gone)):
        assert isinstance(refused(call), Gone)


def test_a_customer_that_never_was_is_gone(customers: StripeCustomer) -> None:
    assert isinstance(refused(lambda: customers.fetch("cus_nobody")), Gone)


# --- exactly once -----------------------------------------------------------------------------------


def test_the_same_key_creates_once(stripe: StripeLike, customers: StripeCustomer) -> None:
    assert customers.create(item(ANNA)).id == customers.create(item(ANNA)).id
    assert len(stripe.customers()) == 1


def test_a_create_whose_answer_is_lost_may_be_done_and_is_found(stripe: StripeLike, customers: StripeCustomer) -> None:
    stripe.faults.drop(method="POST")
    error = refused(lambda: customers.create(item(ANNA)))
    assert isinstance(error, Retry) and error.maybe_done
    found = customers.find(item(ANNA))
    assert found is not None and found.id == stripe.customers()[0]["id"]


def test_it_is_found_though_its_email_has_changed_since(stripe: StripeLike, customers: StripeCustomer) -> None:
    made = customers.create(item(ANNA))
    for number in range(3):
        stripe.create_customer(email=f"{number}@example.org")
    found = customers.find(item({**ANNA, "email": "new@example.org"}))
    assert found is not None and found.id == made.id


def test_another_records_customer_with_the_same_email_is_not_matched(
    stripe: StripeLike, customers: StripeCustomer
) -> None:
    stripe.create_customer(email="anna@example.org", metadata={"syncflow_id": "8"})
    assert customers.find(item(ANNA)) is None


def test_a_failure_that_stripe_repeats_for_the_key_is_not_repeated_for_ever(
    stripe: StripeLike, customers: StripeCustomer
) -> None:
    stripe.faults.fail(500, method="POST", remember=True)
    first = refused(lambda: customers.create(item(ANNA)))
    assert isinstance(first, Retry) and first.maybe_done
    made = customers.create(item(ANNA))
    assert [one["id"] for one in stripe.customers()] == [made.id]


def test_a_reused_idempotency_key_leads_to_a_lookup(stripe: StripeLike, customers: StripeCustomer) -> None:
    customers.create(item(ANNA))
    error = refused(lambda: customers.create(item({**ANNA, "name": "Anne"})))
    assert isinstance(error, Retry) and error.maybe_done
    assert len(stripe.customers()) == 1


# --- errors -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("status", "code", "expected", "maybe_done"),
    [
        (400, None, Reject, False),
        (401, None, SystemDown, False),
        (402, None, Reject, False),
        (403, None, SystemDown, False),
        (404, None, Gone, False),
        (409, None, Retry, False),
        (409, "idempotency_key_in_use", Retry, True),
        (429, None, SystemDown, False),
        (429, "lock_timeout", Retry, False),
        (500, None, Retry, True),
        (502, None, Retry, True),
        (503, None, SystemDown, False),
    ],
)
def test_error_table(
    stripe: StripeLike,
    customers: StripeCustomer,
    status: int,
    code: str | None,
    expected: type[SyncError],
    maybe_done: bool,
) -> None:
    stripe.faults.fail(status, code=code)
    error = refused(lambda: customers.create(item(ANNA)))
    assert type(error) is expected
    assert error.maybe_done is maybe_done
    assert error.request_id and str(status) in str(error)


def test_a_rate_limit_has_its_retry_time(stripe: StripeLike, customers: StripeCustomer) -> None:
    stripe.faults.fail(429, retry_after=3)
    error = refused(lambda: customers.create(item(ANNA)))
    assert isinstance(error, SystemDown) and error.after == 3


def test_a_refused_value_names_its_field(customers: StripeCustomer) -> None:
    error = refused(lambda: customers.create(item({**ANNA, "email": "nobody"})))
    assert isinstance(error, Reject) and "Invalid email" in error.fields["email"]


def test_values_that_stripe_would_refuse_are_rejected_before_the_call(customers: StripeCustomer) -> None:
    error = refused(lambda: customers.validate({"phone": "1" * 21, "description": "x" * 5001}))
    assert isinstance(error, Reject) and set(error.fields) == {"phone", "description"}
    customers.validate({"phone": None})


def test_a_wrong_key_is_the_systems_trouble_and_not_shown(stripe: StripeLike) -> None:
    key = "rk_live_abcdefghijklmnop"
    system = Stripe("stripe", options(stripe.url, key))
    error = refused(lambda: StripeCustomer(system).create(item(ANNA)))
    assert isinstance(error, SystemDown)
    shown = "".join(traceback.format_exception(error)) + repr(system) + repr(system.options)
    assert key not in shown and "whsec" not in shown


def test_a_key_of_the_other_mode_unlinks_nothing(httpserver: Any) -> None:
    message = "No such customer: 'cus_1'; a similar object exists in live mode, but a test mode key was used."
    error = {"type": "invalid_request_error", "code": "resource_missing", "param": "id", "message": message}
    httpserver.expect_request("/v1/customers/cus_1").respond_with_json({"error": error}, status=404)
    httpserver.expect_request("/v1/customers/cus_2").respond_with_data("<html>", status=404)
    customers = StripeCustomer(Stripe("stripe", options(httpserver.url_for(""))))
    assert isinstance(refused(lambda: customers.fetch("cus_1")), SystemDown)
    assert isinstance(refused(lambda: customers.fetch("cus_2")), SystemDown)


def test_a_permission_that_lacks_closes_one_kind_of_object_and_not_the_system(httpserver: Any) -> None:
    message = "The provided key 'rk_test_***' does not have the required permissions for this endpoint."
    error = {"type": "invalid_request_error", "message": message}
    httpserver.expect_request("/v1/products/prod_1").respond_with_json({"error": error}, status=403)
    refusal = refused(lambda: StripeProduct(Stripe("stripe", options(httpserver.url_for("")))).fetch("prod_1"))
    assert isinstance(refusal, Reject) and "give the API key the permission" in str(refusal)


def test_what_an_object_points_to_is_missing_but_the_object_is_not_gone(httpserver: Any) -> None:
    error = {"type": "invalid_request_error", "code": "resource_missing", "message": "No such customer: 'cus_9'"}
    httpserver.expect_request("/v1/invoices/in_1").respond_with_json({"error": error}, status=404)
    assert isinstance(
        refused(lambda: Stripe("stripe", options(httpserver.url_for(""))).get("/v1/invoices/in_1")), Reject
    )


@pytest.mark.parametrize(
    ("message", "param", "expected"),
    [
        ("No such customer: 'cus_1'", "id", Gone),
        ("No such customer: 'cus_12'", "id", Gone),
        ("No such customer: 'cus_9'", "customer", Reject),
        ("No such price: 'price_1'", "default_price", Reject),
    ],
)
def test_only_the_object_of_the_address_may_be_gone(
    httpserver: Any, message: str, param: str, expected: type[SyncError]
) -> None:
    asked = "cus_12" if "cus_12" in message else "cus_1"
    error = {"type": "invalid_request_error", "code": "resource_missing", "param": param, "message": message}
    httpserver.expect_request(f"/v1/customers/{asked}").respond_with_json({"error": error}, status=404)
    customers = StripeCustomer(Stripe("stripe", options(httpserver.url_for(""))))
    assert type(refused(lambda: customers.fetch(asked))) is expected


def test_an_id_that_begins_like_the_missing_one_is_not_gone(httpserver: Any) -> None:
    error = {"type": "invalid_request_error", "code": "resource_missing", "message": "No such customer: 'cus_1'"}
    httpserver.expect_request("/v1/customers/cus_12").respond_with_json({"error": error}, status=404)
    customers = StripeCustomer(Stripe("stripe", options(httpserver.url_for(""))))
    assert isinstance(refused(lambda: customers.fetch("cus_12")), Reject)


@pytest.mark.parametrize(
    ("status", "again", "expected", "maybe_done"),
    [
        (400, "true", Retry, True),
        (400, "false", Reject, False),
        (500, "true", Retry, True),
        (500, "false", KeySpent, True),
        (429, "true", SystemDown, False),
    ],
)
def test_stripes_should_retry_header_is_respected(
    httpserver: Any, status: int, again: str, expected: type[SyncError], maybe_done: bool
) -> None:
    error = {"type": "api_error" if status >= 500 else "invalid_request_error", "message": "no"}
    headers = {"Stripe-Should-Retry": again, "Request-Id": "req_1"}
    httpserver.expect_request("/v1/customers").respond_with_json({"error": error}, status=status, headers=headers)
    failure = refused(lambda: Stripe("stripe", options(httpserver.url_for(""))).post("/v1/customers", {}, "key"))
    assert (type(failure), failure.maybe_done, failure.request_id) == (expected, maybe_done, "req_1")


# --- polling ------------------------------------------------------------------------------------------


def read(customers: StripeCustomer, position: dict[str, Any] | None) -> tuple[list[External], dict[str, Any]]:
    pages = list(customers.changed_since(position))
    return [one for page in pages for one in page.records], json.loads(json.dumps(pages[-1].position))


def now() -> int:
    return int(time.time())


def test_the_first_poll_reads_everything(
    stripe: StripeLike, customers: StripeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subscribers.stripe.client.PAGE_SIZE", 2)
    ids = {stripe.create_customer(email=f"{n}@example.org")["id"] for n in range(5)}
    pages = list(customers.changed_since(None))
    assert {one.id for page in pages for one in page.records} == ids
    assert all(set(page.position) == {"since", "after"} for page in pages[:2])
    assert now() - 400 < pages[-1].position["since"] <= now()
    rest = list(customers.changed_since(pages[0].position))
    assert {one.id for page in [pages[0], *rest] for one in page.records} == ids


def test_a_poll_sees_creations_updates_and_deletions_once_each(stripe: StripeLike, customers: StripeCustomer) -> None:
    kept, gone = (stripe.create_customer(email=f"{n}@example.org")["id"] for n in range(2))
    stripe.edit_customer(kept, name="first")
    stripe.edit_customer(kept, name="second", metadata={"syncflow_id": "7"})
    stripe.delete_customer(gone)
    found, position = read(customers, {"since": now() - 100})
    by_id = {one.id: one for one in found}
    assert len(found) == 2
    assert by_id[kept].data["name"] == "second" and by_id[kept].mark == "7" and not by_id[kept].deleted
    assert by_id[gone].deleted
    # The last minute is read again, because an event can become visible late.
    assert position["since"] <= now() - 59
    assert {one.id for one in read(customers, position)[0]} == {kept, gone}


def test_a_long_outage_is_read_in_stretches_and_the_position_moves_on(
    stripe: StripeLike, customers: StripeCustomer
) -> None:
    id = stripe.create_customer(email="a@example.org")["id"]
    since = now() - 3 * WINDOW_SECONDS - 10
    found, position = read(customers, {"since": since})
    assert [one.id for one in found] == [id]
    assert len(stripe.journal.calls("GET", "/v1/events")) == 4
    assert now() - 70 < position["since"] <= now()


def test_a_stretch_of_many_pages_is_put_in_order(
    stripe: StripeLike, customers: StripeCustomer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subscribers.stripe.client.PAGE_SIZE", 3)
    ids = [stripe.create_customer(email=f"{n}@example.org")["id"] for n in range(7)]
    stripe.edit_customer(ids[0], name="again")
    pages = list(customers.changed_since({"since": now() - 100}))
    records = [one for page in pages for one in page.records]
    assert sorted(one.id for one in records) == sorted(ids)
    assert [one.at for one in records] == sorted(one.at for one in records if one.at)
    assert next(one for one in records if one.id == ids[0]).data["name"] == "again"
    assert all(len(page.records) <= 3 for page in pages)


# --- webhooks -------------------------------------------------------------------------------------------


def event(**changes: Any) -> dict[str, Any]:
    return {
        "id": "evt_1",
        "object": "event",
        "type": "customer.updated",
        "created": 1_790_000_000,
        "data": {"object": {"id": "cus_1", "object": "customer", "name": "Anna", "metadata": {"syncflow_id": "7"}}},
    } | changes


def signed(body: bytes, secret: str = "whsec_new", at: float | None = None) -> dict[str, str]:
    timestamp = int(time.time() if at is None else at)
    return {"stripe-signature": WebhookSignature.generate_signature_header(body.decode(), secret, timestamp)}


@pytest.mark.parametrize("secret", SECRETS.split())
def test_a_webhook_with_either_secret_is_taken(secret: str) -> None:
    system = Stripe("stripe", options())
    body = json.dumps(event()).encode()
    assert system.verify(body, signed(body, secret)) == "evt_1"
    (one,) = system.events(body)
    assert (one.resource, one.external.id, one.external.mark) == ("customer", "cus_1", "7")
    assert one.external.at == datetime.fromtimestamp(1_790_000_000, UTC) and not one.external.deleted


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"stripe-signature": ""},
        {"stripe-signature": "t=1,v1=ü"},
        {"stripe-signature": "v1"},
        signed(json.dumps(event()).encode(), "whsec_other"),
        signed(json.dumps(event()).encode(), at=time.time() - 301),
        signed(json.dumps(event(id="evt_2")).encode()),
    ],
    ids=["none", "empty", "not ascii", "broken", "other secret", "old", "other body"],
)
def test_any_other_webhook_is_refused(headers: dict[str, str]) -> None:
    with pytest.raises(BadSignature):
        Stripe("stripe", options()).verify(json.dumps(event()).encode(), headers)


def test_without_a_secret_every_webhook_is_refused() -> None:
    system = Stripe("stripe", StripeOptions(api_key=SecretStr(KEY)))
    body = json.dumps(event()).encode()
    for secret in ("", " "):
        with pytest.raises(BadSignature):
            system.verify(body, signed(body, secret))


def test_a_body_that_is_not_text_is_refused() -> None:
    with pytest.raises(BadSignature):
        Stripe("stripe", options()).verify(b"\xff\xfe", {"stripe-signature": "t=1,v1=00"})


@pytest.mark.parametrize("body", [b"[]", b"nothing", b"{}", json.dumps(event(created="soon")).encode()])
def test_a_signed_webhook_without_an_event_is_refused(body: bytes) -> None:
    with pytest.raises(BadWebhook):
        Stripe("stripe", options()).verify(body, signed(body))


@pytest.mark.parametrize(
    ("type", "deleted"), [("customer.created", [False]), ("customer.deleted", [True]), ("balance.available", [])]
)
def test_only_what_happens_to_a_record_is_an_event(type: str, deleted: list[bool]) -> None:
    found = Stripe("stripe", options()).events(json.dumps(event(type=type)).encode())
    assert [one.external.deleted for one in found] == deleted


def about(kind: str, **values: Any) -> dict[str, Any]:
    return {"object": {"id": f"{kind}_1", "object": kind, "metadata": {"syncflow_id": "7"}, **values}}


@pytest.mark.parametrize(
    ("type", "data", "expected"),
    [
        ("product.updated", about("product", name="Lamp"), ("product", "product_1", False, False)),
        ("product.deleted", about("product"), ("product", "product_1", False, True)),
        ("invoice.finalized", about("invoice", number="R"), ("invoice", "invoice_1", False, False)),
        ("invoice.payment_failed", about("invoice"), ("invoice", "invoice_1", False, False)),
        ("invoice.deleted", about("invoice"), ("invoice", "invoice_1", False, True)),
        ("invoiceitem.deleted", about("invoiceitem", invoice="in_2"), ("invoice", "in_2", False, False)),
        ("invoiceitem.created", about("invoiceitem", invoice=None), None),
        ("invoice.upcoming", {"object": {"object": "invoice"}}, None),
        ("customer.discount.created", about("discount"), ("customer.discount", "discount_1", True, False)),
    ],
)
def test_the_record_of_an_event(type: str, data: Any, expected: Any) -> None:
    """If an event may be incomplete, it is returned without data, so that the hub fetches the record."""
    found = Stripe("stripe", options()).events(json.dumps(event(type=type, data=data)).encode())
    if expected is None:
        assert found == []
        return
    (one,) = found
    assert (one.resource, one.external.id, bool(one.external.data), one.external.deleted) == expected


def test_a_thin_event_names_the_object() -> None:
    thin = {
        "id": "evt_2",
        "object": "v2.core.event",
        "type": "v1.customer.deleted",
        "created": "2026-11-22T07:06:38.000Z",
        "related_object": {"id": "cus_1", "type": "customer", "url": "/v1/customers/cus_1"},
    }
    system, body = Stripe("stripe", options()), json.dumps(thin).encode()
    assert system.verify(body, signed(body)) == "evt_2"
    (one,) = system.events(body)
    assert (one.resource, one.external.id, one.external.deleted) == ("customer", "cus_1", True)
    assert one.external.at == datetime(2026, 11, 22, 7, 6, 38, tzinfo=UTC) and not one.external.data
    assert system.events(json.dumps({**thin, "related_object": None}).encode()) == []


# --- other ------------------------------------------------------------------------------------------------


def test_settings_are_named_and_the_key_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAY_API_BASE", "ftp://x")
    monkeypatch.setenv("PAY_API_KEY", "two words")
    with pytest.raises(SettingsError) as caught:
        Stripe.from_environment("pay")
    assert "PAY_API_BASE" in str(caught.value) and "PAY_API_KEY" in str(caught.value)
    assert "two words" not in str(caught.value)


def test_it_is_in_the_fan_out() -> None:
    assert REGISTRY["stripe.customer"] is StripeCustomer


def test_the_dashboard_page() -> None:
    assert (
        Stripe("stripe", options()).page_url("customer", "cus_1") == "https://dashboard.stripe.com/test/customers/cus_1"
    )
    live = Stripe("stripe", options(key="sk_live_1234567890")).page_url("customer", "cus_1")
    assert live == "https://dashboard.stripe.com/customers/cus_1"
    assert Stripe("stripe", options("http://127.0.0.1:1")).page_url("customer", "cus_1") is None


NAMES = st.text("abc_", min_size=1, max_size=4)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)


def words_of(value: Any) -> Any:
    """Return a value as a form encodes it: text, or an empty string for an empty value."""
    if isinstance(value, list):
        value = {str(index): one for index, one in enumerate(value)}
    if isinstance(value, dict):
        return {name: words_of(one) for name, one in value.items()} or ""
    return "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


@given(st.dictionaries(NAMES, VALUES, max_size=4))
def test_a_form_says_all_of_the_data(data: dict[str, Any]) -> None:
    back: dict[str, Any] = {}
    for name, value in form(data):
        *parents, last = name.replace("]", "").split("[")
        place = back
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    assert back == {name: words_of(value) for name, value in data.items()}
