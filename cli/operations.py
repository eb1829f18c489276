"""Commands that report on the hub or operate it: status, poll, sync, retry, decide, relink, account, new-hub-id."""

from __future__ import annotations

import argparse
import getpass
import sys

import sqlalchemy as sa

from broker import BrokerUnreachable
from conductor import DeadLetterFilter
from models.ledger import System
from models.session import Database
from subscribers.errors import SyncError
from subscribers.unknown_settings import unknown_settings
from workers.runtime import Runtime, build


def operator() -> str:
    """Return the name of the operator for the audit trail."""
    return f"{getpass.getuser()} (command line)"


def status(_arguments: argparse.Namespace) -> int:
    """Print one line for each system and subscriber, and for a broker that does not accept messages.

    The exit status is 1 if a system is down or failing, or the broker does not accept messages.
    """
    runtime = build()
    for words in unknown_settings():
        print(words, file=sys.stderr)
    overview = runtime.conductor.reports.overview()
    systems, waiting = overview.systems, overview.waiting
    unconfigured = _unconfigured(runtime.database, {system.name for system in systems})
    hub_id = runtime.conductor.identity.hub_id()
    broker = broker_error(runtime)
    lost = {system.name: runtime.conductor.relinking.count(system.name) for system in systems}
    runtime.close()
    if broker is not None:
        print(f"{'rabbitmq':<14} {broker.state:<8} {broker}")
    for trouble in overview.troubles:
        if trouble.kind == "capture":
            print(f"{'capture':<14} {'failing':<8} {trouble.what}")
    if not systems and not unconfigured:
        print("No external system is configured. See .env.example, or run ./syncflow demo")
    for system in systems:
        print(f"{system.name:<14} {system.state:<8} {system.summary}")
        if any(s.state == "down" or s.poll_error for s in system.subscribers) and system.state != "paused":
            print(f"{'':<23} if this is fixed, run ./syncflow poll {system.name} to retry now")
        if lost[system.name]:
            print(f"{'':<23} {lost[system.name]} records lost there: ./syncflow relink {system.name} reads them again")
        for subscriber in system.subscribers:
            since = subscriber.oldest_owed_since
            age = f", the oldest since {since:%Y-%m-%d %H:%M:%S} UTC" if since is not None else ""
            print(f"  {subscriber.name:<24} pending {subscriber.owed}{age}, dead letters {subscriber.dead}")
            if subscriber.gap:
                print(f"{'':<4}{subscriber.gap}: ./syncflow reconcile {subscriber.name}")
    if waiting.changes or waiting.inbox:
        print(f"waiting: {waiting.changes} captured changes, {waiting.inbox} incoming events")
    print(f"hub id: {hub_id}")
    for name in unconfigured:
        print(f"{name:<14} off      the database has links to it, but it is not configured here")
    return 1 if broker is not None or any(system.state in ("down", "failing") for system in systems) else 0


def broker_error(runtime: Runtime) -> BrokerUnreachable | None:
    """Return why the broker does not accept messages; None if it works."""
    try:
        runtime.broker.check()
    except BrokerUnreachable as error:
        return error
    return None


def _unconfigured(database: Database, known: set[str]) -> list[str]:
    """Return the systems in the database that the environment does not configure."""
    with database.read() as connection:
        return sorted(set(connection.execute(sa.select(System.name)).scalars()) - known)


def poll_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("system", help="a system, such as stripe, or one subscriber, such as stripe.customer")
    again = "forget the cursor and read everything again; records that are known and unchanged stay as they are"
    parser.add_argument("--from-start", action="store_true", help=again)


def poll(arguments: argparse.Namespace) -> int:
    """Poll in this process, even while the system is down, and print the number of changed records."""
    runtime = build()
    names = [n for n, s in runtime.conductor.subscribers.items() if arguments.system in (n, s.system)]
    if not names:
        known = ", ".join(sorted(runtime.conductor.systems)) or "none"
        print(f"unknown system {arguments.system!r}; known systems: {known}", file=sys.stderr)
        return 2
    failed = False
    for name in names:
        try:
            systems, poll = runtime.conductor.systems, runtime.conductor.poll
            count = systems.poll_now(name, operator(), poll, from_start=arguments.from_start)
            print(f"{name}: {count} record{'' if count == 1 else 's'}")
        except (SyncError, ValueError) as error:
            failed = True
            print(f"{name}: {error}", file=sys.stderr)
    runtime.close()
    return 1 if failed else 0


def push_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("catalogue", help="e.g. customer")
    parser.add_argument("id", help="the record's key")
    unsubscribe = "systems or subscribers that do not get it, separated by commas"
    parser.add_argument("--unsubscribe", default="", metavar="NAME,NAME", help=unsubscribe)


def push(arguments: argparse.Namespace) -> int:
    """Have the relay and the workers deliver a record as if it had just changed."""
    runtime = build()
    names = [name.strip() for name in arguments.unsubscribe.split(",") if name.strip()]
    try:
        runtime.conductor.push(arguments.catalogue, arguments.id, unsubscribe=names, by=operator())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        runtime.close()
    exceptions = f", except to {', '.join(names)}" if names else ""
    print(f"{arguments.catalogue} {arguments.id}: push started{exceptions}")
    return 0


def retry_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subscriber", help="only those of this subscriber, such as stripe.customer")
    parser.add_argument("--error", help="only those with this class of error, such as Reject")
    parser.add_argument("--id", type=int, action="append", dest="ids", help="only this dead letter; may be repeated")


def retry(arguments: argparse.Namespace) -> int:
    """Retry the dead letters with these ids immediately, or all that match by a task; print their number."""
    runtime = build()
    conductor, by = runtime.conductor, operator()
    if arguments.ids:
        count = sum(conductor.dead_letters.retry(number, by) for number in arguments.ids)
    else:
        letters = DeadLetterFilter(subscriber=arguments.subscriber, error=arguments.error)
        task = conductor.tasks.get(conductor.tasks.start("retry", by, letters=letters))
        count = task.total or 0
        # The first steps run here, so that it does not depend on a scheduler; the scheduler counts the outcomes.
        while task.done < count and conductor.tasks.run_some():
            task = conductor.tasks.get(task.id)
    runtime.close()
    print(f"Retrying {count} dead letter{'' if count == 1 else 's'}")
    return 0


def decide_arguments(parser: argparse.ArgumentParser) -> None:
    """`decide ID same|another`."""
    parser.add_argument("id", type=int, help="the dead letter that asks")
    parser.add_argument("choice", choices=("same", "another"), help="whether it is the same record or another one")


def decide(arguments: argparse.Namespace) -> int:
    """Say whether a record under a deleted one's id is the same record, which is linked again, or another one."""
    runtime = build()
    try:
        runtime.conductor.relinking.decide(arguments.id, operator(), same=arguments.choice == "same")
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        runtime.close()
    print(f"Dead letter #{arguments.id}: {arguments.choice} record")
    return 0


def relink_arguments(parser: argparse.ArgumentParser) -> None:
    """`relink SYSTEM`."""
    parser.add_argument("system", help="a system, such as stripe")


def relink(arguments: argparse.Namespace) -> int:
    """Read the records again that a system has lost, and link those that are there; resume it if that paused it."""
    runtime = build()
    try:
        count = runtime.conductor.relinking.relink(arguments.system, operator())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        runtime.close()
    print(f"{arguments.system}: {count} record{'' if count == 1 else 's'} will be read again")
    return 0


def account_arguments(parser: argparse.ArgumentParser) -> None:
    """`account SYSTEM [--unlink]`."""
    parser.add_argument("system", help="a system, such as stripe")
    unlink = "remove all links first: the account has none of the linked records"
    parser.add_argument("--unlink", action="store_true", help=unlink)


def account(arguments: argparse.Namespace) -> int:
    """Say that the account that the login of a system leads to is the right one now, and resume the system."""
    runtime = build()
    try:
        found = runtime.conductor.relinking.accept_account(arguments.system, operator(), unlink=arguments.unlink)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        runtime.close()
    print(f"{arguments.system}: {found} is the right account now")
    return 0


def new_hub_id_arguments(parser: argparse.ArgumentParser) -> None:
    """`new-hub-id FORMER`."""
    parser.add_argument("former", help="the id that the copy has from the original: ./syncflow status shows it")


def new_hub_id(arguments: argparse.Namespace) -> int:
    """Make a copy of a database a hub of its own, linked to nothing; print its id."""
    runtime = build()
    try:
        fresh = runtime.conductor.identity.renew(arguments.former, operator())
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        runtime.close()
    print(f"hub id: {fresh}. All links were removed. Run ./syncflow backfill SUBSCRIBER to link the records again")
    return 0
