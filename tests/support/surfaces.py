"""What the pages and the command line say about one link: its state, its counts and its waiting age."""

from __future__ import annotations

import argparse
import re
from datetime import datetime
from html import unescape
from types import SimpleNamespace

import pytest
from flask.testing import FlaskClient

import cli.operations
from tests.support.fakes import TestHub
from tests.support.panel import panel_of
from tests.support.records import link

_BADGE = r'<span class="badge \w*">([^<]*)</span>'
_TIME = r'<time datetime="([^"]+)"'


class Surfaces:
    """The pages and the command `status` over the hub of a test, for customer 1 and system `crm`."""

    def __init__(self, hub: TestHub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self.hub = hub
        self.capsys = capsys
        self.panel = panel_of(hub.conductor, hub.publisher)
        runtime = SimpleNamespace(
            conductor=hub.conductor,
            database=hub.conductor.database,
            broker=SimpleNamespace(check=lambda: None),
            close=lambda: None,
        )
        monkeypatch.setattr(cli.operations, "build", lambda: runtime)
        self.client: FlaskClient = self.panel.client("operator")

    def states(self) -> dict[str, str]:
        """Return the state and its explanation on each page that shows the link."""
        return {
            "links page": _text(self._row()),
            "link page": _text(_between(self._page(self._link_path()), "<h1", "Pending change, synced change")),
            "record page": _text(self._status()),
        }

    def words(self) -> dict[str, str]:
        """Return the state's badge on each page that shows the link."""
        pages = {"links page": self._row(), "link page": self._page(self._link_path()), "record page": self._status()}
        return {name: _first(_BADGE, text) for name, text in pages.items()}

    def counts(self) -> dict[str, tuple[int, int]]:
        """Return how many records are pending and how many dead letters are open, wherever that is shown."""
        overview = self.hub.conductor.reports.overview()
        cells = self._overview_cells()
        printed = re.search(r"crm\.customer +pending (\d+).*, dead letters (\d+)", self._status_command())
        assert printed is not None
        metrics = self._page("/metrics")
        owed, dead = (
            int(float(_first(rf'{name}\{{subscriber="crm\.customer"\}} (\S+)', metrics)))
            for name in ("owed_records", "dead_letters")
        )
        listed = self._page("/links/?subscriber=crm.customer&state=owed").count('<th scope="row">')
        return {
            "overview": (overview.total("owed"), overview.total("dead")),
            "overview page": (int(cells["Pending"]), int(cells["Dead letters"])),
            "status": (int(printed[1]), int(printed[2])),
            "metrics": (owed, dead),
            "pending links": (listed, overview.total("dead")),
        }

    def health(self) -> dict[str, str]:
        """Return the state of the subscriber, wherever it is shown."""
        (subscriber,) = self.hub.conductor.reports.overview().subscribers
        return {"overview": subscriber.state, "overview page": self._overview_cells()["Health"]}

    def ages(self) -> dict[str, datetime | None]:
        """Return since when the link waits, wherever that is shown."""
        ages = {
            "link": link(self.hub, "crm").owed_since,
            "link page": _time(_between(self._page(self._link_path()), "Pending since", "</dd>")),
            "overview page": _time(_between(self._overview_row(), 'data-label="Oldest"', "</td>")),
            "overview": self.hub.conductor.reports.overview().oldest,
        }
        printed = re.search(r"crm\.customer .*the oldest since (\S+ \S+) UTC", self._status_command())
        ages["status"] = datetime.fromisoformat(f"{printed[1]}+00:00") if printed else None
        for name, text in (("links page", self._row()), ("record page", self._status())):
            if "pending since" in text:
                ages[name] = _time(text)
        return ages

    def _page(self, path: str) -> str:
        answer = self.client.get(path)
        assert answer.status_code == 200, path
        return answer.text

    def _link_path(self) -> str:
        return f"/links/{link(self.hub, 'crm').id}"

    def _row(self) -> str:
        """Return the state's cell on the links page."""
        page = self._page("/links/?record=1&subscriber=crm.customer")
        return _between(page, '<td data-label="State">', "</td>")

    def _status(self) -> str:
        """Return the badge and the sentence of the subscriber on the record page."""
        return _between(self._page("/record/customer/1"), ">crm.customer<", '<div class="there">')

    def _overview_row(self) -> str:
        return _between(self._page("/"), ">crm.customer</a></td>", "</tr>")

    def _overview_cells(self) -> dict[str, str]:
        cells = re.findall(r'data-label="([^"]+)">(.*?)</td>', self._overview_row(), re.DOTALL)
        return {name: _text(cell) for name, cell in cells}

    def _status_command(self) -> str:
        self.capsys.readouterr()
        cli.operations.status(argparse.Namespace())
        return self.capsys.readouterr().out


def _between(text: str, start: str, end: str) -> str:
    _, found, rest = text.partition(start)
    assert found, start
    return rest.partition(end)[0]


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    assert found is not None, (pattern, text)
    return found[1]


def _time(text: str) -> datetime | None:
    found = re.search(_TIME, text)
    return datetime.fromisoformat(found[1]) if found else None


def _text(html: str) -> str:
    return " ".join(unescape(re.sub(r"<[^>]*>", " ", html)).split())
