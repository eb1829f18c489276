"""The records of the simulated org: created, changed, deleted (softly) and merged under the org's rules.

The store works on dicts as in JSON, `{"Name": "Ada", "Active__c": True}`, without HTTP, so tests may call it directly.
Salesforce object reference: "System Fields"; SOAP guide: `merge()`, `delete()`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from .database import Database
from .duplicates import DuplicateRule
from .errors import SalesforceError, SeveralMatch, entity_is_deleted, malformed_id, not_found, not_in_the_body
from .identifiers import make_id, to_18
from .schema import OBJECTS, Field, SObject, children_of, find_object
from .times import Clock, to_wire
from .values import to_json, to_stored

Record = dict[str, Any]

#: The user who made a change: the integration's user, and a user working in the org.
API_USER = make_id("005", 1)
PERSON = make_id("005", 2)


class Change(NamedTuple):
    """The operation on one record, its time (as the API writes times) and its user."""

    operation: str
    object: str
    id: str
    time: str
    by: str


class Store:
    """All records of the org. `path` is the SQLite file; None keeps them in memory."""

    def __init__(self, path: str | Path | None = None, clock: Clock | None = None) -> None:
        self.clock = clock or Clock()
        self.database = Database(path)
        self.transaction = self.database.transaction
        self.duplicate_rules: list[DuplicateRule] = []
        #: Called after every commit with its changes, in order.
        self.on_change: Callable[[list[Change]], None] | None = None
        self.database.on_commit = lambda changes: self.on_change(changes) if self.on_change else None

    def close(self) -> None:
        self.database.close()

    # --- reading ---

    def get(self, object_name: str, record_id: str, *, deleted_too: bool = False) -> Record:
        """Return the record with all its fields. Raises MALFORMED_ID, NOT_FOUND or ENTITY_IS_DELETED."""
        one = find_object(object_name)
        record = self._row(one, check_id(one, record_id))
        if record["IsDeleted"] and not deleted_too:
            raise entity_is_deleted()
        return record

    def find(self, object_name: str, field_name: str, value: Any, *, deleted_too: bool = False) -> list[Record]:
        """Return every record whose field has this value, oldest first; text comparison ignores case."""
        one = find_object(object_name)
        field = one.field(field_name)
        where = f'"{field.name}" = ?' + ("" if deleted_too else " AND IsDeleted = 0")
        return self.select(one, where, (to_stored(one, field, value),))

    def all(self, object_name: str, *, deleted_too: bool = False) -> list[Record]:
        """Return every record, oldest first."""
        return self.select(find_object(object_name), "1" if deleted_too else "IsDeleted = 0", ())

    def count(self, object_name: str) -> int:
        """Return the number of records, without deleted ones."""
        one = find_object(object_name)
        with self.database.lock:
            found = self.database.connection.execute(f'SELECT COUNT(*) FROM "{one.name}" WHERE IsDeleted = 0')
            return int(found.fetchone()[0])

    def select(self, one: SObject, where: str, parameters: Iterable[Any], tail: str = "ORDER BY Id") -> list[Record]:
        """Return the records that match an SQL condition; columns have the names of the fields."""
        statement = f'SELECT * FROM "{one.name}" WHERE {where} {tail}'
        with self.database.lock:
            rows = self.database.connection.execute(statement, tuple(parameters)).fetchall()
        return [_to_record(one, row) for row in rows]

    def count_where(self, one: SObject, where: str, parameters: Iterable[Any], tail: str) -> int:
        """Return how many records match an SQL condition."""
        statement = f'SELECT COUNT(*) FROM (SELECT Id FROM "{one.name}" WHERE {where} {tail})'
        with self.database.lock:
            return int(self.database.connection.execute(statement, tuple(parameters)).fetchone()[0])

    def by_external_id(self, object_name: str, field_name: str, value: str) -> Record | None:
        """Return the record with this external id, or None. Raises SeveralMatch, or NOT_FOUND for the field."""
        one = find_object(object_name)
        matches = self.find(one.name, external_id_field(one, field_name).name, value)
        if len(matches) > 1:
            raise SeveralMatch([f"sobjects/{one.name}/{match['Id']}" for match in matches])
        return matches[0] if matches else None

    # --- writing ---

    def create(self, object_name: str, data: Mapping[str, Any], *, by: str = API_USER) -> str:
        """Create a record and return its 18-character id. Raises SalesforceError for invalid data."""
        one = find_object(object_name)
        with self.transaction() as connection:
            values = {field.name: field.default for field in one.own_fields if field.default is not None}
            values |= self._checked(one, data, creating=True)
            _require(one, values, creating=True)
            record_id = make_id(one.prefix, self.database.next_number(one.prefix))
            self._refuse_duplicates(one, values, record_id)
            self._check_rules(one, {**values, "Id": record_id}, by)
            now = to_wire(self.clock.now())
            values |= {"Id": record_id, "CreatedDate": now, "CreatedById": by, "IsDeleted": 0}
            values |= {"LastModifiedDate": now, "LastModifiedById": by, "SystemModstamp": now}
            _name(one, values, values)
            columns = ", ".join(f'"{name}"' for name in values)
            marks = ", ".join("?" * len(values))
            connection.execute(f'INSERT INTO "{one.name}" ({columns}) VALUES ({marks})', tuple(values.values()))
            self._tell("created", one, record_id, values)
        return record_id

    def update(self, object_name: str, record_id: str, data: Mapping[str, Any], *, by: str = API_USER) -> None:
        """Change the given fields. As in a real org, even an update without any change sets the times."""
        one = find_object(object_name)
        with self.transaction():
            before = self.get(one.name, record_id)
            values = self._checked(one, data, creating=False)
            _require(one, values, creating=False)
            self._refuse_duplicates(one, values, before["Id"])
            self._check_rules(one, {**values, "Id": before["Id"]}, by)
            _name(one, before | values, values)
            self._touch(one, before["Id"], values, by)

    def upsert(
        self, object_name: str, field_name: str, value: str, data: Mapping[str, Any], *, by: str = API_USER
    ) -> tuple[str, bool]:
        """Update the record with this external id, or create it. Return (id, whether it was created)."""
        one = find_object(object_name)
        key = external_id_field(one, field_name)
        if any(name.lower() == key.name.lower() for name in data):
            raise not_in_the_body(key.name)
        with self.transaction():
            found = self.by_external_id(one.name, key.name, value)
            if found is None:
                return self.create(one.name, {**data, key.name: value}, by=by), True
            self.update(one.name, found["Id"], data, by=by)
            return found["Id"], False

    def delete(self, object_name: str, record_id: str, *, by: str = API_USER) -> None:
        """Move a record to the recycle bin; also move its children, or clear their lookups."""
        one = find_object(object_name)
        with self.transaction():
            record = self.get(one.name, record_id)
            self._touch(one, record["Id"], {"IsDeleted": 1}, by, "deleted")
            for child, field in children_of(one):
                for orphan in self.find(child.name, field.name, record["Id"]):
                    if field.on_parent_delete == "cascade":
                        self.delete(child.name, orphan["Id"], by=by)
                    else:
                        self._write(child, orphan["Id"], {field.name: None})

    def undelete(self, object_name: str, record_id: str, *, by: str = PERSON) -> None:
        """Restore a record from the recycle bin, as a user of the org can; children are not restored."""
        one = find_object(object_name)
        with self.transaction():
            record = self.get(one.name, record_id, deleted_too=True)
            self._refuse_duplicates(one, record, record["Id"])
            master = {"MasterRecordId": None} if one.mergeable else {}
            self._touch(one, record["Id"], {"IsDeleted": 0} | master, by, "undeleted")

    def merge(self, object_name: str, master_id: str, loser_ids: Iterable[str], *, by: str = PERSON) -> None:
        """Merge records into the master: the losers are deleted and point to it, their children move."""
        one = find_object(object_name)
        if not one.mergeable:
            raise SalesforceError("INVALID_TYPE", f"merge is not supported for {one.name}")
        with self.transaction():
            master = self.get(one.name, master_id)
            for loser_id in loser_ids:
                loser = self.get(one.name, loser_id)
                if loser["Id"] == master["Id"]:
                    raise SalesforceError("INVALID_ID_FIELD", "a record cannot be merged into itself")
                fate = {"IsDeleted": 1, "MasterRecordId": master["Id"]}
                self._touch(one, loser["Id"], fate, by, "deleted")
                self._move_children(one, loser["Id"], master["Id"], by)
            self._touch(one, master["Id"], {}, by)

    def clear(self) -> None:
        """Remove every record, including deleted ones. Ids are not reused."""
        with self.transaction() as connection:
            for name in OBJECTS:
                connection.execute(f'DELETE FROM "{name}"')

    # --- internal ---

    def _row(self, one: SObject, record_id: str) -> Record:
        with self.database.lock:
            row = self.database.connection.execute(f'SELECT * FROM "{one.name}" WHERE Id = ?', (record_id,)).fetchone()
        if row is None:
            raise not_found()
        return _to_record(one, row)

    def _write(self, one: SObject, record_id: str, values: Mapping[str, Any]) -> None:
        assignments = ", ".join(f'"{name}" = ?' for name in values)
        self.database.connection.execute(
            f'UPDATE "{one.name}" SET {assignments} WHERE Id = ?', (*values.values(), record_id)
        )

    def _touch(
        self, one: SObject, record_id: str, values: Mapping[str, Any], by: str, operation: str = "updated"
    ) -> None:
        """Write values together with the user and the time of the change."""
        now = to_wire(self.clock.now())
        stamps = {"LastModifiedDate": now, "LastModifiedById": by, "SystemModstamp": now}
        self._write(one, record_id, {**values, **stamps})
        self._tell(operation, one, record_id, stamps)

    def _tell(self, operation: str, one: SObject, record_id: str, values: Mapping[str, Any]) -> None:
        stamps = (values["SystemModstamp"], values["LastModifiedById"])
        self.database.tell(Change(operation, one.name, record_id, *stamps))

    def _move_children(self, one: SObject, loser_id: str, master_id: str, by: str) -> None:
        for child, field in children_of(one):
            for record in self.find(child.name, field.name, loser_id):
                self._touch(child, record["Id"], {field.name: master_id}, by)

    def _checked(self, one: SObject, data: Mapping[str, Any], *, creating: bool) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in data.items():
            if key == "attributes":
                continue
            field, value = self._resolve(one, key, value)
            _refuse_read_only(field, creating)
            stored = to_stored(one, field, value)
            if field.kind == "reference" and stored is not None:
                self._refuse_bad_reference(field, stored)
            values[field.name] = stored
        return values

    def _resolve(self, one: SObject, key: str, value: Any) -> tuple[Field, Any]:
        """Return the field and value of a key of the body. `{"Account__r": {"Syncflow_Id__c": "7"}}` names a parent."""
        reference = one.reference_by_relationship(key)
        if reference is None or not isinstance(value, Mapping):
            return one.field(key), value
        named = {name: it for name, it in value.items() if name != "attributes"}
        if len(named) != 1:
            raise SalesforceError("INVALID_FIELD", f"one external id is needed to find the parent in {key}")
        ((parent_field, parent_value),) = named.items()
        parent = self.by_external_id(reference.to[0], parent_field, parent_value)
        if parent is None:
            raise SalesforceError(
                "INVALID_FIELD",
                f"Foreign key external ID: {parent_value} not found for field {parent_field} in entity "
                f"{reference.to[0]}",
            )
        return reference, parent["Id"]

    def _refuse_bad_reference(self, field: Field, record_id: str) -> None:
        target = next((OBJECTS[name] for name in field.to if record_id.startswith(OBJECTS[name].prefix)), None)
        if target is None:
            raise SalesforceError(
                "FIELD_INTEGRITY_EXCEPTION",
                f"{field.name}: id value of incorrect type: {record_id}",
                fields=[field.name],
            )
        try:
            self.get(target.name, record_id)
        except SalesforceError as error:
            gone = error.code == "ENTITY_IS_DELETED"
            code = error.code if gone else "INVALID_CROSS_REFERENCE_KEY"
            message = error.message if gone else "invalid cross reference id"
            raise SalesforceError(code, message, fields=[] if gone else [field.name]) from None

    def _check_rules(self, one: SObject, values: Mapping[str, Any], by: str) -> None:
        for rule in self.duplicate_rules if by == API_USER else ():
            rule.check(one.name, values, self.find)

    def _refuse_duplicates(self, one: SObject, values: Mapping[str, Any], record_id: str) -> None:
        for field in one.own_fields:
            if not field.unique or values.get(field.name) is None:
                continue
            for other in self.find(one.name, field.name, values[field.name]):
                if other["Id"] != record_id:
                    raise _duplicate(field, other["Id"])


def _duplicate(field: Field, other_id: str) -> SalesforceError:
    message = f"duplicate value found: {field.name} duplicates value on record with id: {other_id}"
    return SalesforceError("DUPLICATE_VALUE", message, fields=[])


def check_id(one: SObject, record_id: str) -> str:
    """Return the 18-character form of an id. Raises MALFORMED_ID if it is not an id of this object."""
    full = to_18(record_id)
    if full is None or not full.startswith(one.prefix):
        raise malformed_id(one.label, record_id)
    return full


def external_id_field(one: SObject, name: str) -> Field:
    """Return the field if records may be addressed by it. Raises NOT_FOUND (404), as the real system does."""
    field = one.fields.get(name) or next((it for key, it in one.fields.items() if key.lower() == name.lower()), None)
    if field is None or not field.external_id:
        raise SalesforceError(
            "NOT_FOUND", f"Provided external ID field does not exist or is not accessible: {name}", status=404
        )
    return field


def _to_record(one: SObject, row: Mapping[str, Any]) -> Record:
    return {name: to_json(field, row[name]) for name, field in one.fields.items()}


def _refuse_read_only(field: Field, creating: bool) -> None:
    if field.name == "Id":
        if not creating:
            raise not_in_the_body("Id")
        raise SalesforceError("INVALID_FIELD_FOR_INSERT_UPDATE", "cannot specify Id in an insert call", fields=["Id"])
    if field.read_only:
        raise SalesforceError(
            "INVALID_FIELD_FOR_INSERT_UPDATE",
            f"Unable to create/update fields: {field.name}. Please check the security settings of this field "
            "and verify that it is read/write for your profile or permission set.",
            fields=[field.name],
        )


def _require(one: SObject, values: Mapping[str, Any], *, creating: bool) -> None:
    missing = [
        field.name
        for field in one.own_fields
        if field.required and (creating or field.name in values) and values.get(field.name) is None
    ]
    if missing:
        names = ", ".join(missing)
        raise SalesforceError("REQUIRED_FIELD_MISSING", f"Required fields are missing: [{names}]", fields=missing)


def _name(one: SObject, current: Mapping[str, Any], values: dict[str, Any]) -> None:
    """Set the Name that the system composes itself."""
    if one.name_from:
        values["Name"] = " ".join(current[part] for part in one.name_from if current.get(part))
    elif one.custom and current.get("Name") is None:
        values["Name"] = current["Id"]
