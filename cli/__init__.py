"""The commands of `./syncflow`, in one table.

| file             | its commands                                                          |
|------------------|-----------------------------------------------------------------------|
| `setup`          | migrate, make-migration, capture, create-admin                        |
| `processes`      | relay, worker, scheduler, web, standalone                             |
| `operations`     | status, poll, sync, retry, decide, relink, account, new-hub-id        |
| `tasks`          | backfill, reconcile, check                                            |
| `new_subscriber` | new-subscriber                                                        |
| `demo`           | demo; `demo_settings` lets other commands use the settings of its hub |
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass

import sqlalchemy as sa

from cli import demo, demo_settings, faults, new_subscriber, operations, processes, setup, tasks
from redaction import HidingStream
from settings import SettingsError


@dataclass(frozen=True)
class Command:
    """A command: its help text, the function that runs it, and its arguments."""

    help: str
    run: Callable[[argparse.Namespace], int]
    arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None
    #: Whether the command works on a running hub, and so uses the settings of a demo that is running.
    uses_running_demo: bool = False


COMMANDS = {
    "status": Command(
        "report whether everything is in sync; the exit status is 1 if a system is down or failing, or RabbitMQ is",
        operations.status,
        uses_running_demo=True,
    ),
    "migrate": Command(
        "create or upgrade the database's tables and triggers", setup.migrate_command, setup.migrate_arguments
    ),
    "make-migration": Command(
        "write the next migration from the declared tables",
        setup.make_migration_command,
        setup.make_migration_arguments,
    ),
    "capture": Command(
        "install or remove the triggers that capture changes", setup.capture_command, setup.capture_arguments
    ),
    "relay": Command("run the relay, which publishes captured changes to the queues", processes.relay),
    "worker": Command("run a worker, which delivers changes and applies incoming events", processes.worker),
    "scheduler": Command("run the scheduler, which starts periodic jobs and tasks", processes.scheduler),
    "web": Command("run the panel and the webhook routes", processes.web),
    "standalone": Command("run relay, worker, scheduler and web in one process", processes.standalone),
    "poll": Command(
        "poll a system for changes now", operations.poll, operations.poll_arguments, uses_running_demo=True
    ),
    "push": Command(
        "deliver a record to its systems now", operations.push, operations.push_arguments, uses_running_demo=True
    ),
    "retry": Command("retry dead letters", operations.retry, operations.retry_arguments, uses_running_demo=True),
    "decide": Command(
        "say whether a record under a deleted one's id is the same one",
        operations.decide,
        operations.decide_arguments,
        uses_running_demo=True,
    ),
    "relink": Command(
        "link the records again that a system had lost, such as with the login of another account",
        operations.relink,
        operations.relink_arguments,
        uses_running_demo=True,
    ),
    "account": Command(
        "say that the account that the login of a system leads to is the right one now",
        operations.account,
        operations.account_arguments,
        uses_running_demo=True,
    ),
    "backfill": Command(
        "deliver all existing records to a subscriber",
        tasks.backfill,
        tasks.backfill_arguments,
        uses_running_demo=True,
    ),
    "reconcile": Command(
        "compare the records of a system with the database, field by field",
        tasks.reconcile,
        tasks.reconcile_arguments,
        uses_running_demo=True,
    ),
    "check": Command(
        "check RabbitMQ, and the login, permissions and mapped fields of a system",
        tasks.check,
        tasks.check_arguments,
        uses_running_demo=True,
    ),
    "new-hub-id": Command(
        "make a copy of a database a hub of its own, linked to nothing; run it before the copy's processes start",
        operations.new_hub_id,
        operations.new_hub_id_arguments,
    ),
    "new-subscriber": Command(
        "write the first version of a subscriber and its test",
        new_subscriber.new_subscriber,
        new_subscriber.new_subscriber_arguments,
    ),
    "create-admin": Command(
        "create a user of the panel with the role admin",
        setup.create_admin,
        setup.create_admin_arguments,
        uses_running_demo=True,
    ),
    "demo": Command("run Syncflow with demo systems and sample records", demo.run, demo.arguments),
}


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    top = argparse.ArgumentParser(prog="./syncflow", description="Keep one SQL database and external systems in sync.")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        command.arguments(commands.add_parser(name, help=command.help, description=command.help))
    return top


def main(arguments: Sequence[str]) -> int:
    """Run one command and return its exit status. Errors that an operator can fix are printed without a traceback.

    No output quotes a secret.
    """
    with redirect_stdout(HidingStream(sys.stdout)), redirect_stderr(HidingStream(sys.stderr)):
        return _run(arguments)


def _run(arguments: Sequence[str]) -> int:
    chosen = parser().parse_args(arguments)
    command = COMMANDS[chosen.command]
    try:
        if command.uses_running_demo:
            demo_settings.join()
        return command.run(chosen)
    except SettingsError as error:
        print(f"{error}", file=sys.stderr)
        return 2
    except sa.exc.DBAPIError as error:
        if (problem := faults.of_database(error)) is None:
            raise
        print(problem, file=sys.stderr)
        return 2
    except OSError as error:
        if (problem := faults.of_files(error)) is None:
            raise
        print(problem, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        logging.getLogger(__name__).info("interrupted")
        return 130
