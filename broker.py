"""The Dramatiq broker: RabbitMQ, or the same exchange and queues within one process.

A change is published once to the exchange `syncflow.changes`, with the catalogue as routing key.
RabbitMQ copies it to the queue of every subscriber of that catalogue. Dramatiq's envelope names one
queue and one actor, so each consumer replaces them by its own: one published message becomes one
actor call per subscriber. Dead letters are in the ledger; the `.XQ` queues hold only messages that
cannot be parsed. The parts are in `messaging/`.
"""

from __future__ import annotations

import logging

import dramatiq

from messaging.errors import BrokerBlocked, BrokerRefused, BrokerUnreachable
from messaging.local import LocalFanout
from messaging.messages import EXCHANGE, OrjsonEncoder, fanout_message
from messaging.rabbitmq import RabbitmqFanout
from settings import Settings

__all__ = [
    "EXCHANGE",
    "BrokerBlocked",
    "BrokerRefused",
    "BrokerUnreachable",
    "Fanout",
    "LocalFanout",
    "OrjsonEncoder",
    "RabbitmqFanout",
    "fanout_message",
    "make_broker",
]

Fanout = RabbitmqFanout | LocalFanout


def make_broker(settings: Settings) -> Fanout:
    """Return the broker for these settings, and make it Dramatiq's global broker."""
    logging.getLogger("pika").setLevel(logging.CRITICAL)  # it logs a traceback for every lost connection
    broker: Fanout = (
        LocalFanout()
        if settings.standalone
        else RabbitmqFanout(settings.broker_url, settings.queue_type, settings.broker_timeout_seconds)
    )
    dramatiq.set_encoder(OrjsonEncoder())
    dramatiq.set_broker(broker)
    return broker
