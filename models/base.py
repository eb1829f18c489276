"""The declarative base and the column types that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, ClassVar

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase

import redaction

#: Grows to 64 bits on PostgreSQL and is still SQLite's autoincrementing rowid.
BigId = sa.BigInteger().with_variant(sa.Integer(), "sqlite")

#: JSON as text on SQLite and jsonb on PostgreSQL.
Json = sa.JSON(none_as_null=True).with_variant(postgresql.JSONB(none_as_null=True), "postgresql")


def utcnow() -> datetime:
    """Return the present time, aware and in UTC."""
    return datetime.now(UTC)


class UtcDateTime(sa.types.TypeDecorator[datetime]):
    """An instant: always aware and in UTC in Python, timestamptz on PostgreSQL, sortable text on SQLite."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Refuse a time without a zone: a wrong guess would lose events."""
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a naive datetime cannot be stored; give it a time zone")
        return value.astimezone(UTC)

    def result_processor(self, dialect: Any, coltype: Any) -> Any:
        """Return None for PostgreSQL, whose driver returns aware times in UTC, as our sessions are."""
        return None if dialect.name == "postgresql" else super().result_processor(dialect, coltype)

    def process_result_value(self, value: datetime | None, dialect: Any) -> datetime | None:
        """Return SQLite's text, which has no zone, as a time in UTC."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class ShownText(sa.types.TypeDecorator[str]):
    """A text for operators: no secret that this process knows is stored in it."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, length: int | None = None) -> None:
        super().__init__()
        self.length = length

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        """Return a text with or without a largest length."""
        return sa.String(self.length) if self.length else sa.Text()

    def process_bind_param(self, value: str | None, dialect: Any) -> str | None:
        """Mask secrets."""
        return None if value is None else redaction.hide(value)[: self.length]


class ShownJson(sa.types.TypeDecorator[Any]):
    """JSON for operators: without known secrets and, unless `names` is False, values of fields with a secret name."""

    impl = sa.JSON
    cache_ok = True

    def __init__(self, *, names: bool = True) -> None:
        super().__init__(none_as_null=True)
        self.names = names

    def load_dialect_impl(self, dialect: sa.Dialect) -> Any:
        """Return the type of other JSON."""
        kind = postgresql.JSONB if dialect.name == "postgresql" else sa.JSON
        return dialect.type_descriptor(kind(none_as_null=True))

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        """Mask secrets."""
        return None if value is None else redaction.hide_shown(value, names=self.names)


class Base(DeclarativeBase):
    """The base of all tables; constraints have names so that migrations can drop them."""

    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(column_0_N_label)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    if TYPE_CHECKING:
        # Each class has a table of its own, which SQLAlchemy types as any FROM clause.
        __table__: ClassVar[sa.Table]
    type_annotation_map = {datetime: UtcDateTime(), dict[str, Any]: Json, list[Any]: Json, list[dict[str, Any]]: Json}
