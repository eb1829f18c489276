"""Reading the version of a database."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from models.schema import is_current
from models.session import Database


def test_a_database_that_does_not_answer_is_not_reported_as_outdated() -> None:
    database = Database("postgresql+psycopg://postgres@127.0.0.1:1/nowhere?connect_timeout=2")
    with pytest.raises(sa.exc.OperationalError):
        is_current(database)
    database.close()
