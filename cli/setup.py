"""Commands that set things up: migrate, make-migration, capture, create-admin."""

from __future__ import annotations

import argparse
import getpass
import os
import sys

from models import capture
from models.capture_checks import CaptureRefused
from models.schema import NothingToMigrate, UnknownRevision, is_current, make_migration, migrate
from models.session import Database
from settings import ROOT, SettingsError, get_settings


def migrate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--to",
        default="head",
        help="the revision to downgrade to, or base for an empty database (default: upgrade to the newest)",
    )


def migrate_command(arguments: argparse.Namespace) -> int:
    """Upgrade or downgrade the database, and install the capture triggers again."""
    try:
        migrate(get_settings().database_url, arguments.to)
    except UnknownRevision as error:
        name = "DATABASE_URL: not a database of this version: " if arguments.to == "head" else ""
        print(f"{name}{error}", file=sys.stderr)
        return 2
    except CaptureRefused as error:
        print(error, file=sys.stderr)
        return 2
    print("The database is up to date." if arguments.to == "head" else f"The database is at revision {arguments.to}.")
    return 0


def make_migration_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("message", help='what changes, for example "credit notes"; becomes part of the file name')


def make_migration_command(arguments: argparse.Namespace) -> int:
    """Write the next migration from the declared tables."""
    try:
        path = make_migration(arguments.message)
    except NothingToMigrate as error:
        print(f"No migration is needed: {error}.", file=sys.stderr)
        return 1
    print(f"Wrote {path.relative_to(ROOT)}. Read it, then apply it: ./syncflow migrate")
    return 0


def capture_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", choices=["install", "remove"], help="install all capture triggers, or remove them")


def capture_command(arguments: argparse.Namespace) -> int:
    """Create or drop the capture triggers, and print their names."""
    database = Database(get_settings().database_url)
    try:
        if arguments.action == "install" and not is_current(database):
            raise SettingsError("DATABASE_URL: the tables of this database are not up to date; run ./syncflow migrate")
        work = capture.install if arguments.action == "install" else capture.remove
        with database.write() as connection:
            names = work(connection)
    except CaptureRefused as refused:
        print("Nothing was changed, because some writes could not be captured:", file=sys.stderr)
        for reason in refused.reasons:
            print(f"  {reason}.", file=sys.stderr)
        return 1
    finally:
        database.close()
    print(f"{len(names)} triggers {'installed' if arguments.action == 'install' else 'removed'}")
    for name in names:
        print(f"  {name}")
    return 0


def create_admin_arguments(parser: argparse.ArgumentParser) -> None:
    """The command prompts for the password, or reads it from SYNCFLOW_PASSWORD."""
    parser.add_argument("email", help="the user's address; the password is read from a prompt, or SYNCFLOW_PASSWORD")


def create_admin(arguments: argparse.Namespace) -> int:
    """Create an admin. The password is not an argument: other users of the machine can read command lines."""
    from panel.auth.accounts import create_user  # noqa: PLC0415 - workers and the relay need no Flask

    settings = get_settings()
    password = os.environ.get("SYNCFLOW_PASSWORD")
    if not password:
        try:
            password = getpass.getpass("Password: ")
        except EOFError:
            print("There is no terminal to prompt for a password: set SYNCFLOW_PASSWORD.", file=sys.stderr)
            return 1
    database = Database(settings.database_url)
    try:
        create_user(database, arguments.email, password, "admin")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        database.close()
    print(f"{arguments.email} may log in as admin.")
    return 0
