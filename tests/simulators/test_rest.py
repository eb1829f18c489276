"""The shop's REST system, called as a connector calls it."""

import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

import child_processes
from simulators.rest import DEMO_TOKEN, RestSystem


class Client(requests.Session):
    def __init__(self, url: str, token: str = DEMO_TOKEN) -> None:
        super().__init__()
        self.url = url
        self.headers["Authorization"] = f"Bearer {token}"

    def call(self, method: str, path: str, body: Any = None, **more: Any) -> requests.Response:
        return self.request(method, self.url + path, json=body, timeout=5, **more)

    def create(self, **fields: Any) -> Any:
        reply = self.call("POST", "/contacts", fields)
        assert reply.status_code == 201, reply.text
        return reply.json()

    def items(self, **query: Any) -> list[Any]:
        """Return all items, following the `next` links."""
        url: str | None = f"{self.url}/contacts"
        found = []
        while url:
            page = self.get(url, params=query, timeout=5).json()
            found += page["items"]
            url, query = page["next"], {}
        return found


@pytest.fixture
def shop() -> Iterator[RestSystem]:
    with RestSystem() as one:
        yield one


@pytest.fixture
def client(shop: RestSystem) -> Iterator[Client]:
    with Client(shop.url) as one:
        yield one


# --- contacts ----------------------------------------------------------------------------------------------


def test_a_contact_lives(client: Client) -> None:
    made = client.create(name="Ada", email="ada@example.org", phone="1")
    assert datetime.fromisoformat(made["updated_at"]).tzinfo is not None and len(made["updated_at"]) == 27
    path = f"/contacts/{made['id']}"
    assert client.call("GET", path).json() == made
    patched = client.call("PATCH", path, {"name": "Ada L."}).json()
    assert (patched["name"], patched["phone"]) == ("Ada L.", "1")
    assert patched["updated_at"] > made["updated_at"]
    put = client.call("PUT", path, {"email": "ada@example.org"}).json()
    assert (put["name"], put["phone"]) == (None, None)
    gone = client.call("DELETE", path)
    assert (gone.status_code, gone.content) == (204, b"")
    for method in ("GET", "DELETE"):
        assert client.call(method, path).status_code == 404
    assert client.call("PATCH", path, {"name": "x"}).status_code == 404


def test_an_id_is_never_used_again(client: Client) -> None:
    first = client.create(email="a@example.org")
    client.call("DELETE", f"/contacts/{first['id']}")
    assert client.create(email="a@example.org")["id"] > first["id"]


@pytest.mark.parametrize(
    ("body", "errors"),
    [
        ({"name": "Ada"}, {"email": ["is required"]}),
        ({"email": "nonsense"}, {"email": ["is not an email address"]}),
        ({"email": "a@example.org", "name": 7}, {"name": ["must be text or null"]}),
        ({"email": "a@example.org", "shoe": "43"}, {"shoe": ["is not a field of a contact"]}),
        ({"email": "a@example.org", "note": "x" * 501}, {"note": ["must be at most 500 characters"]}),
        ([], {"": ["must be a JSON object"]}),
    ],
)
def test_wrong_data_is_422_by_field(shop: RestSystem, client: Client, body: Any, errors: Any) -> None:
    reply = client.call("POST", "/contacts", body)
    assert (reply.status_code, reply.json()) == (422, {"errors": errors})
    assert client.items() == []


def test_what_is_not_json_is_400(client: Client) -> None:
    assert client.post(f"{client.url}/contacts", data=b"{", timeout=5).status_code == 400


@pytest.mark.parametrize("id", ["0", "x", "1/2", "9" * 30, "-1"])
def test_an_unknown_id_is_404(client: Client, id: str) -> None:
    assert client.call("GET", f"/contacts/{id}").status_code == 404


def test_a_missing_or_wrong_token_is_401(shop: RestSystem) -> None:
    assert requests.get(f"{shop.url}/contacts", timeout=5).status_code == 401
    assert Client(shop.url, "wrong").call("POST", "/contacts", {"email": "a@example.org"}).status_code == 401


def test_an_email_may_be_unique() -> None:
    with RestSystem(unique_email=True) as shop, Client(shop.url) as client:
        first = client.create(email="a@example.org")
        taken = client.call("POST", "/contacts", {"email": "A@example.org"})
        assert (taken.status_code, taken.json()["contact_id"]) == (409, first["id"])
        other = client.create(email="b@example.org")
        patched = client.call("PATCH", f"/contacts/{other['id']}", {"email": "a@example.org"})
        assert patched.status_code == 409
        same = client.call("PATCH", f"/contacts/{first['id']}", {"email": "a@example.org"})
        assert same.status_code == 200


# --- lists -------------------------------------------------------------------------------------------------


def test_lists_are_paged_in_order_of_change(client: Client) -> None:
    ids = [client.create(email=f"{n}@example.org")["id"] for n in range(7)]
    client.call("PATCH", f"/contacts/{ids[0]}", {"name": "touched"})
    assert [one["id"] for one in client.items(limit=3)] == [*ids[1:], ids[0]]


def test_updated_since_takes_ties_in() -> None:
    at = datetime(2026, 1, 1, tzinfo=UTC)
    times = iter([at, at + timedelta(microseconds=1), at + timedelta(microseconds=1), at + timedelta(seconds=1)])
    with RestSystem(clock=lambda: next(times)) as shop, Client(shop.url) as client:
        made = [client.create(email=f"{n}@example.org") for n in range(4)]
        assert made[1]["updated_at"] == "2026-01-01T00:00:00.000001Z"
        since = client.items(updated_since=made[1]["updated_at"], limit=1)
        assert [one["id"] for one in since] == [one["id"] for one in made[1:]]
        zoned = "2026-01-01T01:00:01+01:00"
        assert [one["id"] for one in client.items(updated_since=zoned)] == [made[3]["id"]]
        unescaped = client.get(f"{client.url}/contacts?updated_since={zoned}", timeout=5).json()
        assert [one["id"] for one in unescaped["items"]] == [made[3]["id"]]


def test_lists_are_filtered(client: Client) -> None:
    one = client.create(email="a@example.org", external_ref="7")
    client.create(email="b@example.org", external_ref="70")
    assert client.items(external_ref="7") == [one]
    assert client.items(email="A@Example.org") == [one]
    assert client.items(external_ref="'; --") == []


@pytest.mark.parametrize("query", ["limit=0", "limit=x", "page=-1", "updated_since=yesterday"])
def test_a_wrong_query_is_422(client: Client, query: str) -> None:
    assert client.call("GET", f"/contacts?{query}").status_code == 422


def test_many_callers_at_once(client: Client, shop: RestSystem) -> None:
    def create(n: int) -> None:
        with Client(shop.url) as one:
            one.create(email=f"{n}@example.org")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(create, range(64)))
    assert len(client.items(limit=200)) == 64 and len(shop.journal.calls("POST")) == 64


# --- webhooks ----------------------------------------------------------------------------------------------


def test_webhooks_are_signed_and_tell_all(httpserver: HTTPServer) -> None:
    got: list[Request] = []
    arrived = threading.Semaphore(0)

    def take(request: Request) -> Response:
        request.get_data()
        got.append(request)
        arrived.release()
        return Response(status=500 if len(got) == 1 else 204)

    httpserver.expect_request("/hook").respond_with_handler(take)
    url = httpserver.url_for("/hook")
    with RestSystem(webhook_url=url, webhook_secret="s3cret") as shop, Client(shop.url) as client:
        made = client.create(email="a@example.org")
        for _ in range(2):  # the first attempt is refused
            assert arrived.acquire(timeout=5)
        client.call("PATCH", f"/contacts/{made['id']}", {"name": "Ada"})
        client.call("DELETE", f"/contacts/{made['id']}")
        for _ in range(2):
            assert arrived.acquire(timeout=5)
    bodies = [request.get_data() for request in got]
    for request, body in zip(got, bodies, strict=True):
        assert request.headers["X-Signature"] == hmac.new(b"s3cret", body, hashlib.sha256).hexdigest()
    events = [json.loads(body) for body in bodies]
    assert events[0] == events[1]
    assert [event["event"] for event in events[1:]] == [
        "contact.created",
        "contact.updated",
        "contact.deleted",
    ]
    assert events[0]["data"] == made


# --- faults ------------------------------------------------------------------------------------------------


def test_calls_fail_on_demand_and_do_nothing(shop: RestSystem, client: Client) -> None:
    shop.faults.fail(429, times=2, method="POST", retry_after=7)
    assert client.items() == []
    for _ in range(2):
        reply = client.call("POST", "/contacts", {"email": "a@example.org"})
        assert (reply.status_code, reply.headers["Retry-After"]) == (429, "7")
    client.create(email="a@example.org")
    assert [call.fault for call in shop.journal.calls("POST")] == ["fail", "fail", None]
    assert len(client.items()) == 1


def test_a_fault_can_be_for_one_path(shop: RestSystem, client: Client) -> None:
    made = client.create(email="a@example.org")
    shop.faults.fail(500, path="/contacts/*")
    assert client.call("GET", "/contacts").status_code == 200
    assert client.call("GET", f"/contacts/{made['id']}").status_code == 500


def test_a_dropped_call_was_carried_out(shop: RestSystem, client: Client) -> None:
    shop.faults.drop(method="POST")
    with pytest.raises(requests.ConnectionError):
        client.call("POST", "/contacts", {"email": "a@example.org"})
    assert len(client.items()) == 1
    assert [(call.status, call.fault) for call in shop.journal.calls("POST")] == [(201, "drop")]


def test_a_delay_outlasts_the_clients_patience(shop: RestSystem, client: Client) -> None:
    shop.faults.delay(0.3)
    with pytest.raises(requests.Timeout):
        client.post(f"{shop.url}/contacts", json={"email": "a@example.org"}, timeout=0.1)
    shop.journal.wait_for("POST")
    assert len(client.items()) == 1


def test_faults_and_journal_by_control_calls(shop: RestSystem, client: Client) -> None:
    order = {"kind": "fail", "status": 503}
    assert requests.post(f"{shop.url}/_control/faults", json=order, timeout=5).status_code == 200
    assert client.call("POST", "/contacts", {"email": "a@example.org", "password": "x"}).status_code == 503
    seen = requests.get(f"{shop.url}/_control/journal?since=0", timeout=5).json()
    assert seen["calls"][0]["params"] == {"email": "a@example.org", "password": "***"}
    assert requests.post(f"{shop.url}/_control/faults", json={"kind": "no"}, timeout=5).status_code == 400
    assert requests.post(f"{shop.url}/_control/faults", data=b"{", timeout=5).status_code == 400
    assert requests.get(f"{shop.url}/_control/nothing", timeout=5).status_code == 404
    foreign = {"Origin": "http://elsewhere.example"}
    reply = requests.delete(f"{shop.url}/_control/data", headers=foreign, timeout=5)
    assert reply.status_code == 403


def test_a_stopped_system_answers_no_more() -> None:
    with RestSystem() as shop:
        client = Client(shop.url)
        client.create(email="a@example.org")  # keeps a connection open
    with pytest.raises(requests.ConnectionError):
        client.call("GET", "/contacts")


# --- the pages ---------------------------------------------------------------------------------------------


def test_a_person_edits_creates_and_deletes(shop: RestSystem, client: Client) -> None:
    made = client.create(name="<Ada>", email="a@example.org")
    page = f"{shop.url}/ui/contacts/{made['id']}"
    assert "&lt;Ada&gt;" in requests.get(shop.url, timeout=5).text
    assert 'value="a@example.org"' in requests.get(page, timeout=5).text
    requests.post(page, {"name": "Ada", "email": "a@example.org", "phone": ""}, timeout=5)
    assert client.call("GET", f"/contacts/{made['id']}").json()["name"] == "Ada"
    refused = requests.post(f"{shop.url}/ui/contacts/new", {"email": "wrong"}, timeout=5)
    assert refused.status_code == 422 and "is not an email address" in refused.text
    requests.post(f"{shop.url}/ui/contacts/new", {"email": "b@example.org"}, timeout=5)
    requests.post(f"{page}/delete", timeout=5)
    assert [one["email"] for one in client.items()] == ["b@example.org"]
    assert {call.path for call in shop.journal} == {"/contacts", f"/contacts/{made['id']}"}


# --- stopping and starting ---------------------------------------------------------------------------------


def test_a_restart_carries_on(tmp_path: Path, httpserver: HTTPServer) -> None:
    httpserver.expect_oneshot_request("/hook").respond_with_data("")
    options: Any = {"webhook_url": httpserver.url_for("/hook"), "webhook_secret": "s"}
    data = tmp_path / "demo" / "shop.sqlite"
    with RestSystem(data=data, **options) as shop, Client(shop.url) as client:
        shop.faults.webhook_delay(60)
        made = client.create(email="a@example.org")
    with RestSystem(data=data, **options) as shop, Client(shop.url) as client:
        assert client.items() == [made]
        shop.webhooks.wait_idle()
    assert json.loads(httpserver.log[0][0].get_data())["data"] == made


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_serves_until_told_to_stop(tmp_path: Path, number: signal.Signals) -> None:
    command = [sys.executable, "-m", "simulators.rest", "--port", "0", "--data", str(tmp_path / "shop.sqlite")]
    environment = {**os.environ, "SHOP_TOKEN": "t0ken"}
    with child_processes.start(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as run:
        assert run.stdout is not None
        Client(run.stdout.readline().strip(), "t0ken").create(email="a@example.org")
        run.send_signal(number)
        _, errors = run.communicate(timeout=10)
    assert (run.returncode, "Traceback" in errors) == (0, False)


def test_writes_that_name_an_old_version_are_refused(client: Client) -> None:
    made = client.call("POST", "/contacts", {"name": "Ada", "email": "ada@x.example"})
    first, path = made.headers["ETag"], made.headers["Location"]
    assert client.call("GET", path).headers["ETag"] == first
    edited = client.call("PATCH", path, {"name": "Ada L"}, headers={"If-Match": first})
    assert edited.status_code == 200 and edited.headers["ETag"] != first
    whole = {"name": "x", "email": "ada@x.example"}
    for method, body in (("PATCH", {"name": "x"}), ("PUT", whole), ("DELETE", None)):
        refused = client.call(method, path, body, headers={"If-Match": first})
        assert (refused.status_code, client.call("GET", path).json()["name"]) == (412, "Ada L")
    long_ago = {"If-Unmodified-Since": "Tue, 01 Dec 2020 10:00:00 GMT"}
    assert client.call("DELETE", path, headers=long_ago).status_code == 412
    since = {"If-Unmodified-Since": client.call("GET", path).headers["Last-Modified"]}
    assert client.call("DELETE", path, headers=since).status_code == 204


def test_a_list_can_be_filtered_by_ids(client: Client) -> None:
    ids = [client.create(name=f"n{number}", email=f"n{number}@x.example")["id"] for number in range(12)]
    chosen = [ids[1], ids[10], ids[11]]
    assert [one["id"] for one in client.items(ids=",".join(map(str, chosen)), limit=2)] == chosen
    assert client.items(ids="") == []
