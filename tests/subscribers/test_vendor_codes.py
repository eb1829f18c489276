"""Every documented error code of Salesforce and Stripe, its class, and its row in the docs."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from pathlib import Path

import pytest
import requests
from stripe import SetupIntent

from subscribers.errors import BatchTooLarge, Gone, Reject, Retry, SyncError, SystemDown
from subscribers.salesforce import codes as salesforce
from subscribers.salesforce.failures import by_code
from subscribers.stripe import codes as stripe
from subscribers.stripe.failures import classify

FOLDER = Path(__file__).parents[2]
#: As listed in the SOAP API developer guide (StatusCode, ExceptionCode) and in the REST API guide.
DOCUMENTED = (Path(__file__).parent / "salesforce_codes.txt").read_text().split()


def rows(heading: str) -> dict[str, str]:
    """Return code -> error of a section of the reference page."""
    section = (FOLDER / "docs/reference/vendor-errors.md").read_text().partition(f"## {heading}\n")[2]
    return dict(re.findall(r"^\| `(\w+)` \| `(\w+)` \|", section.partition("\n## ")[0], re.MULTILINE))


def of_stripe(code: str, status: int = 400, kind: str = "invalid_request_error") -> SyncError | None:
    """Return the error of an answer with this code."""
    response = requests.Response()
    response.status_code, response.url = status, "https://api.stripe.com/v1/customers/cus_1"
    response._content = f'{{"error": {{"type": "{kind}", "code": "{code}", "message": "words"}}}}'.encode()
    return classify(response, writes=True)


def documented_by_stripe() -> set[str]:
    """Return the codes in the types of Stripe's own library."""
    source = textwrap.dedent(inspect.getsource(SetupIntent.LastSetupError))
    fields = [one for one in ast.walk(ast.parse(source)) if isinstance(one, ast.AnnAssign)]
    (code,) = [one for one in fields if isinstance(one.target, ast.Name) and one.target.id == "code"]
    return {str(one.value) for one in ast.walk(code.annotation) if isinstance(one, ast.Constant)}


# --- Salesforce ---------------------------------------------------------------------------------------


def test_every_documented_code_of_salesforce_is_in_the_table() -> None:
    assert set(DOCUMENTED) - salesforce.TABLE.keys() == set()


@pytest.mark.parametrize("code", sorted(salesforce.TABLE))
@pytest.mark.parametrize("key", ["statusCode", "errorCode"])
def test_a_code_of_salesforce_has_its_class_for_a_record_and_for_a_call(code: str, key: str) -> None:
    status = None if key == "statusCode" else 400
    error = by_code([{key: code, "message": "words", "fields": ["Name"]}], status=status)
    expected = Retry if salesforce.TABLE[code] is salesforce.Unclear else salesforce.TABLE[code]
    assert (type(error), code in str(error)) == (expected, True)
    assert error.code == salesforce.CODES.get(code, expected.code)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("INSERT_UPDATE_DELETE_NOT_ALLOWED_DURING_MAINTENANCE", SystemDown),
        ("API_CURRENTLY_DISABLED", SystemDown),
        ("TOO_MANY_APEX_REQUESTS", SystemDown),
        ("LIMIT_EXCEEDED", BatchTooLarge),
        ("UNABLE_TO_LOCK_ROW", Retry),
        ("ENTITY_IS_DELETED", Gone),
        ("DUPLICATE_VALUE", Reject),
    ],
)
def test_the_class_of_some_codes_of_salesforce(code: str, expected: type[SyncError]) -> None:
    assert salesforce.TABLE[code] is expected


def test_a_missing_reference_is_doubted_only_without_a_field() -> None:
    code = "INVALID_CROSS_REFERENCE_KEY"
    assert isinstance(by_code([{"statusCode": code, "message": "invalid cross reference id", "fields": []}]), Gone)
    assert isinstance(by_code([{"statusCode": code, "message": "no such owner", "fields": ["OwnerId"]}]), Reject)


@pytest.mark.parametrize(
    "text",
    [
        "AccountTrigger: System.LimitException: Apex CPU time limit exceeded",
        "AccountTrigger: execution of AfterUpdate caused by: System.LimitException: Too many SOQL queries: 101",
        "System.LimitException: Too many DML rows: 10001",
        "System.LimitException: Apex heap size too large: 6012345",
        "The flow failed: Too many query rows: 50001",
    ],
)
@pytest.mark.parametrize("code", ["CANNOT_INSERT_UPDATE_ACTIVATE_ENTITY", "CANNOT_EXECUTE_FLOW_TRIGGER", "APEX_ERROR"])
def test_a_limit_of_one_transaction_is_about_the_batch(code: str, text: str) -> None:
    assert isinstance(by_code([{"statusCode": code, "message": text}]), BatchTooLarge)
    assert isinstance(by_code([{"statusCode": code, "message": "no valid tax number"}]), Reject)


def test_the_docs_have_every_code_of_salesforce() -> None:
    assert rows("Salesforce") == {code: kind.__name__ for code, kind in salesforce.TABLE.items()}


# --- Stripe -------------------------------------------------------------------------------------------


def test_every_documented_code_of_stripe_is_in_the_table() -> None:
    assert documented_by_stripe() - stripe.TABLE.keys() == set()


@pytest.mark.parametrize("code", sorted(stripe.TABLE))
def test_a_code_of_stripe_has_its_class(code: str) -> None:
    error = of_stripe(code)
    assert type(error) is stripe.TABLE[code]
    assert error.code == stripe.CODES.get(code, error.code)


@pytest.mark.parametrize("kind", sorted(stripe.TYPES))
def test_a_type_of_stripe_has_its_class_where_the_code_is_unknown(kind: str) -> None:
    assert type(of_stripe("something_new", kind=kind)) is stripe.TYPES[kind]


def test_the_docs_have_every_code_and_type_of_stripe() -> None:
    assert rows("Stripe") == {code: kind.__name__ for code, kind in {**stripe.TABLE, **stripe.TYPES}.items()}
