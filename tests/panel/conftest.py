"""A panel with some data, on both databases or on SQLite only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.panel import Panel, open_panel


@pytest.fixture
def seeded() -> bool:
    """Return whether the panel has data; a file whose tests need none overrides this."""
    return True


@pytest.fixture
def panel(database_url: str, seeded: bool) -> Iterator[Panel]:
    with open_panel(database_url, seeded=seeded) as panel:
        yield panel


@pytest.fixture
def sqlite_panel(sqlite_url: str, seeded: bool) -> Iterator[Panel]:
    """Return a panel on SQLite only, for tests that do not depend on the database."""
    with open_panel(sqlite_url, seeded=seeded) as panel:
        yield panel
