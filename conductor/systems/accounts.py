"""The account that a login belongs to: remembered at the first contact, compared at each start and each login.

In another account no record can be found, and the ids of one account may exist in the other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import defaultdict

import sqlalchemy as sa

from conductor.context import Context
from models.ledger import System
from subscribers.calls import call_safely
from subscribers.errors import SyncError

logger = logging.getLogger(__name__)

#: The name under which a system is paused whose login leads to another account.
ACCOUNT_CHECK = "account check"

#: Seconds until a system is asked again that did not tell its account.
_ASK_AGAIN_SECONDS = 60.0


class Accounts:
    """Compares accounts, once for each process and login."""

    def __init__(self, context: Context) -> None:
        self.context = context
        #: System -> the number of the login that was compared last.
        self._compared: dict[str, int] = {}
        #: System -> the monotonic time from which on it is asked again.
        self._ask_at: dict[str, float] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)

    def refusal(self, name: str) -> str | None:
        """Return why a system may not be called; None if its login leads to the known account, or to an unknown one.

        A system whose login leads to another account is paused.
        """
        client = self.context.systems.get(name)
        if client is None or self._compared.get(name) == client.logins:
            return None
        with self._locks[name]:
            if self._compared.get(name) == client.logins or time.monotonic() < self._ask_at.get(name, 0.0):
                return None
            account = call_safely(client.account)
            if isinstance(account, SyncError):
                # If the system is down, the next call finds that out.
                logger.info("%s does not tell its account: %s", name, account)
                self._ask_at[name] = time.monotonic() + _ASK_AGAIN_SECONDS
                return None
            logins = client.logins
            refusal = None
            if account is not None:
                refusal = self.context.database.run_in_transaction(self._compare, name, str(account))
            if refusal is None:
                self._compared[name] = logins
            return refusal

    def _compare(self, connection: sa.Connection, name: str, account: str) -> str | None:
        """Remember the first account of a system; pause it if this is another one."""
        same_system = System.name == name
        known = connection.execute(sa.select(System.account).where(same_system).with_for_update()).scalar()
        if known in (None, account):
            values = {"account": account, "other_account": None}
            connection.execute(sa.update(System).where(same_system).values(**values))
            return None
        why = (
            f"the login leads to the account {account}, but the records are linked in {known}: correct the login and "
            f"resume {name}, or confirm that {account} is the right account now"
        )
        paused = {"paused_at": self.context.clock(), "paused_by": ACCOUNT_CHECK, "pause_reason": why}
        connection.execute(sa.update(System).where(same_system).values(other_account=account))
        connection.execute(sa.update(System).where(same_system, System.paused_at.is_(None)).values(**paused))
        logger.error("%s is paused: %s", name, why)
        return why
