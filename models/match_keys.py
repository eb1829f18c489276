"""Match keys: how records with the same email, phone number or name are found, however it is written.

A key is a coarse form of a column that SQL can compute, so that an index finds the few candidates. Their exact forms
are compared in Python (`subscribers.mapping.match_forms`): neither database folds case and accents alike. Only
Syncflow's own tables get the indexes; another application's table is searched without one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import reduce
from typing import Any

import sqlalchemy as sa

from models.base import Base
from models.catalogues import CATALOGUES, KEYS_WITHOUT, Catalogue, Record

#: The beginning of the indexes' names, which migrations ignore.
PREFIX = "match_of_"

#: Candidates that are compared.
_MOST_CANDIDATES = 200


def install(connection: sa.Connection, catalogues: Iterable[Catalogue] | None = None) -> None:
    """Create the missing indexes over match keys."""
    there = set(sa.inspect(connection).get_table_names())
    for catalogue in CATALOGUES.values() if catalogues is None else catalogues:
        table = catalogue.table
        if Base.metadata.tables.get(table.name) is not table or table.name not in there:
            continue
        for name, kind in catalogue.match_as.items():
            connection.exec_driver_sql(
                f'CREATE INDEX IF NOT EXISTS "{PREFIX}{catalogue.name}_{name}" ON "{table.name}" ({_key(name, kind)})'
            )


def candidates(
    connection: sa.Connection, catalogue: Catalogue, exact: Mapping[str, Any], keys: Mapping[str, Iterable[str]]
) -> list[Record]:
    """Return the records that have these values and, by column, one of these match keys; ordered by key."""
    conditions = [catalogue.table.c[name] == value for name, value in exact.items()]
    for number, (name, wanted) in enumerate(keys.items()):
        key: Any = sa.literal_column(_key(name, catalogue.match_as[name]), sa.String())
        # Named, because the usual name of a parameter would contain the expression.
        conditions.append(key.in_(sa.bindparam(f"keys_{number}", sorted(wanted), expanding=True)))
    statement = sa.select(catalogue.table).where(*conditions).order_by(catalogue.key).limit(_MOST_CANDIDATES)
    return [dict(row) for row in connection.execute(statement).mappings()]


def _key(name: str, kind: str) -> str:
    # Text, and no bound values: an index is used only for the very expression that it is over.
    return reduce(
        lambda sql, char: f"replace({sql}, '{char}', '')", dict.fromkeys(KEYS_WITHOUT[kind]), f'lower("{name}")'
    )
