"""Say in one sentence what an operator can correct, in the place of a traceback."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from models.session import is_read_only
from settings import VAR

#: Parts of what databases say about tables that are not those of Syncflow.
_OTHER_TABLES = (
    "already exists",
    "no such table",
    "no such column",
    "does not exist",
    "has no column",
    "duplicate column",
)


def of_database(error: sa.exc.DBAPIError) -> str | None:
    """Return what is wrong with the database; None if the error is no fault of the database."""
    reason = str(error.orig).strip()
    first = reason.split("\n", 1)[0]
    if is_read_only(error) or "readonly database" in reason:
        return f"DATABASE_URL: the database accepts no writes ({first}); name a server or a file that does"
    if "file is not a database" in reason:
        return "DATABASE_URL: the file is not an SQLite database; name another file, or restore this one from a backup"
    if any(part in reason for part in _OTHER_TABLES) and not _cannot_connect(error):
        return (
            f"DATABASE_URL: the tables of this database are not as a migration of Syncflow leaves them ({first}); "
            "name an empty database, or restore a backup"
        )
    if isinstance(error, sa.exc.OperationalError):
        return f"DATABASE_URL: cannot connect to the database: {reason}"
    if isinstance(error, sa.exc.ProgrammingError | sa.exc.InternalError):
        return f"DATABASE_URL: the database refused a statement: {first}"
    return None


def _cannot_connect(error: sa.exc.DBAPIError) -> bool:
    return error.statement is None


def of_files(error: OSError) -> str | None:
    """Return that the folder for local data cannot be used; None for an error of another file."""
    if error.filename is None:
        return None
    path = Path(str(error.filename))
    if path != VAR and VAR not in path.parents and path not in VAR.parents:
        return None
    return f"SYNCFLOW_VAR: cannot use {VAR} ({error.strerror}); make it writable, or name another folder"
