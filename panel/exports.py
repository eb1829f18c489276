"""Lists as CSV files, streamed row by row, so that a long one needs no memory."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from flask import Response, stream_with_context

from panel.words import shown

#: What a spreadsheet takes for the beginning of a formula (OWASP, CSV Injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def csv_file(name: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> Response:
    """A download of these rows. Text that a spreadsheet would run as a formula gets a quote before it."""

    def lines() -> Iterator[str]:
        buffer = io.StringIO()
        writer = csv.writer(buffer)
        for row in _with(headings, rows):
            writer.writerow(row)
            yield buffer.getvalue()
            buffer.seek(0)
            buffer.truncate()

    response = Response(stream_with_context(lines()), content_type="text/csv; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="{name}.csv"'
    return response


def _with(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[Any]]:
    yield headings
    for row in rows:
        yield [safe(value) for value in row]


def safe(value: Any) -> str:
    """A value as a cell that no spreadsheet runs."""
    text = "" if value is None else shown(value)
    return f"'{text}" if text.startswith(_FORMULA) else text
