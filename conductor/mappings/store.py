"""The mappings in force: the code's `field_to_data`, or the newest version that was saved in the panel."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from conductor.context import Context
from i18n import gettext
from models.ledger import Mapping
from subscribers.base import Subscriber
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.validation import check_rows


class MappingRefused(Exception):
    """A mapping is invalid. `problems` has a sentence for each problem, which names the row."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


class MappingConflict(Exception):
    """Another operator saved this mapping first; review that version before saving again."""


class Mappings:
    """Reads and writes mapping versions. Workers use a new version from their next batch on."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._cache: dict[str, tuple[int, Mapper]] = {}

    def current(self, connection: sa.Connection, name: str, version: int | None = None) -> tuple[Mapper, int]:
        """Return the mapping of a subscriber and its version; version 0 is the code's own, which was never edited.

        A caller that has read the newest `version` already passes it, which saves the query.

        Raises:
          MappingRefused: the saved mapping no longer fits the code or the table.
        """
        if version is None:
            version = self.version(connection, name)
        cached = self._cache.get(name)
        if cached is None or cached[0] != version:
            cached = self._cache[name] = (version, self._load(connection, name, version))
            self.context.subscribers[name].mapper = cached[1]
        return cached[1], version

    def latest(self, name: str) -> tuple[Mapper, int]:
        """Return the newest mapping of a subscriber and its version, for an editor.

        If the saved mapping no longer fits, that is the code's own mapping, from which an operator can fix it.
        """
        with self.context.database.read() as connection:
            try:
                return self.current(connection, name)
            except MappingRefused:
                return self.context.subscribers[name].default_mapper, self.version(connection, name)

    @staticmethod
    def version(connection: sa.Connection, name: str) -> int:
        """Return the newest saved version; 0 if the mapping was never edited."""
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
        try:
            return mapper_of(subscriber, rows)
        except MappingRefused as refused:
            # It was valid when it was saved; the table or the code has changed since.
            problems = [
                gettext(
                    "version {version} of the mapping of {name}: {problem}", version=version, name=name, problem=one
                )
                for one in refused.problems
            ]
            raise MappingRefused(problems) from None

    def save(self, name: str, rows: list[dict[str, Any]] | None, by: str, expected_version: int) -> int:
        """Save a new version and return it. Without rows the code's own mapping is in force again.

        Raises:
          MappingRefused: a row is invalid.
          MappingConflict: `expected_version` is no longer the newest.
        """
        if rows is not None:
            mapper_of(self.context.subscribers[name], rows)
        version = expected_version + 1
        try:
            with self.context.database.write() as connection:
                if self.version(connection, name) != expected_version:
                    raise MappingConflict(
                        gettext(
                            "{name}: version {version} is no longer the newest", name=name, version=expected_version
                        )
                    )
                self._insert(connection, name, rows, by, version)
        except sa.exc.IntegrityError:
            raise MappingConflict(
                gettext("{name}: another user saved version {version} first", name=name, version=version)
            ) from None
        return version

    def _insert(
        self, connection: sa.Connection, name: str, rows: list[dict[str, Any]] | None, by: str, version: int
    ) -> None:
        saved = (Mapping.subscriber == name, Mapping.version == version - 1)
        before = connection.execute(sa.select(Mapping.fields).where(*saved)).scalar()
        now = self.context.clock()
        row = {"subscriber": name, "version": version, "fields": rows, "created_at": now, "created_by": by}
        connection.execute(sa.insert(Mapping).values(**row))
        default = self.context.subscribers[name].default_mapper.rows()
        self.context.audit(connection, by, "mapping.save", name, before=before or default, after=rows)


def mapper_of(subscriber: Subscriber, rows: list[dict[str, Any]]) -> Mapper:
    """Return the mapper that these rows make.

    Raises:
      MappingRefused: a row is invalid.
    """
    fields, problems = check_rows(rows, subscriber.records)
    if problems:
        raise MappingRefused(problems)
    return Mapper(subscriber.records, fields)
