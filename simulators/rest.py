"""A shop with a plain JSON REST API on loopback, with contacts, as in many integrations.

`python -m simulators.rest --port 8430`, or within a test `with RestSystem() as shop: ...`. Standard library only,
except for the webhooks.

| call | reply |
|---|---|
| POST /contacts | 201 and the contact |
| GET /contacts/ID | 200, 404 |
| PATCH /contacts/ID, PUT /contacts/ID | 200: some fields, or all (a missing one becomes null) |
| DELETE /contacts/ID | 204; a second time 404. Nothing tells a poller that it is gone |
| GET /contacts?updated_since=&external_ref=&email=&ids=&limit=&page= | `{"items": [...], "next": URL or null}` |

The answers for one contact have its `ETag` and `Last-Modified`. PATCH, PUT and DELETE with `If-Match` or
`If-Unmodified-Since` are answered 412 if the contact was changed since.

A contact: `id`, `name`, `email`, `phone`, `company`, `external_ref`, `note`, `created_at`, `updated_at` (UTC,
microseconds). A PATCH that changes nothing still counts as an update, as in many systems.
Errors: 401, 404, 409 (email taken, when asked to care) `{"error": "..."}`;
422 `{"errors": {"email": ["..."]}}`.
"""

import argparse
import hashlib
import hmac
import json
import logging
import socket
import sqlite3
import struct
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from email.utils import format_datetime, formatdate, parsedate_to_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qsl, urlencode, urlsplit

from simulators.faults import Control, Fault, Faults, Journal, own_origin
from simulators.pages import PAGE_HEADERS, render_form, render_list
from simulators.serve import secret_from, serve
from simulators.webhooks import Endpoint, WebhookSender

DEMO_TOKEN = "demo-token"
FIELDS = ("name", "email", "phone", "company", "external_ref", "note")
MAX_LENGTH = 500
MAX_BODY_BYTES = 1_000_000
DEFAULT_LIMIT = 50
MAX_LIMIT = 200
#: How many records a page shows.
SHOWN = 200

_SCHEMA = """
CREATE TABLE IF NOT EXISTS contacts (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT, email TEXT, phone TEXT, company TEXT, external_ref TEXT, note TEXT,
    created_at TEXT NOT NULL, updated_at TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS contacts_updated ON contacts (updated_at, id);
CREATE INDEX IF NOT EXISTS contacts_external_ref ON contacts (external_ref);
CREATE INDEX IF NOT EXISTS contacts_email ON contacts (lower(email));
CREATE TABLE IF NOT EXISTS pending_webhooks (letter TEXT NOT NULL);
"""

Contact = dict[str, Any]
Check = Callable[[Contact], None]

logger = logging.getLogger(__name__)


class Refused(Exception):
    """A call that fails: `status` and the JSON `body` of the error."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(f"{status} {body}")
        self.status, self.body = status, body


class Reply(NamedTuple):
    status: int
    body: Any = None  #: a JSON value; text for a page; None for an empty body
    headers: Mapping[str, str] = {}


def utc_now() -> datetime:
    return datetime.now(UTC)


class Contacts:
    """The contacts in SQLite, with their rules. Thread-safe.

    `changed` is called with (event, contact) after each commit; `clock` gives the time of a change.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        unique_email: bool,
        needs_email: bool,
        clock: Callable[[], datetime],
        changed: Callable[[str, Contact], None],
    ) -> None:
        self._unique_email, self._needs_email = unique_email, needs_email
        self._clock, self._changed = clock, changed
        self._lock = threading.RLock()
        self._db = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._db.row_factory = sqlite3.Row
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)

    def close(self) -> None:
        with self._lock:
            self._db.close()

    def get(self, id: int) -> Contact:
        """Raises Refused 404."""
        with self._lock:
            row = self._db.execute("SELECT * FROM contacts WHERE id = ?", (id,)).fetchone()
        if row is None:
            raise Refused(404, {"error": f"no contact {id}"})
        return dict(row)

    def create(self, data: Any) -> Contact:
        """Raises Refused 409, 422."""
        values = {**dict.fromkeys(FIELDS), **_valid(data, complete=True, needs_email=self._needs_email)}
        with self._lock:
            self._check_unique(values["email"], None)
            now = self._now()
            values |= {"created_at": now, "updated_at": now}
            names, marks = ", ".join(values), ", ".join("?" * len(values))
            # Only our own column names are put into the statement.
            sql = f"INSERT INTO contacts ({names}) VALUES ({marks})"
            contact = self.get(self._db.execute(sql, list(values.values())).lastrowid or 0)
            self._changed("contact.created", contact)
        return contact

    def update(self, id: int, data: Any, *, replace: bool = False, check: Check = lambda contact: None) -> Contact:
        """Raises Refused 404, 409, 422, and what `check` of the present contact raises."""
        values = _valid(data, complete=replace, needs_email=self._needs_email)
        if replace:
            values = {**dict.fromkeys(FIELDS), **values}
        with self._lock:
            check(self.get(id))
            self._check_unique(values.get("email"), id)
            values["updated_at"] = self._now()
            names = ", ".join(f"{name} = ?" for name in values)
            self._db.execute(f"UPDATE contacts SET {names} WHERE id = ?", [*values.values(), id])
            contact = self.get(id)
            self._changed("contact.updated", contact)
        return contact

    def delete(self, id: int, check: Check = lambda contact: None) -> None:
        """Raises Refused 404, and what `check` of the present contact raises."""
        with self._lock:
            contact = self.get(id)
            check(contact)
            self._db.execute("DELETE FROM contacts WHERE id = ?", (id,))
            self._changed("contact.deleted", contact)

    def page(self, filters: Mapping[str, str], limit: int, offset: int) -> list[Contact]:
        """Return up to `limit` contacts, longest unchanged first; `filters`: see `_list`."""
        tests = {"updated_since": "updated_at >= ?", "external_ref": "external_ref = ?"}
        tests |= {"email": "lower(email) = lower(?)", "ids": "instr(',' || ? || ',', ',' || id || ',') > 0"}
        where = " AND ".join(tests[name] for name in filters) or "1"
        sql = f"SELECT * FROM contacts WHERE {where} ORDER BY updated_at, id LIMIT ? OFFSET ?"
        with self._lock:
            return [dict(row) for row in self._db.execute(sql, [*filters.values(), limit, offset])]

    def newest(self, limit: int) -> tuple[list[Contact], int]:
        """Return the newest contacts, and the number of all contacts."""
        with self._lock:
            rows = self._db.execute("SELECT * FROM contacts ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
            return [dict(row) for row in rows], self._db.execute("SELECT count(*) FROM contacts").fetchone()[0]

    def clear(self) -> None:
        with self._lock:
            self._db.execute("DELETE FROM contacts")

    def keep_letters(self, letters: list[dict[str, Any]]) -> None:
        with self._lock:
            self._db.executemany("INSERT INTO pending_webhooks VALUES (?)", [(json.dumps(x),) for x in letters])

    def take_letters(self) -> list[dict[str, Any]]:
        with self._lock:
            rows = self._db.execute("SELECT letter FROM pending_webhooks ORDER BY rowid").fetchall()
            self._db.execute("DELETE FROM pending_webhooks")
        return [json.loads(row["letter"]) for row in rows]

    def _check_unique(self, email: str | None, id: int | None) -> None:
        if not self._unique_email or not email:
            return
        sql = "SELECT id FROM contacts WHERE lower(email) = lower(?) AND id IS NOT ?"
        if taken := self._db.execute(sql, (email, id)).fetchone():
            raise Refused(409, {"error": "email already taken", "contact_id": taken["id"]})

    def _now(self) -> str:
        return _stamp(self._clock())


class RestSystem:
    """The system, running in its own threads.

    `journal` holds the API calls, `faults` takes orders for trouble, `webhooks` is the sender, and `contacts`
    acts like a user of the shop: it makes no API call, but webhooks are sent.
    OSError from `start` when the port is taken.
    """

    def __init__(
        self,
        port: int = 0,
        *,
        data: str | Path | None = None,
        token: str = DEMO_TOKEN,
        unique_email: bool = False,
        needs_email: bool = True,
        webhook_url: str | None = None,
        webhook_secret: str | None = None,
        clock: Callable[[], datetime] = utc_now,
    ) -> None:
        if bool(webhook_url) != bool(webhook_secret):
            raise ValueError("webhook_url and webhook_secret go together")
        self.token = token
        self.journal, self.faults = Journal(), Faults()
        self._port, self._data = port, data
        self._endpoint = Endpoint(webhook_url, webhook_secret) if webhook_url and webhook_secret else None
        self._unique_email, self._needs_email, self._clock = unique_email, needs_email, clock
        self.webhooks = WebhookSender(self.faults, lambda _: self._endpoint, _sign)
        self.control = Control(
            self.journal,
            self.faults,
            {
                ("DELETE", "/_control/data"): lambda _: self.contacts.clear(),
                ("GET", "/_control/webhooks"): lambda _: {
                    "attempts": [asdict(one) for one in self.webhooks.attempts],
                    "pending": len(self.webhooks.pending()),
                },
            },
        )

    def start(self) -> Self:
        self._server = _Server(("127.0.0.1", self._port), self)
        self._port = self._server.server_address[1]
        if self._data:
            Path(self._data).parent.mkdir(parents=True, exist_ok=True)
        self.contacts = Contacts(
            self._data or ":memory:",
            unique_email=self._unique_email,
            needs_email=self._needs_email,
            clock=self._clock,
            changed=self._publish,
        )
        self.webhooks.resume(self.contacts.take_letters())
        self.webhooks.start()
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.05,), name="rest-system", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.hang_up()
        self._thread.join(5)
        self.webhooks.close()
        self.contacts.keep_letters(self.webhooks.pending())
        self.contacts.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def _publish(self, event: str, contact: Contact) -> None:
        if self._endpoint is None:
            return
        envelope = {
            "id": f"evt_{uuid.uuid4().hex}",
            "event": event,
            "occurred_at": _stamp(self._clock()),
            "data": contact,
        }
        self.webhooks.send("syncflow", event, json.dumps(envelope).encode())


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], system: RestSystem) -> None:
        self.system = system
        self._open: set[socket.socket] = set()
        self._open_lock = threading.Lock()
        super().__init__(address, _Handler)

    def note(self, connection: socket.socket, is_open: bool) -> None:
        with self._open_lock:
            (self._open.add if is_open else self._open.discard)(connection)

    def hang_up(self) -> None:
        """Close idle connections as well: a stopped system must not answer."""
        self.server_close()
        with self._open_lock:
            for connection in self._open:
                _shut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), OSError):  # a client may close its connection
            logger.exception("a call from %s failed", client_address)


class _Handler(BaseHTTPRequestHandler):
    """Parse a request, find its function in the tables below, and answer."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer may wait 40 ms for the client's acknowledgement
    server: _Server

    def setup(self) -> None:
        super().setup()
        self.server.note(self.connection, True)

    def finish(self) -> None:
        self.server.note(self.connection, False)
        super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing: the journal has all calls."""

    def _answer(self) -> None:
        parts = urlsplit(self.path)
        self.query = dict(parse_qsl(parts.query, keep_blank_values=True))
        raw = self._read()
        if raw is None:
            return
        if parts.path == "/contacts" or parts.path.startswith("/contacts/"):
            self._api(parts.path, raw)
        elif not own_origin(self.headers.get("Host"), self.headers.get("Origin")):
            self._send(Reply(403, {"error": "not from another site's page"}))
        elif parts.path.startswith("/_control/"):
            self._send(self._control(parts.path, raw))
        else:
            self._send(_page(self.server.system.contacts, self.command, parts.path, raw))

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _answer  # noqa: N815  (http.server's names)

    def _read(self) -> bytes | None:
        length = self.headers.get("Content-Length", "0")
        if not length.isdigit() or int(length) > MAX_BODY_BYTES or self.headers.get("Transfer-Encoding"):
            self.close_connection = True
            self._send(Reply(413, {"error": f"a body needs a Content-Length, at most {MAX_BODY_BYTES}"}))
            return None
        return self.rfile.read(int(length))

    def _api(self, path: str, raw: bytes) -> None:
        system = self.server.system
        fault = "delay" if (delay := system.faults.take("delay", self.command, path)) else None
        if delay:
            time.sleep(delay.seconds)
        body: Any = None
        try:
            self._check_token()
            body = _json(raw)
            if failing := system.faults.take("fail", self.command, path):
                fault, reply = "fail", _failure(failing)
            else:
                reply = self._contact_call(path, body)
        except Refused as refused:
            reply = Reply(refused.status, refused.body)
        drop = system.faults.take("drop", self.command, path)
        params = {**self.query, **(body if isinstance(body, dict) else {})}
        key = self.headers.get("Idempotency-Key")
        system.journal.record(
            self.command, path, params, reply.status, idempotency_key=key, fault="drop" if drop else fault
        )
        if drop:
            self._hang_up()
        else:
            self._send(reply)

    def _check_token(self) -> None:
        sent = self.headers.get("Authorization", "").encode()
        if not hmac.compare_digest(sent, f"Bearer {self.server.system.token}".encode()):
            raise Refused(401, {"error": "missing or wrong bearer token"})

    def _contact_call(self, path: str, body: Any) -> Reply:
        system, contacts = self.server.system, self.server.system.contacts
        if path == "/contacts":
            if self.command == "GET":
                return _list(contacts, self.query, system.url)
            if self.command == "POST":
                contact = contacts.create(body)
                return Reply(201, contact, {"Location": f"/contacts/{contact['id']}", **_versions(contact)})
            raise Refused(405, {"error": "method not allowed"})
        id = _id(path.removeprefix("/contacts/"))
        if self.command == "GET":
            contact = contacts.get(id)
            return Reply(200, contact, _versions(contact))
        if self.command in ("PATCH", "PUT"):
            contact = contacts.update(id, body, replace=self.command == "PUT", check=self._check_version)
            return Reply(200, contact, _versions(contact))
        if self.command == "DELETE":
            contacts.delete(id, self._check_version)
            return Reply(204)
        raise Refused(405, {"error": "method not allowed"})

    def _check_version(self, contact: Contact) -> None:
        """Raise Refused 412 unless the contact is as the conditions of the call say."""
        now = _versions(contact)
        tags = [tag.strip() for tag in self.headers.get("If-Match", "*").split(",")]
        since = self.headers.get("If-Unmodified-Since", now["Last-Modified"])
        if ("*" not in tags and now["ETag"] not in tags) or (
            parsedate_to_datetime(now["Last-Modified"]) > parsedate_to_datetime(since)
        ):
            raise Refused(412, {"error": f"contact {contact['id']} was changed"})

    def _control(self, path: str, raw: bytes) -> Reply:
        try:
            body = _json(raw)
        except Refused as refused:
            return Reply(refused.status, refused.body)
        return Reply(*self.server.system.control.handle(self.command, path, self.query, body))

    def _send(self, reply: Reply) -> None:
        is_page = isinstance(reply.body, str)
        content = reply.body.encode() if is_page else b"" if reply.body is None else json.dumps(reply.body).encode()
        headers = {"Content-Type": "application/json"} if content and not is_page else {}
        headers |= {"Date": formatdate(usegmt=True), **reply.headers}
        if reply.status != 204:
            headers["Content-Length"] = str(len(content))
        if self.close_connection:
            headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {reply.status} {_phrase(reply.status)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        # In one write, so that a client gets the whole answer or nothing.
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1") + content)

    def _hang_up(self) -> None:
        self.close_connection = True
        # Lingering for 0 seconds resets the connection, the way a crashed process or a firewall ends it.
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        _shut(self.connection)


def _versions(contact: Contact) -> dict[str, str]:
    """Return the headers with the version of a contact; two changes at the same time have different tags."""
    tag = hashlib.sha256(json.dumps(contact).encode()).hexdigest()[:16]
    changed = datetime.fromisoformat(contact["updated_at"])
    return {"ETag": f'"{tag}"', "Last-Modified": format_datetime(changed, usegmt=True)}


def _phrase(status: int) -> str:
    known = status in HTTPStatus._value2member_map_
    return HTTPStatus(status).phrase if known else "Ordered"


def _shut(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # the client closed it first


def _sign(secret: str, body: bytes) -> dict[str, str]:
    return {"X-Signature": hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()}


def _stamp(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _json(raw: bytes) -> Any:
    try:
        return json.loads(raw) if raw else None
    except ValueError:
        raise Refused(400, {"error": "the body is not JSON"}) from None


def _id(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise Refused(404, {"error": f"no contact {text}"})
    return int(text)


def _valid(data: Any, *, complete: bool, needs_email: bool) -> dict[str, Any]:
    """Return the fields to store; Refused 422 with the problem of each."""
    if not isinstance(data, dict):
        raise Refused(422, {"errors": {"": ["must be a JSON object"]}})
    errors = {str(name): [problem] for name, value in data.items() if (problem := _problem(name, value))}
    if needs_email and not data.get("email") and (complete or "email" in data):
        errors["email"] = ["is required"]
    if errors:
        raise Refused(422, {"errors": errors})
    return dict(data)


def _problem(name: str, value: Any) -> str | None:
    if name not in FIELDS:
        return "is not a field of a contact"
    if value is None:
        return None
    if not isinstance(value, str):
        return "must be text or null"
    if len(value) > MAX_LENGTH:
        return f"must be at most {MAX_LENGTH} characters"
    local, _, domain = value.partition("@")
    if name == "email" and not (local and "." in domain and " " not in value):
        return "is not an email address"
    return None


def _list(contacts: Contacts, query: Mapping[str, str], base: str) -> Reply:
    filters = {name: query[name] for name in ("updated_since", "external_ref", "email", "ids") if name in query}
    if "updated_since" in filters:
        filters["updated_since"] = _since(filters["updated_since"])
    limit = min(_number(query, "limit", DEFAULT_LIMIT), MAX_LIMIT)
    page = _number(query, "page", 1)
    found = contacts.page(filters, limit + 1, (page - 1) * limit)
    following = urlencode({**query, "page": page + 1})
    return Reply(200, {"items": found[:limit], "next": f"{base}/contacts?{following}" if found[limit:] else None})


def _since(text: str) -> str:
    try:
        # In a query string an unescaped + (of +00:00) arrives as a space.
        at = datetime.fromisoformat(text.replace(" ", "+") if text.count(" ") == 1 and "T" in text else text)
    except ValueError:
        raise Refused(422, {"errors": {"updated_since": ["must be an ISO 8601 time"]}}) from None
    return _stamp(at if at.tzinfo else at.replace(tzinfo=UTC))


def _number(query: Mapping[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:10]) <= 1_000_000:
        raise Refused(422, {"errors": {name: ["must be a number from 1 to 1000000"]}})
    return int(text)


def _failure(fault: Fault) -> Reply:
    headers = {} if fault.retry_after is None else {"Retry-After": f"{fault.retry_after:g}"}
    return Reply(fault.status, {"error": fault.code or _phrase(fault.status)}, headers)


def _page(contacts: Contacts, method: str, path: str, raw: bytes) -> Reply:
    """The web pages of the shop."""
    if path == "/" and method == "GET":
        return _html(_list_page(contacts))
    parts = path.strip("/").split("/")
    if len(parts) not in (3, 4) or parts[:2] != ["ui", "contacts"] or method not in ("GET", "POST"):
        return Reply(404, {"error": "page not found"})
    form = dict(parse_qsl(raw.decode(errors="replace"), keep_blank_values=True))
    try:
        if method == "GET":
            return _html(_form_page(parts[2], {} if parts[2] == "new" else contacts.get(_id(parts[2]))))
        _save(contacts, parts[2], parts[3:], form)
    except Refused as refused:
        return _html(_form_page(parts[2], form, _in_words(refused.body)), refused.status)
    return Reply(303, None, {"Location": "/"})


def _save(contacts: Contacts, id: str, rest: list[str], form: Mapping[str, str]) -> None:
    values = {name: form[name].strip() or None for name in FIELDS if name in form}
    if rest == ["delete"]:
        contacts.delete(_id(id))
    elif id == "new":
        contacts.create(values)
    else:
        contacts.update(_id(id), values)


def _list_page(contacts: Contacts) -> str:
    newest, total = contacts.newest(SHOWN)
    columns = ["id", *FIELDS, "updated_at"]
    title = "Contacts in the shop"
    return render_list(
        title,
        newest,
        columns,
        lambda one: f"/ui/contacts/{one['id']}",
        new_url="/ui/contacts/new",
        total=total,
    )


def _form_page(id: str, record: Mapping[str, Any], error: str | None = None) -> str:
    action = f"/ui/contacts/{id}"
    title = "New contact" if id == "new" else f"Contact {id}"
    delete = None if id == "new" else f"{action}/delete"
    return render_form(title, record, FIELDS, action, delete_action=delete, error=error)


def _in_words(body: Mapping[str, Any]) -> str:
    if "errors" not in body:
        return str(body.get("error"))
    return "; ".join(f"{name} {', '.join(problems)}" for name, problems in body["errors"].items())


def _html(page: str, status: int = 200) -> Reply:
    return Reply(status, page, PAGE_HEADERS)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m simulators.rest", description="A shop's plain REST system.")
    parser.add_argument("--port", type=int, default=8430, help="the port; 0 uses a free one")
    parser.add_argument("--data", type=Path, help="SQLite file that keeps the data; without it, nothing is kept")
    parser.add_argument("--token-env", default="SHOP_TOKEN", metavar="NAME", help=f"unset: {DEMO_TOKEN}")
    parser.add_argument("--unique-email", action="store_true", help="answer 409 if the email exists already")
    parser.add_argument("--webhook-url", help="where changes are sent")
    parser.add_argument("--webhook-secret-env", default="SHOP_WEBHOOK_SECRET", metavar="NAME")
    chosen = parser.parse_args(arguments)
    serve(
        RestSystem(
            chosen.port,
            data=chosen.data,
            token=secret_from(chosen.token_env, DEMO_TOKEN),
            unique_email=chosen.unique_email,
            webhook_url=chosen.webhook_url,
            webhook_secret=secret_from(chosen.webhook_secret_env) if chosen.webhook_url else None,
        )
    )


if __name__ == "__main__":
    main()
