"""The fleet: PostgreSQL, RabbitMQ, the processes of the Procfile, and two external systems."""

import json
import os
import subprocess
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
import requests

from tests.acceptance.fleet import LEASE_SECONDS, Fleet, fleet_of
from tests.acceptance.processes import connected, eventually, next_second

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def fleet(postgres_server: str, rabbitmq_server: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    with fleet_of(postgres_server, rabbitmq_server, tmp_path_factory.mktemp("fleet")) as running:
        yield running


def in_both(fleet: Fleet, record: int, **columns: str) -> None:
    """Wait until both systems hold this record with these values; the column names are those shared with Stripe."""
    names = {"name": "Name", "email": "Email__c", "phone": "Phone"}

    def agree() -> bool:
        customer, account = fleet.stripe.customer(record), fleet.salesforce.account(record)
        for column, value in columns.items():
            assert (customer[column], account[names[column]]) == (value, value)
        return True

    eventually(agree)


def test_one_customer_travels_both_ways(fleet: Fleet) -> None:
    # Another program creates a record in plain SQL.
    record = fleet.sql.add("Ada Lovelace", phone="+44 20 7946 0018", city="London")
    in_both(fleet, record, name="Ada Lovelace", email="ada.lovelace@acceptance.example", phone="+44 20 7946 0018")
    assert fleet.stripe.customer(record)["address"]["city"] == "London"
    assert fleet.salesforce.account(record)["BillingCity"] == "London"
    customer = fleet.stripe.customer(record)["id"]
    account = fleet.salesforce.account(record)["Id"]

    # A user edits in Stripe: the webhook delivers the change, and nothing is written back.
    fleet.quiet()
    next_second()
    calls_before = fleet.stripe.last_call()
    fleet.stripe.edit(customer, phone="+44 20 7946 0019")
    eventually(lambda: fleet.sql.customer(record)["phone"] == "+44 20 7946 0019")
    in_both(fleet, record, phone="+44 20 7946 0019")
    fleet.quiet()
    assert fleet.stripe.calls(since=calls_before) == []

    # A user edits in Salesforce: a poll delivers the change, and nothing is written back.
    next_second()
    writes_before = fleet.salesforce.last_call()
    fleet.salesforce.edit(account, Phone="+44 20 7946 0020")
    polled = fleet.syncflow("poll", "salesforce")
    assert (polled.returncode, "salesforce.customer: " in polled.stdout) == (0, True), polled.stderr
    assert fleet.sql.customer(record)["phone"] == "+44 20 7946 0020"
    in_both(fleet, record, phone="+44 20 7946 0020")
    fleet.quiet()
    assert fleet.salesforce.writes(since=writes_before) == []

    # A delete in the database: both subscribers' policy is to delete in their system.
    fleet.sql("DELETE FROM customer WHERE id = :id", id=record)
    eventually(lambda: not fleet.stripe.customers(record) and not fleet.salesforce.accounts(record))
    fleet.sql.settled()
    assert fleet.sql("SELECT * FROM customer WHERE id = :id", id=record) == []


def test_rabbitmq_shows_what_the_architecture_says(fleet: Fleet) -> None:
    with connected(fleet.broker_url) as connection:
        channel = connection.channel()
        channel.exchange_declare("syncflow.changes", passive=True)
        for queue in ("stripe.customer", "salesforce.customer"):
            assert channel.queue_declare(queue, passive=True).method.consumer_count >= 1
            if bindings := _bindings(fleet.broker_url):
                assert f"syncflow.changes\t{queue}\tcustomer" in bindings
        # Any other program may listen too. Messages name the changed records, but hold none of their data.
        mine = channel.queue_declare("", exclusive=True).method.queue
        channel.queue_bind(mine, "syncflow.changes", routing_key="customer")
        record = fleet.sql.add("Emmy Noether")
        body: bytes = eventually(lambda: channel.basic_get(mine, auto_ack=True)[2] or b"")
    message = json.loads(body)
    assert message["kwargs"] == {"catalogue": "customer", "record_ids": [str(record)]}
    assert b"Noether" not in body
    in_both(fleet, record, name="Emmy Noether")


def _bindings(broker_url: str) -> str:
    """Return `source, destination, routing key` of each binding; empty if this user may not list them."""
    if os.geteuid() != 0:
        return ""
    name = urlsplit(broker_url).path.removeprefix("/").replace("%2F", "/")
    asked = ["rabbitmqctl", "--quiet", "list_bindings", "-p", name, "source_name", "destination_name", "routing_key"]
    try:
        answer = subprocess.run(asked, capture_output=True, text=True, timeout=30, check=False)
    except FileNotFoundError:
        return ""
    return answer.stdout if answer.returncode == 0 else ""


def test_a_webhook_with_a_bad_signature_is_refused_and_only_counted(fleet: Fleet) -> None:
    def state() -> tuple[int, int]:
        refused = "SELECT webhooks_rejected FROM system WHERE name = 'stripe'"
        return fleet.sql.one("SELECT count(*) FROM inbox"), fleet.sql.one(refused)

    fleet.sql.settled()
    stored, refused = state()
    headers = {"Stripe-Signature": f"t={int(time.time())},v1={'0' * 64}"}
    body = json.dumps({"id": "evt_forged", "object": "event", "type": "customer.deleted", "data": {"object": {}}})
    answers = [
        requests.post(f"{fleet.url}/webhooks/stripe", data=body, headers=headers, timeout=10),
        requests.post(f"{fleet.url}/webhooks/stripe", data=body, timeout=10),
    ]
    assert [answer.status_code for answer in answers] == [400, 400]
    assert state() == (stored, refused + 2)


def test_the_same_webhook_twice_is_applied_once(fleet: Fleet) -> None:
    record = fleet.sql.add("Grace Hopper")
    in_both(fleet, record, name="Grace Hopper")
    fleet.sql.settled()
    next_second()
    attempts = len(fleet.stripe.webhooks())
    fleet.stripe.order(kind="webhook_duplicate")
    fleet.stripe.edit(fleet.stripe.customer(record)["id"], phone="+1 202 555 0142")
    in_both(fleet, record, phone="+1 202 555 0142")
    eventually(lambda: len(fleet.stripe.webhooks()) >= attempts + 2)
    fleet.sql.settled()
    assert [one["status"] for one in fleet.stripe.webhooks()[attempts:]] == [202, 200]
    history = "SELECT * FROM delivery WHERE direction = 'in' AND outcome = 'applied' AND record_id = :id"
    assert len(fleet.sql(history, id=str(record))) == 1


def test_a_record_that_stripe_refuses_becomes_a_dead_letter_and_does_not_block_others(fleet: Fleet) -> None:
    fleet.stripe.order(kind="fail", status=400, method="POST", path="/v1/customers")
    both = "INSERT INTO customer (name) VALUES ('Refused'), ('Neighbour') RETURNING id"
    records = [row["id"] for row in fleet.sql(both)]
    eventually(lambda: all(fleet.salesforce.account(record) for record in records))
    fleet.sql.settled()
    letters = fleet.sql("SELECT * FROM dead_letter WHERE closed_at IS NULL")
    assert [letter["error"] for letter in letters] == ["Reject"]
    refused = int(letters[0]["record_id"])
    (neighbour,) = {*records} - {refused}
    assert fleet.stripe.customers(refused) == []
    assert fleet.stripe.customer(neighbour)

    again = fleet.syncflow("retry", "--subscriber", "stripe.customer")
    assert (again.returncode, again.stdout) == (0, "Retrying 1 dead letter\n"), again.stderr
    eventually(lambda: fleet.stripe.customer(refused))
    fleet.sql.settled()
    assert fleet.sql.one("SELECT count(*) FROM dead_letter WHERE closed_at IS NULL") == 0


def test_deliveries_wait_while_a_system_is_down(fleet: Fleet) -> None:
    record = fleet.sql.add("Rosalind Franklin")
    in_both(fleet, record, name="Rosalind Franklin")
    fleet.sql.settled()
    assert fleet.processes["stripe"].stop() == 0

    fleet.sql("UPDATE customer SET phone = '+44 20 7946 0199' WHERE id = :id", id=record)
    eventually(lambda: fleet.sql("SELECT 1 FROM system WHERE name = 'stripe' AND down_since IS NOT NULL"))
    eventually(lambda: fleet.salesforce.account(record)["Phone"] == "+44 20 7946 0199")
    said = fleet.syncflow("status")
    assert said.returncode == 1
    stripe, _, salesforce = sorted(said.stdout.splitlines(), key=lambda line: "stripe" not in line)[:3]
    assert stripe.split()[:2] == ["stripe", "down"] and "1 record is pending" in stripe, said.stdout
    assert "salesforce     ok" in said.stdout, salesforce

    fleet.start_stripe().wait_for(r"^(http\S+)")
    eventually(lambda: fleet.stripe.customer(record)["phone"] == "+44 20 7946 0199")
    fleet.sql.settled()
    assert not fleet.sql("SELECT 1 FROM system WHERE down_since IS NOT NULL")
    assert fleet.sql.one("SELECT count(*) FROM dead_letter WHERE closed_at IS NULL") == 0


def test_a_worker_killed_in_the_middle_of_a_delivery(fleet: Fleet) -> None:
    fleet.sql.settled()
    calls_before = fleet.stripe.last_call()
    fleet.stripe.order(kind="delay", seconds=LEASE_SECONDS / 2, method="POST", path="/v1/customers")
    record = fleet.sql.add("Katherine Johnson")
    eventually(lambda: not fleet.stripe.faults())  # the call has arrived and is still unanswered
    fleet.processes["worker"].kill()
    assert fleet.sql("SELECT 1 FROM link WHERE subscriber = 'stripe.customer' AND record_id = :id"
                     " AND create_token IS NOT NULL AND external_id IS NULL", id=str(record))  # fmt: skip

    fleet.start("worker")
    in_both(fleet, record, name="Katherine Johnson")
    fleet.quiet()
    created = [one for one in fleet.stripe.calls(since=calls_before) if one["method"] == "POST"]
    assert [(one["path"], one["status"]) for one in created] == [("/v1/customers", 200)]
    linked = "SELECT external_id FROM link WHERE subscriber = 'stripe.customer' AND record_id = :id"
    assert fleet.sql.one(linked, id=str(record)) == fleet.stripe.customer(record)["id"]


def test_lost_database_connections_are_reopened(fleet: Fleet) -> None:
    fleet.sql.settled()
    fleet.sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
              " WHERE datname = current_database() AND pid <> pg_backend_pid()")  # fmt: skip
    record = fleet.sql.add("Sofia Kovalevskaya")
    in_both(fleet, record, name="Sofia Kovalevskaya")
    assert requests.get(f"{fleet.url}/healthz", timeout=10).status_code == 200
    assert {name: one.runs for name, one in fleet.processes.items()} == dict.fromkeys(fleet.processes, True)


def test_the_scheduler_polls_by_itself(fleet: Fleet) -> None:
    record = fleet.sql.add("Hedy Lamarr")
    in_both(fleet, record, name="Hedy Lamarr")
    fleet.sql.settled()
    fleet.start("scheduler")
    ran = "SELECT finished_at FROM schedule WHERE job = 'poll salesforce.customer' AND finished_at IS NOT NULL"
    eventually(lambda: fleet.sql(ran))
    next_second()
    writes_before = fleet.salesforce.last_call()
    fleet.salesforce.edit(fleet.salesforce.account(record)["Id"], Phone="+43 1 555 0107")
    in_both(fleet, record, phone="+43 1 555 0107")
    assert fleet.sql.customer(record)["phone"] == "+43 1 555 0107"
    fleet.quiet()
    assert fleet.salesforce.writes(since=writes_before) == []


def test_every_process_stops_on_request(fleet: Fleet) -> None:
    record = fleet.sql.add("Maryam Mirzakhani")
    in_both(fleet, record, name="Maryam Mirzakhani")
    kinds = ("scheduler", "relay", "worker", "web")
    for kind in kinds:
        fleet.processes[kind].ask()
    assert {kind: fleet.processes[kind].end() for kind in kinds} == dict.fromkeys(kinds, 0)
    # A process that stops removes its row. The killed worker could not.
    left = [row["name"] for row in fleet.sql("SELECT name FROM process")]
    assert all(name.startswith("worker ") for name in left) and len(left) <= 1, left


def test_the_outputs_hold_no_traceback(fleet: Fleet) -> None:
    for process in fleet.processes.values():
        assert "Traceback" not in process.printed, process.tail()
