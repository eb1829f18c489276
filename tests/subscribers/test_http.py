"""The HTTP client maps every failure to an error class and never exposes secrets."""

import logging
import socket
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Thread
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, ValidationError
from pytest_httpserver import HTTPServer
from requests.structures import CaseInsensitiveDict
from werkzeug import Request, Response

from redaction import MASK
from subscribers.errors import Gone, Reject, Retry, SyncError, SystemDown
from subscribers.http.client import Http, Token, Url, iso_time, same_secret, secrets_of
from subscribers.http.rate_limit_headers import Rate, rate_of

SECRET = "sk-very-secret-1234567890"


@pytest.fixture
def http(httpserver: HTTPServer) -> Http:
    return Http(httpserver.url_for("/api"), headers={"Authorization": f"Bearer {SECRET}"})


def failure(http: Http, method: str = "POST", path: str = "/things", **options: Any) -> SyncError:
    with pytest.raises(SyncError) as caught:
        http.json(method, path, **options)
    return caught.value


@pytest.mark.parametrize(
    ("status", "expected", "maybe_done"),
    [
        (301, Reject, False),
        (400, Reject, False),
        (401, SystemDown, False),
        (403, SystemDown, False),
        (404, Gone, False),
        (408, Retry, False),
        (409, Reject, False),
        (410, Gone, False),
        (412, Retry, False),
        (422, Reject, False),
        (423, Retry, False),
        (429, SystemDown, False),
        (500, Retry, True),
        (502, Retry, True),
        (503, SystemDown, False),
        (504, Retry, True),
    ],
)
def test_status_table(
    httpserver: HTTPServer, http: Http, status: int, expected: type[SyncError], maybe_done: bool
) -> None:
    httpserver.expect_request("/api/things").respond_with_json({"message": "words"}, status=status)
    error = failure(http)
    assert type(error) is expected
    assert error.maybe_done is maybe_done
    assert "words" in str(error)


def test_a_read_is_never_maybe_done(httpserver: HTTPServer, http: Http) -> None:
    httpserver.expect_request("/api/things").respond_with_data("oh", status=500)
    assert failure(http, "GET").maybe_done is False


@pytest.mark.parametrize(("status", "expected"), [(429, SystemDown), (503, SystemDown), (500, Retry)])
def test_retry_after_is_honoured(httpserver: HTTPServer, http: Http, status: int, expected: type[Any]) -> None:
    httpserver.expect_request("/api/things").respond_with_data("", status=status, headers={"Retry-After": "7"})
    error = failure(http)
    assert isinstance(error, expected) and error.after == 7.0


def test_retry_after_may_be_a_date(httpserver: HTTPServer, http: Http) -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=30), usegmt=True)
    httpserver.expect_request("/api/things").respond_with_data("", status=503, headers={"Retry-After": date})
    error = failure(http)
    assert isinstance(error, SystemDown) and error.after is not None and 20 < error.after <= 30


def test_words_per_field_and_the_name_of_the_call(httpserver: HTTPServer, http: Http) -> None:
    httpserver.expect_request("/api/things").respond_with_json(
        {"errors": {"email": ["is taken", "is odd"]}}, status=422, headers={"X-Request-Id": "req-9"}
    )
    error = failure(http)
    assert isinstance(error, Reject) and error.fields == {"email": "is taken; is odd"}
    assert error.request_id == "req-9"


def test_an_answer_that_is_cut_may_be_a_success(httpserver: HTTPServer, http: Http) -> None:
    httpserver.expect_request("/api/things").respond_with_data("", status=200)
    assert failure(http).maybe_done is True


def test_a_write_is_not_redirected(httpserver: HTTPServer, http: Http) -> None:
    httpserver.expect_request("/api/things").respond_with_data("", status=302, headers={"Location": "/api/other"})
    assert isinstance(failure(http), Reject)
    assert len(httpserver.log) == 1


def test_a_refused_connection_is_a_system_that_is_down() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    error = failure(Http(f"http://127.0.0.1:{port}"))
    assert isinstance(error, SystemDown) and error.maybe_done is False


@contextmanager
def one_shot_server(answer: bytes) -> Iterator[str]:
    """Run a server that reads one request, sends `answer` and closes the connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(answer)

        thread = Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        thread.join()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Type: appl",
        b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{",
        b"garbage\r\n\r\n",
    ],
    ids=["nothing", "in the headers", "in the body", "no HTTP"],
)
def test_a_connection_that_is_cut_leaves_a_write_unclear(answer: bytes) -> None:
    with one_shot_server(answer) as url:
        error = failure(Http(url))
    assert isinstance(error, Retry) and error.maybe_done is True


def test_no_answer_in_time(httpserver: HTTPServer, http: Http) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        error = failure(Http(url), timeout=0.05)
    assert isinstance(error, Retry) and error.maybe_done is True


def test_tls_that_is_not_trusted_is_the_systems_trouble(httpserver: HTTPServer) -> None:
    assert isinstance(failure(Http(httpserver.url_for("").replace("http:", "https:"))), SystemDown)


def test_the_secret_is_in_no_message_and_no_log(
    httpserver: HTTPServer, http: Http, caplog: pytest.LogCaptureFixture
) -> None:
    def quote(request: Request) -> Response:
        return Response(f"bad token: {request.headers['Authorization']}", status=401)

    caplog.set_level(logging.DEBUG)
    httpserver.expect_request("/api/things").respond_with_handler(quote)
    error = failure(http)
    assert SECRET not in "".join(traceback.format_exception(error))
    assert SECRET not in repr(http) + repr(error)
    assert SECRET not in caplog.text


def test_a_vendors_table_comes_first(httpserver: HTTPServer) -> None:
    def classify(response: Any, writes: bool) -> SyncError | None:
        return Gone("by the table") if writes else None

    httpserver.expect_request("/things").respond_with_data("", status=400)
    http = Http(httpserver.url_for(""), classify=classify)
    assert isinstance(failure(http), Gone)
    assert isinstance(failure(http, "GET"), Reject)


def test_a_vendors_table_of_statuses_is_laid_over_the_usual_one(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/things").respond_with_data("busy", status=409)
    http = Http(httpserver.url_for(""), statuses={409: Retry})
    assert type(failure(http)) is Retry
    assert type(failure(Http(httpserver.url_for("")))) is Reject


def test_a_vendors_message_is_redacted(httpserver: HTTPServer) -> None:
    httpserver.expect_request("/things").respond_with_data("", status=400)
    http = Http(
        httpserver.url_for(""),
        headers={"Authorization": f"Bearer {SECRET}"},
        classify=lambda *_: Reject(f"bad key {SECRET}", fields={"key": f"{SECRET} is wrong"}, request_id="r1"),
    )
    error = failure(http)
    assert isinstance(error, Reject) and error.request_id == "r1"
    assert str(error) == f"bad key {MASK}" and error.fields == {"key": f"{MASK} is wrong"}


@contextmanager
def cutting_server() -> Iterator[tuple[str, list[bytes]]]:
    """Run a server that closes its first connection after the request and answers on the next one."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(5)
        seen: list[bytes] = []

        def serve() -> None:
            for answer in (b"", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"):
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    seen.append(connection.recv(65536).split(b" ")[0])
                    connection.sendall(answer)

        thread = Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", seen
        with suppress(OSError):
            socket.create_connection(server.getsockname(), timeout=1).close()
        thread.join()


def test_only_reading_is_repeated_unasked() -> None:
    with cutting_server() as (url, seen):
        assert Http(url).json("GET", "/things")[0] == {}
        assert seen == [b"GET", b"GET"]
    with cutting_server() as (url, seen):
        error = failure(Http(url))
        assert isinstance(error, Retry) and error.maybe_done
        assert seen == [b"POST"]


def test_each_thread_has_its_own_session(http: Http) -> None:
    sessions = []
    threads = [Thread(target=lambda: sessions.append((http.session, http.session))) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (one, again), (other, _) = sessions
    assert one is again and one is not other
    assert all(session.verify is True for session in (one, other))


NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "headers", "rate"),
    [
        (200, {}, None),
        (200, {"X-RateLimit-Remaining": "5"}, Rate(5)),
        (200, {"X-RateLimit-Remaining": "lots"}, None),
        (
            200,
            {"RateLimit-Remaining": "5", "RateLimit-Limit": "100, 100;w=60", "RateLimit-Reset": "30"},
            Rate(5, 100, NOW + timedelta(seconds=30)),
        ),
        (
            200,
            {"X-Rate-Limit-Remaining": "0", "X-Rate-Limit-Reset": str(int(NOW.timestamp()) + 60)},
            Rate(0, None, NOW + timedelta(seconds=60)),
        ),
        (
            200,
            {"X-RateLimit-Remaining": "7.0", "X-RateLimit-Reset": f"{int(NOW.timestamp()) + 60}000"},
            Rate(7, None, NOW + timedelta(seconds=60)),
        ),
        (
            200,
            {
                "RateLimit": '"day";r=900;t=4000, "burst";r=3;t=10',
                "RateLimit-Policy": '"burst";q=10;w=10,"day";q=1000;w=86400',
            },
            Rate(3, 10, NOW + timedelta(seconds=10)),
        ),
        (429, {}, Rate(0)),
        (429, {"Retry-After": "20", "X-RateLimit-Limit": "9"}, Rate(0, None, NOW + timedelta(seconds=20))),
        (429, {"X-RateLimit-Limit": "9", "X-RateLimit-Remaining": "1"}, Rate(0, 9)),
        (200, {"X-RateLimit-Remaining": "5", "X-RateLimit-Reset": "9" * 15}, Rate(5)),
    ],
)
def test_the_rate_limit_is_read_from_an_answer(status: int, headers: dict[str, str], rate: Rate | None) -> None:
    assert rate_of(CaseInsensitiveDict(headers), status, NOW) == rate


@given(st.dictionaries(st.sampled_from(["RateLimit", "RateLimit-Policy", "X-RateLimit-Remaining", "X-RateLimit-Reset"]),
                       st.one_of(st.text(), st.text("0123456789;,=rqtw\"")), max_size=4))  # fmt: skip
def test_no_header_of_a_stranger_breaks_the_reading(headers: dict[str, str]) -> None:
    rate_of(headers, 200, NOW)


def test_the_last_word_on_the_limit_is_kept(httpserver: HTTPServer, http: Http) -> None:
    assert http.rate is None
    httpserver.expect_request("/api/one").respond_with_json({}, headers={"X-RateLimit-Remaining": "4"})
    httpserver.expect_request("/api/two").respond_with_json({})
    http.json("GET", "/one")
    http.json("GET", "/two")
    assert http.rate == Rate(4)


class Example(BaseModel):
    url: Url = "http://x"
    token: Token = SecretStr("")


@pytest.mark.parametrize("url", ["", "shop", "ftp://x", "http://", "https://u:p@x", "http://x:y", "http://[x"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ValidationError):
        Example(url=url)


@pytest.mark.parametrize("token", ["two words", "line\nbreak", "schlüssel"])
def test_a_token_that_no_header_carries_is_refused_without_being_shown(token: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Example(token=SecretStr(token))
    assert token not in str(caught.value)


def test_blanks_around_a_token_are_a_slip_of_the_pen() -> None:
    assert Example(token=SecretStr(" abc\n")).token.get_secret_value() == "abc"


def test_several_secrets_for_rotation() -> None:
    assert list(secrets_of(SecretStr(" new  old "))) == ["new", "old"]
    assert list(secrets_of(SecretStr(" "))) == []


@given(st.text(), st.text())
def test_secrets_of_any_characters_can_be_compared(one: str, other: str) -> None:
    try:
        other.encode()
    except UnicodeEncodeError:
        return
    assert same_secret(one, other) is (one == other)


def test_times_without_an_offset_are_utc() -> None:
    noon = datetime(2026, 11, 22, 12, tzinfo=UTC)
    for text in ("2026-11-22T12:00:00", "2026-11-22T12:00:00Z", "2026-11-22T13:00:00.000+0100"):
        assert iso_time(text) == noon
    assert iso_time("soon") is None and iso_time(None) is None
