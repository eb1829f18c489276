"""Serve the panel from threads of this process, for standalone mode and for tests. A fleet uses gunicorn."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

from flask import Flask
from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment


class _Quiet(WSGIRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_request(self, *_arguments: Any) -> None:
        """Log nothing for a request."""


def threaded_server(app: Flask, host: str, port: int) -> BaseWSGIServer:
    """Return a server that handles each request in its own thread; start it with `serve_forever`."""

    def closed_by_itself(environ: WSGIEnvironment, start_response: StartResponse) -> Iterator[bytes]:
        # Before werkzeug's server closes a response it reads what the client may still send. If the client has
        # reset the connection, that read raises, and the response (a static file, a running export) stays open.
        with closing(app(environ, start_response)) as answer:  # type: ignore[type-var]
            yield from answer

    return make_server(host, port, closed_by_itself, threaded=True, request_handler=_Quiet)
