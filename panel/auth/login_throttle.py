"""Refuse passwords and codes after too many wrong ones.

Failures are counted in the audit trail, so that the limits hold across web processes and restarts,
and admins can see the attempts.
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
    """How many failures within 15 minutes are allowed: of one account from one address, of one address,
    and of one account from anywhere. The last limit is high for passwords, so that an attacker cannot easily
    lock a user out. For codes it is low, since the password was correct already."""

    failed: str
    pair: int = 5
    address: int = 20
    account: int = 100

    def record_attempt(self, email: str) -> int | None:
        """Record an attempt as failed until it succeeds. Return None, with status 429, after too many.

        It is recorded before the check, so that concurrent attempts count as well.
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
    """Change the recorded attempt into this successful action."""
    trail = AuditEntry
    with _database().write() as connection:
        connection.execute(sa.update(trail).where(trail.id == attempt).values(action=action))


def _too_many(response: Response) -> Response:
    response.status_code = 429
    response.headers["Retry-After"] = str(int(_WINDOW.total_seconds()))
    return response


def _name_for_trail(email: str) -> str:
    # Text that is not an address may be a password typed into the wrong field, so it is not stored.
    email = email.strip().lower()
    return email[:255] if "@" in email and " " not in email else "(no email address)"


def _database() -> Database:
    database: Database = current_app.extensions["syncflow_database"]
    return database
