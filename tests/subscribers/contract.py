"""The contract of every subscriber, as a test suite that its author runs with a few lines:

    class TestShopContact(Contract):
        subscriber = ShopContact
        simulator = ShopSimulator
        record = {"name": "Ada", "email": "ada@x.example"}
        edit = {"phone": "2"}

The real conductor runs on a separate database with the subscriber and a simulated system. The
simulator supplies the settings, so no environment variables are needed. See `simulators.simulators` for
the available simulators and for the interface that your own simulator implements.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa

from conductor import BadSignature, Conductor, Policy
from conductor.links.relations import our_side
from models.base import utcnow
from models.ledger import DeadLetter, Delivery, Inbox, Link, System
from models.session import Database
from simulators.simulators import Cannot, Simulator
from subscribers.base import Subscriber, normalize_incoming
from subscribers.errors import Gone
from subscribers.mapping.paths import nest
from subscribers.mapping.validation import check_rows
from subscribers.mapping.values import Flat, same
from subscribers.records import Page
from subscribers.system import System as SystemClass
from tests.support.fakes import RecordingPublisher, TestHub

#: Seconds by which the clock advances while work waits for its due time: longer than any pause.
_LATER_SECONDS = 2000


class Bench(TestHub):
    """A hub with one subscriber, and the subscribers it depends on, on a simulated system."""

    def __init__(
        self, database: Database, subscriber: type[Subscriber], others: Sequence[type[Subscriber]], simulator: Simulator
    ) -> None:
        options = subscriber.system_class.Options(**simulator.options())
        client = subscriber.system_class(subscriber.system, options)
        at_work = {one.name(): one.connected(client) or one(client) for one in (*others, subscriber)}
        self.simulator = simulator
        self.subscriber = at_work[subscriber.name()]
        self.later = timedelta()
        self.publisher = RecordingPublisher()
        policy = Policy(max_attempts=5, lease_seconds=600)
        self.conductor = Conductor(database, at_work, self.publisher, policy, self.now)
        self.conductor.prepare()

    def now(self) -> datetime:
        """Return the hub's time: the real time plus the skipped waiting time."""
        return utcnow() + self.later

    # --- the database -------------------------------------------------------------------------------

    def add(self, values: Mapping[str, Any]) -> str:
        """Insert a record into the database, as any application does, and return its id."""
        with self.conductor.database.write() as connection:
            return self.subscriber.records.insert(connection, values)

    def edit(self, record_id: str, values: Mapping[str, Any]) -> None:
        with self.conductor.database.write() as connection:
            self.subscriber.records.update(connection, record_id, values)

    def delete(self, record_id: str) -> None:
        with self.conductor.database.write() as connection:
            self.subscriber.records.delete(connection, record_id)

    def here(self, record_id: str) -> Flat:
        """Return the record as the external system should store it, by external field."""
        with self.conductor.database.read() as connection:
            record = self.subscriber.records.read(connection, [record_id])[record_id]
            mapper = self.subscriber.default_mapper
            related = self.conductor.relations.load(connection, self.subscriber, mapper, [record])
            return our_side(self.subscriber, mapper, record, related)[0]

    def count(self) -> int:
        """Return how many records the database has."""
        with self.conductor.database.read() as connection:
            return int(
                connection.execute(sa.select(sa.func.count()).select_from(self.subscriber.records.table)).scalar_one()
            )

    # --- the external system ------------------------------------------------------------------------

    def there(self, external_id: str) -> Flat | None:
        """Return the record as the external system stores it, by external field, or None if it is gone."""
        try:
            external = normalize_incoming(self.subscriber, self.subscriber.fetch(external_id))
        except Gone:
            return None
        return self.subscriber.default_mapper.flatten(external.data)

    def meet_writes(self) -> None:
        """Let the next call of a delivery be the write itself: no look comes before it."""
        self.subscriber.look_first = "never"  # type: ignore[misc]

    def webhook(self, external_id: str) -> tuple[bytes, dict[str, str]] | None:
        """Return the system's webhook for this record, or None if the system class accepts no webhooks."""
        kind = type(self.subscriber.client)
        takes = kind.verify is not SystemClass.verify or kind.unpack is not SystemClass.unpack
        return self.simulator.webhook(external_id) if takes else None

    # --- the hub ------------------------------------------------------------------------------------

    def settle(self) -> None:
        """Run until no work is left, skipping all pauses."""
        for _ in range(25):
            self.run()
            self.conductor.sweep(everything=True)
            if self.publisher.published:
                continue
            if not self._waits():
                return
            self.later += timedelta(seconds=_LATER_SECONDS)
        raise AssertionError(f"it does not come to rest: {self._waits()} wait, {self.letters()}")

    def _waits(self) -> int:
        owed = sa.select(sa.func.count(Link.id)).where(Link.owed_change > Link.synced_change, Link.dead_at.is_(None))
        inbox = sa.select(sa.func.count(Inbox.id)).where(Inbox.state == "waiting")
        with self.conductor.database.read() as connection:
            return int(connection.execute(owed).scalar_one() + connection.execute(inbox).scalar_one())

    def poll(self) -> None:
        """Poll the external system and process everything that follows."""
        self.later += timedelta(seconds=_LATER_SECONDS)
        self.conductor.poll(self.subscriber.name())
        self.settle()

    def link(self, record_id: str) -> Any:
        same_record = (Link.subscriber == self.subscriber.name(), Link.record_id == record_id)
        with self.conductor.database.read() as connection:
            return connection.execute(sa.select(Link.__table__).where(*same_record)).one()

    def letters(self) -> list[str]:
        """Return the messages of the open dead letters."""
        with self.conductor.database.read() as connection:
            return list(
                connection.execute(sa.select(DeadLetter.message).where(DeadLetter.closed_at.is_(None))).scalars()
            )

    def written(self) -> str:
        """Return everything that the ledger shows to users, as text."""
        with self.conductor.database.read() as connection:
            tables = (Delivery, DeadLetter, Inbox, System, Link)
            return str([list(connection.execute(sa.select(table.__table__))) for table in tables])


class Contract:
    """The test suite: subclass it as `Test...` and set the first four attributes."""

    subscriber: ClassVar[type[Subscriber]]
    #: Creates the simulated system: a `Simulator` class or a function without arguments.
    simulator: ClassVar[Callable[[], Simulator]]
    #: Column values of a record that the system accepts. Values of `match_on` columns are made unique.
    record: ClassVar[Mapping[str, Any]]
    #: New values for some of these columns or for other mapped columns.
    edit: ClassVar[Mapping[str, Any]]
    #: Columns of `edit` that a user of the system can also change; by default all columns that sync both ways.
    edit_there: ClassVar[Sequence[str] | None] = None
    #: Subscribers of the same system that this one depends on (such as an invoice's customer).
    others: ClassVar[Sequence[type[Subscriber]]] = ()

    def prepare(self, bench: Bench) -> Mapping[str, Any]:
        """Insert the records that this one references and return the columns that reference them."""
        return {}

    def unique(self, number: int) -> Mapping[str, Any]:
        """Return the columns of the `number`-th record (from 0) that must differ from other records."""
        return {
            column: f"{number}{self.record[column]}" for column in self.subscriber.match_on if column in self.record
        }

    # --- the bench ------------------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def running(cls) -> Iterator[Simulator]:
        with cls.simulator() as simulator:
            yield simulator

    @pytest.fixture
    def bench(self, running: Simulator, migrated_sqlite: Path, tmp_path: Path) -> Iterator[Bench]:
        shutil.copy(migrated_sqlite, tmp_path / "syncflow.db")
        running.reset()
        database = Database(f"sqlite:///{tmp_path / 'syncflow.db'}")
        yield Bench(database, self.subscriber, self.others, running)
        database.close()

    def given(self, bench: Bench, count: int = 1) -> list[tuple[str, str]]:
        """Create `count` records on both sides and return their (record id, external id) pairs."""
        pointers = self.prepare(bench)
        ids = [bench.add({**self.record, **self.unique(n), **pointers}) for n in range(count)]
        bench.settle()
        assert bench.letters() == []
        return [(record_id, bench.link(record_id).external_id) for record_id in ids]

    @staticmethod
    def possibly(action: Callable[[], None]) -> None:
        """Run `action` on the simulator; skip the test if the system does not support it."""
        try:
            action()
        except Cannot as error:
            pytest.skip(str(error))

    def agree(self, bench: Bench, record_id: str, external_id: str) -> None:
        """Assert that both sides have the same values in all mapped fields."""
        here, there = bench.here(record_id), bench.there(external_id)
        assert there is not None, f"{external_id} is not there"
        differing = {path: (value, there.get(path)) for path, value in here.items() if not same(value, there.get(path))}
        assert differing == {}, "field -> (here, there)"

    def changed_there(self, bench: Bench, record_id: str, columns: Sequence[str] | None = None) -> dict[str, Any]:
        """Return the edit as nested data that a user of the external system would send."""
        mapper = bench.subscriber.default_mapper
        wanted = self.edit_there if self.edit_there is not None else list(self.edit)
        chosen = [c for c in columns or wanted if c in mapper.fields and mapper.fields[c].direction == "both"]
        if not chosen:
            pytest.skip("no field of the edit comes in")
        with bench.conductor.database.read() as connection:
            record = bench.subscriber.records.read(connection, [record_id])[record_id]
        flat = mapper.outward({**record, **{column: self.edit[column] for column in chosen}}, strict=False)
        tops = {mapper.fields[column].path.split(".")[0] for column in chosen}
        return {top: value for top, value in nest(flat).items() if top in tops}

    def pages(self, bench: Bench, position: dict[str, Any] | None = None) -> list[Page]:
        if type(bench.subscriber).changed_since is Subscriber.changed_since:
            pytest.skip("it lists nothing")
        return list(bench.subscriber.changed_since(position))

    # --- declarations -----------------------------------------------------------------------------------

    def test_it_states_its_fields(self, bench: Bench) -> None:
        mapper = bench.subscriber.default_mapper
        assert check_rows(mapper.rows(), bench.subscriber.records)[1] == []
        unknown = {*self.record, *self.edit} - {*bench.subscriber.records.columns}
        assert not unknown, "record and edit name columns"
        assert set(self.edit) & set(mapper.fields), "edit changes a mapped column"
        self.given(bench)
        findings = bench.conductor.connection_check.check(bench.subscriber.system)[bench.subscriber.name()]
        assert [one.message for one in findings if one.state == "wrong"] == []

    # --- outward ----------------------------------------------------------------------------------------

    def test_it_creates(self, bench: Bench) -> None:
        ((record_id, external_id),) = self.given(bench)
        assert bench.simulator.ids()[-1:] == [external_id]
        self.agree(bench, record_id, external_id)

    def test_it_updates(self, bench: Bench) -> None:
        ((record_id, external_id),) = self.given(bench)
        bench.edit(record_id, self.edit)
        bench.settle()
        assert bench.letters() == []
        self.agree(bench, record_id, external_id)

    def test_the_same_again_calls_nobody(self, bench: Bench) -> None:
        ((record_id, _),) = self.given(bench)
        before = bench.simulator.writes()
        bench.conductor.push(bench.subscriber.catalogue, record_id)
        bench.settle()
        bench.conductor.deliver(bench.subscriber.name(), [record_id, record_id])
        assert bench.simulator.writes() == before

    def test_ten_edits_cost_as_much_as_one(self, bench: Bench) -> None:
        ((record_id, external_id),) = self.given(bench)
        original = {column: self.record.get(column) for column in self.edit}
        before = len(bench.simulator.writes())
        bench.edit(record_id, self.edit)
        bench.settle()
        once = len(bench.simulator.writes()) - before
        bench.edit(record_id, original)
        for _ in range(4):
            bench.edit(record_id, self.edit)
            bench.edit(record_id, original)
        before = len(bench.simulator.writes())
        bench.settle()
        assert len(bench.simulator.writes()) - before <= max(once, 1)
        self.agree(bench, record_id, external_id)

    def test_it_deletes_as_it_says(self, bench: Bench) -> None:
        (_, (record_id, external_id)) = self.given(bench, 2)
        bench.delete(record_id)
        bench.settle()
        assert bench.letters() == []
        there = bench.there(external_id)
        match self.subscriber.on_delete:
            case "delete":
                assert there is None or external_id not in self._visible(bench)
            case "archive":
                assert there is not None
                archived = {path: there.get(path) for path in self.subscriber.archive_data}
                assert archived == dict(self.subscriber.archive_data)
            case _:
                assert there is not None
        assert len(self._visible(bench)) >= 1, "its neighbour stays"

    def _visible(self, bench: Bench) -> list[str]:
        """Return the ids of the records that are not archived."""
        return [one for one in bench.simulator.ids() if (bench.there(one) or {}).get("active") is not False]

    # --- inward -----------------------------------------------------------------------------------------

    def test_it_lists_what_changed_since_a_cursor(self, bench: Bench) -> None:
        pairs = self.given(bench, 3)
        pages = self.pages(bench)
        seen = {one.id for page in pages for one in page.records}
        assert {external_id for _, external_id in pairs} <= seen
        positions = [json.loads(json.dumps(page.position)) for page in pages]
        record_id, external_id = pairs[1]
        bench.simulator.edit(external_id, self.changed_there(bench, record_id))
        again = {one.id for page in self.pages(bench, positions[-1]) for one in page.records}
        assert external_id in again

    def test_an_edit_there_comes_in_and_does_not_go_back(self, bench: Bench) -> None:
        ((record_id, external_id),) = self.given(bench)
        self.pages(bench)
        bench.poll()
        before = bench.simulator.writes()
        bench.simulator.edit(external_id, self.changed_there(bench, record_id))
        bench.poll()
        self.agree(bench, record_id, external_id)
        assert bench.simulator.writes() == before

    def test_edits_of_the_same_second_all_come_in(self, bench: Bench) -> None:
        (one, other) = self.given(bench, 2)
        self.pages(bench)
        bench.poll()
        bench.simulator.edit(one[1], self.changed_there(bench, one[0]))
        bench.poll()
        bench.simulator.edit(other[1], self.changed_there(bench, other[0]))
        bench.poll()
        for record_id, external_id in (one, other):
            self.agree(bench, record_id, external_id)
            assert same(*self._edited(bench, record_id)), "the edit has come in"

    def _edited(self, bench: Bench, record_id: str) -> tuple[Any, Any]:
        """Return an edited column's value in the database and the expected value."""
        mapper = bench.subscriber.default_mapper
        wanted = self.edit_there if self.edit_there is not None else list(self.edit)
        column = next(c for c in wanted if c in mapper.fields and mapper.fields[c].direction == "both")
        expected = mapper.outward({column: self.edit[column]}, strict=False)[mapper.fields[column].path]
        return bench.here(record_id)[mapper.fields[column].path], expected

    def test_webhooks_twice_and_out_of_order(self, bench: Bench) -> None:
        ((record_id, external_id),) = self.given(bench)
        first = self._webhook(bench, external_id)
        bench.simulator.edit(external_id, self.changed_there(bench, record_id))
        second = self._webhook(bench, external_id)
        before = bench.simulator.writes()
        for body, headers in (second, first, second):
            bench.conductor.store_webhook(bench.subscriber.system, body, headers)
            bench.settle()
        self.agree(bench, record_id, external_id)
        assert same(*self._edited(bench, record_id)), "the older event does not undo the newer"
        assert bench.simulator.writes() == before and bench.letters() == []

    def test_a_forged_webhook_is_refused(self, bench: Bench) -> None:
        ((_, external_id),) = self.given(bench)
        body, headers = self._webhook(bench, external_id)
        for forged in ({name: value[:-1] + "x" for name, value in headers.items()}, {}):
            with pytest.raises(BadSignature):
                bench.conductor.store_webhook(bench.subscriber.system, body, forged)

    @staticmethod
    def _webhook(bench: Bench, external_id: str) -> tuple[bytes, dict[str, str]]:
        sent = bench.webhook(external_id)
        if sent is None:
            pytest.skip("it sends no webhooks, or they are not taken")
        return sent

    # --- failures ---------------------------------------------------------------------------------------

    def test_a_create_whose_answer_is_lost_happens_once(self, bench: Bench) -> None:
        pointers = self.prepare(bench)
        bench.settle()
        before = len(bench.simulator.ids())
        bench.simulator.drop()
        record_id = bench.add({**self.record, **pointers})
        bench.settle()
        assert len(bench.simulator.ids()) == before + 1 and bench.letters() == []
        self.agree(bench, record_id, bench.link(record_id).external_id)

    def test_an_update_whose_answer_is_lost(self, bench: Bench) -> None:
        ((record_id, external_id),) = self.given(bench)
        bench.simulator.drop()
        bench.edit(record_id, self.edit)
        bench.settle()
        assert bench.letters() == []
        self.agree(bench, record_id, external_id)

    @pytest.mark.parametrize("status", [429, 500])
    def test_a_trouble_that_passes_costs_nothing_but_time(self, bench: Bench, status: int) -> None:
        ((record_id, external_id),) = self.given(bench)
        bench.meet_writes()
        bench.simulator.fail(status, times=2)
        bench.edit(record_id, self.edit)
        bench.settle()
        assert bench.letters() == []
        self.agree(bench, record_id, external_id)

    def test_an_expired_login_is_renewed(self, bench: Bench) -> None:
        ((record_id, external_id),) = self.given(bench)
        bench.simulator.expire_login()
        bench.edit(record_id, self.edit)
        bench.settle()
        assert bench.letters() == []
        self.agree(bench, record_id, external_id)

    def test_a_record_that_is_gone_there(self, bench: Bench) -> None:
        (neighbour, (record_id, external_id)) = self.given(bench, 2)
        self.possibly(lambda: bench.simulator.remove(external_id))
        bench.edit(record_id, self.edit)
        bench.edit(neighbour[0], self.edit)
        bench.settle()
        assert bench.letters() == []
        self.agree(bench, *neighbour)
        if self.subscriber.on_gone == "recreate":
            assert bench.there(bench.link(record_id).external_id) is not None
        else:
            assert bench.there(external_id) is None

    def test_two_records_that_are_merged_there(self, bench: Bench) -> None:
        (winner, loser) = self.given(bench, 2)
        lists = type(bench.subscriber).changed_since is not Subscriber.changed_since
        if lists:
            bench.poll()
        self.possibly(lambda: bench.simulator.merge(winner[1], loser[1]))
        bench.edit(loser[0], self.edit)
        bench.run()  # the edit may be sent before the hub learns of the merge
        if lists:
            bench.poll()
        bench.settle()
        assert bench.letters() == []
        assert winner[1] in bench.simulator.ids() and bench.count() >= 1
        if self.subscriber.on_gone != "recreate":
            assert loser[1] not in bench.simulator.ids()

    # --- secrets ----------------------------------------------------------------------------------------

    def test_no_secret_is_logged_or_stored(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG)
        ((record_id, external_id),) = self.given(bench)
        bench.meet_writes()
        bench.simulator.fail(401)
        bench.edit(record_id, self.edit)
        bench.settle()
        if (sent := bench.webhook(external_id)) is not None:
            bench.conductor.store_webhook(bench.subscriber.system, *sent)
            bench.settle()
        output = caplog.text + bench.written()
        for secret in bench.simulator.secrets:
            assert secret not in output
