"""Finding records by what people call them: any word's beginning, in any case, at the same speed for millions of rows.

PostgreSQL gets an index over the words of a catalogue's search columns (GIN over `to_tsvector`, see "Text Search
Functions"), SQLite a table of words of its own ("FTS5", external content), kept by three triggers. Only tables of
ours get one: another application's are left as they are, and searched by their own indexes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa

from models.base import Base
from models.catalogues import CATALOGUES, Catalogue

_PREFIX = "words_of_"
_WORD = re.compile(r"[^\W_]+")

#: More words than these tell no more.
_MOST_WORDS = 8

#: Records with the words of a text that are looked through for those that are called exactly so.
_MOST_ALIKE = 2000


def is_searchable(catalogue: Catalogue) -> bool:
    """Whether its table is one of Syncflow's own, with a key that can number an index's rows."""
    is_ours = Base.metadata.tables.get(catalogue.table.name) is catalogue.table
    return is_ours and catalogue.key.type.python_type is int and bool(catalogue.search_columns)


def is_index(name: str) -> bool:
    """Whether a table or an index of this name was made here: migrations do not see to those."""
    return name.startswith(_PREFIX)


def install(connection: sa.Connection, catalogues: Iterable[Catalogue] | None = None) -> None:
    """Make what is missing; indexes of tables that are gone are removed."""
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
    """Whether records of this catalogue can be found by their words."""
    name = _PREFIX + catalogue.name
    there = (
        "SELECT 1 FROM sqlite_master WHERE name = :name"
        if connection.dialect.name == "sqlite"
        else "SELECT 1 FROM pg_indexes WHERE indexname = :name AND schemaname = ANY (current_schemas(false))"
    )
    return is_searchable(catalogue) and connection.execute(sa.text(there), {"name": name}).first() is not None


def find(connection: sa.Connection, catalogue: Catalogue, text: str, limit: int) -> list[Any]:
    """Keys of records that have, for each word of `text`, a word that begins with it."""
    words = [word.lower() for word in _WORD.findall(text)][:_MOST_WORDS]
    if not words:
        return []
    table, key = catalogue.table.name, catalogue.key.name
    if connection.dialect.name == "sqlite":
        index = f"{_PREFIX}{catalogue.name}"
        statement = f'SELECT rowid FROM "{index}" WHERE "{index}" MATCH :words ORDER BY rowid LIMIT :most'
        query = " ".join(f'"{word}"*' for word in words)
    else:
        # Not sorted: all that begin with a letter would have to be read for it.
        statement = f'SELECT "{key}" FROM "{table}" WHERE {_words_of(catalogue)} @@ {_QUERY} LIMIT :most'
        query = " ".join(words)
    return list(connection.execute(sa.text(statement), {"words": query, "most": limit}).scalars())


def exactly(
    connection: sa.Connection, catalogue: Catalogue, text: str, columns: Iterable[str], limit: int
) -> list[str]:
    """Ids of records where one of these columns is this text; without an index of its own, by the index of words.

    Where very many records have its words, only some of them are looked at.
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
            continue  # found by what is surer; and a number is no name
        alike = find(connection, catalogue, text, _MOST_ALIKE) if alike is None else alike
        page = sa.select(catalogue.key).where(catalogue.key.in_(alike), column == text)
        ids += [str(key) for key in connection.execute(page.order_by(catalogue.key).limit(limit)).scalars()]
    return list(dict.fromkeys(ids))


def has_index(column: sa.Column[Any]) -> bool:
    """Whether an index begins with a column."""
    indexes = getattr(column.table, "indexes", ())
    return bool(column.unique) or any(next(iter(index.columns), None) is column for index in indexes)


#: The words looked for, taken apart where the index takes the texts apart.
_SPLIT = r"(\W|_)+"
_QUERY = f"""to_tsquery('simple', array_to_string(ARRAY(
    SELECT quote_literal(word) || '\\:*' FROM regexp_split_to_table(lower(:words), '{_SPLIT}') AS word WHERE word <> ''
), ' & '))"""


def _words_of(catalogue: Catalogue) -> str:
    columns = " || ' ' || ".join(f"coalesce(\"{name}\", '')" for name in catalogue.search_columns)
    # One word is letters and digits: the parser would keep an email address whole.
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
