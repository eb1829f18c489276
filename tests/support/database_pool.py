"""Migrated PostgreSQL databases that are used again: emptying one takes a tenth of creating and dropping one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import psycopg
from psycopg import sql

from models.schema import migrate
from tests.support import services

#: Everything that a test may change besides rows. A database whose schema differs is dropped.
_SCHEMA = """
    SELECT md5(string_agg(part, ' ' ORDER BY part)) FROM (
        SELECT format('%s %s %s %s %s', relname, relkind, relnamespace, relrowsecurity, relacl) AS part FROM pg_class
            WHERE oid >= 16384 AND relnamespace <> 'pg_toast'::regnamespace
        UNION ALL SELECT format('%s %s %s %s %s', attrelid, attname, atttypid, attnotnull, attcollation)
            FROM pg_attribute WHERE attrelid >= 16384 AND attnum > 0
        UNION ALL SELECT format('%s %s %s', tgrelid, tgname, tgenabled) FROM pg_trigger
        UNION ALL SELECT format('%s %s', proname, md5(prosrc)) FROM pg_proc WHERE oid >= 16384
        UNION ALL SELECT format('%s %s', conname, conrelid) FROM pg_constraint WHERE oid >= 16384
        UNION ALL SELECT format('%s %s', typname, typnamespace) FROM pg_type WHERE oid >= 16384 AND typtype <> 'c'
        UNION ALL SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_'
        UNION ALL SELECT setconfig::text FROM pg_db_role_setting
            WHERE setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database())
    ) AS parts
"""
_TABLES = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'r' AND oid >= 16384 ORDER BY 1"
_SEQUENCES = "SELECT oid::regclass::text FROM pg_class WHERE relkind = 'S' AND oid >= 16384 ORDER BY 1"
_OTHER_SESSIONS = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""


@dataclass(frozen=True)
class _Template:
    """The migrated database: its name, the state of its schema, and the statement that empties a copy."""

    name: str
    schema: str
    empty: str


class DatabasePool:
    """Lend one migrated database after the other, each as the migrations leave it."""

    def __init__(self, server_url: str) -> None:
        self._server_url = server_url
        self._template: _Template | None = None
        self._idle: list[str] = []

    @contextmanager
    def lend(self) -> Iterator[str]:
        """Yield the SQLAlchemy URL of a migrated database without rows."""
        template = self._template or self._create_template()
        name = self._idle.pop() if self._idle else self._create(template.name)
        try:
            yield self._url(name, "postgresql+psycopg")
        finally:
            if self._restore(name, template):
                self._idle.append(name)
            else:
                services.drop_later(self._server_url, name)

    def close(self) -> None:
        """Drop all databases."""
        for name in (*self._idle, *([self._template.name] if self._template else [])):
            services.drop_later(self._server_url, name)

    def _create_template(self) -> _Template:
        name = self._create("template1")
        migrate(self._url(name, "postgresql+psycopg"))
        with psycopg.connect(self._url(name), autocommit=True) as connection:
            tables = [row[0] for row in connection.execute(_TABLES)]
            filled = [table for table in tables if connection.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone()]
            if filled != ["alembic_version"]:
                raise RuntimeError(f"migrations insert rows, which the pool cannot restore: {filled}")
            statements = [f"DELETE FROM {table}" for table in tables if table not in filled]
            statements += [f"ALTER SEQUENCE {row[0]} RESTART" for row in connection.execute(_SEQUENCES)]
            self._template = _Template(name, _schema(connection), ";".join(statements))
        return self._template

    def _create(self, template: str) -> str:
        name = services.random_name()
        with psycopg.connect(self._server_url, autocommit=True) as server:
            server.execute(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(*map(sql.Identifier, (name, template))))
            server.execute(sql.SQL("ALTER DATABASE {} SET synchronous_commit = off").format(sql.Identifier(name)))
        return name

    def _restore(self, name: str, template: _Template) -> bool:
        """Empty the database; return whether it is as the template again."""
        try:
            with psycopg.connect(self._url(name), autocommit=True) as connection:
                connection.execute(_OTHER_SESSIONS)
                if _schema(connection) != template.schema:
                    return False
                connection.execute("SET session_replication_role = replica")  # no triggers, no foreign keys
                connection.execute("SET lock_timeout = '5s'")
                connection.execute(template.empty)
        except psycopg.Error:
            return False
        return True

    def _url(self, name: str, scheme: str = "postgresql") -> str:
        return urlsplit(self._server_url)._replace(scheme=scheme, path=f"/{name}").geturl()


def _schema(connection: psycopg.Connection) -> str:
    row = connection.execute(_SCHEMA).fetchone()
    return str(row[0]) if row else ""
