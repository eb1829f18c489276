"""Ids of deleted records are never used again."""

from __future__ import annotations

import pytest
import sqlalchemy as sa

from models.catalogues import CATALOGUES
from models.session import Database
from tests.support.records import (
    CUSTOMER,
)


@pytest.mark.parametrize("catalogue", sorted(CATALOGUES))
def test_the_id_of_a_deleted_record_is_not_given_to_another(database: Database, catalogue: str) -> None:
    # On SQLite the next record had the id of the last one deleted, and with it that one's links.
    if catalogue != "customer":
        assert CATALOGUES[catalogue].table.dialect_kwargs.get("sqlite_autoincrement")
        return
    with database.write() as c:
        first = c.execute(sa.insert(CUSTOMER).values(name="Ada").returning(CUSTOMER.c.id)).scalar_one()
        c.execute(sa.delete(CUSTOMER))
        assert c.execute(sa.insert(CUSTOMER).values(name="Bob").returning(CUSTOMER.c.id)).scalar_one() > first
