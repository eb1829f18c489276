"""Request and reply as plain data, exchanged between the HTTP server and the functions that answer."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .errors import SalesforceError, bad_json


@dataclass
class Request:
    """An HTTP request. `target` is the path and query as sent; header names are lower case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    secure: bool = True
    #: The ids of the records this request concerned, for the journal.
    touched: list[str] = field(default_factory=list)

    @cached_property
    def path(self) -> str:
        """Return the path, still percent-encoded, so that an external id with a slash stays one segment."""
        return urlsplit(self.target).path

    @cached_property
    def parameters(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.target).query, keep_blank_values=True)

    def parameter(self, name: str, default: str = "") -> str:
        return self.parameters.get(name, [default])[-1]

    @property
    def base(self) -> str:
        """Return `/services/data/v59.0`, with the version that the client requested."""
        return "/".join(self.path.split("/")[:4])

    def json(self) -> Any:
        """Return the body parsed as JSON. Raises JSON_PARSER_ERROR."""
        try:
            return json.loads(self.body or b"null")
        except (ValueError, RecursionError):
            raise bad_json("Unexpected character or end of the document: the body is not JSON") from None

    def json_object(self) -> dict[str, Any]:
        """Return the body, which must be a JSON object."""
        value = self.json()
        if not isinstance(value, dict):
            raise bad_json("The HTTP entity body is required to be a JSON object")
        return value

    def form(self) -> dict[str, str]:
        """Return the body parsed as a form; a field sent twice has its last value."""
        try:
            fields = parse_qs(self.body.decode(), keep_blank_values=True, max_num_fields=1000)
        except ValueError:
            raise SalesforceError("invalid_request", "the body is not a form") from None
        return {name: values[-1] for name, values in fields.items()}


@dataclass
class Response:
    """An HTTP reply; `body` is sent as it is."""

    status: int
    body: bytes = b""
    content_type: str = "application/json;charset=UTF-8"
    headers: dict[str, str] = field(default_factory=dict)


def reply(value: Any, status: int = 200, **headers: str) -> Response:
    """Return a JSON reply; header names use underscores for hyphens."""
    return Response(status, to_json(value), headers=_named(headers))


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def page(html: str, status: int = 200) -> Response:
    return Response(status, html.encode(), "text/html;charset=UTF-8")


def csv_file(text: str, **headers: str) -> Response:
    return Response(200, text.encode(), "text/csv;charset=UTF-8", _named(headers))


def _named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def segment(text: str) -> str:
    """Return a path segment, percent-decoded."""
    return unquote(text)
