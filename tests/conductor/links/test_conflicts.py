"""A conflict can also close without an operator's decision."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from models.capture import sync_context
from models.ledger import Conflict
from tests.support.fakes import TestHub
from tests.support.records import (
    CUSTOMER,
    edit,
    link,
    rows,
    webhook,
)


def test_a_conflict_ends_when_ours_is_edited_to_the_value_of_the_system(conflicted: TestHub) -> None:
    edit(conflicted, "1", notes="theirs")
    conflicted.run()
    (conflict,) = rows(conflicted, Conflict)
    assert conflict.choice == "agreed" and link(conflicted, "crm").open_conflicts == 0
    assert conflicted.shown("shop")[0]["notes"] == "theirs"


def test_a_conflict_ends_when_its_record_is_deleted(conflicted: TestHub) -> None:
    (conflict,) = rows(conflicted, Conflict)
    with conflicted.conductor.database.write() as c:
        c.execute(sa.delete(CUSTOMER))
    with pytest.raises(ValueError, match="no longer exists"):
        conflicted.conductor.conflicts.resolve(conflict.id, "ours", by="ann")
    conflicted.run()
    (conflict,) = rows(conflicted, Conflict)
    assert (conflict.choice, link(conflicted, "crm").open_conflicts) == ("gone", 0) and conflicted.shown("crm") == []


@pytest.mark.parametrize("on_gone", ["delete", "unlink"])
def test_a_conflict_ends_when_its_record_is_deleted_remotely(conflicted: TestHub, on_gone: str) -> None:
    conflicted.conductor.subscribers["crm.customer"].on_gone = on_gone  # type: ignore[misc, assignment]
    conflicted.systems["crm"].remove("crm_1")
    webhook(conflicted, "crm", "e2", "crm_1")
    conflicted.run()
    (conflict,) = rows(conflicted, Conflict)
    assert (conflict.choice, link(conflicted, "crm").open_conflicts) == ("gone", 0)


@pytest.mark.parametrize("context", [{"unsubscribe": ["crm"]}, {"origin": "crm"}])
def test_a_conflict_ends_when_its_system_does_not_receive_the_deletion(
    conflicted: TestHub, context: dict[str, Any]
) -> None:
    """It could no longer be decided, and stayed open for ever."""
    with conflicted.conductor.database.write() as c, sync_context(c, **context):
        c.execute(sa.delete(CUSTOMER))
    conflicted.run()
    (conflict,) = rows(conflicted, Conflict)
    assert (conflict.choice, link(conflicted, "crm").open_conflicts) == ("gone", 0)
    assert conflicted.shown("crm") and conflicted.shown("shop") == []
