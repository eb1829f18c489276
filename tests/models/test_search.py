"""Finding records by words in their text fields."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa

from models import search
from models.catalogues import CATALOGUES, Customer
from models.session import Database

PEOPLE = [
    ("Ada Lovelace", "ada.lovelace@example.com"),
    ("Grace Brewster Hopper", "hopper@navy.example"),
    ("Conan O'Brien", None),
    ("Ann-Marie SMITH", "a_smith@example.com"),
]


@pytest.fixture
def people(database: Database) -> Database:
    with database.write() as connection:
        search.install(connection, [CATALOGUES["customer"]])
        for name, email in PEOPLE:
            connection.execute(sa.insert(Customer).values(name=name, email=email))
    return database


def found(database: Database, text: str) -> list[str]:
    with database.read() as connection:
        keys = search.find(connection, CATALOGUES["customer"], text, 20)
        rows = connection.execute(sa.select(Customer.name).where(Customer.id.in_(keys)).order_by(Customer.id))
        return [name.split()[0] for (name,) in rows]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("ada", ["Ada"]),
        ("LOVE", ["Ada"]),
        ("love ada", ["Ada"]),
        ("ada.lovel", ["Ada"]),
        ("brewst hop", ["Grace"]),
        ("hopper@navy", ["Grace"]),
        ("o'br", ["Conan"]),
        ("brien", ["Conan"]),
        ("marie", ["Ann-Marie"]),
        ("smith", ["Ann-Marie"]),
        ("example", ["Ada", "Grace", "Ann-Marie"]),
        ("ada hopper", []),
        ("velace", []),
        ("", []),
        ("'", []),
        ("\" * & | ! ( ) : ' \\", []),
        ('ada" OR name:*', []),
    ],
)
def test_words_are_found_by_their_beginning_in_any_case(people: Database, text: str, names: list[str]) -> None:
    assert found(people, text) == names


def test_the_index_follows_every_write(people: Database) -> None:
    with people.write() as connection:
        search.install(connection)  # installing again changes nothing
        connection.execute(sa.update(Customer).where(Customer.name == "Ada Lovelace").values(name="Ada King"))
        connection.execute(sa.delete(Customer).where(Customer.name.like("Grace%")))
    assert (found(people, "love"), found(people, "king"), found(people, "hopper")) == (["Ada"], ["Ada"], [])
    with people.write() as connection:
        connection.execute(sa.update(Customer).where(Customer.name == "Ada King").values(email="king@example.com"))
    assert found(people, "love") == []


def test_finding_by_words_reads_no_whole_table(people: Database) -> None:
    statements: list[tuple[str, Any]] = []
    sa.event.listen(people.engine, "before_cursor_execute", lambda *a: statements.append((a[2], a[3])))
    found(people, "love")
    with people.write() as connection:
        if not people.is_sqlite:
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")  # PostgreSQL would scan a small table
        statement, values = next((s, v) for s, v in statements if "words_of" in s or "to_tsvector" in s)
        explain = "EXPLAIN QUERY PLAN " if people.is_sqlite else "EXPLAIN "
        plan = str(connection.exec_driver_sql(explain + statement, values).all())
    assert ("VIRTUAL TABLE INDEX" if people.is_sqlite else "Bitmap Index Scan on words_of_customer") in plan, plan


def test_exactly_is_the_whole_name(people: Database) -> None:
    def exactly(text: str) -> list[str]:
        with people.read() as connection:
            return search.exactly(connection, CATALOGUES["customer"], text, ["email", "name", "no such column"], 5)

    assert exactly("Ada Lovelace") == exactly("ada.lovelace@example.com") == ["1"]
    assert exactly("Conan O'Brien") == ["3"]
    assert exactly("Ada") == exactly("ada lovelace") == exactly("") == []
