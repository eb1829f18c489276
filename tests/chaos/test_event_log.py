"""Which values a field may have after a chain of edits."""

from __future__ import annotations

from tests.chaos.event_log import HUB, EventLog


def test_an_edit_replaces_the_value_its_author_saw() -> None:
    event_log = EventLog()
    event_log.created(HUB, "a@x", {"city": "Rome"})
    event_log.edited("stripe", "a@x", {"city": "Oslo"}, {"city": "Rome"})
    assert event_log.histories["a@x"].possible("city") == {"Oslo"}
    event_log.edited("salesforce", "a@x", {"city": "Bonn"}, {"city": "Rome"})
    assert event_log.histories["a@x"].possible("city") == {"Oslo", "Bonn"}
    event_log.edited(HUB, "a@x", {"city": "Cork"}, {"city": "Bonn"})
    assert event_log.histories["a@x"].possible("city") == {"Oslo", "Cork"}
    event_log.deleted("stripe", "a@x")
    assert event_log.histories["a@x"].possible("city") == {"Oslo", "Cork"}


def test_an_edit_may_be_lost_when_its_author_deletes_the_record() -> None:
    event_log = EventLog()
    event_log.created("stripe", "a@x", {"city": "Rome"})
    event_log.edited("salesforce", "a@x", {"city": "Oslo"}, {"city": "Rome"})
    assert event_log.histories["a@x"].possible("city") == {"Oslo"}
    event_log.deleted("salesforce", "a@x")
    assert event_log.histories["a@x"].possible("city") == {"Oslo", "Rome"}
    event_log.edited(HUB, "a@x", {"city": "Cork"}, {"city": "Oslo"})
    assert event_log.histories["a@x"].possible("city") == {"Cork"}
