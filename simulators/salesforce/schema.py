"""The objects and fields of the simulated org in one table; to add one, add a line to `OBJECTS`.

Salesforce object reference: "Field Types", "System Fields", "Account", "Contact", "Product2".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from .errors import SalesforceError, no_such_column

Kind = Literal[
    "id", "string", "textarea", "phone", "email", "url", "picklist", "boolean",
    "double", "currency", "int", "date", "datetime", "reference",
]  # fmt: skip

TEXT_KINDS = frozenset(("string", "textarea", "phone", "email", "url", "picklist"))
NUMBER_KINDS = frozenset(("double", "currency", "int"))
ID_KINDS = frozenset(("id", "reference"))


@dataclass(frozen=True)
class Field:
    """One field. `length` is in characters; `to` are the objects a reference may point to."""

    name: str
    kind: Kind = "string"
    length: int = 255
    required: bool = False
    #: Usable in the address of a read or an upsert.
    external_id: bool = False
    unique: bool = False
    #: The only values that a restricted picklist accepts.
    values: tuple[str, ...] = ()
    default: Any = None
    to: tuple[str, ...] = ()
    #: What deleting the parent does to this record.
    on_parent_delete: Literal["clear", "cascade"] = "clear"
    #: Set by the system; a request that sends it is rejected.
    read_only: bool = False

    @property
    def custom(self) -> bool:
        return self.name.endswith("__c")

    @property
    def filterable(self) -> bool:
        """Return whether queries can filter by the field: long text can be read but not searched."""
        return self.kind != "textarea" or self.length <= 255

    @property
    def relationship(self) -> str:
        """Return the relationship name of the parent: `AccountId` -> `Account`, `Customer__c` -> `Customer__r`."""
        if self.kind != "reference":
            return ""
        return f"{self.name[:-3]}__r" if self.custom else self.name.removesuffix("Id")


#: Fields that every object has.
SYSTEM_FIELDS = (
    Field("Id", "id", 18, read_only=True),
    Field("IsDeleted", "boolean", read_only=True),
    Field("CreatedDate", "datetime", read_only=True),
    Field("CreatedById", "reference", 18, to=("User",), read_only=True),
    Field("LastModifiedDate", "datetime", read_only=True),
    Field("LastModifiedById", "reference", 18, to=("User",), read_only=True),
    Field("SystemModstamp", "datetime", read_only=True),
)
#: Only on objects that can be merged: on a losing record, the id of the winning record.
MASTER_RECORD = Field("MasterRecordId", "reference", 18, read_only=True)


@dataclass(frozen=True)
class SObject:
    """One object: its API name, the first 3 characters of its ids, its labels, and its fields."""

    name: str
    prefix: str
    label: str
    plural: str
    own_fields: tuple[Field, ...]
    mergeable: bool = False
    #: Name is read-only and composed of these fields (as for a contact).
    name_from: tuple[str, ...] = ()
    fields: dict[str, Field] = field(init=False)

    def __post_init__(self) -> None:
        extra = (MASTER_RECORD,) if self.mergeable else ()
        everything = SYSTEM_FIELDS + extra + self.own_fields
        object.__setattr__(self, "fields", {one.name: one for one in everything})

    @property
    def custom(self) -> bool:
        return self.name.endswith("__c")

    def field(self, name: str) -> Field:
        """Return the field with this name, ignoring case as the API does. Raises INVALID_FIELD."""
        found = self.fields.get(name) or self._without_case(name)
        if found is None:
            raise no_such_column(name, self.name)
        return found

    def _without_case(self, name: str) -> Field | None:
        return next((one for key, one in self.fields.items() if key.lower() == name.lower()), None)

    def reference_by_relationship(self, name: str) -> Field | None:
        """Return the reference field with this relationship name, e.g. `Account__r`."""
        return next((one for one in self.fields.values() if one.relationship == name and name), None)

    @property
    def id_lookup_fields(self) -> list[str]:
        return [one.name for one in self.fields.values() if one.external_id]


CURRENCIES = ("USD", "EUR", "GBP", "CHF", "JPY", "PLN", "SEK", "CAD", "AUD")
CURRENCY = Field("CurrencyIsoCode", "picklist", 3, values=CURRENCIES, default="USD")
HUB_ID = Field("Syncflow_Id__c", length=64, external_id=True, unique=True)
#: An ISO code in a text field, for a single-currency org, which has no CurrencyIsoCode.
OWN_CURRENCY = Field("Currency__c", length=3)


def _text(name: str, length: int = 255, **rest: Any) -> Field:
    return Field(name, "string", length, **rest)


def _parent(name: str, *to: str, **rest: Any) -> Field:
    return Field(name, "reference", 18, to=to, **rest)


OBJECTS: dict[str, SObject] = {
    one.name: one
    for one in (
        SObject(
            "Account", "001", "Account", "Accounts",
            (
                _text("Name", 255, required=True),
                Field("Phone", "phone", 40),
                Field("Website", "url", 255),
                _text("BillingStreet", 255),
                _text("BillingCity", 40),
                _text("BillingState", 80),
                _text("BillingPostalCode", 20),
                _text("BillingCountry", 80),
                CURRENCY,
                Field("Description", "textarea", 32000),
                Field("Active__c", "boolean", default=True),
                Field("Email__c", "email", 80),
                HUB_ID,
            ),
            mergeable=True,
        ),
        SObject(
            "Contact", "003", "Contact", "Contacts",
            (
                _text("Name", 121, read_only=True),
                _text("LastName", 80, required=True),
                _text("FirstName", 40),
                Field("Email", "email", 80, external_id=True),  # an id lookup, but not unique
                Field("Phone", "phone", 40),
                _text("MailingStreet", 255),
                _text("MailingCity", 40),
                _text("MailingPostalCode", 20),
                _text("MailingCountry", 80),
                Field("Description", "textarea", 32000),
                Field("Active__c", "boolean", default=True),
                _parent("AccountId", "Account", on_parent_delete="cascade"),
                CURRENCY,
                HUB_ID,
            ),
            mergeable=True,
            name_from=("FirstName", "LastName"),
        ),
        SObject(
            "Product2", "01t", "Product", "Products",
            (
                _text("Name", 255, required=True),
                _text("ProductCode", 255),
                Field("Description", "textarea", 4000),
                Field("IsActive", "boolean", default=False),
                _text("StockKeepingUnit", 180),
                Field("Price__c", "currency"),
                OWN_CURRENCY,
                CURRENCY,
                HUB_ID,
            ),
        ),
        SObject(
            "Invoice__c", "a00", "Invoice", "Invoices",
            (
                _text("Name", 80),
                _text("Number__c", 80),
                Field("Status__c", "picklist", 40, values=("draft", "open", "paid", "void"), default="draft"),
                Field("Issue_Date__c", "date"),
                Field("Due_Date__c", "date"),
                Field("Paid_At__c", "datetime"),
                Field("Total__c", "currency"),
                Field("Notes__c", "textarea", 32768),
                # A real org uses one of the two, depending on which object its customers are.
                _parent("Customer__c", "Account", "Contact"),
                OWN_CURRENCY,
                CURRENCY,
                HUB_ID,
            ),
        ),
        SObject(
            "Invoice_Line__c", "a01", "Invoice Line", "Invoice Lines",
            (
                _text("Name", 80),
                _parent("Invoice__c", "Invoice__c", on_parent_delete="cascade"),
                _parent("Product__c", "Product2"),
                _text("Description__c", 255),
                Field("Position__c", "int"),
                Field("Quantity__c", "double"),
                Field("Unit_Price__c", "currency"),
                Field("Amount__c", "currency"),
                CURRENCY,
                HUB_ID,
            ),
        ),
    )
}  # fmt: skip


def find_object(name: str) -> SObject:
    """Return the object with this name, ignoring case. Raises NOT_FOUND (404), as for an unknown address."""
    found = OBJECTS.get(name) or next((one for key, one in OBJECTS.items() if key.lower() == name.lower()), None)
    if found is None:
        raise SalesforceError("NOT_FOUND", "The requested resource does not exist", status=404)
    return found


def object_of_id(record_id: str) -> SObject | None:
    """Return the object whose key prefix this id begins with."""
    return next((one for one in OBJECTS.values() if record_id.startswith(one.prefix)), None)


def children_of(parent: SObject) -> Iterator[tuple[SObject, Field]]:
    """Yield every (object, reference field) that points to this object."""
    for child in OBJECTS.values():
        for one in child.own_fields:
            if one.kind == "reference" and parent.name in one.to:
                yield child, one
