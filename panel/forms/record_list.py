"""Parse pasted and uploaded lists of records, and look up their entries."""

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
from models.record_ids import record_id, text_of

#: Headings of the CSV column to read; without any of them it is the first column.
_HEADINGS = ("id", "record_id", "record id", "email")

#: Entries per query.
_PAGE = 2000


@dataclass
class Found:
    """The result of looking up a list: known ids, emails of records, and unknown entries."""

    known: list[str] = field(default_factory=list)
    #: Email -> ids of the records with it.
    emails: dict[str, list[str]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    repeated: int = 0

    @property
    def ids(self) -> list[str]:
        """Return all ids once, with unknown entries as given: such records may be created later."""
        meant = [record_id for ids in self.emails.values() for record_id in ids]
        return list(dict.fromkeys([*self.known, *meant, *self.unknown]))


def split(text: str) -> list[str]:
    """Split a pasted list at whitespace, commas and semicolons."""
    return [part for part in re.split(r"[\s,;]+", text) if part]


def from_csv(content: bytes) -> list[str]:
    """Return one column of a CSV file with commas, semicolons or tabs: `id`, `record_id`, `email`, or the first.

    Raises:
      ValueError: it is not a valid text file.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(gettext("the file is not UTF-8 text; save it as CSV UTF-8")) from None
    if "\0" in text:
        raise ValueError(gettext("the file is not a text file"))
    first = text.partition("\n")[0]
    separator = max(",;\t", key=first.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text), delimiter=separator) if row]
    except csv.Error as error:
        raise ValueError(gettext("the file is not valid CSV: {error}", error=error)) from None
    if not rows:
        return []
    headings = [cell.strip().lower() for cell in rows[0]]
    place = next((headings.index(name) for name in _HEADINGS if name in headings), None)
    body = rows if place is None else rows[1:]
    return [cell for row in body if (cell := row[place or 0].strip() if len(row) > (place or 0) else "")]


def look_up(connection: sa.Connection, catalogues: Sequence[Catalogue], entries: Iterable[str]) -> Found:
    """Look up all entries by id and by email in these catalogues."""
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
        there.update(catalogue.ids(connection, catalogue.key.in_(page)))
    return there


def key_of(catalogue: Catalogue, entry: str) -> object | None:
    """Return an entry as a key of the catalogue, or None if it cannot be one."""
    try:
        key = catalogue.key_of(entry)
    except (ValueError, ArithmeticError):
        return None
    # "007" is not the same as 7: the ledger compares ids as text.
    return key if text_of(catalogue.key.type, key) == entry and (not isinstance(key, int) or 0 < key < 2**63) else None


def _by_email(connection: sa.Connection, catalogues: Sequence[Catalogue], emails: list[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for catalogue in catalogues:
        if "email" not in catalogue.table.c:
            continue
        column = catalogue.table.c["email"]
        for page in _pages(list(dict.fromkeys([*emails, *(email.lower() for email in emails)]))):
            own_id = record_id(connection.dialect.name, catalogue.key)
            rows = sa.select(own_id, column).where(column.in_(page)).order_by(catalogue.key)
            for found_id, email in connection.execute(rows):
                found.setdefault(email.lower(), []).append(found_id)
    return found


def _pages(values: list[object] | list[str]) -> Iterable[list[object]]:
    rest = iter(values)
    while page := list(islice(rest, _PAGE)):
        yield page
