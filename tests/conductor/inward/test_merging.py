"""Writing the result of a three-way merge to the database."""

from __future__ import annotations

import pytest

from models.catalogues import CATALOGUES
from models.session import Database
from subscribers.mapping.fields import Field
from subscribers.records import External, Item
from tests.support.fakes import FakeSubscriber, TestHub
from tests.support.records import add, edit, record, webhook


def test_both_sides_changed_different_fields(hub: TestHub) -> None:
    one = add(hub, email="a@x.org", phone="1")
    hub.run()
    hub.clock.tick()
    edit(hub, one, phone="2")
    hub.systems["crm"].edit("crm_1", email="b@x.org")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert (record(hub, one).email, record(hub, one).phone) == ("b@x.org", "2")
    for name in ("crm", "shop"):
        assert (hub.shown(name)[0]["email"], hub.shown(name)[0]["phone"]) == ("b@x.org", "2")


@pytest.mark.parametrize("policy,wins", [("internal", "ours"), ("external", "theirs")])
def test_both_sides_changed_the_same_field(database: Database, policy: str, wins: str) -> None:
    mapping = {"name": "name", "notes": Field("notes", conflict=policy)}  # type: ignore[arg-type]
    hub = TestHub(database, "crm", "shop", field_to_data=mapping)
    one = add(hub, notes="base")
    hub.run()
    hub.clock.tick()
    edit(hub, one, notes="ours")
    hub.systems["crm"].edit("crm_1", notes="theirs")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert record(hub, one).notes == wins
    assert hub.shown("crm")[0]["notes"] == hub.shown("shop")[0]["notes"] == wins


def test_a_remote_edit_of_an_outward_field_is_overwritten(database: Database) -> None:
    hub = TestHub(database, "crm", field_to_data={"name": Field("name", direction="out"), "email": "email"})
    one = add(hub, name="Ada")
    hub.run()
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", name="Hacked", email="new@x.org")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert (record(hub, one).name, record(hub, one).email) == ("Ada", "new@x.org")
    assert hub.shown("crm") == [{"name": "Ada", "email": "new@x.org"}]


def test_an_outward_field_of_a_remote_record_is_overwritten(database: Database) -> None:
    # Regression: the value was recorded as known to the system, so it was never sent.
    hub = TestHub(database, "crm", field_to_data={"name": "name", "notes": Field("notes", direction="out")})
    hub.systems["crm"].add(name="Bob", notes="theirs")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert record(hub).notes is None
    assert hub.shown("crm") == [{"name": "Bob", "notes": None}]


def test_an_unchanged_remote_value_is_no_edit_even_where_the_system_wins(database: Database) -> None:
    wins = {name: Field(name, conflict="external") for name in ("name", "email", "phone")}
    hub = TestHub(database, "crm", field_to_data=wins)
    one = add(hub, email="a@x.org", phone="1")
    hub.run()
    hub.clock.tick()
    edit(hub, one, phone="2")
    hub.systems["crm"].edit("crm_1", email="b@x.org")
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    assert (record(hub, one).email, record(hub, one).phone) == ("b@x.org", "2")


def test_an_outward_field_of_a_normalizing_system_comes_to_rest(database: Database) -> None:
    class SilentTidy(FakeSubscriber):
        read_back = "never"
        field_to_data = {"name": Field("name", direction="out")}

        def create(self, item: Item) -> External:
            item.data["name"] = item.data["name"].lower()
            return External(super().create(item).id, at=self.client.clock())

        def update(self, item: Item) -> External:
            item.changes["name"] = item.changes["name"].lower()
            super().update(item)
            return External(item.linked_id, at=self.client.clock())

    hub = TestHub(database, "crm", kinds=(SilentTidy,))
    one = add(hub, name="ADA")
    hub.run()
    edit(hub, one, name="ADA LOVELACE")
    for _ in range(4):
        hub.run()
        hub.clock.tick(100)
        hub.conductor.poll("crm.customer")
        hub.conductor.sweep()
        hub.run()
    assert len(hub.systems["crm"].writes()) == 3  # the hub corrects the value once and then accepts the system's form
    # A user's edit in the external system is still corrected.
    hub.systems["crm"].edit("crm_1", name="hacked")
    hub.conductor.poll("crm.customer")
    hub.run()
    assert hub.shown("crm") == [{"name": "ada lovelace"}]


def test_a_text_truncated_for_the_system_is_not_truncated_in_the_database(database: Database) -> None:
    cut = {"name": Field("name", transform="truncate:5"), "city": "city"}
    hub = TestHub(database, "crm", field_to_data=cut)
    with database.write() as c:
        key = CATALOGUES["customer"].insert(c, {"name": "Annabella", "city": "Rome"})
    hub.run()
    (external_id,) = hub.systems["crm"].store
    for changes, name in (({"city": "Paris"}, "Annabella"), ({"name": "Berta"}, "Berta")):
        hub.clock.tick()
        hub.systems["crm"].edit(external_id, **changes)
        hub.conductor.poll("crm.customer")
        hub.run()
        with database.read() as c:
            record = CATALOGUES["customer"].read(c, [key])[key]
        assert (record["name"], record["city"]) == (name, "Paris")
    assert [kind for kind, _ in hub.systems["crm"].writes()] == ["create"], "nothing echoes"
