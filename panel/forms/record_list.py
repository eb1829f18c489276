"""Lists of records that people paste or upload: which of them there are, and which nobody knows."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import sqlalchemy as sa

from i18n import gettext
from models.catalogues import Catalogue

#: Headings of the column that is read from a CSV file; without one of them it is the first.
_HEADINGS = ("id", "record_id", "record id", "email")

#: Records looked up with one query.
_PAGE = 2000


@dataclass
class Found:
    """What a list comes to: ids that exist, emails that stand for one, and what nobody knows."""

    known: list[str] = field(default_factory=list)
    #: Email -> the ids it stands for.
    emails: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    repeated: int = 0

    @property
    def ids(self) -> list[str]:
        """All of them, each once; what is unknown as it was given, since it may come to exist."""
        meant = [record_id for ids in self.emails.values() for record_id in ids]
        return list(dict.fromkeys([*self.known, *meant, *self.unknown]))


def split(text: str) -> list[str]:
    """The entries of a pasted list, separated by anything that is part of no id and no email."""
    return [part for part in re.split(r"[\s,;]+", text) if part]


def from_csv(content: bytes) -> list[str]:
    """One column of a CSV file, with commas, semicolons or tabs: `id`, `record_id` or `email`, or the first.

    Raises:
      ValueError: it is no text.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(gettext("it is not UTF-8 text; save it as CSV UTF-8")) from None
    if "\0" in text:
        raise ValueError(gettext("it is no text file"))
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if row]
    except csv.Error as error:
        raise ValueError(gettext("it cannot be read as CSV: {error}", error=error)) from None
    if not rows:
        return []
    headings = [cell.strip().lower() for cell in rows[0]]
    place = next((headings.index(name) for name in _HEADINGS if name in headings), None)
    body = rows if place is None else rows[1:]
    return [cell for row in body if (cell := row[place or 0].strip() if len(row) > (place or 0) else "")]


def look_up(connection: sa.Connection, catalogues: Sequence[Catalogue], entries: Iterable[str]) -> Found:
    """Look all entries up, by id in any of these catalogues, and by email."""
    given = list(entries)
    each = list(dict.fromkeys(given))
    found = Found(repeated=len(given) - len(each))
    known: set[str] = set()
    for catalogue in catalogues:
        known |= _existing(connection, catalogue, each)
    found.known = [entry for entry in each if entry in known]
    rest = [entry for entry in each if entry not in known]
    addresses = _by_email(connection, catalogues, [entry for entry in rest if "@" in entry])
    found.emails = {entry: addresses[entry.lower()] for entry in rest if entry.lower() in addresses}
    found.unknown = [entry for entry in rest if entry not in found.emails]
    return found


def _existing(connection: sa.Connection, catalogue: Catalogue, entries: list[str]) -> set[str]:
    keys = [key for entry in entries if (key := key_of(catalogue, entry)) is not None]
    there: set[str] = set()
    for page in _pages(keys):
        there |= {
            str(key) for key in connection.execute(sa.select(catalogue.key).where(catalogue.key.in_(page))).scalars()
        }
    return there


def key_of(catalogue: Catalogue, entry: str) -> object | None:
    """An entry as the catalogue's key; None where it cannot be one."""
    try:
        key = catalogue.key_of(entry)
    except (ValueError, ArithmeticError):
        return None
    # "007" is no other way to write 7: the ledger's ids are compared as text.
    return key if str(key) == entry and (not isinstance(key, int) or 0 < key < 2**63) else None


def _by_email(connection: sa.Connection, catalogues: Sequence[Catalogue], emails: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for catalogue in catalogues:
        if "email" not in catalogue.table.c:
            continue
        column = catalogue.table.c["email"]
        for page in _pages(list(dict.fromkeys([*emails, *(email.lower() for email in emails)]))):
            rows = sa.select(catalogue.key, column).where(column.in_(page)).order_by(catalogue.key)
            for key, email in connection.execute(rows):
                found.setdefault(email.lower(), []).append(str(key))
    return found


def _pages(values: list[object] | list[str]) -> Iterable[list[object]]:
    rest = iter(values)
    while page := list(islice(rest, _PAGE)):
        yield page
