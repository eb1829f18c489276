"""The engine: what to deliver, what to apply, when to retry. The panel, the command line and the workers import this.

It knows neither the broker nor Flask, so a test with a fake subscriber can try all of it.
"""

from conductor.conductor import Conductor
from conductor.dead_letters.remedies import remedy
from conductor.dead_letters.store import DeadLetterFilter
from conductor.inward.applying import REUSED_ID
from conductor.inward.awaited import INBOX_KIND_POLL
from conductor.inward.replay import ReplayWindow
from conductor.inward.webhooks import UnknownSystem
from conductor.links.row import link_row
from conductor.links.status import PENDING_LINKS
from conductor.mappings import diff as mapping_diff
from conductor.mappings.preview import Effect, Preview
from conductor.mappings.store import MappingConflict, MappingRefused
from conductor.outward.routing import RELAY_BATCH
from conductor.policy import Policy
from conductor.publisher import Publisher, QueuesUnavailable
from conductor.queue_report import QueueReport, QueueState
from conductor.records import EditConflict, EditRefused, as_typed, editable, read_record
from conductor.reports import (
    conflict_lists,
    dead_letter_groups,
    mapping_versions,
    pages,
    record_search,
    timeline,
    unsubscription_lists,
)
from conductor.reports.incidents import Incident
from conductor.reports.overview import Overview
from conductor.reports.overview_counts import Waiting
from conductor.reports.overview_version import OverviewVersion
from conductor.reports.system_status import SubscriberStatus, SystemStatus
from conductor.reports.throughput import THROUGHPUT_SPANS, Series
from conductor.reports.timeline import TimelineEvent
from conductor.systems.delete_guard import DELETE_GUARD, DELETE_WINDOW_SECONDS
from conductor.tasks.runner import OPEN_TASK_STATES, TaskRow, TaskRunner
from conductor.throughput_counter import THROUGHPUT_COLUMNS
from subscribers.errors import BadSignature, BadWebhook

__all__ = [
    "DELETE_GUARD",
    "DELETE_WINDOW_SECONDS",
    "INBOX_KIND_POLL",
    "OPEN_TASK_STATES",
    "PENDING_LINKS",
    "RELAY_BATCH",
    "REUSED_ID",
    "THROUGHPUT_COLUMNS",
    "THROUGHPUT_SPANS",
    "BadSignature",
    "BadWebhook",
    "Conductor",
    "DeadLetterFilter",
    "EditConflict",
    "EditRefused",
    "Effect",
    "Incident",
    "MappingConflict",
    "MappingRefused",
    "Overview",
    "OverviewVersion",
    "Policy",
    "Preview",
    "Publisher",
    "QueueReport",
    "QueueState",
    "QueuesUnavailable",
    "ReplayWindow",
    "Series",
    "SubscriberStatus",
    "SystemStatus",
    "TaskRow",
    "TaskRunner",
    "TimelineEvent",
    "UnknownSystem",
    "Waiting",
    "as_typed",
    "conflict_lists",
    "dead_letter_groups",
    "editable",
    "link_row",
    "mapping_diff",
    "mapping_versions",
    "pages",
    "read_record",
    "record_search",
    "remedy",
    "timeline",
    "unsubscription_lists",
]
