"""The worker process: one Dramatiq worker a system, so that a slow one never holds up the others."""

from __future__ import annotations

import logging
import threading

from dramatiq import Worker

from broker import BrokerUnreachable
from workers.actors import register
from workers.publisher import INBOX, LATER, TICK_QUEUE
from workers.runtime import Runtime

logger = logging.getLogger(__name__)

#: Seconds between two tries to reach a broker that is not there yet.
_BROKER_PAUSE = 2.0

#: For so many calls that a system allows at once there is one thread more: what is next is prepared meanwhile.
_BESIDE = 4

#: Milliseconds after which an idle worker looks whether it is asked to stop.
_WORKER_TIMEOUT = 500


class WorkerPool:
    """The workers of one process. Each system has threads of its own; the tick has one."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        register(runtime.broker, runtime.conductor)
        self.workers = [self._worker({TICK_QUEUE}, 1)]
        for system in sorted(runtime.conductor.systems):
            names = {s.name() for s in runtime.conductor.of_system(system)}
            queues = names | {name + LATER for name in names} | {system + INBOX}
            limit = runtime.conductor.systems[system].concurrency
            threads = limit + -(-limit // _BESIDE) if limit else runtime.settings.worker_threads
            self.workers.append(self._worker(queues, threads))

    def _worker(self, queues: set[str], threads: int) -> Worker:
        return Worker(self.runtime.broker, queues=queues, worker_timeout=_WORKER_TIMEOUT, worker_threads=threads)

    def start(self) -> None:
        """Begin to consume."""
        for worker in self.workers:
            worker.start()

    def stop(self) -> None:
        """Finish what is in hand within the grace time; the rest goes back to its queue."""
        self.runtime.conductor.stop()
        grace = int(self.runtime.settings.grace_seconds * 1000)
        stopping = [threading.Thread(target=worker.stop, args=(grace,)) for worker in self.workers]
        for thread in stopping:
            thread.start()
        for thread in stopping:
            thread.join()


def wait_for_broker(runtime: Runtime, stop: threading.Event) -> None:
    """Create what is missing in the broker; wait for one that is not there yet. Why is said when it changes."""
    said = ""
    while not stop.is_set():
        try:
            runtime.broker.ensure()
            return
        except BrokerUnreachable as error:
            if str(error) != said:
                said = str(error)
                logger.warning("waiting for the broker: %s", said)
            stop.wait(_BROKER_PAUSE)
