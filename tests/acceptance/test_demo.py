"""`./syncflow demo`: what a new user sees first, with only Python installed, and with the services of a fleet."""

import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.acceptance.demo import Demo, in_both
from tests.acceptance.processes import ended_at_the_end, eventually, family, next_second, vhost
from tests.support import services

pytestmark = pytest.mark.acceptance


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    demo = Demo(tmp_path_factory.mktemp("demo"))
    with ended_at_the_end(demo.settings):
        demo.start()
        yield demo


def test_the_samples_are_in_both_systems(demo: Demo) -> None:
    names = {row["id"]: row["name"] for row in demo.sql("SELECT id, name FROM customer")}
    assert len(names) == 8
    eventually(lambda: {id: demo.stripe.customer(id)["name"] for id in names} == names)
    eventually(lambda: {id: demo.salesforce.account(id)["Name"] for id in names} == names)
    demo.sql.settled()
    links = "SELECT subscriber FROM link WHERE external_id IS NOT NULL"
    there = Counter(row["subscriber"] for row in demo.sql(links))
    both = {"customer": 8, "product": 4, "invoice": 4}
    assert there == {f"{s}.{catalogue}": count for s in ("stripe", "salesforce") for catalogue, count in both.items()}
    assert demo.sql.one("SELECT count(*) FROM dead_letter") == 0


def test_the_printed_login_works(demo: Demo) -> None:
    page = demo.log_in()
    assert page.url.startswith(demo.url) and "/login" not in page.url
    assert "Log out" in page.text


def test_commands_use_the_settings_of_a_running_demo(demo: Demo) -> None:
    demo.sql.settled()
    said = demo.command("status")
    assert "stripe.customer" in said and "salesforce.customer" in said and "pending 0" in said


def test_the_first_thing_to_try_a_change_in_the_database(demo: Demo) -> None:
    demo.try_the_first_thing()
    in_both(demo, 1, "+44 20 7946 0000")


def test_the_second_thing_to_try_a_change_in_stripe(demo: Demo) -> None:
    demo.sql.settled()
    next_second()
    calls_before = demo.stripe.last_call()
    demo.stripe.edit(demo.stripe.customer(2)["id"], phone="+1 202 555 0199")
    in_both(demo, 2, "+1 202 555 0199")
    assert demo.sql.customer(2)["phone"] == "+1 202 555 0199"
    assert [call for call in demo.stripe.calls(since=calls_before) if call["method"] != "GET"] == []


def test_the_third_thing_to_try_a_change_in_salesforce(demo: Demo) -> None:
    demo.salesforce.edit(demo.salesforce.account(3)["Id"], Phone="+49 551 555 0199")
    in_both(demo, 3, "+49 551 555 0199")
    assert demo.sql.customer(3)["phone"] == "+49 551 555 0199"


def test_it_stops_cleanly_and_carries_on(demo: Demo) -> None:
    demo.sql.settled()
    demo.process.ask(signal.SIGINT, group=True)  # Ctrl-C
    assert demo.process.end() == 0
    assert family(demo.settings["SYNCFLOW_VAR"]) == []
    assert "Traceback" not in demo.process.printed

    demo.sql("UPDATE customer SET phone = '+46 8 555 0199' WHERE id = 4")
    demo.start()
    in_both(demo, 4, "+46 8 555 0199")
    in_both(demo, 3, "+49 551 555 0199")
    assert "the password was printed at the first start" in demo.process.printed
    assert demo.sql.one('SELECT count(*) FROM "user"') == 1
    assert demo.sql.one("SELECT count(*) FROM customer") == 8

    assert demo.process.stop() == 0
    assert family(demo.settings["SYNCFLOW_VAR"]) == []
    assert "Traceback" not in demo.process.printed


def test_the_demo_over_postgresql_and_rabbitmq(
    postgres_server: str, rabbitmq_server: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    with services.fresh_database(postgres_server) as database_url, vhost(rabbitmq_server) as broker_url:
        settings = {"DATABASE_URL": database_url, "BROKER_URL": broker_url, "SECRET_KEY": "0123456789" * 4}
        demo = Demo(tmp_path_factory.mktemp("fleet-demo"), **settings)
        with ended_at_the_end(demo.settings):
            demo.start()
            kinds = {"web", "relay", "worker", "scheduler"}
            eventually(lambda: {row["kind"] for row in demo.sql("SELECT kind FROM process")} == kinds)
            demo.try_the_first_thing()
            in_both(demo, 1, "+44 20 7946 0000")
            demo.process.ask(signal.SIGKILL)
            assert demo.process.end() == -signal.SIGKILL
            eventually(lambda: family(demo.settings["SYNCFLOW_VAR"]) == [])
            assert "Traceback" not in demo.process.printed
