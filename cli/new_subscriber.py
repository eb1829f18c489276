"""`./syncflow new-subscriber`: write the first version of a subscriber for another system, and its test."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from string import Template

import sqlalchemy as sa

from models.catalogues import CATALOGUES, Catalogue
from settings import ROOT

#: Fields of the simulated shop, which the written subscriber works with until its author changes it.
_SHOP = ("name", "email", "phone", "note", "company")

_NAME = re.compile(r"[a-z][a-z0-9_]*\.[a-z][a-z0-9_]*")

_REST = '''\
"""$System: a system with a JSON REST API, by configuration. Its settings: $SETTING_URL, $SETTING_TOKEN,
$SETTING_WEBHOOK_SECRET."""

from subscribers import register
from subscribers.rest import RestSubscriber, RestSystem


class $System(RestSystem):
    # Set an attribute where your system differs: auth, signature, ... (docs/howto/rest.md lists them all).
    event_type_field = "event"  # the field of its webhooks with the type of event: contact.updated
    event_time_field = "occurred_at"


@register
class $Class(RestSubscriber):
    system, catalogue = "$system", "$catalogue"
    system_class = $System
    path = "/contacts"  # the list; a record is at /contacts/ID
    resource = "contact"  # as its webhooks call it
    record_id_field = "external_ref"  # an external text field for our mark, so that no record is created twice
    match_on = $match_on  # columns that identify a record on both sides before it is linked
    poll_seconds = 60
    field_to_data = {  # our column -> external field
$fields
    }
'''

_OWN = '''\
"""$System: a system with an API of its own. Its settings: $SETTING_URL, $SETTING_TOKEN."""

from collections.abc import Iterator, Mapping
from typing import Any

from subscribers import External, Item, Options, Page, Subscriber, System, register
from subscribers.http.client import Http, Token, Url, iso_time


class ${System}Options(Options):
    url: Url
    token: Token


class $System(System):
    Options = ${System}Options

    def __init__(self, name: str, options: ${System}Options) -> None:
        super().__init__(name, options)
        # Http has a session for each thread, timeouts, and errors by what to do next; `classify` adds a vendor's codes.
        self.http = Http(options.url, headers={"Authorization": f"Bearer {options.token.get_secret_value()}"})


@register
class $Class(Subscriber):
    system, catalogue = "$system", "$catalogue"
    system_class = $System
    match_on = $match_on  # columns that identify a record on both sides before it is linked
    poll_seconds = 60
    field_to_data = {  # our column -> external field
$fields
    }

    def create(self, item: Item) -> External:
        # The key makes a repeated call harmless if the system supports idempotency keys.
        data = {**item.data, "external_ref": item.mark}
        return self.call("POST", "/contacts", json=data, headers={"Idempotency-Key": item.key})

    def update(self, item: Item) -> External:
        # `changes` holds the fields that differ from the external record as last known, `data` all fields.
        return self.call("PATCH", f"/contacts/{item.linked_id}", json=item.changes)

    def delete(self, item: Item) -> None:
        self.client.http.call("DELETE", f"/contacts/{item.linked_id}")

    def fetch(self, external_id: str) -> External:
        return self.call("GET", f"/contacts/{external_id}")

    def find(self, item: Item) -> External | None:
        # Called before a create is retried whose answer was lost.
        body, _ = self.client.http.json("GET", "/contacts", params={"external_ref": item.mark})
        return self.external(body["items"][0]) if body["items"] else None

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        # Oldest first. Records that changed exactly at the position are read again, so that ties are not lost.
        since = (position or {}).get("since")
        while True:
            body, _ = self.client.http.json("GET", "/contacts", params={"updated_since": since, "limit": 100})
            last = body["items"][-1]["updated_at"] if body["items"] else since
            yield Page([self.external(one) for one in body["items"]], {"since": last})
            if not body["next"] or last == since:
                return
            since = last

    def call(self, method: str, path: str, **options: Any) -> External:
        body, _ = self.client.http.json(method, path, **options)
        return self.external(body)

    def external(self, body: Mapping[str, Any]) -> External:
        at, mark = iso_time(body["updated_at"]), body["external_ref"]
        return External(str(body["id"]), body, at=at, mark=mark)
'''

_TEST = '''\
"""The contract of $system.$catalogue, against the simulated shop until the system has a simulator of its own."""

from simulators.simulators import ShopSimulator
from subscribers.$system import $Class
from tests.subscribers.contract import Contract


class Test$Class(Contract):
    subscriber = $Class
    simulator = ShopSimulator  # yours: a subclass of simulators.simulators.Simulator
    record = $record
    edit = $edit
'''


def new_subscriber_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="system and catalogue, such as shop.customer")
    own = "for an API that is not plain REST: write methods instead of setting attributes"
    parser.add_argument("--own", action="store_true", help=own)


def new_subscriber(arguments: argparse.Namespace) -> int:
    """Write subscribers/SYSTEM.py and tests/subscribers/test_SYSTEM.py, and import the subscriber."""
    try:
        written = write(ROOT, arguments.name, own=arguments.own)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    system = arguments.name.partition(".")[0]
    for path in written:
        print(f"Wrote {path.relative_to(ROOT)}")
    test = written[1].relative_to(ROOT)
    print(f"It works with a simulated shop until you change it. Its test passes: .venv/bin/python -m pytest {test}")
    settings = f"{system.upper()}_URL and {system.upper()}_TOKEN"
    print(f"To run it, set {settings}; ./syncflow check {system} reports what is missing")
    return 0


def write(root: Path, name: str, *, own: bool = False) -> list[Path]:
    """Write subscriber and test below `root`, import the subscriber, and return both paths.

    Raises:
      ValueError: the name is not SYSTEM.CATALOGUE, there is no such catalogue, or a file exists already.
    """
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r}: write system and catalogue in lower case, such as shop.customer")
    system, _, catalogue = name.partition(".")
    if catalogue not in CATALOGUES:
        known = ", ".join(CATALOGUES)
        raise ValueError(
            f"unknown catalogue {catalogue!r}; known catalogues: {known}; to add one, see docs/howto/add-a-catalogue.md"
        )
    source, test = root / "subscribers" / f"{system}.py", root / "tests" / "subscribers" / f"test_{system}.py"
    taken = [path for path in (source, test, source.with_suffix("")) if path.exists()]
    if taken:
        raise ValueError(f"{taken[0].relative_to(root)} exists already: add a class to it, or choose another name")
    words = _words(system, CATALOGUES[catalogue])
    source.write_text(Template(_OWN if own else _REST).substitute(words))
    test.write_text(Template(_TEST).substitute(words))
    _import(root / "subscribers" / "__init__.py", system)
    return [source, test]


def _words(system: str, catalogue: Catalogue) -> Mapping[str, str]:
    fields = _fields(catalogue)
    columns = list(fields)
    unique = [name for name in columns if catalogue.table.c[name].unique]
    match_on = ["email"] if "email" in fields else unique[:1]
    edited = [name for name in columns if name not in match_on][-1:]
    if not edited:
        raise ValueError(f"{catalogue.name} has too few text columns to generate a subscriber: write it by hand")
    camel = "".join(part.title() for part in system.split("_"))
    record = {name: _sample(name) for name in columns}
    return {
        "system": system,
        "System": camel,
        "SETTING": system.upper(),
        "SETTING_URL": f"{system.upper()}_URL",
        "SETTING_TOKEN": f"{system.upper()}_TOKEN",
        "SETTING_WEBHOOK_SECRET": f"{system.upper()}_WEBHOOK_SECRET",
        "catalogue": catalogue.name,
        "Class": camel + "".join(part.title() for part in catalogue.name.split("_")),
        "match_on": _tuple(match_on),
        "fields": "\n".join(f'        "{column}": "{field}",' for column, field in fields.items()),
        "record": _dict(record),
        "edit": _dict({name: f"{record[name]}2"[-2:] if name == "phone" else f"{record[name]} 2" for name in edited}),
    }


def _fields(catalogue: Catalogue) -> dict[str, str]:
    """Return text column -> field of the shop; required columns first."""
    needed = [c for c in catalogue.table.c if not (c.nullable or c.primary_key or c.default or c.server_default)]
    if other := [column.name for column in needed if column.type.python_type is not str]:
        raise ValueError(
            f"{catalogue.name} requires {', '.join(other)}, and the simulated shop has no such field: write the "
            "subscriber by hand, as in subscribers/salesforce/objects.py"
        )
    texts = [c for c in catalogue.table.c if isinstance(c.type, sa.String) and not c.primary_key]
    chosen: dict[str, str] = {}
    for column in sorted(texts, key=lambda c: (c not in needed, c.name != catalogue.label)):
        alike = {"notes": "note", "description": "note"}.get(column.name, column.name)
        free = [alike] if alike in _SHOP else [name for name in ("name", "company") if column in needed]
        field = next((name for name in free if name not in chosen.values()), None)
        if field is not None:
            chosen[column.name] = field
    return chosen


def _sample(column: str) -> str:
    return {"email": "ada@x.example", "phone": "1", "name": "Ada"}.get(column, f"{column} 1")


def _tuple(names: list[str]) -> str:
    return "(" + ", ".join(f'"{name}"' for name in names) + ("," if len(names) == 1 else "") + ")"


def _dict(values: Mapping[str, str]) -> str:
    return "{" + ", ".join(f'"{name}": "{value}"' for name, value in values.items()) + "}"


def _import(path: Path, system: str) -> None:
    """Add the import of the new module to those of the other systems, in alphabetical order."""
    lines = path.read_text().splitlines()
    imports = [number for number, line in enumerate(lines) if line.startswith("import subscribers.")]
    names = sorted({*(lines[number].split()[1] for number in imports), f"subscribers.{system}"})
    # The linter reports only the last of several imports of one package as unused.
    lines[imports[0] : imports[-1] + 1] = [f"import {name}" for name in names[:-1]] + [
        f"import {names[-1]}  # noqa: F401"
    ]
    path.write_text("\n".join(lines) + "\n")
