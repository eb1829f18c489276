"""Why messages cannot be published or consumed: RabbitMQ's own words, and what to do."""

from __future__ import annotations

import re
import ssl
from typing import ClassVar

import pika.exceptions
from dramatiq.errors import ConnectionClosed
from pika.connection import Parameters

#: Name in the text of an error -> its cause.
_CAUSES = {
    "ConnectionRefusedError": "the connection is refused",
    "gaierror": "the host name is unknown",
    "IncompatibleProtocolError": "the port is not that of RabbitMQ, or needs TLS (amqps://, usually port 5671)",
    "WRONG_VERSION_NUMBER": "the port does not use TLS: write amqp:// in BROKER_URL, or the TLS port, usually 5671",
    "StackTimeout": "it accepts connections, but does not respond; check that it is RabbitMQ",
    "Timeout": "the connection timed out",
    "StreamLostError": "the connection was closed",
    "ConnectionResetError": "the connection was closed",
}

#: Error code of RabbitMQ, as it begins its text -> what to do.
_REMEDIES = {
    "PRECONDITION_FAILED": (
        "what exists has other properties; set QUEUE_TYPE to the type of the existing queues, or stop all processes, "
        "delete what is named here and start them again: pending changes are in the ledger"
    ),
    "RESOURCE_LOCKED": "another program holds it exclusively; stop that program, or use another virtual host",
    "NOT_ALLOWED": (
        "check the virtual host in BROKER_URL, the user's permissions on it, and the limits of both "
        "(rabbitmqctl list_vhosts, list_permissions -p VHOST, list_vhost_limits)"
    ),
    "ACCESS_REFUSED": (
        "give the user of BROKER_URL permission to configure, write and read on the virtual host: "
        "rabbitmqctl set_permissions -p VHOST USER '.*' '.*' '.*'"
    ),
}

#: The text of an error of RabbitMQ: a code in capitals, and its words.
_WORDS = re.compile(r"\b([A-Z]+(?:_[A-Z]+)+ - [^\n]*?)['\"]*\)*,?\)*$")


class BrokerUnreachable(ConnectionClosed):
    """The broker does not accept messages. Work that could not be published is still pending in the ledger."""

    #: The state of the broker in one word, as `/healthz` and the panel show it.
    state: ClassVar[str] = "unreachable"
    #: Whether to publish nothing for a moment, because each try would wait in vain.
    pauses: ClassVar[bool] = False

    def __init__(self, message: str) -> None:
        super().__init__(message)


class BrokerSilent(BrokerUnreachable):
    """The broker accepts connections or holds one open, but does not respond."""

    pauses = True


class BrokerBlocked(BrokerUnreachable):
    """The broker answers, but accepts no messages for now: memory or disk space is low."""

    state = "blocked"
    pauses = True


class BrokerRefused(BrokerUnreachable):
    """The broker refuses the login, a permission or a queue; waiting does not help."""

    state = "refused"


def place(parameters: Parameters) -> str:
    """Return host and port, without the login."""
    return f"{parameters.host}:{parameters.port}"


def cause_of(error: BaseException) -> BaseException:
    """Return the error of pika that an error of Dramatiq wraps."""
    while isinstance(error, ConnectionClosed) and isinstance(error.message, BaseException):
        error = error.message
    return error


def explain(error: BaseException, parameters: Parameters) -> BrokerUnreachable:
    """Return the error with RabbitMQ's own words, the remedy if one is known, and never the login."""
    error = cause_of(error)
    if isinstance(error, BrokerUnreachable):
        return error
    where, details = place(parameters), repr(error)
    if "ProbableAuthenticationError" in details:
        words = _words(error) or "ACCESS_REFUSED"
        return BrokerRefused(f"RabbitMQ at {where} refuses the login: {words}; check user and password in BROKER_URL")
    if isinstance(error, ssl.SSLCertVerificationError):
        return BrokerRefused(
            f"the certificate of {where} is not accepted: {error.verify_message}; "
            "see 'TLS' in docs/howto/operate.md for your own authority"
        )
    if words := _words(error):
        remedy = _REMEDIES.get(words.partition(" - ")[0])
        return BrokerRefused(f"RabbitMQ at {where} refuses: {words}" + (f"; {remedy}" if remedy else ""))
    cause = next((cause for name, cause in _CAUSES.items() if name in details), None)
    if isinstance(error, ssl.SSLError) and cause is None:
        cause = f"TLS fails: {error.reason}"
    kind = BrokerUnreachable
    if isinstance(error, ssl.SSLError | pika.exceptions.IncompatibleProtocolError):
        kind = BrokerRefused
    elif "Timeout" in details:
        kind = BrokerSilent
    return kind(f"RabbitMQ does not answer at {where}: {cause or type(error).__name__}")


def _words(error: BaseException) -> str:
    """Return RabbitMQ's own words, such as `NOT_ALLOWED - vhost shop not found`; empty if it said none."""
    text = getattr(error, "reply_text", None) or " ".join(str(part) for part in error.args)
    found = _WORDS.search(str(text))
    return found.group(1).removesuffix(" For details see the broker logfile.").rstrip(".") if found else ""
