"""Mappings in force: the code's `field_to_data`, or the newest version a person saved in the panel."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from i18n import gettext
from models.ledger import Mapping
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.validation import check_rows


class MappingRefused(Exception):
    """A mapping cannot be saved; `problems` says why, one sentence each, naming the row."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class MappingConflict(Exception):
    """Somebody else saved this mapping meanwhile; look at theirs before saving again."""


class Mappings:
    """Reads and writes mapping versions. Readers see a new version with their next batch."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._cache: dict[str, tuple[int, Mapper]] = {}

    def current(self, connection: sa.Connection, name: str, version: int | None = None) -> tuple[Mapper, int]:
        """The mapping of a subscriber and its version; version 0 is the code's own, never edited.

        Who has read the newest `version` already gives it.
        """
        if version is None:
            version = self.version(connection, name)
        cached = self._cache.get(name)
        if cached is None or cached[0] != version:
            cached = self._cache[name] = (version, self._load(connection, name, version))
            self.context.subscribers[name].mapper = cached[1]
        return cached[1], version

    @staticmethod
    def version(connection: sa.Connection, name: str) -> int:
        """The newest version saved; 0 if the mapping was never edited."""
        newest = sa.select(sa.func.max(Mapping.version)).where(Mapping.subscriber == name)
        return connection.execute(newest).scalar() or 0

    def _load(self, connection: sa.Connection, name: str, version: int) -> Mapper:
        subscriber = self.context.subscribers[name]
        if version == 0:
            return subscriber.default_mapper
        rows = connection.execute(
            sa.select(Mapping.fields).where(Mapping.subscriber == name, Mapping.version == version)
        ).scalar_one()
        if rows is None:
            return subscriber.default_mapper
        fields, problems = check_rows(rows, subscriber.records)
        if problems:
            # It was right when it was saved; the table or the code has changed since.
            raise MappingRefused(
                [
                    gettext(
                        "version {version} of the mapping of {name}: {problem}",
                        version=version,
                        name=name,
                        problem=text,
                    )
                    for text in problems
                ]
            )
        return Mapper(subscriber.records, fields)

    def save(self, name: str, rows: list[dict[str, Any]] | None, by: str, expected_version: int) -> int:
        """Save a new version; None goes back to the code's own. Returns the new version.

        Raises:
          MappingRefused: something in it is wrong.
          MappingConflict: `expected_version` is not the newest any more.
        """
        subscriber = self.context.subscribers[name]
        if rows is not None:
            _fields, problems = check_rows(rows, subscriber.records)
            if problems:
                raise MappingRefused(problems)
        try:
            with self.context.database.write() as connection:
                if self.version(connection, name) != expected_version:
                    raise MappingConflict(
                        gettext(
                            "{name}: version {version} is not the newest any more", name=name, version=expected_version
                        )
                    )
                saved = (Mapping.subscriber == name, Mapping.version == expected_version)
                before = connection.execute(sa.select(Mapping.fields).where(*saved)).scalar()
                connection.execute(
                    sa.insert(Mapping).values(
                        subscriber=name,
                        version=expected_version + 1,
                        fields=rows,
                        created_at=self.context.clock(),
                        created_by=by,
                    )
                )
                default = subscriber.default_mapper.rows()
                self.context.audit(connection, by, "mapping.save", name, before=before or default, after=rows)
        except sa.exc.IntegrityError:
            raise MappingConflict(
                gettext("{name}: somebody saved version {version} first", name=name, version=expected_version + 1)
            ) from None
        return expected_version + 1
