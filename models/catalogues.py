"""The catalogues: the internal tables that are kept in sync.

A table becomes a catalogue by one declaration at the end of this file. A table of another
application is declared the same way over `sqlalchemy.Table(..., autoload_with=engine)`.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime
from functools import lru_cache
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base, BigId, utcnow
from models.bulk import as_list, in_param, is_list
from models.record_ids import key_value
from models.record_ids import record_id as id_of

Record = dict[str, Any]


class _Timestamps:
    # SQLite must not reuse the id of a deleted record either: its links remain.
    __table_args__ = {"sqlite_autoincrement": True}

    created_at: Mapped[datetime] = mapped_column(default=utcnow, server_default=sa.func.current_timestamp())
    updated_at: Mapped[datetime] = mapped_column(
        default=utcnow, onupdate=utcnow, server_default=sa.func.current_timestamp()
    )


class Customer(_Timestamps, Base):
    """A customer: an individual or a company."""

    __tablename__ = "customer"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    name: Mapped[str] = mapped_column(sa.String(255))
    email: Mapped[str | None] = mapped_column(sa.String(255), index=True)
    phone: Mapped[str | None] = mapped_column(sa.String(40))
    street: Mapped[str | None] = mapped_column(sa.String(255))
    city: Mapped[str | None] = mapped_column(sa.String(100))
    postal_code: Mapped[str | None] = mapped_column(sa.String(20))
    #: ISO 3166-1 alpha-2.
    country: Mapped[str | None] = mapped_column(sa.String(2))
    #: ISO 4217, lower case as payment systems write it.
    currency: Mapped[str | None] = mapped_column(sa.String(3))
    notes: Mapped[str | None] = mapped_column(sa.Text)
    active: Mapped[bool] = mapped_column(default=True, server_default=sa.true())


class Product(_Timestamps, Base):
    """A product with its price."""

    __tablename__ = "product"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    sku: Mapped[str] = mapped_column(sa.String(64), unique=True)
    name: Mapped[str] = mapped_column(sa.String(255))
    description: Mapped[str | None] = mapped_column(sa.Text)
    #: In minor units of `currency` (cents).
    price: Mapped[int] = mapped_column(sa.BigInteger, default=0, server_default="0")
    currency: Mapped[str] = mapped_column(sa.String(3), default="eur", server_default="eur")
    active: Mapped[bool] = mapped_column(default=True, server_default=sa.true())


class Invoice(_Timestamps, Base):
    """An invoice to a customer, with its lines."""

    __tablename__ = "invoice"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    customer_id: Mapped[int] = mapped_column(sa.ForeignKey("customer.id"), index=True)
    number: Mapped[str] = mapped_column(sa.String(64), unique=True)
    #: draft, open, paid or void.
    status: Mapped[str] = mapped_column(sa.String(16), default="draft", server_default="draft")
    currency: Mapped[str] = mapped_column(sa.String(3), default="eur", server_default="eur")
    due_date: Mapped[date | None]
    lines: Mapped[list[InvoiceLine]] = relationship(cascade="all, delete-orphan", order_by="InvoiceLine.id")


class InvoiceLine(Base):
    """A line of an invoice; a change of it is a change of the invoice."""

    __tablename__ = "invoice_line"

    id: Mapped[int] = mapped_column(BigId, primary_key=True, autoincrement=True)
    invoice_id: Mapped[int] = mapped_column(sa.ForeignKey("invoice.id", ondelete="CASCADE"), index=True)
    product_id: Mapped[int | None] = mapped_column(sa.ForeignKey("product.id"))
    description: Mapped[str | None] = mapped_column(sa.String(255))
    quantity: Mapped[int] = mapped_column(default=1, server_default="1")
    #: In minor units of the invoice's currency.
    unit_price: Mapped[int] = mapped_column(sa.BigInteger, default=0, server_default="0")


@dataclass(frozen=True)
class ChildRows:
    """Rows of another table that belong to a record; they are sent with it as the list `name`."""

    name: str
    table: sa.Table
    parent_key: str

    @property
    def parent(self) -> sa.Column[Any]:
        """The column that refers to the record."""
        return self.table.c[self.parent_key]

    @property
    def columns(self) -> list[str]:
        """The columns of a child row except its own key and the reference to the record."""
        keys = {column.name for column in self.table.primary_key}
        return [column.name for column in self.table.c if column.name not in keys | {self.parent_key}]

    def write(self, connection: sa.Connection, parent: Any, rows: list[Record]) -> None:
        """Replace the rows of one record by these, in this order; rows that are equal already are not written.

        A column that is not in `rows` keeps its value if the row is recognised by the others.
        """
        rows = [{name: value for name, value in row.items() if not is_generated(self.table.c[name])} for row in rows]
        keys = list(self.table.primary_key)
        statement = sa.select(self.table).where(self.parent == parent).order_by(*keys)
        present = [dict(row) for row in connection.execute(statement).mappings()]
        known = recognise(present, rows)
        # Rows are ordered by their keys, so all rows from the first new or moved one on are inserted again.
        kept = list(itertools.takewhile(lambda pair: pair[0] < pair[1], itertools.pairwise([-1, *known])))
        for (_, index), new in zip(kept, rows, strict=False):
            old = present[index]
            if changed := {name: value for name, value in new.items() if value != old[name]}:
                connection.execute(sa.update(self.table).where(*self._is_it(old)).values(**changed))
        for index in set(range(len(present))) - {index for _, index in kept}:
            connection.execute(sa.delete(self.table).where(*self._is_it(present[index])))
        for index, new in list(zip(known, rows, strict=True))[len(kept) :]:
            writable = [name for name in self.columns if not is_generated(self.table.c[name])]
            before = {name: present[index][name] for name in writable} if index >= 0 else {}
            connection.execute(sa.insert(self.table).values({**before, **new, self.parent_key: parent}))

    def _is_it(self, row: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
        return [column == row[column.name] for column in self.table.primary_key]


def children_by_name(catalogue: Catalogue | ChildRows) -> dict[str, ChildRows]:
    """Return the kinds of child rows of a catalogue by name; child rows have none of their own."""
    return {child.name: child for child in catalogue.children} if isinstance(catalogue, Catalogue) else {}


def recognise(
    present: Sequence[Mapping[str, Any]],
    rows: Sequence[Mapping[str, Any]],
    same: Callable[[Any, Any], bool] = operator.eq,
) -> list[int]:
    """Return for each of `rows` the index of the same row in `present`, or -1 for a new row; rows may have changed."""
    free = dict.fromkeys(range(len(present)))
    known = [-1] * len(rows)

    def alike(place: int, index: int) -> int:
        return sum(same(present[index].get(name), value) for name, value in rows[place].items())

    for place, row in enumerate(rows):
        found = next((i for i in (place, *free) if i in free and alike(place, i) == len(row)), None)
        if found is not None:
            known[place] = found
            del free[found]
    # The most similar rows match first, then those in the same place.
    pairs = [(alike(place, i), i == place, place, i) for place, index in enumerate(known) if index < 0 for i in free]
    for likeness, in_place, place, index in sorted(pairs, reverse=True):
        if known[place] < 0 and index in free and (likeness or in_place):
            known[place] = index
            del free[index]
    return known


class UnreadableRecord(ValueError):
    """A value that the database holds cannot be read, such as the timestamp `infinity`. `value` is its text."""

    def __init__(self, record_id: str, column: str, value: str) -> None:
        super().__init__(f"{column} holds {value!r}, which cannot be read as a value of its type")
        self.record_id = record_id
        self.column = column
        self.value = value


#: Rows by the id that a column holds, and the ids whose rows cannot be read.
_Rows = tuple[list[tuple[str, Record]], list[UnreadableRecord]]

#: What the drivers and SQLAlchemy raise for such a value.
_UNREADABLE = (ValueError, TypeError, ArithmeticError, NotImplementedError, sa.exc.DataError, sa.exc.OperationalError)


def _read_by(
    connection: sa.Connection, table: sa.Table, column: sa.Column[Any], values: list[Any], lock: bool
) -> _Rows:
    """Return all rows with one of these values in a column, ordered by key.

    One row that cannot be read would fail the whole result, so the values are then halved until it stands alone.
    """
    try:
        return _read_all(connection, table, column, values, lock), []
    except _UNREADABLE as error:
        if isinstance(error, sa.exc.OperationalError) and "decode to UTF-8" not in str(error):
            raise
        if len(values) == 1:
            return [], [_unreadable(connection, table, column, values[0], error)]
    half = len(values) // 2
    first, second = (_read_by(connection, table, column, part, lock) for part in (values[:half], values[half:]))
    return first[0] + second[0], first[1] + second[1]


def _read_all(
    connection: sa.Connection, table: sa.Table, column: sa.Column[Any], values: list[Any], lock: bool
) -> list[tuple[str, Record]]:
    dialect = connection.dialect.name
    if is_list(dialect, values):
        statement, parameters = _reading(dialect, table, column, lock), {"values": as_list(dialect, values)}
    else:
        statement, parameters = _select(dialect, table, column, lock).where(column.in_(values)), {}
    with connection.execute(statement, parameters) as result:  # an open cursor would keep a lock on SQLite
        names = list(result.keys())[:-1]
        return [(row[-1], dict(zip(names, row, strict=False))) for row in result]


def _unreadable(
    connection: sa.Connection, table: sa.Table, column: sa.Column[Any], value: Any, error: Exception
) -> UnreadableRecord:
    """Find the column that cannot be read, where this one has the value."""
    own_id = id_of(connection.dialect.name, column)
    with connection.execute(sa.select(own_id).select_from(table).where(column == value).limit(1)) as result:
        record_id = str(result.scalar())
    for one in table.c:
        try:
            with connection.execute(sa.select(one).where(column == value)) as result:
                result.all()
        except _UNREADABLE:
            text = sa.cast(one, sa.LargeBinary if connection.dialect.name == "sqlite" else sa.Text)
            with connection.execute(sa.select(text).where(column == value)) as result:
                found = [raw.decode(errors="replace") if isinstance(raw, bytes) else raw for raw in result.scalars()]
            return UnreadableRecord(record_id, one.name, ", ".join(str(raw)[:100] for raw in found[:3]))
    raise error


def _select(dialect: str, table: sa.Table, column: sa.Column[Any], lock: bool) -> sa.Select[Any]:
    statement = sa.select(table, id_of(dialect, column)).order_by(*table.primary_key)
    return statement.with_for_update() if lock else statement


@lru_cache
def _reading(dialect: str, table: sa.Table, column: sa.Column[Any], lock: bool) -> sa.Select[Any]:
    """Return a cached statement: building it for each batch takes longer than running it."""
    return _select(dialect, table, column, lock).where(in_param(dialect, column, "values"))


@dataclass(frozen=True)
class Catalogue:
    """An internal table kept in sync, identified by one key column.

    `ignore` are bookkeeping columns, whose changes are not captured. `archive` holds the values that
    archive a record, for policies that archive instead of delete. `label` is the column that shows a
    record in the panel. `search` are the columns of its search; by default `email` and the label. `match_as` names the
    columns whose values match however they are written, as email, phone or name: see `models.match_keys`.
    """

    name: str
    table: sa.Table
    children: tuple[ChildRows, ...] = ()
    ignore: frozenset[str] = frozenset({"created_at", "updated_at"})
    archive: Mapping[str, Any] = field(default_factory=dict)
    label: str = "name"
    search: tuple[str, ...] = ()
    match_as: Mapping[str, Literal["email", "phone", "name"]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if len(self.table.primary_key.columns) != 1:
            raise ValueError(f"catalogue {self.name}: the table {self.table.name} needs a primary key of one column")
        if unknown := sorted(name for name in self.match_as if name not in self.table.c):
            raise ValueError(f"catalogue {self.name}: match_as names {unknown[0]}, which is not a column")

    @property
    def key(self) -> sa.Column[Any]:
        """The key column; the id of a record in the ledger is its text."""
        return next(iter(self.table.primary_key))

    @property
    def search_columns(self) -> tuple[str, ...]:
        """The columns that a search covers."""
        usual = dict.fromkeys(("email", self.label))
        return self.search or tuple(name for name in usual if name in self.table.c)

    @property
    def columns(self) -> list[str]:
        """The columns that a mapping may use: all except the ignored ones, and the lists of child rows."""
        return [c.name for c in self.table.c if c.name not in self.ignore] + [c.name for c in self.children]

    def key_of(self, record_id: str) -> Any:
        """Return the ledger's text id as the type of the key column.

        Raises:
          ValueError: the text cannot be converted.
        """
        return key_value(self.key.type, record_id)

    def ids(self, connection: sa.Connection, *where: Any, limit: int | None = None) -> list[str]:
        """Return the ids of the records that meet these conditions, ordered by key."""
        own_id = id_of(connection.dialect.name, self.key)
        statement = sa.select(own_id).select_from(self.table).where(*where).order_by(self.key).limit(limit)
        return list(connection.execute(statement).scalars())

    def read(self, connection: sa.Connection, record_ids: Iterable[str], *, lock: bool = False) -> dict[str, Record]:
        """Return the records with these ids, by id; missing records are left out. `lock` is that of `read_each`.

        Raises:
          UnreadableRecord: a value of one of them cannot be read.
        """
        records, unreadable = self.read_each(connection, record_ids, lock=lock)
        for error in unreadable.values():
            raise error
        return records

    def read_each(
        self, connection: sa.Connection, record_ids: Iterable[str], *, lock: bool = False
    ) -> tuple[dict[str, Record], dict[str, UnreadableRecord]]:
        """Return the records with these ids, and those that cannot be read, by id; missing records are left out.

        With `lock` the rows and their child rows are locked until the transaction ends (PostgreSQL, where
        that keeps out new child rows as well if they refer to theirs by a foreign key; SQLite's write
        transaction excludes other writers anyway).
        """
        keys = [self.key_of(record_id) for record_id in record_ids]
        rows, bad = _read_by(connection, self.table, self.key, keys, lock) if keys else ([], [])
        records = dict(rows)
        for child in self.children:
            for record in records.values():
                record[child.name] = []
            children, bad_children = _read_by(connection, child.table, child.parent, keys, lock) if keys else ([], [])
            bad += bad_children
            for parent, row in children:
                if (owner := records.get(parent)) is not None:
                    owner[child.name].append({name: row[name] for name in child.columns})
        unreadable = {error.record_id: error for error in bad}
        return {record_id: one for record_id, one in records.items() if record_id not in unreadable}, unreadable

    def texts(self, connection: sa.Connection, record_id: str) -> Record:
        """Return the columns of a record as texts, with no child rows: for one that cannot be read."""
        columns = [sa.cast(column, sa.Text).label(column.name) for column in self.table.c]
        statement = sa.select(*columns).where(self.key == self.key_of(record_id))
        with connection.execute(statement) as result:
            return dict(result.mappings().one()) | {child.name: [] for child in self.children}

    def insert(self, connection: sa.Connection, values: Mapping[str, Any]) -> str:
        """Create a record, and return its id."""
        own, nested = self._split(values)
        own_id = id_of(connection.dialect.name, self.key)
        row = connection.execute(sa.insert(self.table).values(**own).returning(self.key, own_id)).one()
        self._write_children(connection, row[0], nested)
        return str(row[1])

    def update(self, connection: sa.Connection, record_id: str, values: Mapping[str, Any]) -> None:
        """Set these columns of one record; a list of child rows replaces the present rows."""
        own, nested = self._split(values)
        key = self.key_of(record_id)
        if own:
            connection.execute(sa.update(self.table).where(self.key == key).values(**own))
        self._write_children(connection, key, nested)

    def delete(self, connection: sa.Connection, record_id: str) -> None:
        """Delete one record and its child rows."""
        key = self.key_of(record_id)
        for child in self.children:
            connection.execute(sa.delete(child.table).where(child.parent == key))
        connection.execute(sa.delete(self.table).where(self.key == key))

    def find(self, connection: sa.Connection, values: Mapping[str, Any], limit: int = 2) -> list[str]:
        """Return the ids of records whose columns have all these values, ordered by key."""
        return self.ids(connection, *(self.table.c[name] == value for name, value in values.items()), limit=limit)

    def keep(self, connection: sa.Connection, record_ids: Iterable[str], where: Iterable[Any]) -> list[str]:
        """Return the ids among these whose records meet the conditions, ordered by key."""
        keys = [self.key_of(record_id) for record_id in record_ids]
        return self.ids(connection, self.key.in_(keys), *where)

    def _split(self, values: Mapping[str, Any]) -> tuple[Record, dict[str, list[Record]]]:
        nested = {child.name for child in self.children}
        own = {name: value for name, value in values.items() if name not in nested}
        return own, {name: value for name, value in values.items() if name in nested}

    def _write_children(self, connection: sa.Connection, key: Any, nested: dict[str, list[Record]]) -> None:
        for child in self.children:
            if child.name in nested:
                child.write(connection, key, nested[child.name])


#: The mark of a column that the database itself fills, in its `info`.
_FILLED = "filled_by_database"

_GENERATED = {
    "postgresql": sa.text(
        "SELECT attname FROM pg_attribute "
        "WHERE attrelid = to_regclass(:name) AND (attgenerated <> '' OR attidentity = 'a')"
    ),
    "sqlite": sa.text("SELECT name FROM pragma_table_xinfo(:name) WHERE hidden IN (2, 3)"),
}


def note_generated(connection: sa.Connection) -> None:
    """Mark the columns of all catalogues that the database generates, whether or not they are declared so."""
    dialect = connection.dialect
    own = [catalogue.table for catalogue in CATALOGUES.values()]
    children = [child.table for catalogue in CATALOGUES.values() for child in catalogue.children]
    for table in own + children:
        name = dialect.identifier_preparer.format_table(table) if dialect.name == "postgresql" else table.name
        for generated in connection.execute(_GENERATED[dialect.name], {"name": name}).scalars():
            if generated in table.c:
                table.c[generated].info[_FILLED] = True


def is_generated(column: sa.Column[Any]) -> bool:
    """Return whether no value can be written to a column: it is generated, or an identity GENERATED ALWAYS."""
    is_identity = column.identity is not None and bool(column.identity.always)
    return column.computed is not None or is_identity or _FILLED in column.info


_BLANKS = " \t\n\u00a0"

#: Kind of a column in `match_as` -> the characters that its match keys do not contain.
KEYS_WITHOUT: Mapping[str, str] = {"email": _BLANKS, "name": _BLANKS, "phone": f"{_BLANKS}-()./"}


def without_separators(kind: str, text: str) -> str:
    """Return a text without the characters that a match key of this kind does not contain."""
    return text.translate(dict.fromkeys(map(ord, KEYS_WITHOUT[kind])))


#: Every catalogue by name: the tables that are kept in sync.
CATALOGUES: dict[str, Catalogue] = {}


def declare(catalogue: Catalogue) -> Catalogue:
    """Make a table a catalogue; `./syncflow capture install` then installs its triggers."""
    CATALOGUES[catalogue.name] = catalogue
    return catalogue


declare(
    Catalogue(
        "customer",
        Customer.__table__,
        archive={"active": False},
        match_as={"email": "email", "phone": "phone", "name": "name"},
    )
)
declare(Catalogue("product", Product.__table__, archive={"active": False}, search=("sku", "name")))
declare(
    Catalogue(
        "invoice",
        Invoice.__table__,
        children=(ChildRows("lines", InvoiceLine.__table__, "invoice_id"),),
        archive={"status": "void"},
        label="number",
    )
)
