"""Which internal record an external record belongs to: by its link, by its mark, or by `match_on`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from conductor.inward.incoming import Incoming
from conductor.links import in_doubt, marks
from conductor.links.row import LinkRow, link_row
from models.catalogues import Record, UnreadableRecord
from models.ledger import DeadLetter, Link
from models.match_keys import candidates as candidates_of
from subscribers.base import Subscriber
from subscribers.errors import CREATED_WITHOUT_ID, Reject
from subscribers.mapping.match_forms import match_form, match_keys
from subscribers.mapping.values import is_empty

#: Digits of the longest number that is compared with and without leading zeros.
_LONGEST_NUMBER = 20


def link_by_external_id(connection: sa.Connection, subscriber: Subscriber, external_id: str) -> LinkRow | None:
    """Return the link to this external record, locked."""
    return _locked_link(connection, subscriber, Link.external_id == external_id)


def link_by_record(connection: sa.Connection, subscriber: Subscriber, record_id: str) -> LinkRow | None:
    """Return the link of this internal record, locked."""
    return _locked_link(connection, subscriber, Link.record_id == record_id)


def link_by_id(connection: sa.Connection, subscriber: Subscriber, link_id: int) -> LinkRow:
    """Return the link with this id, locked. Links are never removed."""
    link = _locked_link(connection, subscriber, Link.id == link_id)
    if link is None:
        raise AssertionError(f"{subscriber.name()} has no link #{link_id}")
    return link


def existing_link(connection: sa.Connection, subscriber: Subscriber, record_id: str) -> LinkRow:
    """Return the link of this internal record, which this transaction has written."""
    link = link_by_record(connection, subscriber, record_id)
    if link is None:
        raise AssertionError(f"{subscriber.name()} has no link of record {record_id}")
    return link


def _locked_link(
    connection: sa.Connection, subscriber: Subscriber, condition: sa.ColumnElement[bool]
) -> LinkRow | None:
    statement = sa.select(Link.__table__).where(Link.subscriber == subscriber.name(), condition)
    row = connection.execute(statement.with_for_update()).one_or_none()
    return None if row is None else link_row(row)


def other_form(connection: sa.Connection, subscriber: Subscriber, external_id: str) -> str | None:
    """Return the linked id that is this one in other case or with other leading zeros; None if none or several are."""
    linked = (Link.subscriber == subscriber.name(), Link.unlinked_at.is_(None))
    alike = sa.select(Link.external_id).where(*linked, Link.external_id.in_(sorted(_forms(external_id))))
    found = connection.execute(alike.limit(2)).scalars().all()
    return found[0] if len(found) == 1 else None


def _forms(external_id: str) -> set[str]:
    if external_id.isascii() and external_id.isdecimal():
        bare = external_id.lstrip("0") or "0"
        forms = {bare.zfill(width) for width in range(1, _LONGEST_NUMBER + 1)}
    else:
        forms = {external_id.lower(), external_id.upper()}
    return forms - {external_id}


def candidates(connection: sa.Connection, incoming: Incoming, limit: int, where: Sequence[Any] = ()) -> list[str]:
    """Return the ids of up to `limit` internal records that meet `where` and may be this external record."""
    if record_id := claimed_record(connection, incoming):
        return [record_id]
    if link_without_record(connection, incoming) is not None:
        return []
    found = _alike(connection, incoming)[:limit]
    return incoming.subscriber.records.keep(connection, found, where)


def claimed_record(connection: sa.Connection, incoming: Incoming) -> str | None:
    """Return the record of ours that the mark names, if it exists and the mark is believed."""
    mark = marks.parse(incoming.external.mark)
    if mark is None or mark.is_of_another(marks.hub_id(connection)):
        return None
    is_ours = _exists(connection, incoming, mark.record_id) and (
        mark.hub is not None or _is_confirmed(connection, incoming, mark.record_id)
    )
    return mark.record_id if is_ours else None


def own_mark(connection: sa.Connection, incoming: Incoming) -> str | None:
    """Return the record id in the mark, if this hub wrote the mark."""
    mark = marks.parse(incoming.external.mark)
    return mark.record_id if mark is not None and mark.hub == marks.hub_id(connection) else None


def is_another(connection: sa.Connection, incoming: Incoming, record_id: str) -> bool:
    """Whether the mark says that a record under the external id of this record of ours is another one."""
    mark = marks.parse(incoming.external.mark)
    if mark is None:
        return False
    hub = marks.hub_id(connection)
    if mark.hub == hub:
        return mark.record_id != record_id
    return incoming.subscriber.reuses_ids and (mark.is_of_another(hub) or mark.record_id != record_id)


def doubted_mark(connection: sa.Connection, incoming: Incoming) -> marks.Mark | None:
    """Return a mark that is not believed: that of another hub, or a plain one that nothing confirms."""
    mark = marks.parse(incoming.external.mark)
    if mark is None or (mark.hub is None and not _exists(connection, incoming, mark.record_id)):
        return None
    is_believed = own_mark(connection, incoming) or claimed_record(connection, incoming)
    return None if is_believed else mark


def _is_confirmed(connection: sa.Connection, incoming: Incoming, record_id: str) -> bool:
    """Whether something else than a plain mark says that it is this record: match columns, or a create of ours."""
    return record_id in _alike(connection, incoming) or _is_created(connection, incoming, record_id)


def _is_created(connection: sa.Connection, incoming: Incoming, record_id: str) -> bool:
    """Whether a create of this record, whose outcome is unknown, sent the values that the external record has."""
    link = link_by_record(connection, incoming.subscriber, record_id)
    in_question = link is not None and not link.is_linked and link.create_token is not None
    return in_question and link is not None and in_doubt.is_as_sent(link.unconfirmed_write, incoming.flat)


def _exists(connection: sa.Connection, incoming: Incoming, record_id: str) -> bool:
    try:
        with connection.begin_nested():  # a failed look-up would abort the whole transaction on PostgreSQL
            return record_id in incoming.subscriber.records.read(connection, [record_id])
    except UnreadableRecord:
        raise
    except (ValueError, OverflowError, sa.exc.DBAPIError):
        return False  # not one of our ids


def created_record(connection: sa.Connection, incoming: Incoming) -> str | None:
    """Return the record whose create sent the values that this external record has, and whose response told no id.

    A lost response of a system in which nothing identifies our records counts as well: nothing else finds its record.
    """
    subscriber = incoming.subscriber
    sent = sa.select(Link.record_id, Link.unconfirmed_write)
    name = subscriber.name()
    letters = (DeadLetter.subscriber == name, DeadLetter.closed_at.is_(None), DeadLetter.code == CREATED_WITHOUT_ID)
    dead = sent.join(DeadLetter, DeadLetter.link_id == Link.id).where(*letters, Link.external_id.is_(None))
    waiting = [*connection.execute(dead)]
    if not subscriber.can_identify:
        lost = (Link.subscriber == name, Link.create_token.is_not(None), Link.external_id.is_(None))
        waiting += connection.execute(sent.where(*lost))
    hub = marks.hub_id(connection)
    found = {
        row.record_id
        for row in waiting
        if in_doubt.is_as_sent(row.unconfirmed_write, incoming.flat)
        and marks.is_of(incoming.external.mark, row.record_id, hub, lambda: True)
    }
    return found.pop() if len(found) == 1 else None


def is_being_created(connection: sa.Connection, incoming: Incoming, now: datetime) -> bool:
    """Whether a create of ours that is under way may have made this external record: its id is not known here yet.

    Of a deleted record nothing but the id is known.
    """
    under_way = sa.select(Link.record_id, Link.unconfirmed_write).where(
        Link.subscriber == incoming.subscriber.name(),
        Link.create_token.is_not(None),
        Link.lease_until > now,
        sa.or_(Link.external_id.is_(None), Link.unlinked_at.is_not(None)),
    )
    external, hub = incoming.external, marks.hub_id(connection)
    return any(
        (external.deleted or in_doubt.may_be_sent(row.unconfirmed_write, incoming.flat))
        and marks.is_of(external.mark, row.record_id, hub, lambda: True)
        for row in connection.execute(under_way)
    )


def link_without_record(connection: sa.Connection, incoming: Incoming) -> LinkRow | None:
    """Return the link of a record that was deleted while the result of its creation was unknown.

    The external record is what that creation made. It is neither new nor another record: it has to be deleted.
    Call this only where `claimed_record` found no record.
    """
    mark = marks.parse(incoming.external.mark)
    if mark is None or mark.is_of_another(marks.hub_id(connection)):
        return None
    if mark.hub is None and not _is_created(connection, incoming, mark.record_id):
        return None
    link = link_by_record(connection, incoming.subscriber, mark.record_id)
    return None if link is None or link.external_id is not None else link


def matched_record(connection: sa.Connection, incoming: Incoming) -> str | None:
    """Return the one record that agrees in all `match_on` columns, unless it is linked already.

    Raises:
      Reject: several records agree.
    """
    subscriber = incoming.subscriber
    found = _alike(connection, incoming)
    if len(found) > 1:
        names = ", ".join(subscriber.match_on)
        message = f"several records in the database have the same {names} as {incoming.external.id}"
        raise Reject(message, code="ambiguous_match")
    if not found:
        return None
    link = link_by_record(connection, subscriber, found[0])
    return None if link is not None and link.is_linked else found[0]


def _alike(connection: sa.Connection, incoming: Incoming) -> list[str]:
    """Return the ids of the records that agree in all `match_on` columns, however their values are written."""
    catalogue, values = incoming.subscriber.records, _match_values(incoming)
    kinds = {name: kind for name, kind in catalogue.match_as.items() if name in values}
    if not values:
        return []
    region = incoming.mapper.inward_value("country", incoming.flat)
    exact = {name: value for name, value in values.items() if name not in kinds}
    keys = {name: match_keys(kind, values[name], region) for name, kind in kinds.items()}
    forms = {name: match_form(kind, values[name], region) for name, kind in kinds.items()}
    return [
        str(record[catalogue.key.name])
        for record in candidates_of(connection, catalogue, exact, keys)
        if all(match_form(kinds[n], record[n], record.get("country") or region) == form for n, form in forms.items())
    ]


def _match_values(incoming: Incoming) -> Record:
    """Return the values of the `match_on` columns; nothing where one of them is empty."""
    mapper, flat = incoming.mapper, incoming.flat
    paths = [path for path in map(mapper.path_of, incoming.subscriber.match_on) if path is not None]
    if not paths or any(is_empty(flat.get(path)) for path in paths):
        return {}
    return mapper.inward({path: flat[path] for path in paths})
