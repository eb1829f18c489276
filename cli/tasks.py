"""Commands that bring a subscriber's records together: backfill, reconcile, and check before either."""

from __future__ import annotations

import argparse
import getpass
import sys
import threading
from typing import Any

import sqlalchemy as sa
from tqdm import tqdm

from models.ledger import Process
from workers.runtime import HEARTBEAT_SECONDS, Runtime, build

#: Seconds between two looks at how far a task is.
_LOOK_EVERY = 0.2


def backfill_arguments(parser: argparse.ArgumentParser) -> None:
    """`backfill SUBSCRIBER [--where COLUMN=VALUE ...] [--background]`."""
    parser.add_argument("subscriber", help="e.g. stripe.customer")
    where = "only records whose column has this value; may be repeated, and then all must hold"
    parser.add_argument("--where", action="append", default=[], metavar="COLUMN=VALUE", help=where)
    parser.add_argument("--background", action="store_true", help="begin it and return; the panel shows how far it is")


def backfill(arguments: argparse.Namespace) -> int:
    """Bring the records there are to a subscriber. Interrupted, it is stopped; given again, it goes on."""
    where: dict[str, str] = {}
    for pair in arguments.where:
        column, equals, value = pair.partition("=")
        if not equals or column in where:
            print(f"--where {pair}: give COLUMN=VALUE, each column once", file=sys.stderr)
            return 2
        where[column] = value
    runtime = build()
    return _run(runtime, arguments, lambda by: runtime.conductor.backfill(arguments.subscriber, by, where))


def reconcile_arguments(parser: argparse.ArgumentParser) -> None:
    """`reconcile SUBSCRIBER [--repair] [--background]`."""
    parser.add_argument("subscriber", help="e.g. stripe.customer")
    repair = "bring together what drifted apart: theirs is merged in, ours is sent"
    parser.add_argument("--repair", action="store_true", help=repair)
    parser.add_argument("--background", action="store_true", help="begin it and return; the panel shows how far it is")


def reconcile(arguments: argparse.Namespace) -> int:
    """Compare what a system holds with what is here; exit status 1 if they differ."""
    runtime = build()
    return _run(
        runtime,
        arguments,
        lambda by: runtime.conductor.reconcile(arguments.subscriber, by, repair=arguments.repair),
        sends=arguments.repair,
    )


def _run(runtime: Runtime, arguments: argparse.Namespace, start: Any, *, sends: bool = True) -> int:
    """Begin a task and follow it; `sends`: what it finds is then sent by a worker."""
    by = f"{getpass.getuser()} (command line)"
    try:
        task_id = start(by)
        if arguments.background:
            print(f"task #{task_id} is begun")
            return 0
        if sends and not _is_alive(runtime):
            print("No worker runs on this database, so nothing is sent: start ./syncflow standalone, or the fleet.")
        return _follow(runtime, task_id, by)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        runtime.close()


def _follow(runtime: Runtime, task_id: int, by: str) -> int:
    """Work along and show how far it is, until it has ended."""
    tasks = runtime.conductor.tasks
    task = tasks.get(task_id)
    pause = threading.Event()
    try:
        with tqdm(total=task.total, initial=task.done, unit="", disable=not sys.stderr.isatty()) as bar:
            while task.state in ("running", "stopping"):
                # Whoever is first does the next step, under the task's lease: this process or the scheduler.
                if not tasks.run_some():
                    pause.wait(_LOOK_EVERY)
                task = tasks.get(task_id)
                bar.total = task.total  # the first step has counted it
                bar.set_description_str(task.message or "", refresh=False)
                bar.update(task.done - bar.n)
    except KeyboardInterrupt:
        if (task := tasks.get(task_id)).state == "running":
            tasks.stop(task_id, by)
            of = "" if task.total is None else f" of {task.total}"
            print(f"\nstopped at {task.done}{of}; the same command goes on from there")
        return 130
    for record_id, external_id, field, ours, theirs in (task.position or {}).get("examples", []):
        print(f"record {record_id}, there {external_id}: {field}: here {ours!r}, there {theirs!r}")
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
    """`check [SYSTEM]`."""
    parser.add_argument("system", nargs="?", help="a system (stripe); all that are configured, if left out")


def check(arguments: argparse.Namespace) -> int:
    """Say what works and what is missing; exit status 1 when something is. Changes nothing."""
    runtime = build()
    wrong = 0
    try:
        systems = [arguments.system] if arguments.system else sorted(runtime.conductor.systems)
        if not systems:
            print("No external system is configured. See .env.example, or run: ./syncflow demo")
        for system in systems:
            for name, findings in runtime.conductor.check(system).items():
                print(name)
                for finding in findings:
                    print(f"  {finding.state:<5} {finding.words}")
                    wrong += finding.state == "wrong"
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        runtime.close()
    if wrong:
        print(f"{wrong} {'thing needs' if wrong == 1 else 'things need'} to be mended")
    return 1 if wrong else 0
