"""The commands of `./syncflow`: one table, each entry a function in one of this folder's files."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from cli import demo, demo_settings, new_subscriber, operations, processes, setup, tasks
from settings import SettingsError


@dataclass(frozen=True)
class Command:
    """A command: what `--help` says of it, what it does, and its arguments."""

    help: str
    run: Callable[[argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    #: Whether it looks at a hub that runs: then beside a demo it goes with that demo's settings.
    uses_running_demo: bool = False


COMMANDS = {
    "status": Command("say whether everything is in sync, and what is not", operations.status, uses_running_demo=True),
    "migrate": Command(
        "bring the database's tables and triggers up to date", setup.migrate_command, setup.migrate_arguments
    ),
    "make-migration": Command(
        "write the next migration from the declared tables",
        setup.make_migration_command,
        setup.make_migration_arguments,
    ),
    "capture": Command(
        "install or remove the triggers that capture changes", setup.capture_command, setup.capture_arguments
    ),
    "relay": Command("run the relay: routes captured changes to the queues", processes.relay),
    "worker": Command("run a worker: delivers, and applies what comes in", processes.worker),
    "scheduler": Command("run the scheduler: the tick of every minute", processes.scheduler),
    "web": Command("run the panel and the webhook routes", processes.web),
    "standalone": Command("run all four as threads of this process", processes.standalone),
    "poll": Command(
        "read now what changed in a system", operations.poll, operations.poll_arguments, uses_running_demo=True
    ),
    "retry": Command("try dead letters again", operations.retry, operations.retry_arguments, uses_running_demo=True),
    "backfill": Command(
        "bring the records there are to a subscriber that is new",
        tasks.backfill,
        tasks.backfill_arguments,
        uses_running_demo=True,
    ),
    "reconcile": Command(
        "compare what a system holds with what is here, field by field",
        tasks.reconcile,
        tasks.reconcile_arguments,
        uses_running_demo=True,
    ),
    "check": Command(
        "prove login, permissions and mapped fields of a system",
        tasks.check,
        tasks.check_arguments,
        uses_running_demo=True,
    ),
    "new-subscriber": Command(
        "write a starting file and its test for another system",
        new_subscriber.new_subscriber,
        new_subscriber.new_subscriber_arguments,
    ),
    "create-admin": Command(
        "make a person who may do everything in the panel",
        setup.create_admin,
        setup.create_admin_arguments,
        uses_running_demo=True,
    ),
    "demo": Command("run Syncflow with demo systems and sample records", demo.run, demo.arguments),
}


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(prog="./syncflow", description="Keep one SQL database and external systems the same.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command.arguments(commands.add_parser(name, help=command.help, description=command.help))
    return top


def main(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit status. What a person can mend is said without a traceback."""
    chosen = parser().parse_args(arguments)
    command = COMMANDS[chosen.command]
    if command.uses_running_demo:
        demo_settings.join()
    try:
        return command.run(chosen)
    except SettingsError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except sa.exc.OperationalError as error:
        print(f"DATABASE_URL: the database does not answer: {str(error.orig).strip()}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        logging.getLogger(__name__).info("interrupted")
        return 130
