"""The Stripe-like system, tested with Stripe's official client and webhook verifier."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests
import stripe as official

import child_processes
from simulators.stripe import StripeLike

SECRET = "whsec_for_tests"
KEY = "sk_test_syncflow"


class Receiver(ThreadingHTTPServer):
    """Collect webhooks in `got` as (headers, raw body); answer with `statuses` first, then with 200."""

    daemon_threads = True

    def __init__(self, port: int = 0) -> None:
        self.got: queue.Queue[tuple[dict[str, str], bytes]] = queue.Queue()
        self.statuses: list[int] = []
        super().__init__(("127.0.0.1", port), _Take)
        self.url = f"http://127.0.0.1:{self.server_address[1]}/hook"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def next(self) -> Any:
        return json.loads(self.got.get(timeout=5)[1])

    def close(self) -> None:
        self.shutdown()
        self.server_close()


class _Take(BaseHTTPRequestHandler):
    server: Receiver
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.got.put((dict(self.headers), body))
        self.send_response(self.server.statuses.pop(0) if self.server.statuses else 200)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.close()


@pytest.fixture
def system(receiver: Receiver) -> Iterator[StripeLike]:
    with StripeLike(webhook_url=receiver.url, webhook_secret=SECRET) as one:
        yield one


@pytest.fixture
def client(system: StripeLike) -> official.StripeClient:
    return client_of(system.url)


def client_of(url: str, key: str = KEY) -> official.StripeClient:
    return official.StripeClient(
        key,
        base_addresses={"api": url},
        max_network_retries=0,
        http_client=official.RequestsClient(timeout=5),
    )


def api(system: StripeLike, method: str, path: str, **more: Any) -> requests.Response:
    return requests.request(method, system.url + path, auth=(KEY, ""), timeout=5, **more)


def plain(metadata: Any) -> dict[str, str]:
    return dict(metadata.to_dict())


# --- customers ---------------------------------------------------------------------------------------------


def test_a_customer_lives(system: StripeLike, client: official.StripeClient) -> None:
    made = client.v1.customers.create({"name": "Ada", "email": "ada@example.org", "address": {"city": "Paris"}})
    assert client.v1.customers.retrieve(made.id).email == "ada@example.org"
    assert made.address is not None and made.address.city == "Paris" and made.address.line1 is None
    assert client.v1.customers.update(made.id, {"name": "Ada L."}).name == "Ada L."
    client.v1.customers.delete(made.id)
    gone = api(system, "GET", f"/v1/customers/{made.id}")
    assert (gone.status_code, gone.json()) == (200, {"id": made.id, "object": "customer", "deleted": True})
    assert client.v1.customers.retrieve(made.id).deleted


def test_a_deleted_customer_cannot_be_changed(client: official.StripeClient) -> None:
    made = client.v1.customers.create({"name": "Ada"})
    client.v1.customers.delete(made.id)
    with pytest.raises(official.InvalidRequestError) as refused:
        client.v1.customers.update(made.id, {"name": "again"})
    assert (refused.value.http_status, refused.value.code) == (404, "resource_missing")


def test_metadata_merges_and_an_empty_string_unsets(client: official.StripeClient) -> None:
    made = client.v1.customers.create({"metadata": {"a": "1", "b": "2", "none": ""}})
    assert plain(made.metadata) == {"a": "1", "b": "2"}
    changed = client.v1.customers.update(made.id, {"metadata": {"a": "", "c": "3"}})
    assert plain(changed.metadata) == {"b": "2", "c": "3"}
    assert plain(client.v1.customers.update(made.id, {"metadata": ""}).metadata) == {}


def test_an_empty_string_unsets_a_field(client: official.StripeClient) -> None:
    made = client.v1.customers.create({"name": "Ada", "phone": "1"})
    assert client.v1.customers.update(made.id, {"phone": ""}).phone is None


@pytest.mark.parametrize(
    ("params", "code", "param"),
    [
        ({"email": "nonsense"}, "email_invalid", "email"),
        ({"shoe_size": "43"}, "parameter_unknown", "shoe_size"),
    ],
)
def test_wrong_data_is_refused_by_name(client: official.StripeClient, params: Any, code: str, param: str) -> None:
    made = client.v1.customers.create({"name": "Ada"})
    for refuse in (client.v1.customers.create, lambda p: client.v1.customers.update(made.id, p)):
        with pytest.raises(official.InvalidRequestError) as refused:
            refuse(params)
        assert (refused.value.http_status, refused.value.code, refused.value.param) == (400, code, param)


@pytest.mark.parametrize("key", ["sk_live_real", "nonsense"])
def test_a_wrong_key_is_401(system: StripeLike, key: str) -> None:
    with pytest.raises(official.AuthenticationError):
        client_of(system.url, key).v1.customers.list()
    assert requests.get(f"{system.url}/v1/customers", timeout=5).status_code == 401


# --- lists and search --------------------------------------------------------------------------------------


def test_lists_are_newest_first_and_paged_both_ways(client: official.StripeClient) -> None:
    ids = [client.v1.customers.create({"name": str(n)}).id for n in range(7)]
    newest_first = ids[::-1]
    page = client.v1.customers.list({"limit": 3})
    assert ([one.id for one in page.data], page.has_more) == (newest_first[:3], True)
    assert [one.id for one in page.auto_paging_iter()] == newest_first
    back = client.v1.customers.list({"limit": 2, "ending_before": ids[0]})
    assert ([one.id for one in back.data], back.has_more) == ([ids[2], ids[1]], True)


def test_paging_goes_on_past_a_deleted_customer(client: official.StripeClient) -> None:
    ids = [client.v1.customers.create({"name": str(n)}).id for n in range(4)]
    client.v1.customers.delete(ids[3])
    rest = client.v1.customers.list({"starting_after": ids[3]})
    assert [one.id for one in rest.data] == ids[2::-1]
    with pytest.raises(official.InvalidRequestError):
        client.v1.customers.list({"starting_after": "cus_unknown"})


def test_lists_are_filtered(client: official.StripeClient) -> None:
    one = client.v1.customers.create({"email": "a@example.org"})
    client.v1.customers.create({"email": "b@example.org"})
    assert [c.id for c in client.v1.customers.list({"email": "a@example.org"}).data] == [one.id]
    assert len(client.v1.customers.list({"created": {"gte": one.created}}).data) == 2
    assert client.v1.customers.list({"created": {"gt": one.created + 60}}).data == []


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("metadata['syncflow_id']:'7'", ["a"]),
        ('email:"A@example.org"', ["a"]),
        ("email:'a@example.org' OR email:'b@example.org'", ["b", "a"]),
        ("name~'d' AND -metadata['syncflow_id']:'7'", ["b"]),
        ("metadata['syncflow_id']:null", ["b"]),
        ("name:'O\\'Dell'", ["b"]),
        ("metadata['syncflow_id']:'70'", []),
    ],
)
def test_search(client: official.StripeClient, query: str, found: list[str]) -> None:
    client.v1.customers.create({"name": "Ada", "email": "a@example.org", "metadata": {"syncflow_id": "7"}})
    client.v1.customers.create({"name": "O'Dell", "email": "b@example.org"})
    result = client.v1.customers.search({"query": query})
    assert [(one.email or "")[0] for one in result.data] == found


@pytest.mark.parametrize(
    "query",
    [
        "",
        "nonsense",
        "colour:'red'",
        "email:'a' email:'b'",
        "email:'a' AND name:'b' OR name:'c'",
        "email:'a' AND ",
        "metadata:'x'",
        "name['x']:'y'",
    ],
)
def test_search_refuses_what_it_cannot_read(client: official.StripeClient, query: str) -> None:
    with pytest.raises(official.InvalidRequestError):
        client.v1.customers.search({"query": query})


def test_search_is_paged(client: official.StripeClient) -> None:
    for _ in range(5):
        client.v1.customers.create({"name": "Same"})
    found = client.v1.customers.search({"query": "name:'same'", "limit": 2})
    assert len({one.id for one in found.auto_paging_iter()}) == 5


def test_search_can_lag_behind() -> None:
    with StripeLike(search_lag=60) as slow:
        client = client_of(slow.url)
        client.v1.customers.create({"email": "a@example.org"})
        assert client.v1.customers.search({"query": "email:'a@example.org'"}).data == []
        assert len(client.v1.customers.list({"email": "a@example.org"}).data) == 1


# --- idempotency -------------------------------------------------------------------------------------------


def test_the_same_key_creates_once(system: StripeLike) -> None:
    first, again = (
        api(system, "POST", "/v1/customers", data={"name": "Ada"}, headers={"Idempotency-Key": "k1"}) for _ in range(2)
    )
    assert first.json() == again.json()
    assert again.headers["Idempotent-Replayed"] == "true" and "Idempotent-Replayed" not in first.headers
    assert first.headers["Request-Id"] != again.headers["Request-Id"]
    assert len(system.customers()) == 1
    assert [call.replayed for call in system.journal] == [False, True]


def test_the_same_key_with_other_parameters_is_refused(client: official.StripeClient) -> None:
    client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k1"})
    with pytest.raises(official.IdempotencyError) as refused:
        client.v1.customers.create({"name": "Eve"}, {"idempotency_key": "k1"})
    assert refused.value.http_status == 400


def test_a_refused_call_may_be_corrected_with_the_same_key(client: official.StripeClient) -> None:
    with pytest.raises(official.InvalidRequestError):
        client.v1.customers.create({"email": "wrong"}, {"idempotency_key": "k1"})
    assert client.v1.customers.create({"email": "right@example.org"}, {"idempotency_key": "k1"}).id


def test_a_key_in_use_is_409(system: StripeLike) -> None:
    system.faults.delay(0.3)
    headers = {"Idempotency-Key": "k1"}
    replies: queue.Queue[int] = queue.Queue()

    def call() -> None:
        replies.put(api(system, "POST", "/v1/customers", data={"name": "A"}, headers=headers).status_code)

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert sorted([replies.get(), replies.get()]) == [200, 409]
    assert len(system.customers()) == 1


# --- webhooks and events -----------------------------------------------------------------------------------


def test_webhooks_satisfy_the_official_verifier(client: official.StripeClient, receiver: Receiver) -> None:
    made = client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k1"})
    headers, body = receiver.got.get(timeout=5)
    event = official.Webhook.construct_event(body, headers["Stripe-Signature"], SECRET)
    assert (event.type, event.data.object["id"]) == ("customer.created", made.id)
    assert event.request is not None and event.request.idempotency_key == "k1"
    with pytest.raises(official.SignatureVerificationError):
        official.Webhook.construct_event(body + b" ", headers["Stripe-Signature"], SECRET)


def test_an_update_tells_the_whole_customer_and_what_changed(client: official.StripeClient, receiver: Receiver) -> None:
    made = client.v1.customers.create({"name": "Ada", "metadata": {"a": "1", "b": "2"}})
    receiver.next()
    client.v1.customers.update(made.id, {"name": "Ada L.", "metadata": {"b": "3"}})
    event = receiver.next()
    assert event["type"] == "customer.updated"
    assert event["data"]["object"]["name"] == "Ada L."
    assert event["data"]["object"]["metadata"] == {"a": "1", "b": "3"}
    assert event["data"]["previous_attributes"] == {"name": "Ada", "metadata": {"b": "2"}}


def test_an_update_that_changes_nothing_is_no_event(client: official.StripeClient) -> None:
    made = client.v1.customers.create({"name": "Ada"})
    client.v1.customers.update(made.id, {"name": "Ada"})
    assert [event.type for event in client.v1.events.list().data] == ["customer.created"]


def test_events_can_be_polled(client: official.StripeClient) -> None:
    made = client.v1.customers.create({"name": "Ada"})
    client.v1.customers.delete(made.id)
    events = client.v1.events.list({"created": {"gte": made.created}})
    assert [event.type for event in events.data] == ["customer.deleted", "customer.created"]
    assert [e.type for e in client.v1.events.list({"type": "customer.deleted"}).data] == ["customer.deleted"]


def test_a_webhook_is_sent_again_until_it_is_taken(system: StripeLike, receiver: Receiver) -> None:
    receiver.statuses = [500, 503]
    system.create_customer(name="Ada")
    assert len({receiver.next()["id"] for _ in range(3)}) == 1
    system.webhooks.wait_idle()
    assert [attempt.status for attempt in system.webhooks.attempts] == [500, 503, 200]


def test_a_receiver_started_later_gets_the_webhook() -> None:
    late = Receiver()
    port = late.server_address[1]
    late.close()
    with StripeLike(webhook_url=f"http://127.0.0.1:{port}/hook", webhook_secret=SECRET) as system:
        system.create_customer(name="Ada")
        late = Receiver(port)
        assert late.next()["type"] == "customer.created"
        late.close()


def test_products_have_events_too(client: official.StripeClient, receiver: Receiver) -> None:
    made = client.v1.products.create({"name": "Lamp"})
    assert client.v1.products.update(made.id, {"active": False}).active is False
    client.v1.products.delete(made.id)
    kinds = [receiver.next()["type"] for _ in range(3)]
    assert kinds == ["product.created", "product.updated", "product.deleted"]


# --- products, prices, invoices ----------------------------------------------------------------------------


def code_of(refuse: Any, *given: Any) -> tuple[int | None, str | None]:
    with pytest.raises(official.StripeError) as refused:
        refuse(*given)
    return refused.value.http_status, refused.value.code


def test_prices_cannot_change_and_a_default_price_cannot_be_archived(client: official.StripeClient) -> None:
    product = client.v1.products.create(
        {"name": "Lamp", "default_price_data": {"currency": "eur", "unit_amount": 900}, "expand": ["default_price"]}
    )
    old: Any = product.default_price
    assert (old.unit_amount, old.product, old.active) == (900, product.id, True)
    assert code_of(client.v1.prices.update, old.id, {"unit_amount": 950}) == (400, "parameter_unknown")
    assert code_of(client.v1.prices.update, old.id, {"active": False})[0] == 400
    new = client.v1.prices.create({"product": product.id, "currency": "eur", "unit_amount": 950})
    assert client.v1.products.update(product.id, {"default_price": new.id}).default_price == new.id
    assert client.v1.prices.update(old.id, {"active": False}).active is False
    assert [one.id for one in client.v1.prices.list({"product": product.id, "active": True}).data] == [new.id]
    assert code_of(client.v1.products.delete, product.id)[0] == 400
    event = client.v1.events.list({"type": "product.updated"}).data[0]
    assert plain(event.data.previous_attributes)["default_price"] == old.id


def draft_of(client: official.StripeClient, *lines: Any, **values: Any) -> str:
    """Create a draft invoice with lines of (description, unit amount in cents) and return its id."""
    customer = client.v1.customers.create({"name": "Ada"}).id
    given: Any = {"customer": customer, "currency": "eur", "collection_method": "send_invoice", "days_until_due": 9}
    invoice = client.v1.invoices.create(given | values)
    for description, amount in lines:
        item: Any = {"customer": customer, "invoice": invoice.id, "description": description, "unit_amount": amount}
        client.v1.invoice_items.create(item | {"quantity": 2, "currency": "eur"})
    return invoice.id


def test_an_invoice_lives(client: official.StripeClient) -> None:
    id = draft_of(client, ("work", 500), ("travel", 20))
    seen = client.v1.invoices.retrieve(id)
    assert [(line.description, line.amount) for line in seen.lines.data] == [("travel", 40), ("work", 1000)]
    assert (seen.status, seen.number, seen.total) == ("draft", None, 1040)
    final = client.v1.invoices.finalize_invoice(id)
    assert (final.status, final.number) == ("open", "STRIPE-0001")
    assert code_of(client.v1.invoices.pay, id) == (402, "invoice_payment_intent_requires_action")
    assert client.v1.invoices.pay(id, {"paid_out_of_band": True}).status == "paid"
    types = [event.type for event in client.v1.events.list({"limit": 20}).data]
    assert types[:5] == [
        "invoice.updated",
        "invoice.paid",
        "invoice.payment_failed",
        "invoice.updated",
        "invoice.finalized",
    ]


def test_a_final_invoice_is_not_edited(client: official.StripeClient) -> None:
    id = draft_of(client, ("work", 500))
    item = client.v1.invoice_items.list({"invoice": id}).data[0].id
    client.v1.invoices.finalize_invoice(id)
    refused = (400, "invoice_not_editable")
    assert code_of(client.v1.invoices.update, id, {"number": "R-1"}) == refused
    assert code_of(client.v1.invoice_items.update, item, {"quantity": 1}) == refused
    assert code_of(client.v1.invoice_items.delete, item) == refused
    assert code_of(client.v1.invoices.delete, id) == refused
    assert plain(client.v1.invoices.update(id, {"metadata": {"a": "1"}}).metadata) == {"a": "1"}
    assert client.v1.invoices.void_invoice(id).status == "void"
    assert code_of(client.v1.invoices.void_invoice, id) == refused


def test_the_items_of_a_deleted_draft_wait_for_the_next_invoice(client: official.StripeClient) -> None:
    id = draft_of(client, ("work", 500))
    client.v1.invoices.delete(id)
    assert code_of(client.v1.invoices.retrieve, id) == (404, "resource_missing")
    assert [one.invoice for one in client.v1.invoice_items.list().data] == [None]


def test_an_invoice_is_refused_what_it_cannot_be(client: official.StripeClient) -> None:
    customer = client.v1.customers.create({"name": "Ada"}).id
    refuse = client.v1.invoices.create
    assert code_of(refuse, {"customer": "cus_nobody"}) == (400, "resource_missing")
    assert code_of(refuse, {"customer": customer, "collection_method": "send_invoice"})[0] == 400
    past = {"customer": customer, "collection_method": "send_invoice", "due_date": 1}
    assert code_of(refuse, past)[0] == 400
    draft_of(client, number="R-1")
    assert code_of(refuse, {"customer": customer, "number": "R-1"})[0] == 400
    dollars = {"customer": customer, "invoice": draft_of(client), "currency": "usd", "amount": 1}
    assert code_of(client.v1.invoice_items.create, dollars)[0] == 400


# --- faults ------------------------------------------------------------------------------------------------


def test_calls_fail_on_demand_and_do_nothing(system: StripeLike, client: official.StripeClient) -> None:
    system.faults.fail(429, times=2, method="POST", retry_after=3)
    assert client.v1.customers.list().data == []
    for _ in range(2):
        with pytest.raises(official.RateLimitError) as refused:
            client.v1.customers.create({"name": "Ada"})
        assert refused.value.headers is not None and refused.value.headers["Retry-After"] == "3"
    client.v1.customers.create({"name": "Ada"})
    assert len(system.customers()) == 1
    assert [call.fault for call in system.journal.calls("POST")] == ["fail", "fail", None]


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, official.AuthenticationError),
        (402, official.CardError),
        (500, official.APIError),
        (503, official.APIError),
    ],
)
def test_each_status_is_the_clients_error(
    system: StripeLike, client: official.StripeClient, status: int, error: type[Exception]
) -> None:
    system.faults.fail(status)
    with pytest.raises(error):
        client.v1.customers.list()


def test_a_remembered_500_comes_back_for_its_key(system: StripeLike, client: official.StripeClient) -> None:
    system.faults.fail(500, remember=True)
    for _ in range(2):
        with pytest.raises(official.APIError):
            client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k1"})
    assert client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k2"}).name == "Ada"


def test_a_dropped_call_was_carried_out(system: StripeLike, client: official.StripeClient) -> None:
    system.faults.drop(method="POST")
    with pytest.raises(official.APIConnectionError):
        client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k1"})
    assert len(system.customers()) == 1
    again = client.v1.customers.create({"name": "Ada"}, {"idempotency_key": "k1"})
    assert [one["id"] for one in system.customers()] == [again.id]


def test_a_delay_outlasts_the_clients_patience(system: StripeLike) -> None:
    system.faults.delay(0.4)
    with pytest.raises(requests.Timeout):
        requests.post(f"{system.url}/v1/customers", {"name": "A"}, auth=(KEY, ""), timeout=0.1)
    system.journal.wait_for("POST")
    assert len(system.customers()) == 1


def test_webhooks_are_doubled_swapped_dropped_and_late(system: StripeLike, receiver: Receiver) -> None:
    faults = system.faults
    faults.webhook_duplicate()
    system.create_customer(name="twice")
    assert receiver.next()["id"] == receiver.next()["id"]

    faults.webhook_reorder()
    system.create_customer(name="first")
    system.create_customer(name="second")
    assert [receiver.next()["data"]["object"]["name"] for _ in range(2)] == ["second", "first"]

    faults.webhook_drop()
    system.create_customer(name="lost")
    faults.webhook_delay(0.2)
    system.create_customer(name="late")
    system.create_customer(name="on time")
    assert [receiver.next()["data"]["object"]["name"] for _ in range(2)] == ["on time", "late"]
    assert faults.waiting() == []


# --- control calls and the journal -------------------------------------------------------------------------


def test_faults_and_journal_by_control_calls(system: StripeLike) -> None:
    control = f"{system.url}/_control"
    assert requests.post(f"{control}/faults", json={"kind": "fail", "status": 503}, timeout=5).ok
    assert len(requests.get(f"{control}/faults", timeout=5).json()["faults"]) == 1
    body = {"name": "Ada", "source_token": "tok_visa"}
    assert api(system, "POST", "/v1/customers", data=body).status_code == 503
    seen = requests.get(f"{control}/journal?since=0", timeout=5).json()
    assert seen["calls"][0]["params"] == {"name": "Ada", "source_token": "***"}
    assert requests.get(f"{control}/journal?since={seen['last']}", timeout=5).json()["calls"] == []
    requests.delete(f"{control}/journal", timeout=5)
    assert len(system.journal) == 0


@pytest.mark.parametrize(
    "order",
    [
        {"kind": "magic"},
        {"kind": "fail", "times": 0},
        {"kind": "delay", "seconds": 1e9},
        {"kind": "fail", "times": "2"},
        {"sort": "fail"},
        [1],
    ],
)
def test_a_wrong_order_is_refused(system: StripeLike, order: Any) -> None:
    assert requests.post(f"{system.url}/_control/faults", json=order, timeout=5).status_code == 400
    assert system.faults.waiting() == []


def test_another_sites_page_cannot_order_faults_or_edit(system: StripeLike) -> None:
    foreign = {"Origin": "http://elsewhere.example"}
    order = {"kind": "fail"}
    assert requests.post(f"{system.url}/_control/faults", json=order, headers=foreign, timeout=5).status_code == 403
    reply = requests.get(f"{system.url}/", headers=foreign, timeout=5)
    assert "Access-Control-Allow-Origin" not in reply.headers


# --- the pages ---------------------------------------------------------------------------------------------


def test_an_edit_on_the_page_is_an_edit_in_stripe(system: StripeLike, receiver: Receiver) -> None:
    made = system.create_customer(name="<Ada>", email="ada@example.org")
    receiver.next()
    assert "&lt;Ada&gt;" in requests.get(system.url, timeout=5).text
    page = f"{system.url}/ui/customers/{made['id']}"
    assert 'value="ada@example.org"' in requests.get(page, timeout=5).text
    saved = requests.post(page, {"name": "Ada", "email": "ada@example.org", "address_city": "Rome"}, timeout=5)
    assert saved.url == f"{system.url}/" and "Ada" in saved.text
    event = receiver.next()
    assert event["type"] == "customer.updated" and event["request"]["id"] is None
    assert event["data"]["object"]["address"]["city"] == "Rome"
    assert len(system.journal) == 0


def test_the_page_creates_refuses_and_deletes(system: StripeLike) -> None:
    new = f"{system.url}/ui/customers/new"
    refused = requests.post(new, {"email": "wrong"}, timeout=5)
    assert refused.status_code == 400 and "Invalid email address" in refused.text
    requests.post(new, {"name": "Ada"}, timeout=5)
    (made,) = system.customers()
    requests.post(f"{system.url}/ui/customers/{made['id']}/delete", timeout=5)
    assert system.customers() == []
    assert requests.get(f"{system.url}/ui/customers/{made['id']}", timeout=5).status_code == 404


def test_products_and_invoices_are_edited_on_their_pages(system: StripeLike) -> None:
    def post(path: str, **form: str) -> requests.Response:
        return requests.post(f"{system.url}/ui/{path}", form, timeout=5)

    assert "Lamp" in post("products/new", name="Lamp", price="900", currency="eur").text
    (lamp,) = api(system, "GET", "/v1/products").json()["data"]
    post(f"products/{lamp['id']}", name="Lamp", price="950", currency="eur", active="True")
    prices = api(system, "GET", "/v1/prices").json()["data"]
    assert [(one["unit_amount"], one["active"]) for one in prices] == [(950, True), (900, False)]
    assert post(f"products/{lamp['id']}/delete").status_code == 400

    customer = system.create_customer(name="Ada")["id"]
    assert post("invoices/new", customer="nobody").status_code == 400
    post("invoices/new", customer=customer, currency="eur", line="work", amount="500")
    (invoice,) = api(system, "GET", "/v1/invoices").json()["data"]
    page = f"invoices/{invoice['id']}"
    post(page, number="R-1", status="open")
    assert "paid" in post(page, number="R-1", status="paid").text
    assert post(page, number="R-2", status="paid").status_code == 400
    seen = api(system, "GET", f"/v1/{page}").json()
    assert (seen["number"], seen["status"], seen["total"], seen["paid_out_of_band"]) == ("R-1", "paid", 500, False)


# --- stopping and starting ---------------------------------------------------------------------------------


def test_a_restart_carries_on(tmp_path: Path) -> None:
    data = tmp_path / "demo" / "stripe.json"
    with StripeLike(data=data) as system:
        client = client_of(system.url)
        kept = client.v1.customers.create(
            {
                "name": "Ada",
                "metadata": {"$ref": "x"},
                "tax_id_data": [{"type": "eu_vat", "value": "FR1234567890"}],
            },
            {"idempotency_key": "k1"},
        )
        gone = client.v1.customers.create({"name": "Eve"})
        client.v1.customers.delete(gone.id)
        lamp = client.v1.products.create({"name": "Lamp"}).id
    with StripeLike(data=data) as system:
        client = client_of(system.url)
        assert plain(client.v1.customers.retrieve(kept.id).metadata) == {"$ref": "x"}
        assert client.v1.customers.retrieve(gone.id).deleted
        assert len(client.v1.events.list().data) == 4
        assert client.v1.products.retrieve(lamp).name == "Lamp"
        replayed = api(
            system,
            "POST",
            "/v1/customers",
            headers={"Idempotency-Key": "k1"},
            data=[
                ("name", "Ada"),
                ("metadata[$ref]", "x"),
                ("tax_id_data[0][type]", "eu_vat"),
                ("tax_id_data[0][value]", "FR1234567890"),
            ],
        )
        assert replayed.json()["id"] == kept.id
        assert len(system.customers()) == 1


def test_webhooks_not_delivered_are_kept(tmp_path: Path, receiver: Receiver) -> None:
    data = tmp_path / "stripe.json"
    with StripeLike(data=data, webhook_url=receiver.url, webhook_secret=SECRET) as system:
        system.faults.webhook_delay(60)
        system.create_customer(name="Ada")
    assert receiver.got.empty() and SECRET not in data.read_text()
    with StripeLike(data=data, webhook_url=receiver.url, webhook_secret=SECRET):
        assert receiver.next()["data"]["object"]["name"] == "Ada"


def test_a_foreign_data_file_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "other.json"
    data.write_text('{"a": 1}')
    with pytest.raises(ValueError, match="not a data file"):
        StripeLike(data=data).start()


def test_two_systems_share_nothing(system: StripeLike) -> None:
    with StripeLike() as other:
        system.create_customer(name="Ada")
        assert other.customers() == [] and other.url != system.url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    data = tmp_path / "stripe.json"
    command = [sys.executable, "-m", "simulators.stripe", "--port", "0", "--data", str(data)]
    environment = {**os.environ, "STRIPE_WEBHOOK_SECRET": SECRET}
    with child_processes.start(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as run:
        assert run.stdout is not None
        url = run.stdout.readline().strip()
        client_of(url).v1.customers.create({"name": "Ada"})
        run.send_signal(number)
        _, errors = run.communicate(timeout=10)
    assert (run.returncode, "Traceback" in errors) == (0, False)
    assert "Ada" in data.read_text()
