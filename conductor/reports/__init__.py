"""The data that the panel, the command line and the metrics show. Reports only read."""

from __future__ import annotations

from collections.abc import Iterable

import sqlalchemy as sa

from conductor.context import Context
from conductor.links.row import LinkRow
from conductor.queue_report import QueueReport
from conductor.reports import capture_status, overview, overview_version, record_status
from conductor.reports.capture_status import BrokenCapture
from conductor.reports.overview import Overview
from conductor.reports.overview_version import OverviewVersion
from conductor.reports.record_status import RecordStatus
from conductor.reports.throughput import ThroughputReport
from models.rows import ProcessRow


class Reports:
    """The reports that need more than a connection to the database."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.throughput = ThroughputReport(context)

    def overview_version(self) -> OverviewVersion:
        """Return a value that changes when the overview changes; much cheaper to read than the overview."""
        with self.context.database.read_autocommit() as connection:
            return overview_version.overview_version(self.context, connection)

    def overview(self, version: OverviewVersion | None = None) -> Overview:
        """Return the state of all systems, subscribers and processes; a given `version` is not read again."""
        with self.context.database.read_autocommit() as connection:
            version = version or overview_version.overview_version(self.context, connection)
            return overview.overview(self.context, connection, version)

    def broken_captures(self) -> list[BrokenCapture]:
        """Return the catalogues whose writes may not be captured."""
        with self.context.database.read_autocommit() as connection:
            return capture_status.broken_captures(connection)

    def is_alive(self, process: ProcessRow) -> bool:
        """Return whether a process has sent a heartbeat recently."""
        return overview_version.is_alive(self.context, process)

    def record_statuses(
        self, connection: sa.Connection, catalogue: str, record_id: str, *, exists: bool
    ) -> list[RecordStatus]:
        """Return the status of a record with each subscriber of its catalogue, by name."""
        return record_status.record_statuses(self.context, connection, catalogue, record_id, exists=exists)

    def link_statuses(self, connection: sa.Connection, links: Iterable[LinkRow]) -> dict[int, RecordStatus]:
        """Return the status of each of these links, by its id."""
        return record_status.link_statuses(self.context, connection, links)

    def queues(self) -> QueueReport:
        """Return the state of the broker's queues."""
        return self.context.publisher.queues()
