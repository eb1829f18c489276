"""Celery 5: a task per subscriber, acknowledged late, publisher confirms, optionally a ledger row per delivery.

Follows Celery's user guide ("Tasks": acks_late, ignore_result; "Workers": prefork, one process per core):
`celery -A benchmarks.peers.celery_app worker --concurrency 2`.
"""

from __future__ import annotations

from collections.abc import Sequence

from celery import Celery

from benchmarks.peers.common import BROKER_URL, PREFIX, deliver, serve, write_down
from benchmarks.records import Record

app = Celery(PREFIX, broker=BROKER_URL)
app.conf.update(
    task_default_queue=f"{PREFIX}.tasks",
    task_acks_late=True,
    task_ignore_result=True,
    broker_transport_options={"confirm_publish": True},
    broker_connection_retry_on_startup=True,
    worker_hijack_root_logger=False,
)


@app.task(name="one")
def one(record: Record) -> None:
    """Deliver to the first subscriber."""
    deliver("one", record)
    write_down("one", record, "delivered")


@app.task(name="two")
def two(record: Record) -> None:
    """Deliver to the second subscriber."""
    deliver("two", record)
    write_down("two", record, "delivered")


@app.task(name="three")
def three(record: Record) -> None:
    """Deliver to the third subscriber."""
    deliver("three", record)
    write_down("three", record, "delivered")


def publish(records: Sequence[Record]) -> None:
    """Send a task to each subscriber."""
    for record in records:
        for task in (one, two, three):
            task.delay(record)


if __name__ == "__main__":
    serve(publish)
