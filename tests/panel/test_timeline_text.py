"""The sentences of a record's timeline."""

from __future__ import annotations

import pytest

from conductor import TimelineEvent
from models.ledger import Delivery
from models.session import Database
from panel.rendering.timeline_text import describe_event
from subscribers.mapping.fields import Field
from tests.support.fakes import TestHub
from tests.support.records import add, rows, webhook


@pytest.mark.parametrize(
    "edit, text",
    [
        ({"email": "new@x.org"}, "Received from Crm"),
        ({"email": "new@x.org", "name": "Hacked"}, "Merged with values from Crm"),
        ({"name": "Hacked"}, "Received from Crm, internal value kept"),
    ],
)
def test_a_received_edit_is_described_by_the_side_that_won(database: Database, edit: dict[str, str], text: str) -> None:
    hub = TestHub(database, "crm", field_to_data={"name": Field("name", direction="out"), "email": "email"})
    add(hub, name="Ada")
    hub.run()
    hub.clock.tick()
    hub.systems["crm"].edit("crm_1", **edit)
    webhook(hub, "crm", "e1", "crm_1")
    hub.run()
    received = rows(hub, Delivery, Delivery.direction == "in")[0]
    assert describe_event(TimelineEvent(received.at, "in", received))[0] == text
