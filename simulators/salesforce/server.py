"""The HTTP server around the org, and `SalesforceSimulator`, which starts and stops the two together.

One port serves both https, for clients, and plain http, for a user's browser, which does not trust our CA.
The first byte of a connection distinguishes the two. API calls over plain http are rejected.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from simulators.certificates import ensure_certificates

from . import routes
from .callouts import Callouts
from .duplicates import DuplicateRule
from .errors import SalesforceError
from .faults import CPU_LIMIT, Fault
from .messages import OutboundMessages
from .org import Org
from .schema import object_of_id
from .store import PERSON, Change
from .times import to_wire
from .wire import Request, Response

log = logging.getLogger(__name__)

#: The first byte of every TLS connection.
_TLS_HANDSHAKE = b"\x16"
#: Seconds after which an idle keep-alive connection is closed.
_IDLE_SECONDS = 120.0
#: Slightly more than the largest file of a bulk job.
_LARGEST_BODY = 101 * 1024 * 1024
_LONGEST_LINE = 65_536


class _CutConnection(Exception):
    """Ends a connection deliberately, without a reply."""


class _Handler(BaseHTTPRequestHandler):
    """Reads requests, passes them to the org and writes the replies."""

    protocol_version = "HTTP/1.1"
    server_version = "sfdcedge"
    sys_version = ""
    # Without TCP_NODELAY a reply waits for the client's delayed acknowledgement: at most 20 calls per second.
    disable_nagle_algorithm = True
    wbufsize = -1
    timeout = _IDLE_SECONDS
    server: _Server

    def setup(self) -> None:
        self.raw = self.request
        self.raw.settimeout(_IDLE_SECONDS)
        self.secure = self.raw.recv(1, socket.MSG_PEEK) == _TLS_HANDSHAKE
        if self.secure:
            self.request = self.server.tls.wrap_socket(self.raw, server_side=True)
        self.server.opened(self.request)
        super().setup()

    def finish(self) -> None:
        try:
            with contextlib.suppress(OSError):  # the client may disconnect before it has read everything
                super().finish()
        finally:
            self.server.closed(self.request)
            self.request.close()

    def do_GET(self) -> None:
        self._serve()

    do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def _serve(self) -> None:
        try:
            request = self._read()
        except ValueError:
            self.close_connection = True
            self._write(Response(400))
            return
        try:
            self._write(self.server.answer(request, self._cut_inside))
        except _CutConnection:
            self.close_connection = True
            # Not a clean shutdown: the client sees a broken connection.
            with contextlib.suppress(OSError):
                self.request.shutdown(socket.SHUT_RDWR)

    def _read(self) -> Request:
        headers = {name.lower(): value for name, value in self.headers.items()}
        if headers.get("transfer-encoding", "").lower() == "chunked":
            body = b"".join(self._chunks())
        else:
            body = self._exactly(int(headers.get("content-length") or 0))
        return Request(self.command, self.path, headers, body, self.secure)

    def _chunks(self) -> Iterator[bytes]:
        """Yield the parts of a body that was sent in chunks."""
        total = 0
        while size := int(self.rfile.readline(100).split(b";")[0], 16):
            total += size
            if total > _LARGEST_BODY:
                raise ValueError("the body is too long")
            yield self._exactly(size)
            self.rfile.readline(3)
        while self.rfile.readline(_LONGEST_LINE).strip():
            pass  # trailers after the last chunk

    def _exactly(self, length: int) -> bytes:
        """Read `length` bytes. Raises ValueError if fewer arrive: an incomplete request is never processed."""
        if not 0 <= length <= _LARGEST_BODY:
            raise ValueError("the body is too long")
        body = self.rfile.read(length)
        if len(body) < length:
            raise ValueError("the body was cut short")
        return body

    def _write(self, response: Response) -> None:
        self.send_response(response.status)
        body = response.body if self.command != "HEAD" and response.status not in (204, 304) else b""
        if response.status not in (204, 304):
            self.send_header("Content-Type", response.content_type)
            self.send_header("Content-Length", str(len(response.body)))
        for name, value in response.headers.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def _cut_inside(self, response: Response) -> None:
        """Send only the beginning of the headers: some clients take that for an empty successful reply."""
        self.wfile.write(f"HTTP/1.1 {response.status} OK\r\nContent-Type: appl".encode())
        self.wfile.flush()

    def date_time_string(self, timestamp: float | None = None) -> str:
        """Return the Date header, which uses the org's clock like every other time in its replies."""
        return format_datetime(self.server.org.clock.now(), usegmt=True)

    def log_message(self, format: str, *args: Any) -> None:
        log.debug("%s %s", self.address_string(), format % args)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, port: int, tls: ssl.SSLContext, org: Org) -> None:
        self.tls = tls
        self.org = org
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def opened(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.add(connection)

    def closed(self, connection: socket.socket) -> None:
        with self._lock:
            self._open.discard(connection)

    def cut_all(self) -> None:
        """Shut down every connection; the threads that serve them notice and close them."""
        with self._lock:
            for connection in self._open:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        # Broken connections, and clients that do not trust the CA, are expected.
        log.debug("connection from %s failed", client_address, exc_info=True)

    def answer(self, request: Request, cut_inside: Any) -> Response:
        if routes.is_ours(request):
            return routes.answer_ours(self.org, request)
        org, began = self.org, time.monotonic()
        when = to_wire(org.clock.now())
        delay, drop = org.faults.take("delay", request), org.faults.take("drop", request)
        if delay is not None:
            time.sleep(delay.seconds)
        before = drop is not None and drop.when == "before"
        response = Response(0) if before else routes.answer_api(org, request)
        self._note(request, 0 if drop is not None else response.status, when, time.monotonic() - began)
        if drop is None:
            return response
        if drop.when == "inside":
            cut_inside(response)
        raise _CutConnection

    def _note(self, request: Request, status: int, when: str, seconds: float) -> None:
        name = _object_in(request)
        self.org.journal.add(
            method=request.method, path=request.target, object=name, ids=tuple(request.touched),
            status=status, time=when, seconds=round(seconds, 6),
        )  # fmt: skip


def _object_in(request: Request) -> str:
    parts = request.path.split("/")
    if "sobjects" in parts[:-1] and parts[parts.index("sobjects") + 1]:
        return parts[parts.index("sobjects") + 1]
    found = object_of_id(request.touched[0]) if request.touched else None
    return found.name if found else ""


class SalesforceSimulator:
    """A Salesforce org on https://127.0.0.1:<port>, for use in a `with` block or between `start` and `stop`.

    `port` 0 selects a free port. `certs` is the folder of the CA and the certificate, which are created if
    necessary; None creates them in a temporary folder. `data` is an SQLite file; None keeps the records in memory.
    `notify_url` receives a callout for every change, signed with `notify_secret` (see `callouts`);
    `message_url` receives outbound messages (see `messages`).
    `public_url` is the address that a login returns to the client, for an org behind a proxy.
    `options` are passed to `Org`: credentials, daily_limit, page_size, minute_resolution.
    """

    def __init__(
        self,
        port: int = 0,
        certs: str | Path | None = None,
        data: str | Path | None = None,
        notify_url: str = "",
        notify_secret: str = "",
        public_url: str = "",
        message_url: str = "",
        **options: Any,
    ) -> None:
        self._temporary = tempfile.TemporaryDirectory() if certs is None else None
        files = ensure_certificates(self._temporary.name if self._temporary else str(certs))
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.minimum_version = ssl.TLSVersion.TLSv1_2
        tls.load_cert_chain(files.server, files.server_key)
        #: Path of the PEM file that a client must trust (`REQUESTS_CA_BUNDLE`, or a session's `verify`).
        self.ca_file = str(files.ca)
        self.org = Org(data, **options)
        self.callouts = Callouts(notify_url, notify_secret) if notify_url else None
        self.messages = OutboundMessages(message_url) if message_url else None
        self._tellers = [one for one in (self.callouts, self.messages) if one is not None]
        self.org.store.on_change = self._tell
        self._server = _Server(port, tls, self.org)
        self.port = int(self._server.server_address[1])
        self.url = f"https://127.0.0.1:{self.port}"
        self.org.url = public_url or self.url
        self._thread: threading.Thread | None = None
        self.store, self.journal, self.faults = self.org.store, self.org.journal, self.org.faults
        self.clock, self.credentials = self.org.clock, self.org.credentials

    def __enter__(self) -> SalesforceSimulator:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()

    def start(self) -> None:
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="salesforce", daemon=True)
        self._thread.start()
        for teller in self._tellers:
            teller.sender.start()

    def stop(self) -> None:
        """Close the port, every connection and the data file."""
        if self._thread is not None:
            self._server.shutdown()
            self._thread.join()
            self._thread = None
        self._server.server_close()
        self._server.cut_all()
        for teller in self._tellers:
            teller.sender.close()
        self.org.close()
        if self._temporary is not None:
            self._temporary.cleanup()

    def _tell(self, changes: list[Change]) -> None:
        for teller in self._tellers:
            teller.changed(changes)

    # --- for tests ---

    def session(self) -> str:
        """Return a valid access token, for `Salesforce(session_id=..., instance_url=simulator.url)`."""
        return self.org.new_session()

    def fail(self, count: int = 1, status: int = 503, code: str = "SERVER_UNAVAILABLE", **more: Any) -> None:
        """Reject the next `count` calls without processing them; `more` as in `Fault`, e.g. html, path."""
        self.faults.arm(Fault("fail", count, status, code, **more))

    def fail_items(self, count: int = 1, code: str = "UNABLE_TO_LOCK_ROW", **more: Any) -> None:
        """Reject the next `count` record writes, whether single, in a collection or in a bulk job."""
        more.setdefault("message", "unable to obtain exclusive access to this record")
        self.faults.arm(Fault("fail_item", count, code=code, **more))

    def drop(self, count: int = 1, when: Any = "after", **more: Any) -> None:
        """Cut the connection of the next `count` calls: `before` the work, `after` it or `inside` the reply."""
        self.faults.arm(Fault("drop", count, when=when, **more))

    def delay(self, seconds: float, count: int = 1, **more: Any) -> None:
        """Delay the replies of the next `count` calls by `seconds`."""
        self.faults.arm(Fault("delay", count, seconds=seconds, **more))

    def lag(self, seconds: float, count: int = 1, **more: Any) -> None:
        """Make the next `count` calls of updated or deleted cover `seconds` less than requested."""
        self.faults.arm(Fault("lag", count, seconds=seconds, **more))

    def limit_triggers(
        self, records: int, code: str = "CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", message: str = ""
    ) -> None:
        """Fail every record of a batch that is large enough to exceed a trigger's limit."""
        self.faults.trigger_limit = records
        self.faults.trigger_error = SalesforceError(code, message or CPU_LIMIT)

    def add_duplicate_rule(self, object_name: str, field: str, *, blocks: bool = False) -> None:
        """Let a rule find records with the same value of a field; it warns, or blocks them."""
        self.store.duplicate_rules.append(DuplicateRule(object_name, field, blocks))

    def reject_login(self, count: int = 1) -> None:
        """Reject the next `count` logins."""
        self.faults.arm(Fault("reject_login", count))

    def expire_sessions(self) -> None:
        """Reject every existing access token from now on."""
        self.org.expire_sessions()

    def edit(self, object_name: str, record_id: str, **fields: Any) -> None:
        """Change a record as a user of the org."""
        self.store.update(object_name, record_id, fields, by=PERSON)

    def add(self, object_name: str, **fields: Any) -> str:
        """Create a record as a user of the org and return its id."""
        return self.store.create(object_name, fields, by=PERSON)

    def remove(self, object_name: str, record_id: str) -> None:
        """Delete a record as a user of the org."""
        self.store.delete(object_name, record_id, by=PERSON)
