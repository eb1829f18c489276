"""Which values a field may have after a chain of edits."""

from __future__ import annotations

from tests.chaos.event_log import HUB, Journal


def test_an_edit_replaces_the_value_its_author_saw() -> None:
    journal = Journal()
    journal.created(HUB, "a@x", {"city": "Rome"})
    journal.edited("stripe", "a@x", {"city": "Oslo"}, {"city": "Rome"})
    assert journal.stories["a@x"].possible("city") == {"Oslo"}
    journal.edited("salesforce", "a@x", {"city": "Bonn"}, {"city": "Rome"})
    assert journal.stories["a@x"].possible("city") == {"Oslo", "Bonn"}
    journal.edited(HUB, "a@x", {"city": "Cork"}, {"city": "Bonn"})
    assert journal.stories["a@x"].possible("city") == {"Oslo", "Cork"}
    journal.deleted("stripe", "a@x")
    assert journal.stories["a@x"].possible("city") == {"Oslo", "Cork"}


def test_an_edit_may_be_lost_when_its_author_deletes_the_record() -> None:
    journal = Journal()
    journal.created("stripe", "a@x", {"city": "Rome"})
    journal.edited("salesforce", "a@x", {"city": "Oslo"}, {"city": "Rome"})
    assert journal.stories["a@x"].possible("city") == {"Oslo"}
    journal.deleted("salesforce", "a@x")
    assert journal.stories["a@x"].possible("city") == {"Oslo", "Rome"}
    journal.edited(HUB, "a@x", {"city": "Cork"}, {"city": "Oslo"})
    assert journal.stories["a@x"].possible("city") == {"Cork"}
