"""A small application for the tests of the servers."""

from __future__ import annotations

from flask import Flask, request

app = Flask(__name__)
app.config["MAX_CONTENT_LENGTH"] = 4 * 1024 * 1024


@app.get("/")
def page() -> str:
    """Answer."""
    return "a page"


@app.post("/")
def length() -> str:
    """Return how long the body is."""
    return str(len(request.get_data()))


@app.get("/large")
def large() -> bytes:
    """Return more than the buffers between server and client hold."""
    return bytes(64 * 1024 * 1024)
