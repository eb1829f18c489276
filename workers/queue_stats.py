"""The state of the queues, read in the background so that no page waits for a broker that does not answer."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from urllib.parse import quote

import requests

from broker import BrokerUnreachable, Fanout, LocalFanout
from conductor import QueueReport, QueueState
from models.base import utcnow
from redaction import hide
from settings import Settings
from subscribers.http.transport import new_session

logger = logging.getLogger(__name__)

#: A report is read again when it is older than this.
_MAX_AGE_SECONDS = 4.0

#: How long the management plugin may take to answer, and how long a page waits for the first report.
_TIMEOUT_SECONDS = 3.0
_FIRST_REPORT_SECONDS = 0.5


@dataclass(frozen=True)
class Management:
    """RabbitMQ's management plugin: its address without a login, the login, and the virtual host."""

    url: str
    login: tuple[str, str]
    vhost: str

    @classmethod
    def from_settings(cls, settings: Settings) -> Management | None:
        """Return the plugin at RABBITMQ_MANAGEMENT_URL, if that is set."""
        if settings.standalone or not settings.rabbitmq_management_url:
            return None
        return cls(settings.management_page, settings.management_login, settings.broker_vhost)

    def read(self) -> dict[str, QueueState]:
        """Return all queues of the virtual host (GET /api/queues/vhost, https://www.rabbitmq.com/docs/http-api-reference).

        Raises:
          BrokerUnreachable: the plugin does not answer, or returns no list of queues.
        """
        columns = "name,messages_ready,messages_unacknowledged,consumers"
        address = f"{self.url}/api/queues/{quote(self.vhost, safe='')}"
        try:
            with new_session() as session:
                answer = session.get(
                    address,
                    params={"columns": columns},
                    auth=self.login,
                    timeout=_TIMEOUT_SECONDS,
                    allow_redirects=False,
                )
        except requests.RequestException as error:
            # The error's text has the address, and with it perhaps a login.
            raise BrokerUnreachable(f"RabbitMQ's management plugin does not answer: {type(error).__name__}") from None
        if answer.status_code != 200:
            raise BrokerUnreachable(f"RabbitMQ's management plugin answers {answer.status_code}{_reason(answer)}")
        try:
            return {row["name"]: _state(row) for row in answer.json()}
        except (ValueError, KeyError, TypeError):
            raise BrokerUnreachable(
                "RabbitMQ's management plugin answers without its queues: check RABBITMQ_MANAGEMENT_URL"
            ) from None


def _reason(answer: requests.Response) -> str:
    """Return the plugin's reason for a refusal ("Login failed", "Not management user"), after a colon."""
    try:
        return f": {hide(str(answer.json()['reason']))}"[:200]
    except (ValueError, KeyError, TypeError):
        return ""


def _state(row: dict[str, object]) -> QueueState:
    # A new queue has no figures yet.
    ready, unacknowledged, consumers = (row.get(k) for k in ("messages_ready", "messages_unacknowledged", "consumers"))
    return QueueState(str(row["name"]), _number(ready) or 0, _number(unacknowledged), _number(consumers))


def _number(value: object) -> int | None:
    return value if isinstance(value, int) else None


class Queues:
    """The latest report of the queues, renewed by a thread when it is requested."""

    def __init__(
        self, broker: Fanout, management: Management | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.broker = broker
        self.management = management
        self.clock = clock
        #: The queues to report: those of the subscribers, the inboxes and the tick.
        self.names: list[str] = []
        self._lock = threading.Lock()
        self._reading: threading.Thread | None = None
        self._report: QueueReport | None = None
        self._read_at = 0.0

    def latest(self) -> QueueReport:
        """Return a report that is at most some seconds old, or the last one while the broker does not answer."""
        with self._lock:
            reading = self._reading
            if reading is None and (self._report is None or self.clock() - self._read_at > _MAX_AGE_SECONDS):
                reading = threading.Thread(target=self._read, name="queues", daemon=True)
                self._reading = reading
                reading.start()
        if self._report is None and reading is not None:
            reading.join(_FIRST_REPORT_SECONDS)
        return self._report or QueueReport(self._source, error="RabbitMQ has not answered yet", state="unknown")

    def _read(self) -> None:
        try:
            report = self._inspect()
        except BrokerUnreachable as error:
            report = QueueReport(self._source, utcnow(), error=hide(str(error)), state=error.state)
        except Exception as error:
            logger.exception("cannot read the queues")
            report = QueueReport(
                self._source, utcnow(), error=f"cannot read the queues: {type(error).__name__}", state="unknown"
            )
        with self._lock:
            self._report, self._read_at, self._reading = report, self.clock(), None

    def _inspect(self) -> QueueReport:
        report = self._count()
        try:
            self.broker.probe()
        except BrokerUnreachable as error:
            return replace(report, error=hide(str(error)), state=error.state)
        return report

    def _count(self) -> QueueReport:
        note = None
        if self.management is not None:
            try:
                found = self.management.read()
            except BrokerUnreachable as error:
                logger.info("counting the queues by passive declares: %s", error)
                note = hide(str(error))
            else:
                queues = {name: state for name, state in found.items() if name in self.names}
                return QueueReport("management", utcnow(), queues)
        counts = self.broker.inspect_queues(self.names)
        queues = {name: QueueState(name, ready, None, consumers) for name, (ready, consumers) in counts.items()}
        source = "memory" if isinstance(self.broker, LocalFanout) else "broker"
        return QueueReport(source, utcnow(), queues, note=note)

    @property
    def _source(self) -> str:
        if isinstance(self.broker, LocalFanout):
            return "memory"
        return "broker" if self.management is None else "management"
