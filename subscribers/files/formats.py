"""Read and write CSV and JSON Lines files: rows are read one by one, and each file is written atomically."""

from __future__ import annotations

import codecs
import csv
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

Format = Literal["csv", "jsonl"]

#: Suffix of a file's name -> its format.
FORMATS: dict[str, Format] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}

_BOMS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_DELIMITERS = ",;\t|"
#: Maximum length of one cell, in characters; Python's own limit is 131,072.
_LONGEST_CELL = 10_000_000
#: Maximum length of one row, in characters: a file without line ends must not fill the memory.
_LONGEST_ROW = 16 * 1024 * 1024
#: Text that a spreadsheet evaluates as a formula (OWASP, "CSV Injection"), including marks that already precede it.
_FORMULA = re.compile(r"'*[=+\-@\t\r]")

#: Failed rows of a file that are reported with their reason; any further ones are only counted.
_MOST_FAILURES = 10_000


class BadFile(Exception):
    """The file cannot be read, or not to its end."""


@dataclass(frozen=True)
class Row:
    """One row: the line it ends on and its values by column. If it cannot be parsed, `wrong` gives the reason."""

    line: int
    values: dict[str, Any]
    wrong: str = ""


@dataclass
class Reading:
    """A file that is being read, and the failures of its rows."""

    path: Path
    before: os.stat_result
    seen: int = 0
    failed: int = 0
    failures: list[Row] = field(default_factory=list)

    @property
    def name(self) -> str:
        """A name for the file with this content."""
        return f"{self.path.name} {self.before.st_mtime_ns} {self.before.st_size}"

    def fail(self, row: Row, why: str) -> None:
        """Record that a row could not be applied."""
        self.failed += 1
        if len(self.failures) < _MOST_FAILURES:
            self.failures.append(Row(row.line, row.values, why))

    def changed(self) -> bool:
        """Return whether the file was changed or removed in the meantime."""
        try:
            now = self.path.stat()
        except FileNotFoundError:
            return True
        return (now.st_size, now.st_mtime_ns) != (self.before.st_size, self.before.st_mtime_ns)


def read(path: Path, *, encoding: str = "utf-8", delimiter: str = "", unmask: bool = False) -> Iterator[Row]:
    """Yield the rows of a file. A byte order mark overrides `encoding`; without a `delimiter` the header determines it.

    Raises:
      BadFile: the rest of the file cannot be read; the rows before it have been yielded.
    """
    format = FORMATS.get(path.suffix.lower())
    if format is None:
        raise BadFile(f"is not one of {', '.join(FORMATS)}")
    with path.open("rb") as raw:
        start = raw.read(4)
    encoding = next((name for mark, name in _BOMS if start.startswith(mark)), encoding)
    try:
        # Invalid bytes are marked, so that only their row fails and not the whole file.
        with path.open(encoding=encoding, errors="surrogateescape", newline="" if format == "csv" else None) as file:
            for row in _csv(file, delimiter, unmask) if format == "csv" else _json_lines(file):
                yield _checked(row, encoding)
    except UnicodeError:
        raise BadFile(f"is not written in {encoding}") from None


class _Lines:
    """The lines of a file; a row takes one of them, or several with quoted line ends.

    Raises:
      BadFile: a row is longer than _LONGEST_ROW.
    """

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self._number = 0
        self._length = 0

    def next_row(self) -> None:
        """The next line begins another row."""
        self._length = 0

    def __iter__(self) -> Iterator[str]:
        while line := self._file.readline(_LONGEST_ROW + 1):
            self._number += 1
            self._length += len(line)
            if self._length > _LONGEST_ROW:
                raise BadFile(f"has a row of more than {_LONGEST_ROW:,} characters in line {self._number}: split it")
            yield line


def _csv(file: IO[str], delimiter: str, unmask: bool) -> Iterator[Row]:
    csv.field_size_limit(_LONGEST_CELL)
    first = file.readline(_LONGEST_ROW)
    file.seek(0)
    lines = _Lines(file)
    reader = csv.reader(lines, delimiter=delimiter or max(_DELIMITERS, key=first.count), strict=True)
    try:
        header = [name.strip() for name in next(reader, [])]
        if not any(header):
            raise BadFile("has no header")
        if doubled := {name for name in header if name and header.count(name) > 1}:
            raise BadFile(f"has the column {', '.join(sorted(doubled))} twice")
        for cells in reader:
            lines.next_row()
            if not cells:
                continue
            values = {n: unmasked(cell) if unmask else cell for n, cell in zip(header, cells, strict=False) if n}
            wrong = "" if len(cells) == len(header) else f"has {len(cells)} cells, the header {len(header)}"
            yield Row(reader.line_num, values, wrong)
    except csv.Error as error:
        raise BadFile(f"cannot be read from line {reader.line_num} on: {error}") from None


def _json_lines(file: IO[str]) -> Iterator[Row]:
    lines = _Lines(file)
    for number, line in enumerate(lines, start=1):
        lines.next_row()
        if not line.strip():
            continue
        try:
            values = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            yield Row(number, {"row": line.strip()[:2000]}, f"is not JSON: {error}")
            continue
        if isinstance(values, dict):
            yield Row(number, values)
        else:
            yield Row(number, {"row": line.strip()[:2000]}, "is not JSON object")


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _checked(row: Row, encoding: str) -> Row:
    texts = [value for value in row.values.values() if isinstance(value, str)]
    if any("\udc80" <= character <= "\udcff" for text in texts if not text.isascii() for character in text):
        shown = {name: _shown(value) for name, value in row.values.items()}
        return Row(row.line, shown, f"holds bytes that are not {encoding}")
    return row


def _shown(value: Any) -> Any:
    return value.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if isinstance(value, str) else value


def write(
    path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]], *, delimiter: str = ",", mask: bool = False
) -> None:
    """Write a whole file atomically: under its name it is complete and on disk, or it does not exist.

    Raises:
      OSError: nothing was written.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            if FORMATS[path.suffix] == "csv":
                writer = csv.writer(file, delimiter=delimiter or ",")
                writer.writerow(columns)
                writer.writerows([_cell(row.get(name), mask) for name in columns] for row in rows)
            else:
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _cell(value: Any, mask: bool) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else str(value)
    return masked(text) if mask else text


def masked(text: str) -> str:
    """Return text that no spreadsheet evaluates as a formula; `unmasked` removes the mark."""
    return f"'{text}" if _FORMULA.match(text) else text


def unmasked(text: str) -> str:
    """Return the original text, without the mark that `masked` added."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text


__all__ = ["FORMATS", "BadFile", "Format", "Reading", "Row", "masked", "read", "unmasked", "write"]
