"""A connection to RabbitMQ in which each request has a time limit.

pika waits without limit for the confirmation of a message. RabbitMQ sends none while its memory or disk alarm is
active, and none when it hangs or the network drops its packets.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pika
import pika.exceptions
from pika.connection import Parameters

from messaging.errors import BrokerBlocked, BrokerSilent, BrokerUnreachable, explain, place


class _Unanswered(pika.exceptions.AMQPConnectionError):
    """The time limit is over."""


class BoundedConnection(pika.BlockingConnection):
    """Raises BrokerUnreachable when a request is not answered in time, and BrokerBlocked when an alarm blocks it.

    `seconds` is the time limit of each request.
    """

    _impl: Any

    def __init__(self, parameters: Parameters, seconds: float) -> None:
        self.seconds = seconds
        self._place = place(parameters)
        #: Why RabbitMQ accepts no messages from this connection ("low on memory"); empty if it does.
        self._blocked = ""
        super().__init__(parameters)
        self._impl.add_on_connection_blocked_callback(self._on_blocked)
        self._impl.add_on_connection_unblocked_callback(self._on_unblocked)

    def _on_blocked(self, _connection: object, frame: Any) -> None:
        self._blocked = str(frame.method.reason) or "an alarm is active"

    def _on_unblocked(self, _connection: object, _frame: object) -> None:
        self._blocked = ""

    # All of pika's blocking calls wait here: for an open channel, a declared queue, a confirmed message, a close.
    def _flush_output(self, *waiters: Callable[[], bool]) -> None:
        timer = self._impl._adapter_call_later(self.seconds, self._give_up)
        try:
            if waiters:
                super()._flush_output(lambda: bool(self._blocked), *waiters)  # type: ignore[misc]
            else:
                super()._flush_output()  # type: ignore[misc]
        except _Unanswered:
            raise BrokerSilent(
                f"RabbitMQ does not answer at {self._place}: no response within {self.seconds:g} s"
            ) from None
        finally:
            if self.is_open:
                self._impl._adapter_remove_timeout(timer)
        if self._blocked and waiters and not any(ready() for ready in waiters):
            reason = self._blocked
            self._abandon()
            raise BrokerBlocked(f"RabbitMQ at {self._place} accepts no messages: {reason}")

    def _give_up(self) -> None:
        self._impl._terminate_stream(_Unanswered())

    def _abandon(self) -> None:
        """Close without the usual handshake: RabbitMQ reads nothing from a blocked connection."""
        self._blocked = ""
        self._give_up()
        try:
            super()._flush_output(lambda: False)  # type: ignore[misc]
        except _Unanswered:
            return


def connect(parameters: Parameters, seconds: float) -> BoundedConnection:
    """Return an open connection.

    Raises:
      BrokerUnreachable: there is no connection, with the reason.
    """
    try:
        return BoundedConnection(parameters, seconds)
    except BrokerUnreachable:
        raise
    except Exception as error:  # pika has no common class for what its connection workflow raises
        raise explain(error, parameters) from None
