"""Files as a system: rows are imported from a folder and exported to another, without loss."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from models.catalogues import Customer
from models.ledger import DeadLetter, Delivery, System
from models.session import Database
from subscribers.errors import Retry, SystemDown
from subscribers.files import formats
from subscribers.files.formats import BadFile, Row
from subscribers.files.subscriber import FileSubscriber
from subscribers.mapping.fields import Field
from subscribers.registry import REGISTRY, register
from tests.support.records import mark
from tests.support.registered_hub import RegisteredHub

CUSTOMER = Customer.__table__


class Rows(FileSubscriber):
    system, catalogue, path = "erp", "customer", "customers"
    key_field = "number"
    new_key = "S{id}"
    record_id_field = "syncflow_id"
    quiet_seconds = 0
    page_size = 3
    match_on = ("email",)
    on_gone = "archive"
    field_to_data = {"name": "name", "email": "mail", "city": "address.city", "notes": "notes", "active": "active"}


class Folder:
    """The folder as the other side uses it."""

    def __init__(self, top: Path) -> None:
        self.top = top

    def drop(self, name: str, text: str | bytes) -> Path:
        path = self.top / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    def names(self, folder: str) -> list[str]:
        """Return the file names without their leading timestamp."""
        return sorted(path.name.partition("-")[2] for path in (self.top / folder).glob("*"))

    def taken(self) -> list[list[dict[str, Any]]]:
        """Return the rows of each exported file and delete the files."""
        files = sorted((self.top / "out").glob("*"))
        found = [[row.values for row in formats.read(path)] for path in files]
        for path in files:
            path.unlink()
        return found

    def rejected(self) -> list[dict[str, Any]]:
        (path,) = (self.top / "failed").glob("*.rejected.*")
        return [row.values for row in formats.read(path)]


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    (tmp_path / "erp").mkdir()
    return Folder(tmp_path / "erp" / "customers")


@pytest.fixture
def start(
    folder: Folder, migrated_sqlite: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[..., RegisteredHub]]:
    before, databases = dict(REGISTRY), list[Database]()

    def start(**chosen: Any) -> RegisteredHub:
        file = tmp_path / f"{len(databases)}.db"
        shutil.copy(migrated_sqlite, file)
        databases.append(Database(f"sqlite:///{file}"))
        kind = register(type("Chosen", (Rows,), {"__qualname__": "Chosen", **chosen}))
        monkeypatch.setenv(f"{kind.system.upper()}_FOLDER", str(folder.top.parent))
        return RegisteredHub(databases[-1], {kind.name()})

    yield start
    for database in databases:
        database.close()
    REGISTRY.clear()
    REGISTRY.update(before)


def poll(hub: RegisteredHub) -> None:
    hub.poll("erp.customer")


def customers(hub: RegisteredHub, *columns: str) -> list[Any]:
    names = columns or ("name",)
    with hub.conductor.database.read() as connection:
        found = connection.execute(sa.select(*(CUSTOMER.c[name] for name in names)).order_by(CUSTOMER.c.id)).all()
    return [row[0] if len(names) == 1 else tuple(row) for row in found]


def deliveries(hub: RegisteredHub) -> list[tuple[str, str]]:
    with hub.conductor.database.read() as connection:
        return [(row[0], row[1]) for row in connection.execute(sa.select(Delivery.operation, Delivery.outcome))]


# --- import ---------------------------------------------------------------------------------------------


CSV = "number,name,mail,address.city,active\n1,Ada,ada@x.example,London,yes\n2,Grace,grace@x.example,,no\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", CSV),
        ("a.csv", CSV.replace("\n", "\r\n").encode("utf-8-sig")),
        ("A.TSV", CSV.replace(",", "\t").encode("utf-16")),
        ("a.txt", CSV.replace(",", ";").replace("Ada", '"Ada"') + "\n"),
        (
            "a.jsonl",
            '{"number": 1, "name": "Ada", "mail": "ada@x.example", "address": {"city": "London"}, "active": true}\n\n'
            '{"number": 2, "name": "Grace", "mail": "grace@x.example", "address": null, "active": false}',
        ),
    ],
)
def test_a_dropped_file_is_applied_and_put_away(start: Any, folder: Folder, name: str, content: str | bytes) -> None:
    hub = start()
    hub.add(name="Ada of ours", email="ada@x.example")
    folder.drop(name, content)
    poll(hub)
    assert customers(hub, "name", "email", "city", "active") == [
        ("Ada", "ada@x.example", "London", True),
        ("Grace", "grace@x.example", None, False),
    ]
    assert (folder.names("in"), folder.names("done"), folder.names("failed")) == ([], [name], [])


def test_the_same_file_again_makes_nothing_and_a_newer_one_what_changed(start: Any, folder: Folder) -> None:
    hub = start()
    folder.drop("a.csv", CSV)
    poll(hub)
    before = deliveries(hub)
    folder.drop("a.csv", CSV)
    poll(hub)
    assert deliveries(hub) == before and len(customers(hub)) == 2 and folder.names("done") == ["a.csv", "a.csv"]
    folder.drop("b.csv", "unknown,number,mail,name\nx,1,ada@x.example,Ada\nx,2,grace@x.example,Grace Hopper\n")
    poll(hub)
    assert customers(hub) == ["Ada", "Grace Hopper"]
    assert len(deliveries(hub)) == len(before) + 1, "only the row that changed"


def test_many_pages_and_the_last_of_two_rows_with_one_key(start: Any, folder: Folder) -> None:
    hub = start()
    folder.drop("a.csv", "number,name\n" + "".join(f"{n},N{n}\n" for n in range(8)) + "7,Last\n")
    poll(hub)
    assert customers(hub) == [*(f"N{n}" for n in range(7)), "Last"]


def test_another_encoding_has_to_be_named(start: Any, folder: Folder) -> None:
    hub = start(encoding="cp1252")
    folder.drop("a.csv", "number,name\n1,Zoë €\n".encode("cp1252"))
    poll(hub)
    assert customers(hub) == ["Zoë €"]


def test_a_file_that_is_still_being_written_is_not_read(start: Any, folder: Folder) -> None:
    hub = start(quiet_seconds=60)
    for name in ("a.csv.part", ".a.csv", "a.tmp", "a.csv~", "a.csv"):
        folder.drop(name, CSV)
    poll(hub)
    assert customers(hub) == [] and len(folder.names("in")) == 5
    hub.conductor.subscribers["erp.customer"].__class__.quiet_seconds = 0
    poll(hub)
    assert len(customers(hub)) == 2 and len(list((folder.top / "in").iterdir())) == 4


def test_a_file_that_grows_while_it_is_read_is_read_again(start: Any, folder: Folder) -> None:
    hub = start()
    path = folder.drop("a.csv", CSV)
    subscriber = hub.conductor.subscribers["erp.customer"]
    for page in subscriber.changed_since({"begun": ""}):
        path.write_text(CSV + "3,Emmy,,,\n")
        assert len(page.records) == 2
    assert [p.name for p in (folder.top / "in").iterdir()] == ["a.csv"]
    poll(hub)
    assert len(customers(hub)) == 3, "also those of a page that was not applied"


def test_a_process_that_dies_between_two_steps_loses_nothing(start: Any, folder: Folder) -> None:
    hub = start()
    poll(hub)
    folder.drop("a.csv", CSV)
    subscriber = hub.conductor.subscribers["erp.customer"]
    pages = subscriber.changed_since({"begun": ""})
    next(pages)
    assert list(subscriber.changed_since({"begun": ""})) == [], "one process reads"
    pages.close()  # the process dies; nothing of the page was applied
    poll(hub)
    assert len(customers(hub)) == 2


def test_a_file_in_the_way_does_not_hold_up_the_others(start: Any, folder: Folder) -> None:
    hub = start()
    for number, name in enumerate(("a.csv", "b.csv", "c.csv", f"{'d' * 240}.csv")):
        path = folder.drop(name, f"number,name\n{number},N{number}\n")
        os.utime(path, (number, number))  # sets the reading order
    subscriber = hub.conductor.subscribers["erp.customer"]
    seen = []
    with pytest.raises(Retry, match=r"b\.csv: Is a directory$"):
        for page in subscriber.changed_since({"begun": ""}):
            seen += [one.id for one in page.records]
            if seen == ["0"]:
                (folder.top / "in" / "b.csv").unlink()
                (folder.top / "in" / "b.csv").mkdir()
                (folder.top / "in" / "c.csv").unlink()
    assert seen == ["0", "3"] and len(folder.names("done")) == 2


# --- rows that fail -----------------------------------------------------------------------------------


def test_failed_rows_are_reported_and_the_others_applied(start: Any, folder: Folder) -> None:
    hub = start()
    lines = ["number,name,mail,active", "1,Ada,a@x.example,yes", "2,Short", "3,Emmy,e@x.example,perhaps"]
    lines += [",Nobody,,", f"5,{'x' * 300},,", "6,Zo\xeb,,", "7,,n@x.example,", "8,Good,,"]
    folder.drop("a.csv", "\n".join(lines).encode("latin-1"))
    poll(hub)
    assert customers(hub) == ["Ada", "Good"] and folder.names("failed") == ["a.csv", "a.csv.rejected.csv"]
    rejected = [(row["line"], row["why"]) for row in folder.rejected()]
    assert rejected == [
        ("3", "has 2 cells, the header 4"),
        ("4", "active: 'perhaps' does not fit active"),
        ("5", "has no number"),
        ("6", "name: has 300 characters, but name allows 255"),
        ("7", "holds bytes that are not utf-8"),
        ("8", "name: is empty, but name requires a value"),
    ]
    (path,) = (folder.top / "failed").glob("*.rejected.csv")
    folder.drop("corrected.csv", path.read_text().replace("perhaps", "no"))
    poll(hub)
    assert "Emmy" in customers(hub), "corrected and dropped again"


@pytest.mark.parametrize(
    ("name", "content", "why", "taken"),
    [
        ("a.xlsx", "PK", "is not one of .csv", []),
        ("a.csv", "", "has no header", []),
        ("a.csv", "number,name,name\n1,A,B\n", "has the column name twice", []),
        ("a.csv", 'number,name\n1,Ada\n2,"Grace\n3,Emmy\n', "cannot be read from line", ["Ada"]),
        ("a.csv", b"\xff\xfen\x00u\x00m\x00b\x00e\x00r\x00,\x00\n\x001\x00\x00\xd8", "is not written in utf-16", []),
        ("a.jsonl", '{"number": 1, "name": "Ada"}\n{"number": NaN}\n[1]\n{"number"', "is not JSON", ["Ada"]),
    ],
)
def test_files_that_cannot_be_read(
    start: Any, folder: Folder, name: str, content: str | bytes, why: str, taken: list[str]
) -> None:
    hub = start()
    folder.drop(name, content)
    poll(hub)
    assert any(why in row["why"] for row in folder.rejected())
    assert customers(hub) == taken and folder.names("in") == []


def test_an_ambiguous_row_is_a_dead_letter(start: Any, folder: Folder) -> None:
    hub = start()
    hub.add(name="One", email="same@x.example"), hub.add(name="Two", email="same@x.example")
    folder.drop("a.csv", "number,name,mail\n1,Which,same@x.example\n")
    poll(hub)
    hub.conductor.sweep(everything=True)
    hub.run()
    with hub.conductor.database.read() as connection:
        assert "several records in the database" in connection.execute(sa.select(DeadLetter.message)).scalar_one()


# --- export ---------------------------------------------------------------------------------------------


def test_each_state_is_written_and_deletions_too(start: Any, folder: Folder) -> None:
    hub = start()
    key = hub.add(name='Ada, née\n"Byron"', email="=ada@x.example")
    hub.run()
    row = {"number": f"S{key}", "name": 'Ada, née\n"Byron"', "mail": "=ada@x.example", "address.city": ""}
    row |= {"notes": "", "active": "true", "syncflow_id": mark(hub, key), "deleted": ""}
    assert folder.taken() == [[row]]
    hub.execute(sa.update(CUSTOMER).values(city="London"))
    hub.run()
    assert folder.taken() == [[{**row, "address.city": "London"}]], "whole, for a reader without a memory"
    hub.execute(sa.delete(CUSTOMER))
    hub.run()
    ((gone,),) = folder.taken()
    assert (gone["number"], gone["deleted"], gone["name"]) == (f"S{key}", "true", "")


def test_an_archived_row_stays_whole(start: Any, folder: Folder) -> None:
    hub = start(on_delete="archive", archive_data={"status": "closed"})
    hub.add(name="Ada", email="ada@x.example")
    hub.run()
    hub.execute(sa.delete(CUSTOMER))
    hub.run()
    first, last = folder.taken()
    assert last == [{**first[0], "status": "closed"}]


def test_an_expression_in_the_mapping_is_refused(start: Any, folder: Folder) -> None:
    hub = start(field_to_data={"name": Field("names[0]", direction="in")})
    folder.drop("a.jsonl", '{"number": 1, "names": ["Ada"]}')
    poll(hub)
    assert "the mapping has an expression" in folder.rejected()[0]["why"]


def test_many_records_make_one_file(start: Any, folder: Folder) -> None:
    hub = start(format="jsonl", columns={"Full name": "name"})
    with hub.conductor.database.write() as connection:
        connection.execute(sa.insert(CUSTOMER), [{"name": f"N{n}", "city": "Rome"} for n in range(50)])
    hub.run()
    (written,) = folder.taken()
    assert len(written) == 50 and written[0]["Full name"] == "N0" and written[0]["address"] == {"city": "Rome"}


@pytest.mark.parametrize(
    "chosen", [{"columns": {"Full name": "name"}}, {"for_spreadsheets": True, "delimiter": ";"}, {"format": "jsonl"}]
)
def test_one_hubs_export_is_anothers_drop(start: Any, folder: Folder, chosen: dict[str, Any]) -> None:
    """An exported file imports with the same values, including formulas, quotes and empty values."""
    awkward = ["=1+1", "'=1", "@x", "-5", 'a;b,"c"\n d\r', "  ", "\N{SNOWMAN}", "'", "0012", "null"]
    one = start(system="one", path="one", **chosen)
    with one.conductor.database.write() as connection:
        values = [{"name": text, "notes": text, "active": n % 2 == 0} for n, text in enumerate(awkward)]
        connection.execute(sa.insert(CUSTOMER), values)
    one.run()
    (folder.top.parent / "other").mkdir()
    shutil.move(folder.top.parent / "one" / "out", folder.top.parent / "other" / "in")
    other = start(system="other", path="other", record_id_field="", **chosen)
    other.poll("other.customer")
    columns = ("name", "notes", "active")
    assert sorted(customers(other, *columns)) == sorted(customers(one, *columns))


def test_a_file_from_before_our_export_undoes_nothing(start: Any, folder: Folder) -> None:
    hub = start()
    folder.drop("monday.csv", CSV)
    poll(hub)
    hub.execute(sa.update(CUSTOMER).where(CUSTOMER.c.name == "Ada").values(name="Ada Lovelace"))
    hub.run()
    folder.drop("tuesday.csv", CSV.replace("London", "Paris"))  # written before the other side read our export
    poll(hub)
    assert customers(hub, "name", "city")[0] == ("Ada Lovelace", "Paris")
    held = hub.conductor.subscribers["erp.customer"].fetch("1").data
    assert (held["name"], held["address"]) == ("Ada Lovelace", {"city": "Paris"})
    folder.taken()
    folder.drop("wednesday.csv", CSV.replace("Ada", "Ada Lovelace").replace("London", "Paris"))
    poll(hub)
    assert folder.taken() == [] and customers(hub)[0] == "Ada Lovelace"


def test_a_key_that_changes_leaves_the_old_row(start: Any, folder: Folder) -> None:
    hub = start(key_field="mail")
    hub.add(name="Ada", email="old@x.example")
    hub.run()
    folder.taken()
    hub.execute(sa.update(CUSTOMER).values(email="new@x.example"))
    hub.run()
    assert [[(row["mail"], row["deleted"]) for row in file] for file in folder.taken()] == [
        [("old@x.example", "true"), ("new@x.example", "")]
    ]
    folder.drop("a.csv", "mail,name\nnew@x.example,Ada Lovelace\n")
    poll(hub)
    assert customers(hub) == ["Ada Lovelace"]


def test_our_numbers_do_not_overwrite_theirs(start: Any, folder: Folder) -> None:
    hub = start(new_key="{id}", match_on=())
    folder.drop("a.csv", "number,name\n2,Theirs\n")
    poll(hub)
    folder.taken()
    hub.add(name="Ours")  # gets id 2
    hub.run()
    assert folder.taken() == []
    with hub.conductor.database.read() as connection:
        assert connection.execute(sa.select(DeadLetter.fields)).scalar_one() == {
            "number": "2 is the key of another row"
        }


def test_a_missing_folder_is_a_system_that_is_down(start: Any, folder: Folder) -> None:
    hub = start()
    folder.top.parent.rmdir()
    with pytest.raises(SystemDown, match="there is no folder"):
        poll(hub)
    hub.add(name="Ada")
    hub.run()
    with hub.conductor.database.read() as connection:
        assert connection.execute(sa.select(System.down_since)).scalar_one() is not None
    assert not folder.top.parent.exists(), "a disk that is missing is not made up for"


# --- snapshots ----------------------------------------------------------------------------------------


def drop_snapshot(folder: Folder, hub: RegisteredHub, numbers: range, extra: str = "") -> None:
    folder.drop(f"{time.time_ns()}.csv", "number,name\n" + "".join(f"{n},N{n}\n" for n in numbers) + extra)
    poll(hub)


def test_records_missing_in_a_snapshot_are_deleted(start: Any, folder: Folder) -> None:
    hub = start(snapshot=True)
    drop_snapshot(folder, hub, range(8))
    hub.add(name="Ours, not read there yet")
    hub.run()
    drop_snapshot(folder, hub, range(2, 8))
    assert [active for active in customers(hub, "active")] == [False, False, *[True] * 7]
    before = deliveries(hub)
    drop_snapshot(folder, hub, range(2, 8))
    assert deliveries(hub) == before


@pytest.mark.parametrize(("numbers", "extra"), [(range(0), ""), (range(1), "9,too,many\n")])
def test_a_snapshot_that_may_be_cut_deletes_nothing(start: Any, folder: Folder, numbers: range, extra: str) -> None:
    hub = start(snapshot=True)
    drop_snapshot(folder, hub, range(4))
    drop_snapshot(folder, hub, numbers, extra)
    assert all(customers(hub, "active"))
    assert "nothing was taken for deleted" in folder.rejected()[-1]["why"]


def test_the_guard_holds_back_a_snapshot_with_little_in_it(
    start: Any, folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ERP_DELETE_LIMIT", "3")
    hub = start(snapshot=True)
    drop_snapshot(folder, hub, range(8))
    drop_snapshot(folder, hub, range(1))
    assert all(customers(hub, "active")) and len(folder.names("in")) == 1
    hub.conductor.systems.resume("erp", "me", allow_deletes=True)
    poll(hub)
    assert customers(hub, "active").count(False) == 7 and folder.names("in") == []


def test_only_snapshots_delete_by_absence(start: Any, folder: Folder) -> None:
    hub = start()
    drop_snapshot(folder, hub, range(4))
    drop_snapshot(folder, hub, range(1))
    assert all(customers(hub, "active"))
    folder.drop("gone.csv", "number,deleted\n2,TRUE\n3,\n")
    poll(hub)
    assert customers(hub, "active") == [True, True, False, True]


# --- rows ---------------------------------------------------------------------------------------------

cells = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=20)


@given(cells)
def test_a_masked_text_is_no_formula_and_comes_back(text: str) -> None:
    assert formats.unmasked(formats.masked(text)) == text
    assert not formats.masked(text).startswith(("=", "+", "-", "@", "\t", "\r"))


@given(st.lists(st.tuples(cells, cells), max_size=5), st.sampled_from([".csv", ".tsv", ".jsonl"]), st.booleans())
def test_what_is_written_is_read(tmp_path_factory: Any, pairs: list[tuple[str, str]], suffix: str, mask: bool) -> None:
    path = tmp_path_factory.getbasetemp() / f"round{suffix}"
    written = [{"one": one, "other": other} for one, other in pairs]
    delimiter = "\t" if suffix == ".tsv" else ","
    formats.write(path, ["one", "other"], written, delimiter=delimiter, mask=mask)
    assert [row.values for row in formats.read(path, unmask=mask and suffix != ".jsonl")] == written


def test_a_file_is_streamed(tmp_path: Path) -> None:
    path = tmp_path / "large.csv"
    path.write_text("number,name\n" + "1,Ada\n" * 50_000 + '2,"never closed')
    found = formats.read(path)
    assert next(found) == Row(2, {"number": "1", "name": "Ada"})
    with pytest.raises(BadFile, match="line 50002"):
        for _ in found:
            pass


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "out.csv").mkdir()
    with pytest.raises(OSError):
        formats.write(tmp_path / "out.csv", ["a"], [{"a": 1}])
    assert os.listdir(tmp_path) == ["out.csv"]


def test_a_folder_that_is_missing_is_found_before_the_first_record(start: Any, folder: Folder) -> None:
    hub = start()
    hub.conductor.connection_check.check("erp")
    assert os.listdir(folder.top.parent) == [], "nothing is changed by looking"
    folder.top.parent.rmdir()
    (finding,) = hub.conductor.connection_check.check("erp")["erp.customer"]
    assert finding.state == "wrong" and f"there is no folder {folder.top.parent}" in finding.message


def test_the_connection_check_and_backfill_consume_no_file(start: Any, folder: Folder) -> None:
    hub = start()
    poll(hub)
    folder.drop("a.csv", "number,name,mail\n7,Ada,ada@x.example\n")
    poll(hub)
    hub.add(name="Grace", email="grace@x.example")
    folder.drop("b.csv", "number,name,mail\n8,Emmy,emmy@x.example\n")
    hub.conductor.connection_check.check("erp")
    one = hub.conductor.tasks.start("backfill", "ann", subscriber="erp.customer")
    while hub.conductor.tasks.list(unfinished=True):
        hub.conductor.tasks.run_some()
        hub.conductor.sweep()
        hub.run()
    assert hub.conductor.tasks.get(one).message == "0 sent, 2 existed already", "a change was under way"
    assert [path.name for path in (folder.top / "in").glob("*.csv")] == ["b.csv"], "it waits for the poll"
    poll(hub)
    assert customers(hub) == ["Ada", "Grace", "Emmy"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "id,name\n1,Ada\n2," + "x" * 200),
        ("a.csv", "i" * 200),
        ("a.csv", 'id,name\n1,"' + "x\n" * 100),
        ("a.jsonl", '{"id": 1}\n{"id": "' + "x" * 200),
    ],
)
def test_s04_a_row_without_an_end_does_not_fill_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: str
) -> None:
    monkeypatch.setattr(formats, "_LONGEST_ROW", 100)
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(BadFile, match="more than 100 characters"):
        list(formats.read(path))


def test_s04_many_rows_of_any_length_in_total_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "_LONGEST_ROW", 100)
    (tmp_path / "a.csv").write_text("id,name\n" + "1,Ada\n" * 100)
    (tmp_path / "a.jsonl").write_text('{"id": 1}\n' * 100)
    assert len(list(formats.read(tmp_path / "a.csv"))) == len(list(formats.read(tmp_path / "a.jsonl"))) == 100
