"""Bulk jobs as plain data. They live in memory: a restart loses the jobs, but not the records they wrote."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

DELIMITERS = {"BACKQUOTE": "`", "CARET": "^", "COMMA": ",", "PIPE": "|", "SEMICOLON": ";", "TAB": "\t"}
LINE_ENDINGS = {"LF": "\n", "CRLF": "\r\n"}


@dataclass
class Job:
    """A bulk job. `kind` is `ingest` or `query`; times are in the API's form."""

    id: str
    kind: str
    operation: str
    object: str
    created: str
    state: str = "Open"
    external_id: str = ""
    delimiter: str = "COMMA"
    line_ending: str = "LF"
    query: str = ""
    error: str = ""
    #: How many more status requests report InProgress before the job is complete.
    waits: int = 0
    uploaded: str = ""
    #: (outcome, row as uploaded): for a success the outcome is (id, created), for a failure (message, id).
    succeeded: list[tuple[tuple[str, str], dict[str, str]]] = field(default_factory=list)
    failed: list[tuple[tuple[str, str], dict[str, str]]] = field(default_factory=list)
    #: Rows that a job did not reach before it failed.
    unprocessed: list[list[str]] = field(default_factory=list)
    #: Columns of the uploaded file, or of the query's result.
    columns: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)

    def csv(self, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
        """Return rows as the API writes them: every value in quotes."""
        out = io.StringIO()
        writer = csv.writer(
            out,
            delimiter=DELIMITERS[self.delimiter],
            lineterminator=LINE_ENDINGS[self.line_ending],
            quoting=csv.QUOTE_ALL,
        )
        writer.writerow(header)
        writer.writerows(rows)
        return out.getvalue()

    def parsed(self) -> tuple[list[str], list[list[str]]]:
        """Return the uploaded file as (columns, rows). Raises ValueError."""
        reader = csv.reader(io.StringIO(self.uploaded, newline=""), delimiter=DELIMITERS[self.delimiter], strict=True)
        try:
            lines = [line for line in reader if line]
        except csv.Error as error:
            raise ValueError(str(error)) from None
        if not lines:
            raise ValueError("the file is empty")
        if any(len(line) != len(lines[0]) for line in lines):
            raise ValueError("the rows do not all have as many values as the header")
        return lines[0], lines[1:]
