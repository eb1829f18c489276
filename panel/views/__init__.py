"""The pages, one file each, in the order of the menu."""

from __future__ import annotations

from panel.views.account import Account
from panel.views.audit import Audit
from panel.views.base import PanelView
from panel.views.changes import Changes
from panel.views.conflicts import Conflicts
from panel.views.dead_letters import DeadLetters
from panel.views.deliveries import Deliveries
from panel.views.inbox import InboxPage
from panel.views.links import Links
from panel.views.mappings import Mappings
from panel.views.overview import Overview
from panel.views.queues import Queues
from panel.views.records import Records
from panel.views.schedules import Schedules
from panel.views.systems import Systems
from panel.views.tasks import Tasks
from panel.views.unsubscriptions import Unsubscriptions
from panel.views.users import Users

PAGES: list[type[PanelView]] = [
    Overview,
    DeadLetters,
    Conflicts,
    Systems,
    Mappings,
    Unsubscriptions,
    Schedules,
    Tasks,
    Links,
    Deliveries,
    Changes,
    InboxPage,
    Queues,
    Users,
    Audit,
    Records,
    Account,
]


def make() -> list[PanelView]:
    """Create the views of one app; the first is the home page."""
    return [page() for page in PAGES]
