"""`./syncflow check` reports in plain words what is missing before the first record is sent."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from conductor.systems.connection_check import Finding
from models.session import Database
from simulators.simulators import SalesforceSimulator, Simulator, StripeSimulator
from subscribers.base import Subscriber
from subscribers.errors import Gone, SystemDown
from subscribers.mapping.fields import Field
from subscribers.records import ExternalField
from subscribers.salesforce import SalesforceAccount
from subscribers.stripe import StripeCustomer
from tests.support.fakes import TestHub

TEXT = ExternalField("text")


@pytest.fixture
def migrated_url(migrated_sqlite: Path, tmp_path: Path) -> str:
    """Return a SQLite URL: the check behaves the same on both databases, so one is enough."""
    shutil.copy(migrated_sqlite, tmp_path / "syncflow.db")
    return f"sqlite:///{tmp_path / 'syncflow.db'}"


def found(database: Database, fields: dict[str, ExternalField] | None, **attributes: Any) -> list[Finding]:
    """Return the findings for a subscriber whose system describes these fields."""
    hub = TestHub(database, "crm", describe=lambda self: fields, **attributes)
    return hub.conductor.connection_check.check("crm")["crm.customer"]


def wrong(findings: list[Finding]) -> list[str]:
    return [finding.message for finding in findings if finding.state == "wrong"]


def test_a_working_connection_has_no_problems(database: Database) -> None:
    fields = {"name": ExternalField("text", 255), "phone": TEXT}
    findings = found(database, fields, field_to_data={"name": "name", "phone": "phone"})
    assert [(f.state, f.message) for f in findings] == [
        ("ok", "the login works, and records can be read"),
        ("ok", "name <-> name (text, 255 characters)"),
        ("ok", "phone <-> phone (text)"),
    ]


def test_by_default_one_record_shows_the_fields(database: Database) -> None:
    hub = TestHub(database, "crm", field_to_data={"name": "name", "city": "address.city", "country": "address.land"})
    assert "has no record yet" in hub.conductor.connection_check.check("crm")["crm.customer"][-1].message
    hub.systems["crm"].add(name="Ada", address={"city": "Rome"})
    words = wrong(hub.conductor.connection_check.check("crm")["crm.customer"])
    assert words == [
        "country <-> address.land: the system has no such field; its fields are address, address.city, name"
    ]


def test_a_field_of_an_empty_object_cannot_be_checked(database: Database) -> None:
    hub = TestHub(database, "crm", field_to_data={"city": "address.city"})
    hub.systems["crm"].add(address=None)
    finding = hub.conductor.connection_check.check("crm")["crm.customer"][-1]
    assert finding.state == "note" and "the object around it is empty" in finding.message


@pytest.mark.parametrize(
    "column, entry, kind, fits",
    [
        ("name", "x", "number", False),
        ("name", "x", "date", False),
        ("active", "x", "boolean", True),
        ("active", "x", "text", False),
        ("active", Field("x", transform="yes_no"), "text", True),
        ("active", Field("x", transform="yes_no"), "boolean", False),
        ("created_at", "x", "datetime", True),
        ("id", "x", "number", True),
        ("id", Field("x", transform="minor_units"), "number", True),
        ("id", Field("x", transform="minor_units"), "text", True),
        ("name", Field("x", transform="date"), "date", True),
        ("name", "x", "", True),
        ("name", "x", "object", False),
    ],
)
def test_types_that_do_not_fit_are_reported(
    database: Database, column: str, entry: str | Field, kind: str, fits: bool
) -> None:
    findings = found(database, {"x": ExternalField(kind)}, field_to_data={column: entry})
    assert (wrong(findings) == []) is fits, findings


def test_missing_permissions_and_required_fields_are_reported(database: Database) -> None:
    fields = {
        "name": ExternalField("text", writable=False),
        "phone": ExternalField("text", 20),
        "last": ExternalField("text", required=True),
        "auto": ExternalField("text", required=True, writable=False),
    }
    findings = found(
        database,
        fields,
        field_to_data={"name": "name", "phone": "phone"},
        missing_permissions=lambda self: ["this login may not delete things"],
    )
    assert wrong(findings) == [
        "this login may not delete things",
        "name <-> name: this login may not write the field; if it is read-only, use direction in",
        "the system requires last, but no column is mapped to it",
    ]
    (note,) = [f.message for f in findings if f.state == "note"]
    assert note == "phone <-> phone: 20 characters in the system, 40 in the database; the system refuses longer values"


def test_an_inward_field_need_not_be_writable(database: Database) -> None:
    fields = {"name": ExternalField("text", writable=False)}
    assert wrong(found(database, fields, field_to_data={"name": Field("name", direction="in")})) == []


def test_a_failed_login_is_the_only_finding(database: Database) -> None:
    def describe(self: Any) -> None:
        raise SystemDown("the login is refused (401: no such key)")

    hub = TestHub(database, "crm", describe=describe)
    (finding,) = hub.conductor.connection_check.check("crm")["crm.customer"]
    assert finding.message == "the login does not work: the login is refused (401: no such key)"


def test_an_unknown_system_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match="unknown system 'crn'; known systems: crm"):
        TestHub(database, "crm").conductor.connection_check.check("crn")


def test_a_system_without_configuration_is_refused(database: Database) -> None:
    with pytest.raises(ValueError, match=r"^stripe is not configured: set STRIPE_\.\.\. in the environment or \.env$"):
        TestHub(database, "crm").conductor.connection_check.check("stripe")


# --- the systems that ship ------------------------------------------------------------------------------


def at_work(kind: type[Subscriber], simulator: Simulator) -> Any:
    return kind(kind.system_class(kind.system, kind.system_class.Options(**simulator.options())))


def test_salesforce_describes_its_fields_and_reports_missing_permissions(monkeypatch: pytest.MonkeyPatch) -> None:
    with SalesforceSimulator() as org:
        accounts = at_work(SalesforceAccount, org)
        fields = accounts.describe()
        assert fields["Name"] == ExternalField("text", 255, writable=True, required=True)
        assert fields["Active__c"].kind == "boolean" and not fields["SystemModstamp"].writable
        assert accounts.missing_permissions() == []
        monkeypatch.setattr("simulators.salesforce.describe._ABILITIES", ("queryable", "createable"))
        accounts.client.options.external_id_field = "Other__c"
        assert accounts.missing_permissions() == [
            "this login may not edit records of Account: give it that object permission",
            "this login may not delete records of Account: give it that object permission",
            "Account has no field Other__c, or this login may not see it: create it, or give the field permission",
        ]
        accounts.sobject = "Nothing__c"
        assert "this login sees no object Nothing__c" in accounts.missing_permissions()[0]


def test_salesforce_shows_many_records_in_one_call() -> None:
    with SalesforceSimulator() as org:
        accounts = at_work(SalesforceAccount, org)
        ids = [org.add({"Name": f"A{n}"}) for n in range(3)]
        org.remove(ids[1])
        one, two, three = accounts.bulk_fetch(ids)
        assert (one.data["Name"], three.data["Name"]) == ("A0", "A2") and isinstance(two, Gone)
        assert len(org.org.journal.calls(path="/query")) == 1


def test_stripe_reports_missing_permissions_of_a_restricted_key() -> None:
    with StripeSimulator() as stripe:
        customers = at_work(StripeCustomer, stripe)
        assert customers.missing_permissions() == [] and stripe.ids() == []
        stripe.stripe.faults.fail(403, method="POST")
        (words,) = customers.missing_permissions()
        assert words.startswith("this key may not write customers: the API key is refused (403")
