"""The brake on guessing: passwords and codes are refused after too many wrong ones.

Failures are counted in the audit trail, so that the brake holds over all web processes and restarts,
and an admin sees who is trying.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

import sqlalchemy as sa
from flask import after_this_request, current_app, request
from werkzeug import Response

from i18n import gettext_noop
from models.base import utcnow
from models.ledger import AuditEntry
from models.session import Database

_WINDOW = timedelta(minutes=15)
TOO_MANY = gettext_noop("Too many failed logins. Wait 15 minutes, then try again.")


@dataclass(frozen=True)
class LoginThrottle:
    """How many failures within 15 minutes are borne: of one account from one address, of one address,
    of one account from anywhere. The last is wide for passwords, so that a stranger cannot easily
    lock a person out; for codes a password is known already, so it is narrow."""

    failed: str
    pair: int = 5
    address: int = 20
    account: int = 100

    def record_attempt(self, email: str) -> int | None:
        """Write an attempt down as failed until it succeeds; None, answered with 429, after too many.

        Written before anything is looked at, so that many attempts at once count too.
        """
        who, address = _name_for_trail(email), request.remote_addr or ""
        trail = AuditEntry
        recent = [trail.at > utcnow() - _WINDOW, trail.action == self.failed]
        counts = sa.select(
            sa.func.count().filter(trail.who == who, trail.target == address),
            sa.func.count().filter(trail.target == address),
            sa.func.count().filter(trail.who == who),
        ).where(*recent)
        with _database().write() as connection:
            pair, of_address, of_account = connection.execute(counts).one()
            if pair >= self.pair or of_address >= self.address or of_account >= self.account:
                after_this_request(_too_many)
                return None
            row = {"who": who, "action": self.failed, "target": address}
            return int(connection.execute(sa.insert(trail).values(**row).returning(trail.id)).scalar_one())


PASSWORDS = LoginThrottle("login.failed")
CODES = LoginThrottle("two_factor.failed", account=20)


def record_success(attempt: int, action: str) -> None:
    """The attempt went well: in the trail it is this action."""
    trail = AuditEntry
    with _database().write() as connection:
        connection.execute(sa.update(trail).where(trail.id == attempt).values(action=action))


def _too_many(response: Response) -> Response:
    response.status_code = 429
    response.headers["Retry-After"] = str(int(_WINDOW.total_seconds()))
    return response


def _name_for_trail(email: str) -> str:
    # What is no address may be a password typed into the wrong field: it is not kept.
    email = email.strip().lower()
    return email[:255] if "@" in email and " " not in email else "(no email address)"


def _database() -> Database:
    database: Database = current_app.extensions["syncflow_database"]
    return database
