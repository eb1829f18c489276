"""Export lists as CSV (RFC 4180), streamed in batches and safe to open in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from flask import Response

from conductor import pages
from models.base import utcnow
from models.session import Database
from panel.views.base import PanelView
from redaction import hide

#: Characters that start a formula in a spreadsheet (OWASP, "CSV Injection").
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")

_BATCH = 2000


def download(view: PanelView, table: Any, columns: Sequence[str], conditions: Sequence[Any], **asked: str) -> Response:
    """Return the rows of `table` (a mapped class) that meet the conditions as a file, newest first; audited."""
    name = str(table.__tablename__).replace("_", "-")
    conductor = view.conductor
    with conductor.database.write() as connection:
        conductor.context.audit(connection, view.current_email, "export", name, **({"filters": asked} if asked else {}))
    file = f"{name}-{utcnow():%Y-%m-%d}.csv"
    headers = {"Content-Disposition": f'attachment; filename="{file}"'}
    lines = _lines(conductor.database, table, columns, conditions)
    return Response(lines, mimetype="text/csv", headers=headers)


def _lines(database: Database, table: Any, columns: Sequence[str], conditions: Sequence[Any]) -> Iterator[str]:
    yield _line(columns)
    with database.read() as connection:
        top = (connection.execute(sa.select(sa.func.max(table.id))).scalar() or 0) + 1
    wanted = [getattr(table, name) for name in columns]
    while top > 0:
        # No statement reads more than a stretch, and no transaction stays open while a slow client downloads.
        floor = max(top - pages.STRETCH, 0)
        statement = sa.select(table.id, *wanted).where(table.id >= floor, table.id < top, *conditions)
        with database.read() as connection:
            rows = connection.execute(statement.order_by(table.id.desc()).limit(_BATCH)).all()
        for row in rows:
            yield _line([cell(value) for value in row[1:]])
        top = rows[-1][0] if len(rows) == _BATCH else floor


def _line(values: Sequence[Any]) -> str:
    text = io.StringIO()
    csv.writer(text).writerow(values)
    return text.getvalue()


def cell(value: Any) -> Any:
    """Format one value so that a spreadsheet never evaluates it."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, datetime):
        return value.isoformat(timespec="milliseconds")
    text = hide(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
    return f"'{text}" if text.startswith(_FORMULA) else text
