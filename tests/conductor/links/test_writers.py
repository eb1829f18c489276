"""Only a few files of `conductor/links` write the tables `link` and `conflict`; no other production code does."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

PRODUCTION = ("broker.py", "messaging", "cli", "conductor", "models", "panel", "subscribers", "workers")
HOME = "conductor/links/"

#: The model of a table -> the files of HOME that write it.
WRITERS = {"Link": {"state.py", "leases.py"}, "Conflict": {"conflicts.py"}}

_WRITES = {"insert", "update", "delete", "insert_many", "update_many", "update_if", "upsert_many"}
_SQL = r"\b(INSERT INTO|UPDATE|DELETE FROM)\s+\"?{table}\"?(?![\w.])"


def _files() -> Iterator[Path]:
    for place in PRODUCTION:
        path = ROOT / place
        yield from sorted(path.rglob("*.py")) if path.is_dir() else [path]


def writes(text: str, model: str = "Link") -> list[int]:
    """Return the line numbers in a source text that write the table of a model."""
    tree = ast.parse(text)
    table, sql = f"{model}.__table__", re.compile(_SQL.format(table=model.lower()), re.IGNORECASE)
    table_names = {model, table} | {
        ast.unparse(target)
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value and ast.unparse(node.value) == table
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    lines = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func).rsplit(".", 1)[-1]
            given = {ast.unparse(argument) for argument in node.args}
            called = {ast.unparse(argument) for argument in node.args[:2]}
            # `execute_atomic(update_if, Link.__table__, ...)` also writes the table.
            if given & table_names and (name in _WRITES or called & _WRITES):
                lines.append(node.lineno)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and sql.search(node.value):
            lines.append(node.lineno)
    return lines


@pytest.mark.parametrize("model", list(WRITERS))
def test_only_these_files_write_it(model: str) -> None:
    found = {str(path.relative_to(ROOT)) for path in _files() if writes(path.read_text(), model)}
    assert found == {HOME + name for name in WRITERS[model]}, "use a function of these files, or add one"


@pytest.mark.parametrize(
    "text",
    [
        "sa.update(Link).where(Link.id == 1)",
        "database.insert(Link).values()",
        "table: Any = Link.__table__\nupdate_many(connection, table, rows)",
        "database.execute_atomic(update_if, Link.__table__, rows)",
        "connection.execute(sa.text('UPDATE link SET attempts = 0'))",
    ],
)
def test_a_write_is_found(text: str) -> None:
    assert writes(text)


@pytest.mark.parametrize("text", ["sa.select(Link)", "sa.update(Inbox)", "'UPDATE link_note SET a = 1'"])
def test_other_statements_are_not(text: str) -> None:
    assert not writes(text)
