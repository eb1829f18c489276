"""Cycles of records that wait for one another: what is found and said. The field tests deliver them."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from conductor.links.cycles import Cycle, WaitingLink, chain_from
from models.ledger import Link
from models.session import Database


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (1, "it refers to itself"),
        (2, "it and employee 2 wait for one another"),
        (3, "it, employee 2 and employee 3 wait for one another"),
        (6, "it, employee 2, employee 3, employee 4, employee 5 and employee 6 wait for one another"),
        (30, "it, employee 2, employee 3, employee 4, employee 5 and 25 more wait for one another"),
    ],
)
def test_a_message_names_the_records_of_a_cycle(size: int, words: str) -> None:
    members = [WaitingLink(n, "crm.employee", str(n), n % size + 1, None) for n in range(1, size + 1)]
    assert str(Cycle(members, None)) == words


@pytest.mark.parametrize(
    ("blocked_by", "chain"),
    [
        ({1: None}, [1]),
        ({1: 2, 2: 3, 3: None}, [1, 2, 3]),
        ({1: 1}, [1]),
        ({1: 2, 2: 3, 3: 2}, [1, 2, 3]),
        ({1: 2, 2: 1}, [1, 2]),
        ({1: 99}, [1]),
        ({n: n + 1 for n in range(1, 400)}, list(range(1, 400))),
    ],
)
def test_a_chain_is_followed_to_its_end_or_to_a_link_before(
    database: Database, blocked_by: dict[int, int | None], chain: list[int]
) -> None:
    values = [
        {"id": id, "subscriber": "crm.employee", "record_id": f"r{id}", "blocked_by": parent}
        for id, parent in blocked_by.items()
    ]
    with database.write() as connection:
        connection.execute(sa.insert(Link), values)
        assert [one.id for one in chain_from(connection, 1)] == chain
