"""The worker process: one Dramatiq worker for each system, so that a slow system does not delay others."""

from __future__ import annotations

import logging
import math
import threading

from dramatiq import Worker

from broker import BrokerUnreachable
from workers.actors import register
from workers.publisher import INBOX, LATER, TICK_QUEUE
from workers.runtime import Runtime

logger = logging.getLogger(__name__)

#: Seconds between two attempts to reach the broker.
_BROKER_RETRY_SECONDS = 2.0

#: A system with a concurrency limit has one more thread for each of this many calls, to prepare the next batch.
_CALLS_PER_SPARE_THREAD = 4

#: How often an idle worker checks whether it must stop.
_STOP_CHECK_MILLISECONDS = 500


class WorkerPool:
    """The workers of one process: threads for each system, and one for the tick."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        register(runtime.broker, runtime.conductor)
        self.workers = [self._worker({TICK_QUEUE}, 1)]
        for system in sorted(runtime.conductor.systems):
            names = {s.name() for s in runtime.conductor.of_system(system)}
            queues = names | {name + LATER for name in names} | {system + INBOX}
            limit = runtime.conductor.systems[system].concurrency
            threads = limit + math.ceil(limit / _CALLS_PER_SPARE_THREAD) if limit else runtime.settings.worker_threads
            self.workers.append(self._worker(queues, threads))

    def _worker(self, queues: set[str], threads: int) -> Worker:
        return Worker(
            self.runtime.broker, queues=queues, worker_timeout=_STOP_CHECK_MILLISECONDS, worker_threads=threads
        )

    def start(self) -> None:
        """Start to consume messages."""
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        """Finish current messages within GRACE_SECONDS; the others return to their queues."""
        self.runtime.conductor.stop()
        grace = int(self.runtime.settings.grace_seconds * 1000)
        stopping = [threading.Thread(target=worker.stop, args=(grace,)) for worker in self.workers]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()


def wait_for_broker(runtime: Runtime, stop: threading.Event) -> None:
    """Wait until the broker answers, and create missing queues; log each new reason for waiting."""
    reason = ""
    while not stop.is_set():
        try:
            runtime.broker.ensure()
            return
        except BrokerUnreachable as error:
            if str(error) != reason:
                reason = str(error)
                logger.warning("waiting for the broker: %s", reason)
            stop.wait(_BROKER_RETRY_SECONDS)
