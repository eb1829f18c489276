"""What stands in the queues, for people: read in the background, so that no page waits for a broker that is away."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

import requests

from broker import BrokerUnreachable, Fanout, LocalFanout
from conductor import QueueReport, QueueState
from models.base import utcnow
from settings import Settings

logger = logging.getLogger(__name__)

#: A reading younger than this is good enough, seconds.
_FRESH = 4.0

#: The longest the broker may take to answer, and the longest a page waits for a first reading; seconds.
_TIMEOUT = 3.0
_PATIENCE = 0.5


@dataclass(frozen=True)
class Management:
    """RabbitMQ's management plugin: its address without a login, the login, and the virtual host."""

    url: str
    login: tuple[str, str]
    vhost: str

    @classmethod
    def from_settings(cls, settings: Settings) -> Management | None:
        """The one the environment names, if it names one."""
        if settings.standalone or not settings.rabbitmq_management_url:
            return None
        return cls(settings.management_page, settings.management_login, settings.broker_vhost)

    def read(self) -> dict[str, QueueState]:
        """All queues of the virtual host (GET /api/queues/vhost, https://www.rabbitmq.com/docs/http-api-reference).

        Raises:
          BrokerUnreachable: it does not answer, or not with that.
        """
        columns = "name,messages_ready,messages_unacknowledged,consumers"
        address = f"{self.url}/api/queues/{quote(self.vhost, safe='')}"
        try:
            answer = requests.get(
                address,
                params={"columns": columns},
                auth=self.login,
                timeout=_TIMEOUT,
                allow_redirects=False,
            )
        except requests.RequestException as error:
            # Its words would name the address, and with it perhaps a login.
            raise BrokerUnreachable(f"RabbitMQ's management does not answer: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise BrokerUnreachable(f"RabbitMQ's management answers {answer.status_code}{_reason(answer)}")
        try:
            return {row["name"]: _state(row) for row in answer.json()}
        except (ValueError, KeyError, TypeError):
            raise BrokerUnreachable("RabbitMQ's management answers with something else than its queues") from None


def _reason(answer: requests.Response) -> str:
    """What it says of a refusal ("Login failed", "Not management user"), after a colon."""
    try:
        return f": {answer.json()['reason']}"[:200]
    except (ValueError, KeyError, TypeError):
        return ""


def _state(row: dict[str, object]) -> QueueState:
    # A queue that was made a moment ago has no numbers yet.
    ready, in_hand, consumers = (row.get(k) for k in ("messages_ready", "messages_unacknowledged", "consumers"))
    return QueueState(str(row["name"]), _number(ready) or 0, _number(in_hand), _number(consumers))


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


class Queues:
    """The newest reading, and a thread that makes a new one where somebody wants it."""

    def __init__(
        self, broker: Fanout, management: Management | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.broker = broker
        self.management = management
        self.clock = clock
        #: The queues to look at: those of the subscribers, the inboxes and the tick.
        self.names: list[str] = []
        self._lock = threading.Lock()
        self._reading: threading.Thread | None = None
        self._report: QueueReport | None = None
        self._read_at = 0.0

    def latest(self) -> QueueReport:
        """The queues as they were some seconds ago at most, unless the broker does not answer."""
        with self._lock:
            reading = self._reading
            if reading is None and (self._report is None or self.clock() - self._read_at > _FRESH):
                reading = threading.Thread(target=self._read, name="queues", daemon=True)
                self._reading = reading
                reading.start()
        if self._report is None and reading is not None:
            reading.join(_PATIENCE)
        return self._report or QueueReport(self._source, error="RabbitMQ has not answered yet")

    def _read(self) -> None:
        try:
            report = self._look()
        except BrokerUnreachable as error:
            report = QueueReport(self._source, utcnow(), error=str(error))
        except Exception as error:
            logger.exception("the queues could not be read")
            report = QueueReport(self._source, utcnow(), error=f"the queues could not be read: {type(error).__name__}")
        with self._lock:
            self._report, self._read_at, self._reading = report, self.clock(), None

    def _look(self) -> QueueReport:
        note = None
        if self.management is not None:
            try:
                found = self.management.read()
            except BrokerUnreachable as error:
                logger.info("the queues are counted by declares: %s", error)
                note = str(error)
            else:
                queues = {name: state for name, state in found.items() if name in self.names}
                return QueueReport("management", utcnow(), queues)
        counts = self.broker.inspect_queues(self.names, _TIMEOUT)
        queues = {name: QueueState(name, ready, None, consumers) for name, (ready, consumers) in counts.items()}
        source = "memory" if isinstance(self.broker, LocalFanout) else "broker"
        return QueueReport(source, utcnow(), queues, note=note)

    @property
    def _source(self) -> str:
        if isinstance(self.broker, LocalFanout):
            return "memory"
        return "broker" if self.management is None else "management"
