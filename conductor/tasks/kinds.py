"""Which kinds of tasks there are: a new one is a class in a file of its own and a line here."""

from __future__ import annotations

from conductor.tasks.backfill import Backfill
from conductor.tasks.check_connection import CheckConnection
from conductor.tasks.discard_dead_letters import DiscardDeadLetters
from conductor.tasks.reconcile import Reconcile
from conductor.tasks.replay_webhooks import ReplayWebhooks
from conductor.tasks.resend_records import ResendRecords
from conductor.tasks.resolve_conflicts import ResolveConflicts
from conductor.tasks.retry_dead_letters import RetryDeadLetters
from conductor.tasks.runner import TaskKind, TaskRunner
from conductor.tasks.services import Services

TASKS: dict[str, type[TaskKind]] = {
    "backfill": Backfill,
    "check": CheckConnection,
    "discard": DiscardDeadLetters,
    "reconcile": Reconcile,
    "replay": ReplayWebhooks,
    "resend": ResendRecords,
    "resolve": ResolveConflicts,
    "retry": RetryDeadLetters,
}


def make_task_runner(services: Services) -> TaskRunner:
    """Return a runner of all kinds of tasks."""
    runner = TaskRunner(services.context)
    runner.kinds |= {name: kind(services, runner) for name, kind in TASKS.items()}
    return runner
