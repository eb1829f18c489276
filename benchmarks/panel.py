"""`make bench-panel`: each page of the panel over a ledger with ten million deliveries, on both databases.

The real app answers Flask's test client in this process, to an admin who is logged in: what is measured is the server's
time for a page, from the request to the last byte; for a download, to its first row.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from flask import Flask
from flask.testing import FlaskClient
from pydantic import SecretStr

from benchmarks.ledgers import KINDS, conduct, left_as_it_was, seeded
from benchmarks.report import Goal, Result, interleaved, median
from benchmarks.scale import Scale
from benchmarks.seeding import FULL, HOT, QUICK, SHORT, Size
from conductor import Conductor
from models.base import utcnow
from models.ledger import DeadLetter, Delivery, Link
from models.session import Database
from models.users import User
from panel.app import create_app
from panel.auth.accounts import create_user
from panel.overview_cache import OverviewCache
from settings import Settings

AIM_MS = 100
#: Seconds between two questions of an open page, as the panel's pages are served.
INTERVAL_SECONDS = 5
#: What one open page may cost of a core.
AIM_SHARE = 0.01

#: Requests of one page in each round.
_REQUESTS_PER_ROUND = 3
_POLLS = 100
_OVERVIEW = "/"
_CHART = "/throughput.json?range=6h"
_PERSON = "bench@example.com"
_PASSWORD = "a long enough password"

#: No index serves this page's first row among millions, so the rows after it are read. No real page does this.
_WHOLE_HISTORY = "deliveries, download a rare outcome"

#: Of the login, files, and what machines send: no pages.
_NO_PAGES = {"static", "security", "oidc", "webhooks"}


@dataclass
class Site:
    """The panel over one database."""

    conductor: Conductor
    app: Flask
    client: FlaskClient
    #: Seconds by which the panel's clock is before the real one.
    ahead: float = 0.0

    def forget(self) -> None:
        """Have a newly computed overview, as for the first page after something happened."""
        made = OverviewCache(
            self.conductor.reports.overview_version,
            self.conductor.reports.overview,
            lambda: time.monotonic() + self.ahead,
        )
        self.app.extensions["syncflow_overview"] = made


def run(rounds: int, scale: Scale) -> Result:
    """Request each page on both databases in turn; then poll one overview on each."""
    size, is_quick = scale.of(FULL, SHORT, QUICK), scale is Scale.QUICK
    with ExitStack() as stack:
        databases = {kind: stack.enter_context(seeded(kind, size, keep=not is_quick)) for kind in KINDS}
        for database in databases.values():
            stack.enter_context(left_as_it_was(database))
        sites = {kind: _site(database) for kind, database in databases.items()}
        pages = {kind: _pages(database, size) for kind, database in databases.items()}
        _check_none_is_missing(sites["sqlite"].app, pages["sqlite"].values())
        candidates = {
            (name, kind): _asking(site, pages[kind][name]) for name in pages["sqlite"] for kind, site in sites.items()
        }
        for ask in candidates.values():
            ask()  # compiles the templates
        seen = interleaved(candidates, 1 if is_quick else rounds * _REQUESTS_PER_ROUND)
        polls = {kind: _poll(site, 5 if is_quick else _POLLS) for kind, site in sites.items()}
    return _result(size, seen, polls)


def _site(database: Database) -> Site:
    """The panel, and an admin who is logged in."""
    conductor, _heard = conduct(database)
    if conductor.mappings.latest("crm.customer")[1] == 0:
        conductor.mappings.save("crm.customer", conductor.mappings.latest("crm.customer")[0].rows(), _PERSON, 0)
    with database.read() as connection:
        known = connection.execute(sa.select(User.id).where(User.email == _PERSON)).first()
    if known is None:
        create_user(database, _PERSON, _PASSWORD, "admin")
    app = create_app(conductor, Settings(secret_key=SecretStr("k" * 32)))
    app.config["WTF_CSRF_ENABLED"] = False
    client = app.test_client()
    client.post("/login", data={"email": _PERSON, "password": _PASSWORD})
    site = Site(conductor, app, client)
    site.forget()
    return site


def _check_none_is_missing(app: Flask, paths: Iterable[str]) -> None:
    """Every page there is has to be among those that are measured."""
    urls = app.url_map.bind("localhost")
    measured = {urls.match(path.partition("?")[0])[0] for path in paths}
    gets = {rule.endpoint for rule in app.url_map.iter_rules() if "GET" in (rule.methods or ())}
    own = {name for name in gets if name.partition(".")[0] not in _NO_PAGES and "fs_static" not in name}
    if missing := own - measured - {"admin.static"}:
        raise AssertionError(f"benchmarks/panel.py measures no page of {', '.join(sorted(missing))}: add one to _pages")


def _pages(database: Database, size: Size) -> dict[str, str]:
    """What is measured, by name: every page, with its filters, deep in its history, and what is rare."""

    def one(statement: Any) -> int:
        return int(connection.execute(statement).scalar_one())

    with database.read() as connection:
        letter = one(sa.select(sa.func.max(DeadLetter.id)).where(DeadLetter.closed_at.is_(None)))
        record = one(sa.select(sa.func.count()).select_from(sa.select(Link.id).limit(size.records // 2).subquery()))
    now = utcnow()
    since, until = (f"{now - timedelta(days=days):%Y-%m-%dT%H:%M}" for days in (8, 1))
    days = f"since={now - timedelta(days=9):%Y-%m-%d}&until={now - timedelta(days=8):%Y-%m-%d}"
    middle, deep = size.deliveries // 2, size.deliveries // 100
    return {
        "overview": "/",
        "overview, 30 days": "/?range=30d",
        "its chart, 24 hours": "/throughput.json?range=24h",
        "metrics": "/metrics",
        "healthz": "/healthz",
        "readyz": "/readyz",
        "systems": "/systems/",
        "schedules": "/schedules/",
        "queues": "/queues/",
        "tasks": "/tasks/",
        "task": "/tasks/1",
        "task's line": "/tasks/1/line",
        "mappings": "/mappings/",
        "mapping": "/mappings/shop.customer",
        "mapping, a version": "/mappings/crm.customer/versions/1",
        "unsubscriptions": "/unsubscriptions/",
        "unsubscriptions of a record": f"/unsubscriptions/?record={HOT}",
        "unsubscriptions of an email": "/unsubscriptions/?record=ada.lovelace1@example.com",
        "unsubscription of many": "/unsubscriptions/1",
        "dead letters": "/dead-letters/",
        "dead letters, largest kind": "/dead-letters/?fingerprint=kind000000000000",
        "dead letters, smallest kind": "/dead-letters/?fingerprint=kind000000000004",
        "dead letters, closed": "/dead-letters/?state=closed",
        "dead letter": f"/dead-letters/{letter}",
        "dead letters, download": "/dead-letters/export.csv",
        "dead letters, download closed": "/dead-letters/export.csv?state=closed",
        "conflicts": "/conflicts/",
        "conflicts of a field": "/conflicts/?subscriber=shop.customer&field=address.city",
        "conflicts, resolved": "/conflicts/?state=resolved",
        "conflicts resolved together": "/conflicts/resolve-all?subscriber=shop.customer&field=email&choice=ours",
        "links": "/links/",
        "links, deep": f"/links/?before={size.links // 2}",
        "links of a subscriber": "/links/?subscriber=desk.customer",
        "links of a record": f"/links/?record={record}",
        "links of an external id": "/links/?external=shop_77",
        "links, owed": "/links/?state=owed",
        "links, owed to a subscriber": "/links/?state=owed&subscriber=crm.customer",
        "link": f"/links/{record}",
        "links, download": "/links/export.csv",
        "links, download owed": "/links/export.csv?state=owed",
        "links, download a subscriber's": "/links/export.csv?subscriber=desk.customer",
        "deliveries": "/deliveries/",
        "deliveries, deep": f"/deliveries/?before={deep}",
        "deliveries to a subscriber": "/deliveries/?subscriber=desk.customer",
        "deliveries to a subscriber, deep": f"/deliveries/?subscriber=crm.customer&before={deep}",
        "deliveries that failed": "/deliveries/?outcome=failed",
        "deliveries, rare outcome": "/deliveries/?outcome=waiting",
        "deliveries, rare outcome, subscriber": "/deliveries/?outcome=waiting&subscriber=crm.customer",
        "deliveries of a record": f"/deliveries/?record={record}",
        "deliveries of a busy record": f"/deliveries/?record={HOT}",
        "deliveries of a busy record, deep": f"/deliveries/?record={HOT}&before={middle}",
        "deliveries of a busy record, rare": f"/deliveries/?record={HOT}&outcome=waiting",
        "delivery": f"/deliveries/{middle}",
        "deliveries, download": "/deliveries/export.csv",
        _WHOLE_HISTORY: "/deliveries/export.csv?outcome=waiting",
        "deliveries, download a record's": f"/deliveries/export.csv?record={record}",
        "changes": "/changes/",
        "changes, deep": f"/changes/?before={size.changes // 100}",
        "changes of a catalogue": "/changes/?catalogue=product",
        "changes of a busy record": f"/changes/?record={HOT}",
        "changes, waiting": "/changes/?state=waiting",
        "changes, download": "/changes/export.csv",
        "changes, download a record's": f"/changes/export.csv?record={record}",
        "inbox": "/inbox/",
        "inbox, deep": f"/inbox/?before={size.inbox // 100}",
        "inbox of a system": "/inbox/?system=desk",
        "inbox, an event": "/inbox/?event=evt_77",
        "inbox, dead": "/inbox/?state=dead",
        "inbox, waiting": "/inbox/?state=waiting",
        "inbox, a week to be replayed": f"/inbox/?system=shop&since={since}&until={until}",
        "inbox, one": f"/inbox/{size.inbox // 2}",
        "inbox, refused": "/inbox/refused",
        "inbox, download": "/inbox/export.csv",
        "inbox, download dead": "/inbox/export.csv?state=dead",
        "search, id": f"/record/?q={record}",
        "search, email": f"/record/?q=ada.lovelace{16 * 30 + 1}@example.com",
        "search, a name": "/record/?q=Hopper",
        "search, two names": "/record/?q=grace+hopper",
        "search, a letter": "/record/?q=a",
        "search, external id": "/record/?q=crm_77",
        "search, nothing": "/record/?q=nobodyatall",
        "record": f"/record/customer/{record}",
        "record, busy": f"/record/customer/{HOT}",
        "record, busy, deep": f"/record/customer/{HOT}?before={size.changes // 2}-{middle}",
        "record, edit": f"/record/customer/{HOT}/edit",
        "audit": "/audit/",
        "audit of a user": "/audit/?who=ada@example.com",
        "audit of a target": "/audit/?what=customer+77",
        "audit of a day": f"/audit/?{days}",
        "audit, download": "/audit/export.csv",
        "users": "/users/",
        "account": "/account/",
    }


def _asking(site: Site, path: str) -> Callable[[], float]:
    """Asks for a page; how long it took, milliseconds. A search that finds one record leads to it."""

    def ask() -> float:
        site.forget()
        began = time.perf_counter()
        answer = site.client.get(path)
        if answer.status_code == 200 and "export" in path:
            lines = iter(answer.response)
            for _ in range(2):  # the headings, and the first row
                next(lines, None)
        took = time.perf_counter() - began
        if answer.status_code not in (200, 302):
            raise AssertionError(f"{path} answers {answer.status}")
        answer.close()
        return took * 1000

    return ask


def _poll(site: Site, times: int) -> dict[str, float]:
    """Return the CPU milliseconds of each poll of one open overview, on a quiet and on a busy hub.

    As in static/chart.js, the chart is requested as well whenever the page has changed; and deliveries are counted as
    often as the relay does. The CPU time is that of this process and its PostgreSQL process, so that waiting on a busy
    machine does not count.
    """
    cost: dict[str, float] = {}
    for state in ("quiet", "busy"):
        site.forget()
        tags = {path: str(site.client.get(path).headers["ETag"]) for path in (_OVERVIEW, _CHART)}
        spent = 0.0
        for _ in range(times):
            if state == "busy":
                with site.conductor.database.write() as connection:
                    row = {"subscriber": "shop.customer", "record_id": HOT, "direction": "out", "operation": "update"}
                    connection.execute(sa.insert(Delivery).values(**row, outcome="delivered"))
                site.conductor.throughput.count()
            site.ahead += INTERVAL_SECONDS
            others, ours = _server_seconds(site.conductor.database), time.process_time()
            for path, tag in tags.items():
                answer = site.client.get(path, headers={"HX-Request": "true", "If-None-Match": tag})
                tags[path] = str(answer.headers["ETag"])
                if path == _OVERVIEW and answer.status_code == 304:
                    break
            spent += time.process_time() - ours
            spent += _server_seconds(site.conductor.database) - others
        cost[state] = spent / times * 1000
    return cost


def _server_seconds(database: Database) -> float:
    """CPU that PostgreSQL's processes on this machine have used for this database so far."""
    if database.is_sqlite:
        return 0.0
    spent = 0.0
    with database.read() as connection:
        found = sa.text("SELECT pid FROM pg_stat_activity WHERE datname = current_database()")
        for pid in connection.execute(found).scalars():
            stat = Path(f"/proc/{pid}/stat")
            if stat.exists():
                user, system = stat.read_text().rpartition(")")[2].split()[11:13]
                spent += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    return spent


def _result(size: Size, seen: dict[tuple[str, str], list[float]], polls: dict[str, dict[str, float]]) -> Result:
    names = list(dict.fromkeys(name for name, _kind in seen))
    figures = {
        name: {f"{kind}_{what}_ms": round(of(seen[name, kind]), 1) for kind in KINDS for what, of in _TOLD.items()}
        for name in names
    }
    rows = [(name, *figures[name].values()) for name in names]
    slowest = max(set(names) - {_WHOLE_HISTORY}, key=lambda name: figures[name]["postgresql_median_ms"])
    worst = figures[slowest]["postgresql_median_ms"]
    goals = [Goal("every page on PostgreSQL", f"< {AIM_MS} ms", f"{worst:.0f} ms ({slowest})", worst < AIM_MS)]
    for kind, costs in polls.items():
        for state, cost in costs.items():
            share = cost / 1000 / INTERVAL_SECONDS
            said = f"{share:.2%} ({cost:.1f} ms every {INTERVAL_SECONDS} s)"
            what = f"an open overview, {kind}, {state}: share of a core"
            goals.append(Goal(what, f"< {AIM_SHARE:.0%}", said, share < AIM_SHARE))
    return Result(
        "panel",
        ("page", *(f"{kind} {what}, ms" for kind in KINDS for what in _TOLD)),
        rows,
        {"pages": figures, "open_overview_ms": polls},
        {"links": size.links, "deliveries": size.deliveries, "requests_each": len(seen[names[0], KINDS[0]])},
        goals,
    )


_TOLD: dict[str, Callable[[list[float]], float]] = {"median": median, "slowest": max}
