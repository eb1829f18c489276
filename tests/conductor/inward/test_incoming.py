"""Incoming values: the flat view is derived once; an event that cannot be applied yet reports why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from conductor.inward.incoming import Applied, Incoming, NeedsFetch, Postponed
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.values import Flat
from subscribers.records import External
from tests.support.fakes import TestHub
from tests.support.records import add, edit, link, record


@pytest.fixture
def flattened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that collects the `id` of each external record that is flattened."""
    ids: list[str] = []
    flatten = Mapper.flatten

    def counted(self: Mapper, data: Mapping[str, Any]) -> Flat:
        ids.append(str(data.get("id")))
        return flatten(self, data)

    monkeypatch.setattr(Mapper, "flatten", counted)
    return ids


def apply(hub: TestHub, external: External, **more: Any) -> Applied | NeedsFetch:
    """Apply an external record with the current mapping, without fetching it."""
    subscriber = hub.conductor.subscribers["crm.customer"]
    with hub.conductor.database.write() as connection:
        mapper = hub.conductor.mappings.current(connection, subscriber.name())[0]
        return hub.conductor.inward.applying.apply(connection, Incoming(subscriber, external, mapper, **more))


def test_the_flat_view_of_an_event_is_derived_once(hub: TestHub, flattened: list[str]) -> None:
    one = add(hub)
    hub.run()
    hub.clock.tick()
    event = hub.systems["crm"].edit("crm_1", name="Bea")
    flattened.clear()
    applied = apply(hub, event)
    assert isinstance(applied, Applied) and applied.message == "crm.customer crm_1: applied: name"
    assert record(hub, one).name == "Bea" and len(flattened) == 1


def test_the_flat_view_of_an_unknown_record_is_derived_once(hub: TestHub, flattened: list[str]) -> None:
    unknown = hub.systems["crm"].add(name="Bob", email="bob@x.org")
    flattened.clear()
    applied = apply(hub, unknown, polled=True)
    assert isinstance(applied, Applied) and applied.message.endswith("created in the database")
    assert record(hub).name == "Bob" and len(flattened) == 1


def test_a_fetched_record_keeps_its_event(hub: TestHub) -> None:
    subscriber = hub.conductor.subscribers["crm.customer"]
    event, fetched = External("crm_1", {"name": "Bea"}, at=hub.clock()), External("crm_1", {"name": "Bella"})
    incoming = Incoming(subscriber, fetched, subscriber.mapper, newest=True, event=event)
    assert (incoming.flat, incoming.event_flat, incoming.event_at) == ({"name": "Bella"}, {"name": "Bea"}, event.at)
    alone = Incoming(subscriber, event, subscriber.mapper)
    assert alone.flat is alone.event_flat and alone.event_at == event.at


def test_an_ambiguous_event_needs_a_fetch_with_a_reason(hub: TestHub) -> None:
    add(hub)
    hub.run()
    crm = hub.systems["crm"]
    same_second = crm.edit("crm_1", name="Bea")
    before = link(hub, "crm", "1")
    assert apply(hub, External("crm_1", at=hub.clock())) == NeedsFetch("the event carries no fields")
    assert apply(hub, same_second) == NeedsFetch("it may be older than the last write")
    assert isinstance(apply(hub, crm.add(name="Bob")), NeedsFetch)
    assert link(hub, "crm", "1") == before and record(hub, "2") is None


def test_a_paused_system_is_not_called_and_the_fetch_is_postponed(hub: TestHub) -> None:
    add(hub)
    hub.run()
    crm, subscriber = hub.systems["crm"], hub.conductor.subscribers["crm.customer"]
    hub.conductor.systems.pause("crm", "ann", "lunch")
    crm.calls.clear()
    refetched = hub.conductor.inward.inbox.refetch(subscriber, "crm_1")
    assert (
        refetched == Postponed("crm is paused: lunch", hub.conductor.context.policy.stale_seconds) and crm.calls == []
    )


def test_a_merge_that_takes_nothing_reads_the_record_once(hub: TestHub) -> None:
    one = add(hub)
    hub.run()
    hub.clock.tick()
    edit(hub, one, name="Bea")
    event = hub.systems["crm"].edit("crm_1", name="Bea")
    records = hub.conductor.subscribers["crm.customer"].records
    read, times = type(records).read, []

    def counted(self: Any, *arguments: Any, **more: Any) -> Any:
        times.append(arguments)
        return read(self, *arguments, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(records), "read", counted)
        applied = apply(hub, event)
    assert isinstance(applied, Applied) and applied.outcome == "echo" and len(times) == 1


def test_a_deletion_of_an_unknown_record_changes_nothing(hub: TestHub) -> None:
    gone = apply(hub, External("crm_9", deleted=True))
    assert gone == Applied("skipped", "deleted in the system, and never linked")
