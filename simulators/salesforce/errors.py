"""The exception for every request the simulator rejects, and the errors raised in several places.

REST API guide: "Status Codes and Error Responses".
"""

from __future__ import annotations

from typing import Any


class SalesforceError(Exception):
    """A rejected request: `status` is the HTTP status of a single call; clients use `code` to decide on a retry."""

    def __init__(self, code: str, message: str, *, status: int = 400, fields: list[str] | None = None) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.status = status
        #: None omits the key from the reply, as the real system does for errors that do not concern a record.
        self.fields = fields

    def body(self) -> list[dict[str, Any]]:
        """Return the body of a single call's error reply."""
        entry: dict[str, Any] = {"message": self.message, "errorCode": self.code}
        if self.fields is not None:
            entry["fields"] = self.fields
        return [entry]

    def item(self) -> dict[str, Any]:
        """Return the entry for the `errors` of one record of a collection."""
        return {"statusCode": self.code, "message": self.message, "fields": self.fields or []}


class SeveralMatch(Exception):
    """An external id matches several records (status 300); `urls` are the addresses of these records."""

    def __init__(self, urls: list[str]) -> None:
        super().__init__(f"{len(urls)} records match")
        self.urls = urls


def not_found() -> SalesforceError:
    return SalesforceError("NOT_FOUND", "The requested resource does not exist", status=404)


def entity_is_deleted() -> SalesforceError:
    return SalesforceError("ENTITY_IS_DELETED", "entity is deleted", status=404, fields=[])


def malformed_id(object_name: str, value: object) -> SalesforceError:
    return SalesforceError("MALFORMED_ID", f"{object_name} ID: id value of incorrect type: {value}", fields=["Id"])


def no_such_column(field: str, object_name: str) -> SalesforceError:
    return SalesforceError("INVALID_FIELD", f"No such column '{field}' on sobject of type {object_name}")


def not_in_the_body(field: str) -> SalesforceError:
    return SalesforceError("INVALID_FIELD", f"The {field} field should not be specified in the sobject data.")


def invalid_session() -> SalesforceError:
    return SalesforceError("INVALID_SESSION_ID", "Session expired or invalid", status=401)


def bad_json(message: str) -> SalesforceError:
    return SalesforceError("JSON_PARSER_ERROR", message)
