"""nameko: an event and a handler per subscriber, each a service with its own queue.

Follows nameko's documentation ("Built-in extensions": events; "CLI"): `nameko run benchmarks.peers.nameko_app`, one
process per core. By default, nameko's events are persistent and dispatched with confirms.
"""

from __future__ import annotations

import eventlet

eventlet.monkey_patch()  # before all other imports, as `nameko run` does

from collections.abc import Sequence  # noqa: E402

from nameko.events import event_handler  # noqa: E402
from nameko.standalone.events import event_dispatcher  # noqa: E402

from benchmarks.peers.common import BROKER_URL, PREFIX, deliver, serve  # noqa: E402
from benchmarks.records import Record  # noqa: E402

_SOURCE = f"{PREFIX}_records"


class One:
    """The first subscriber."""

    name = f"{PREFIX}_one"

    @event_handler(_SOURCE, "changed")
    def handle(self, record: Record) -> None:
        """A record has changed."""
        deliver("one", record)


class Two:
    """The second subscriber."""

    name = f"{PREFIX}_two"

    @event_handler(_SOURCE, "changed")
    def handle(self, record: Record) -> None:
        """A record has changed."""
        deliver("two", record)


class Three:
    """The third subscriber."""

    name = f"{PREFIX}_three"

    @event_handler(_SOURCE, "changed")
    def handle(self, record: Record) -> None:
        """A record has changed."""
        deliver("three", record)


def main() -> None:
    """Publish on request."""
    dispatch = event_dispatcher({"AMQP_URI": BROKER_URL})

    def publish(records: Sequence[Record]) -> None:
        for record in records:
            dispatch(_SOURCE, "changed", record)

    serve(publish)


if __name__ == "__main__":
    main()
