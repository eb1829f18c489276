"""Commands for tasks: backfill and reconcile; and check, which tests a connection before them."""

from __future__ import annotations

import argparse
import sys
import threading
from typing import Any

import sqlalchemy as sa
from tqdm import tqdm

from cli.operations import broker_error, operator
from models.ledger import Process
from workers.runtime import HEARTBEAT_SECONDS, Runtime, build

#: Seconds between two reads of a task's progress.
_PROGRESS_INTERVAL_SECONDS = 0.2


def backfill_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subscriber", help="the subscriber, such as stripe.customer")
    where = "only records whose column has this value; if repeated, all conditions must be met"
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help=where)
    parser.add_argument(
        "--background", action="store_true", help="start the task and return; the panel shows its progress"
    )


def backfill(arguments: argparse.Namespace) -> int:
    """Deliver all existing records to a subscriber. Ctrl-C stops the task; the same command continues it."""
    where: dict[str, str] = {}
    for pair in arguments.where:
        column, equals, value = pair.partition("=")
        if not equals or column in where:
            print(f"--where {pair}: write COLUMN=VALUE, with each column once", file=sys.stderr)
            return 2
        where[column] = value
    return _run(arguments, "backfill", where=where)


def reconcile_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subscriber", help="the subscriber, such as stripe.customer")
    repair = "resolve the differences: merge the system's changes, and deliver the database's"
    parser.add_argument("--repair", action="store_true", help=repair)
    parser.add_argument(
        "--background", action="store_true", help="start the task and return; the panel shows its progress"
    )


def reconcile(arguments: argparse.Namespace) -> int:
    """Compare the records of a system with the database; the exit status is 1 if they differ."""
    return _run(arguments, "reconcile", sends=arguments.repair, repair=arguments.repair)


def _run(arguments: argparse.Namespace, kind: str, *, sends: bool = True, **options: Any) -> int:
    """Start a task of a subscriber and follow it to its end. `sends`: a worker delivers what the task finds."""
    by = operator()
    runtime = build()
    try:
        task_id = runtime.conductor.tasks.start(kind, by, subscriber=arguments.subscriber, **options)
        if arguments.background:
            print(f"Started task #{task_id}")
            return 0
        if sends and not _is_alive(runtime):
            print(
                "No worker is running, so nothing is delivered yet: start ./syncflow standalone, or ./syncflow worker."
            )
        return _follow(runtime, task_id, by)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        runtime.close()


def _follow(runtime: Runtime, task_id: int, by: str) -> int:
    """Run steps of a task and show its progress until it ends."""
    tasks = runtime.conductor.tasks
    task = tasks.get(task_id)
    pause = threading.Event()
    try:
        with tqdm(total=task.total, initial=task.done, unit="", disable=not sys.stderr.isatty()) as bar:
            while task.state in ("running", "stopping"):
                # This process or the scheduler runs the next step: the one that gets the task's lease.
                if not tasks.run_some():
                    pause.wait(_PROGRESS_INTERVAL_SECONDS)
                task = tasks.get(task_id)
                bar.total = task.total  # The first step has counted it.
                bar.set_description_str(task.message, refresh=False)
                bar.update(task.done - bar.n)
    except KeyboardInterrupt:
        if (task := tasks.get(task_id)).state == "running":
            tasks.stop(task_id, by)
            of = "" if task.total is None else f" of {task.total}"
            print(f"\nStopped at {task.done}{of}; run the same command to continue")
        return 130
    for record_id, external_id, field, ours, theirs in task.position.get("examples", []):
        print(f"record {record_id}, external record {external_id}: {field}: ours {ours!r}, theirs {theirs!r}")
    print(f"{task.state}: {task.message}" if task.state != "done" else task.message)
    return 0 if task.state == "done" and not task.failed else 1


def _is_alive(runtime: Runtime) -> bool:
    recent = runtime.conductor.context.later(-4 * HEARTBEAT_SECONDS)
    works = Process.kind.in_(("standalone", "worker"))
    with runtime.database.read() as connection:
        return (
            connection.execute(sa.select(Process.id).where(works, Process.last_seen_at >= recent)).first() is not None
        )


def check_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("system", nargs="?", help="a system, such as stripe (default: all configured systems)")


def check(arguments: argparse.Namespace) -> int:
    """Print what works and what is missing; the exit status is 1 if anything is. Changes nothing."""
    runtime = build()
    wrong = 0
    try:
        if (broker := broker_error(runtime)) is not None:
            print(f"rabbitmq\n  wrong {broker}")
            wrong += 1
        with runtime.database.read() as connection:
            for name, reasons in runtime.conductor.capture.faults(connection).items():
                print(f"capture of {name}")
                for reason in reasons:
                    print(f"  wrong {reason}")
                    wrong += 1
        systems = [arguments.system] if arguments.system else sorted(runtime.conductor.systems)
        if not systems:
            print("No external system is configured. See .env.example, or run ./syncflow demo")
        for system in systems:
            for name, findings in runtime.conductor.connection_check.check(system).items():
                print(name)
                for finding in findings:
                    print(f"  {finding.state:<5} {finding.message}")
                    wrong += finding.state == "wrong"
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        runtime.close()
    if wrong:
        print(f"Fix {wrong} {'problem' if wrong == 1 else 'problems'}")
    return 1 if wrong else 0
