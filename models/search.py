"""Full-text search of records: by the beginnings of words, in any case, fast for millions of rows.

PostgreSQL has an index over the words of a catalogue's search columns (GIN over `to_tsvector`, see "Text Search
Functions"). SQLite has a table of words ("FTS5", external content) that three triggers maintain. Only Syncflow's own
tables get one; tables of another application are searched by their own indexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from models import match_keys
from models.base import Base
from models.catalogues import CATALOGUES, Catalogue

_PREFIX = "words_of_"
_WORD = re.compile(r"[^\W_]+")

#: Further words of a search are ignored.
_MAX_WORDS = 8

#: Records with the words of a text that are searched for an exact match.
_MAX_CANDIDATES = 2000


def is_searchable(catalogue: Catalogue) -> bool:
    """Whether a catalogue can have a search index: its table is Syncflow's own, with an integer key."""
    is_ours = Base.metadata.tables.get(catalogue.table.name) is catalogue.table
    return is_ours and catalogue.key.type.python_type is int and bool(catalogue.search_columns)


def is_index(name: str) -> bool:
    """Whether a table or an index of this name is one for searches, which migrations ignore."""
    return name.startswith((_PREFIX, match_keys.PREFIX))


def install(connection: sa.Connection, catalogues: Iterable[Catalogue] | None = None) -> None:
    """Create missing search indexes, and remove those of dropped tables."""
    is_sqlite = connection.dialect.name == "sqlite"
    there = set(sa.inspect(connection).get_table_names())
    wanted = [c for c in (CATALOGUES.values() if catalogues is None else catalogues) if is_searchable(c)]
    for catalogue in wanted:
        if catalogue.table.name not in there:
            if is_sqlite:
                connection.exec_driver_sql(f'DROP TABLE IF EXISTS "{_PREFIX}{catalogue.name}"')
        elif is_sqlite:
            _install_sqlite(connection, catalogue)
        else:
            connection.exec_driver_sql(
                f'CREATE INDEX IF NOT EXISTS "{_PREFIX}{catalogue.name}" ON "{catalogue.table.name}" '
                f"USING gin ({_words_of(catalogue)})"
            )


def installed(connection: sa.Connection, catalogue: Catalogue) -> bool:
    """Whether the catalogue has its search index."""
    name = _PREFIX + catalogue.name
    there = (
        "SELECT 1 FROM sqlite_master WHERE name = :name"
        if connection.dialect.name == "sqlite"
        else "SELECT 1 FROM pg_indexes WHERE indexname = :name AND schemaname = ANY (current_schemas(false))"
    )
    return is_searchable(catalogue) and connection.execute(sa.text(there), {"name": name}).first() is not None


def find(connection: sa.Connection, catalogue: Catalogue, text: str, limit: int) -> list[Any]:
    """Return the keys of records that have, for each word of `text`, a word that begins with it."""
    words = [word.lower() for word in _WORD.findall(text)][:_MAX_WORDS]
    if not words:
        return []
    table, key = catalogue.table.name, catalogue.key.name
    if connection.dialect.name == "sqlite":
        index = f"{_PREFIX}{catalogue.name}"
        statement = f'SELECT rowid FROM "{index}" WHERE "{index}" MATCH :words ORDER BY rowid LIMIT :most'
        query = " ".join(f'"{word}"*' for word in words)
    else:
        # Not sorted: that would read all records whose words begin with the given letters.
        statement = f'SELECT "{key}" FROM "{table}" WHERE {_words_of(catalogue)} @@ {_QUERY} LIMIT :most'
        query = " ".join(words)
    return list(connection.execute(sa.text(statement), {"words": query, "most": limit}).scalars())


def exactly(
    connection: sa.Connection, catalogue: Catalogue, text: str, columns: Iterable[str], limit: int
) -> list[str]:
    """Return the ids of records where one of these columns equals `text`.

    A column without an index is searched by the search index; if very many records have the words, only some of
    them are compared.
    """
    ids: list[str] = []
    alike: list[Any] | None = None
    for name in columns:
        if name not in catalogue.table.c:
            continue
        column = catalogue.table.c[name]
        if has_index(column) or name not in catalogue.search_columns or not installed(connection, catalogue):
            ids += catalogue.find(connection, {name: text}, limit)
            continue
        if ids or not any(map(str.isalpha, text)):
            continue  # an indexed column has matched, or the text is a number and no name
        alike = find(connection, catalogue, text, _MAX_CANDIDATES) if alike is None else alike
        ids += catalogue.ids(connection, catalogue.key.in_(alike), column == text, limit=limit)
    return list(dict.fromkeys(ids))


def has_index(column: sa.Column[Any]) -> bool:
    """Whether an index begins with a column."""
    indexes = getattr(column.table, "indexes", ())
    return bool(column.unique) or any(next(iter(index.columns), None) is column for index in indexes)


#: The words of a search, split like the indexed texts.
_SPLIT = r"(\W|_)+"
_QUERY = f"""to_tsquery('simple', array_to_string(ARRAY(
    SELECT quote_literal(word) || '\\:*' FROM regexp_split_to_table(lower(:words), '{_SPLIT}') AS word WHERE word <> ''
), ' & '))"""


def _words_of(catalogue: Catalogue) -> str:
    columns = " || ' ' || ".join(f"coalesce(\"{name}\", '')" for name in catalogue.search_columns)
    # Words are letters and digits only: the parser would keep an email address as one word.
    return f"to_tsvector('simple', regexp_replace(lower({columns}), '{_SPLIT}', ' ', 'g'))"


def _install_sqlite(connection: sa.Connection, catalogue: Catalogue) -> None:
    words, table, key = f"{_PREFIX}{catalogue.name}", catalogue.table.name, catalogue.key.name
    names = ", ".join(f'"{name}"' for name in catalogue.search_columns)
    new = ", ".join(f'new."{name}"' for name in catalogue.search_columns)
    old = ", ".join(f'old."{name}"' for name in catalogue.search_columns)
    there = sa.text("SELECT name FROM sqlite_master WHERE name LIKE :like")
    known = set(connection.execute(there, {"like": f"{words}%"}).scalars())
    triggers = {f"{words}_{verb}" for verb in ("insert", "update", "delete")}
    if triggers | {words} <= known:
        return
    for name in triggers:
        connection.exec_driver_sql(f'DROP TRIGGER IF EXISTS "{name}"')
    connection.exec_driver_sql(f'DROP TABLE IF EXISTS "{words}"')
    connection.exec_driver_sql(
        f"CREATE VIRTUAL TABLE \"{words}\" USING fts5({names}, content='{table}', content_rowid='{key}', prefix='2 3')"
    )
    add = f'INSERT INTO "{words}"(rowid, {names}) VALUES (new."{key}", {new});'
    drop = f'INSERT INTO "{words}"("{words}", rowid, {names}) VALUES (\'delete\', old."{key}", {old});'
    for verb, of, work in (
        ("insert", "INSERT", add),
        ("delete", "DELETE", drop),
        ("update", f"UPDATE OF {names}", drop + add),
    ):
        connection.exec_driver_sql(f'CREATE TRIGGER "{words}_{verb}" AFTER {of} ON "{table}" BEGIN {work} END')
    connection.exec_driver_sql(f'INSERT INTO "{words}"("{words}") VALUES (\'rebuild\')')
