"""Files as a system: the hub reads rows from one folder and writes rows into another.

    FOLDER/customers/in/       incoming files: .csv, .tsv, .txt, .jsonl, .ndjson
    FOLDER/customers/done/     files of which every row was applied
    FOLDER/customers/failed/   files with failed rows, each with a second file of these rows and the reasons
    FOLDER/customers/out/      our exports: whole files, to be applied in the order of their names

A row is identified by its key column. A repeated value is not a change: only columns that differ from
the last row of the same key count. A file written before its author received our export therefore
does not undo that export.
"""

from __future__ import annotations

import fcntl
import logging
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import sqlalchemy as sa
from pydantic import Field

from subscribers.base import Subscriber
from subscribers.errors import Gone, Reject, Retry, Skip, SyncError, SystemDown
from subscribers.files import formats
from subscribers.files.formats import BadFile, Reading, Row
from subscribers.files.state import FileState
from subscribers.files.system import FileOptions, FileSystem, system_down
from subscribers.mapping.column_values import python_type
from subscribers.mapping.fields import Field as Entry
from subscribers.mapping.paths import MISSING, is_plain, nest, parts, pick
from subscribers.mapping.transforms import find
from subscribers.mapping.values import Flat, is_empty, same
from subscribers.options import COMMON_OPTIONS, check_options, own_options
from subscribers.records import External, Item, Page

logger = logging.getLogger(__name__)

#: Characters of a file's name that are kept after the time is prepended.
_LONGEST_NAME = 150
#: Rows missing in a snapshot, in one transaction: enough for the delete guard to see them together.
_DELETED_AT_ONCE = 5_000
#: Names of files that are still being written.
_UNFINISHED = (".part", ".tmp", ".filepart", ".crdownload", "~")

_WORDS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


class FileSubscriber(Subscriber):
    """Rows of one kind."""

    system_class = FileSystem
    bulk_size = 1000
    starts_over = False  # each file is read once
    read_back = "never"  # an export holds what was written
    look_first = "poll"  # a fetch only shows what polls have read

    #: The folder's name below the system's.
    path: ClassVar[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]]
    #: The column that identifies a row. If it is not mapped, a record of ours gets `new_key`.
    key_field: ClassVar[str] = "id"
    new_key: ClassVar[str] = "{id}"
    #: The column with `Item.mark`, by which a row is known as ours; empty: none.
    record_id_field: ClassVar[str] = ""
    #: The column that is `true` for a deleted row; empty: deletions are neither read nor written.
    deleted_field: ClassVar[str] = "deleted"
    #: Whether each incoming file contains all rows, so that a missing row was deleted.
    snapshot: ClassVar[bool] = False
    #: The format of our exports.
    format: ClassVar[Literal["csv", "jsonl"]] = "csv"
    #: The cell delimiter; empty: a comma in exports, and the one of the header in incoming files.
    delimiter: ClassVar[Annotated[str, Field(max_length=1)]] = ""
    #: The encoding of incoming files without a byte order mark; exports are UTF-8.
    encoding: ClassVar[Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")]] = "utf-8"
    #: Column name in the files -> name in the mapping, where they differ.
    columns: ClassVar[Mapping[str, str]] = {}
    #: Whether texts that a spreadsheet evaluates as formulas are written, and read, with a leading '.
    for_spreadsheets: ClassVar[bool] = False
    #: A file is read when it has not changed for this many seconds.
    quiet_seconds: ClassVar[Annotated[float, Field(ge=0)]] = 5.0
    page_size: ClassVar[Annotated[int, Field(ge=1, le=5000)]] = 500

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        check_options(cls, FileSubscriber, SUBSCRIBER_OPTIONS)

    def _folder(self, *parts: str) -> Path:
        folder: Path = self.client.folder(self.path, *parts)
        return folder

    @property
    def _state(self) -> FileState:
        return FileState(self._folder() / ".syncflow.sqlite3")

    # --- outward --------------------------------------------------------------------------------------

    def bulk_create(self, items: Sequence[Item]) -> list[External | SyncError]:
        """Write a file with these rows."""
        return self._export(items)

    def bulk_update(self, items: Sequence[Item]) -> list[External | SyncError | None]:
        """Write a file with these rows, each complete."""
        return list(self._export(items))

    def bulk_delete(self, items: Sequence[Item]) -> list[SyncError | None]:
        """Write a file that marks these rows as deleted."""
        if not self.deleted_field:
            return [Skip("these files have no column that tells of deletions")] * len(items)
        keys = [item.linked_id for item in items]
        try:
            self._write([self._deletion_row(key) for key in keys])
            self._state.gone(keys, _now())
            self._state.said([(key, None) for key in keys])
        except SystemDown as error:
            return [error] * len(items)
        return [None] * len(items)

    def create(self, item: Item) -> External:
        """Create one record, as `bulk_create` does."""
        made: External = _one(self.bulk_create([item]))
        return made

    def update(self, item: Item) -> External:
        """Update one record, as `bulk_update` does."""
        made: External = _one(self.bulk_update([item]))
        return made

    def delete(self, item: Item) -> None:
        """Delete one record, as `bulk_delete` does."""
        _one(self.bulk_delete([item]))

    def _export(self, items: Sequence[Item]) -> list[External | SyncError]:
        try:
            return self._exported(items)
        except SystemDown as error:
            return [error] * len(items)

    def _exported(self, items: Sequence[Item]) -> list[External | SyncError]:
        keys = [self._key_of(item) for item in items]
        known = self._state.get(keys)
        outcomes: list[External | SyncError] = []
        written: list[Mapping[str, Any]] = []
        held: list[tuple[str, Flat, datetime, str | None]] = []
        left: list[str] = []
        now = _now()
        for item, key in zip(items, keys, strict=True):
            there = known.get(key)
            if not key:
                outcomes.append(self._refuse("is empty, but rows are known by it"))
                continue
            if there is not None and not there.deleted and self._is_anothers(there.mark, item, key):
                outcomes.append(self._refuse(f"{key} is the key of another row"))
                continue
            if item.external_id not in (None, key):
                left.append(item.linked_id)
                written.append(self._deletion_row(item.linked_id))
            flat = self.mapper.flatten(item.data)
            flat = {**(there.held if there and not there.deleted else {}), **flat}
            ours = {self.record_id_field: item.mark} if self.record_id_field else {}
            # The data may hold more than the mapped fields, such as the mark of an archived record.
            written.append({**nest(flat), **item.data, **nest({self.key_field: key}), **ours})
            held.append((key, flat, now, item.mark))
            outcomes.append(External(key, {}, at=now))
        if written:
            self._write(written)
            self._state.hold(held)
            # A file that was written before its author read our export repeats our first values.
            first = [(key, flat) for key, flat, _, _ in held if key not in known or known[key].said is None]
            self._state.said(first)
            self._state.gone(left, now)
            self._state.said([(key, None) for key in left])
        return outcomes

    def _key_of(self, item: Item) -> str:
        value = pick(item.data, self.key_field)
        if value is not MISSING:
            return "" if is_empty(value) else str(value)
        return item.external_id or self.new_key.replace("{id}", item.record_id)

    def _is_anothers(self, mark: str | None, item: Item, key: str) -> bool:
        if mark is not None and item.external_id != key:
            return mark != item.mark
        # A row of the external system, which we would overwrite if our numbers happened to be the same.
        return item.external_id != key and pick(item.data, self.key_field) is MISSING

    def _refuse(self, why: str) -> Reject:
        return Reject(f"{self.key_field}: {why}", fields={self.key_field: why})

    def _deletion_row(self, key: str) -> dict[str, Any]:
        return {self.key_field: key, self.deleted_field: True} if self.deleted_field else {self.key_field: key}

    def _write(self, written: Sequence[Mapping[str, Any]]) -> None:
        """Write one file atomically under a unique name. Raises `SystemDown`."""
        name = {path: column for column, path in self.columns.items()}
        out = self._folder("out") / f"{_stamp()}-{uuid.uuid4().hex[:8]}.{self.format}"
        try:
            if self.format == "csv":
                flat = [{name.get(path, path): value for path, value in _leaves(one)} for one in written]
                sent = [entry for entry in self.mapper.fields.values() if entry.direction != "in" and not entry.rows]
                mapped = [path for entry in sent if is_plain(entry.path) for path in parts(entry.path)]
                first = [name.get(path, path) for path in (self.key_field, *mapped)]
                last = [name.get(path, path) for path in (self.record_id_field, self.deleted_field) if path]
                columns = dict.fromkeys([*first, *last, *(column for one in flat for column in one)])
                formats.write(out, list(columns), flat, delimiter=self.delimiter, mask=self.for_spreadsheets)
            else:
                formats.write(out, [], [{name.get(top, top): value for top, value in one.items()} for one in written])
        except OSError as error:
            raise system_down(error) from error

    # --- current external values ------------------------------------------------------------------------

    def fetch(self, external_id: str) -> External:
        """Return the last received row of a key, with our exports since. Raises `Gone`."""
        known = self._state.get([external_id]).get(external_id)
        if known is None:
            return External(external_id)
        if known.deleted:
            raise Gone(f"{external_id} was deleted from the file")
        return External(external_id, nest(known.held), at=known.at, mark=known.mark)

    def find(self, item: Item) -> External | None:
        """Return the row that an export of this record created."""
        known = self._state.marked(item.mark)
        return External(known.key, nest(known.held), at=known.at, mark=known.mark) if known else None

    def list_all(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Return nothing: each file is read once, and the poll has already applied the rows of earlier files."""
        return iter(())

    def describe(self) -> None:
        """Return nothing: a folder does not define the columns of its files. Raises `SystemDown` if it is missing."""
        self.client.folder("")

    # --- inward -------------------------------------------------------------------------------------

    def changed_since(self, position: dict[str, Any] | None) -> Iterator[Page]:
        """Yield the changes in the unread files. The position only records that this hub has read before."""
        with self._alone() as mine:
            if not mine:
                return  # Another process reads.
            if not position:
                self._state.clear()  # Left by another hub: with it, known rows would count as repeats.
                position = {"begun": _now().isoformat()}
                yield Page([], position)
            stuck = []
            for path in self._ready():
                try:
                    yield from self._read(path, position)
                except FileNotFoundError:
                    logger.info("%s: %s was taken away before it was read", self.name(), path)
                except OSError as error:  # Only this file is affected; the others are still read.
                    stuck.append(f"{path}: {error.strerror}")
            if stuck:
                raise Retry("; ".join(stuck))

    @contextmanager
    def _alone(self) -> Iterator[bool]:
        with (self._folder() / ".syncflow.lock").open("a") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            yield True

    def _ready(self) -> list[Path]:
        """Return the complete files, oldest first."""
        for name in ("done", "failed"):
            self._folder(name)
        found = []
        try:
            for entry in os.scandir(self._folder("in")):
                name = entry.name.lower()
                if name.startswith(".") or name.endswith(_UNFINISHED) or not entry.is_file(follow_symlinks=False):
                    continue
                stat = entry.stat()
                # A copy may keep the modification time of its original, but not the time of its last status change.
                if time.time() - max(stat.st_mtime, stat.st_ctime) >= self.quiet_seconds:
                    found.append((stat.st_mtime_ns, entry.name, Path(entry.path)))
        except OSError as error:
            raise system_down(error) from error
        return [path for _, _, path in sorted(found)]

    def _read(self, path: Path, position: dict[str, Any]) -> Iterator[Page]:
        reading = Reading(path, path.stat())
        yield from self._pages(reading, position)
        if not reading.changed():  # Otherwise it is read again when it no longer changes.
            self._put_away(reading)

    def _pages(self, reading: Reading, position: dict[str, Any]) -> Iterator[Page]:
        found = formats.read(
            reading.path, encoding=self.encoding, delimiter=self.delimiter, unmask=self.for_spreadsheets
        )
        try:
            for batch in self._batches(found):
                reading.seen += len(batch)
                yield from self._batch(batch, reading, position)
        except BadFile as error:
            reading.fail(Row(0, {}), str(error))
        if not self.snapshot or reading.changed():
            return
        if reading.failed or not reading.seen:
            reason = "rows of it failed" if reading.failed else "it has no rows"
            reading.fail(Row(0, {}), f"nothing was taken for deleted, because {reason}")
            return
        while keys := self._state.missing_in(reading.name, _DELETED_AT_ONCE):
            now = _now()
            self._state.gone(keys, now)
            yield Page([External(key, at=now, deleted=True) for key in keys], position)
            self._state.said([(key, None) for key in keys])

    def _batches(self, found: Iterator[Row]) -> Iterator[list[Row]]:
        batch: list[Row] = []
        try:
            for row in found:
                batch.append(row)
                if len(batch) == self.page_size:
                    yield batch
                    batch = []
        except BadFile:
            if batch:
                yield batch  # the rows before the unreadable part
            raise
        if batch:
            yield batch

    def _batch(self, batch: list[Row], reading: Reading, position: dict[str, Any]) -> Iterator[Page]:
        """Yield the changes in these rows, and store each row as received once it is applied: at the next request."""
        csv = formats.FORMATS[reading.path.suffix.lower()] == "csv"
        last: dict[str, _Said] = {}
        for row in batch:
            try:
                said = self._understood(row, csv)
            except Reject as error:
                reading.fail(row, str(error))
                continue
            last.pop(said.key, None)  # The last of several rows with one key counts.
            last[said.key] = said
        known = self._state.get(list(last))
        fresh, changed, gone, now = [], [], [], _now()
        for number, said in enumerate(last.values()):
            before = known.get(said.key)
            at = now + timedelta(microseconds=number)
            if said.deleted:
                gone.append(said.key)
                changed.append(External(said.key, at=at, deleted=True))
            elif before is None or before.said is None or before.deleted:
                fresh.append(External(said.key, nest(said.flat), at=at, mark=said.mark))
            else:
                was = before.said
                flat = {path: v for path, v in said.flat.items() if path not in was or not same(v, was[path])}
                if flat:
                    changed.append(External(said.key, nest(flat), at=at, mark=said.mark))
        new = [last[one.id] for one in (*fresh, *changed) if not one.deleted]
        held = {key: one.held for key, one in known.items() if not one.deleted}
        self._state.hold(
            # A repeated value does not undo our exports since.
            (one.id, {**held.get(one.id, {}), **self.mapper.flatten(one.data)}, now, one.mark)
            for one in (*fresh, *changed)
            if not one.deleted
        )
        self._state.gone(gone, now)
        if fresh:
            yield Page(fresh, position)
        if changed:
            yield Page(changed, position, current=False)  # Partial data: a record without a link must be fetched.
        before_that = {key: one.said or {} for key, one in known.items() if not one.deleted}
        self._state.said([(said.key, {**before_that.get(said.key, {}), **said.flat}) for said in new])
        self._state.said([(key, None) for key in gone])
        if self.snapshot:
            self._state.in_file(last, reading.name)

    def _understood(self, row: Row, csv: bool) -> _Said:
        """Return the parsed row. Raises `Reject` with a message for the author of the file."""
        if row.wrong:
            raise Reject(row.wrong)
        named = {self.columns.get(name, name): value for name, value in row.values.items()}
        data = nest(named) if csv else named
        if any(not is_plain(entry.path) for entry in self.mapper.fields.values()):
            raise Reject(
                "the mapping has an expression; from files only names and dotted paths are read", code="unknown_field"
            )
        key = pick(data, self.key_field)
        if key is MISSING or is_empty(key) or isinstance(key, dict | list | bool):
            raise Reject(f"has no {self.key_field}", code="required_field_missing")
        ours = pick(data, self.record_id_field) if self.record_id_field else None
        mark = None if ours is MISSING or is_empty(ours) else str(ours)
        if self.deleted_field and _yes(pick(data, self.deleted_field)):
            return _Said(str(key), {}, mark, deleted=True)
        flat = self.mapper.flatten(data)
        if csv:
            flat = {path: self._typed(path, cell) for path, cell in flat.items() if not self._is_left_open(path, cell)}
        # Convert the values now, while an error can still be reported to the author of the file.
        self.mapper.inward({path: value for path, value in flat.items() if _stands_alone(self.mapper.entry(path))})
        return _Said(str(key), flat, mark)

    def _column(self, path: str) -> sa.Column[Any] | None:
        """Return our column of a field; None if several columns form it, or it is a list of child rows."""
        entry = self.mapper.entry(path)
        return self.records.table.c.get(next(name for name, other in self.mapper.fields.items() if other is entry))

    def _is_left_open(self, path: str, cell: Any) -> bool:
        """Return whether to ignore an empty cell, because our column cannot be empty and has a default."""
        column = self._column(path)
        return is_empty(cell) and column is not None and not column.nullable and column.server_default is not None

    def _typed(self, path: str, cell: Any) -> Any:
        """Return a cell as the JSON type of our column: a number, a boolean or text."""
        entry, column = self.mapper.entry(path), self._column(path)
        if column is None or entry.transform or entry.link or not isinstance(cell, str) or is_empty(cell):
            return cell
        read = _READERS.get(python_type(column.type))
        try:
            return read(cell.strip()) if read else cell
        except (ValueError, KeyError):
            raise Reject(f"{path}: {cell!r} does not fit {column.name}", code="invalid_value") from None

    def _put_away(self, reading: Reading) -> None:
        name = f"{_stamp()}-{reading.path.name[-_LONGEST_NAME:]}"
        if reading.failures:
            folder = self._folder("failed")
            rejected_rows = [{**row.values, "line": row.line or None, "why": row.wrong} for row in reading.failures]
            if reading.failed > len(rejected_rows):
                more = reading.failed - len(rejected_rows)
                rejected_rows.append({"line": None, "why": f"and {more} row{'' if more == 1 else 's'} more"})
            columns = list(dict.fromkeys(name for one in rejected_rows for name in one))
            suffix = reading.path.suffix.lower()
            suffix = suffix if suffix in formats.FORMATS else ".csv"
            rejected = folder / f"{name}.rejected{suffix}"
            formats.write(rejected, columns, rejected_rows, mask=self.for_spreadsheets)
            failed = "1 row" if reading.failed == 1 else f"{reading.failed} rows"
            logger.warning("%s: %s of %s failed; %s says why", self.name(), failed, name, rejected)
        reading.path.replace(self._folder("failed" if reading.failures else "done") / name)


@dataclass(frozen=True)
class _Said:
    """A parsed row."""

    key: str
    flat: Flat
    mark: str | None
    deleted: bool = False


#: Type of our column -> the function that converts a cell.
_READERS: dict[type, Callable[[str], Any]] = {int: int, float: float, bool: lambda text: _WORDS[text.lower()]}


def _leaves(data: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of nested data with their dotted paths, for a flat table."""
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield above + name, value


def _stands_alone(entry: Entry) -> bool:
    """Return whether a value can be converted without its record."""
    depends = entry.transform is not None and find(entry.transform).column is not None
    return entry.direction != "out" and entry.link is None and entry.rows is None and not depends


def _yes(value: Any) -> bool:
    return value is True or (value is not MISSING and _WORDS.get(str(value).strip().lower()) is True)


def _one(outcomes: Sequence[Any]) -> Any:
    if isinstance(outcomes[0], SyncError):
        raise outcomes[0]
    return outcomes[0]


def _now() -> datetime:
    return datetime.now(UTC)


def _stamp() -> str:
    return f"{_now():%Y%m%dT%H%M%S.%fZ}"


#: The options that can be set in code and in a file.
SUBSCRIBER_OPTIONS = (*COMMON_OPTIONS, *own_options(FileSubscriber))

__all__ = ["SUBSCRIBER_OPTIONS", "FileOptions", "FileSubscriber", "FileSystem"]
