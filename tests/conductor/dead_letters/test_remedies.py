"""The remedy for a dead letter is found by its error code."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
import sqlalchemy as sa

from conductor.dead_letters.remedies import CODE, MAPPING, RECORD, REMEDIES, SYSTEM, remedy
from conductor.links.relations import WaitsFor
from models.ledger import DeadLetter
from models.session import Database
from subscribers.errors import BatchTooLarge, Gone, Reject, Retry
from subscribers.http import failures as http
from subscribers.rules import check, choices, email, length, required
from subscribers.salesforce import codes as salesforce
from subscribers.salesforce.failures import by_code
from subscribers.stripe import codes as stripe
from subscribers.stripe.failures import classify
from tests.support.fakes import TestHub
from tests.support.records import add

ROOT = Path(__file__).parents[3]


def codes_in_the_source() -> Iterator[tuple[str, str]]:
    """Yield the file and value of each `code="..."` argument in the engine and the subscribers."""
    for folder in ("conductor", "subscribers"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.keyword) and node.arg == "code" and isinstance(node.value, ast.Constant):
                    yield str(path.relative_to(ROOT)), str(node.value.value)


def test_every_code_has_a_remedy() -> None:
    found = list(codes_in_the_source())
    assert len(found) > 15
    assert [pair for pair in found if pair[1] not in REMEDIES] == []
    for table in (http.CODES, salesforce.CODES, stripe.CODES):
        assert set(table.values()) <= set(REMEDIES)
    assert {kind.code for kind in (Retry, Reject, Gone, WaitsFor, BatchTooLarge)} <= set(REMEDIES)


@pytest.mark.parametrize(
    "code, where",
    [
        ("REQUIRED_FIELD_MISSING", RECORD),
        ("INVALID_FIELD", MAPPING),
        ("DUPLICATE_VALUE", SYSTEM),
        ("INSUFFICIENT_ACCESS_OR_READONLY", SYSTEM),
        ("FIELD_CUSTOM_VALIDATION_EXCEPTION", RECORD),
        ("STRING_TOO_LONG", RECORD),
        ("A_CODE_OF_TOMORROW", RECORD),
    ],
)
def test_salesforces_codes_have_remedies(code: str, where: str) -> None:
    error = by_code([{"errorCode": code, "message": "no"}], status=400)
    assert remedy(error.code).where == where


@pytest.mark.parametrize(
    "code, expected",
    [
        ("email_invalid", "invalid_email"),
        ("parameter_missing", "required_field_missing"),
        ("card_declined", "rejected"),
    ],
)
def test_stripes_codes_have_remedies(code: str, expected: str) -> None:
    response = requests.Response()
    response.status_code = 400
    response._content = f'{{"error": {{"type": "invalid_request_error", "code": "{code}", "message": "no"}}}}'.encode()
    error = classify(response, writes=True)
    assert error is not None and error.code == expected


@pytest.mark.parametrize(("status", "code"), [(400, "rejected"), (409, "conflict"), (413, "too_long"), (404, "gone")])
def test_an_http_status_has_a_remedy(status: int, code: str) -> None:
    assert http.status_error(status, "no").code == code


@pytest.mark.parametrize(
    "rule, value, code",
    [
        (required(), "", "required_field_missing"),
        (email(), "ada", "invalid_email"),
        (choices("DE"), "XX", "not_in_list"),
        (length(max=1), "ab", "too_long"),
    ],
)
def test_a_broken_rule_names_its_code(rule: object, value: str, code: str) -> None:
    with pytest.raises(Reject) as error:
        check({"field": [rule]}, {"field": value})  # type: ignore[list-item]
    assert error.value.code == code


def test_errors_of_unknown_origin_have_the_remedy_of_their_class() -> None:
    assert remedy(Reject("x").code).where == RECORD
    assert remedy(Retry("500: try later").code).where == SYSTEM
    assert remedy("a code nobody knows") == REMEDIES["rejected"]


@pytest.mark.parametrize(
    ("raised", "code", "where"),
    [
        (KeyError("x"), "bug", CODE),
        (Reject("no", code="duplicate"), "duplicate", SYSTEM),
        (Reject("no"), "rejected", RECORD),
    ],
)
def test_a_dead_letter_keeps_the_code(database: Database, raised: Exception, code: str, where: str) -> None:
    hub = TestHub(database, "crm")
    hub.conductor.context.policy = type(hub.conductor.context.policy)(max_attempts=1)

    def fail(kind: str, what: object) -> None:
        raise raised

    hub.systems["crm"].on_call = fail
    add(hub)
    hub.run()
    with database.read() as connection:
        assert connection.execute(sa.select(DeadLetter.code)).scalars().all() == [code]
    assert remedy(code).where == where
