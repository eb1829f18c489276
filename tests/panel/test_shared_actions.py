"""The panel and the command line share one function per action: their audit rows differ only in the user."""

from __future__ import annotations

import re
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa

import cli.operations
import cli.tasks
from cli import parser
from models.ledger import AuditEntry, Task
from tests.support.dead_letters import open_ids
from tests.support.panel import Panel, post

#: (path and form of the panel, arguments of the command); {letter} is the id of an open dead letter.
DEEDS: list[tuple[str, dict[str, str], list[str]]] = [
    ("/systems/backfill/shop.customer", {}, ["backfill", "shop.customer", "--background"]),
    ("/systems/reconcile/shop.customer", {"repair": "yes"}, ["reconcile", "shop.customer", "--repair", "--background"]),
    ("/systems/poll/shop.customer", {}, ["poll", "shop.customer"]),
    ("/systems/shop/relink", {}, ["relink", "shop"]),
    ("/dead-letters/retry", {"id": "{letter}"}, ["retry", "--id", "{letter}"]),
    ("/dead-letters/retry", {"subscriber": "shop.customer"}, ["retry", "--subscriber", "shop.customer"]),
]


@pytest.mark.parametrize(("path", "form", "command"), DEEDS, ids=str)
def test_panel_and_command_line_leave_the_same_audit_row(
    sqlite_panel: Panel, monkeypatch: pytest.MonkeyPatch, path: str, form: dict[str, str], command: list[str]
) -> None:
    panel = sqlite_panel
    runtime = SimpleNamespace(conductor=panel.conductor, database=panel.database, close=lambda: None)
    monkeypatch.setattr(cli.tasks, "build", lambda: runtime)
    monkeypatch.setattr(cli.operations, "build", lambda: runtime)
    monkeypatch.setattr(panel.conductor, "poll", lambda name: 0)
    client, letter = panel.client("operator"), str(open_ids(panel.conductor)[0])

    post(client, path, **{name: value.format(letter=letter) for name, value in form.items()})
    by_panel = newest(panel)
    with panel.database.write() as connection:  # an unfinished task would continue instead
        connection.execute(sa.update(Task).values(state="done"))
    arguments = parser().parse_args([word.format(letter=letter) for word in command])
    cli.COMMANDS[arguments.command].run(arguments)
    by_command = newest(panel)

    assert by_panel[0] != by_command[0]
    assert by_panel[1:] == by_command[1:]
    assert by_panel[1] != "login"


def newest(panel: Panel) -> tuple[int, str, str, Any]:
    """Return the newest audit row, without the task number in its target."""
    columns = (AuditEntry.id, AuditEntry.action, AuditEntry.target, AuditEntry.details)
    (row,) = panel.rows(sa.select(*columns).order_by(AuditEntry.id.desc()).limit(1))
    target = re.sub(r"^#\d+", "#", row.target) if row.action.startswith("task.") else row.target
    return row.id, row.action, target, row.details
