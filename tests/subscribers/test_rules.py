"""Rules declare what a system accepts, so violations are reported before the call."""

from decimal import Decimal
from typing import Any

import pytest

from subscribers.base import Subscriber
from subscribers.errors import Reject
from subscribers.rules import Rule, between, check, choices, email, length, required, required_paths
from subscribers.system import System
from tests.support.fakes import Clock, FakeSystem


@pytest.mark.parametrize(
    ("rule", "fits", "does_not"),
    [
        (required(), ["x", 0, False, [1]], [None, "", []]),
        (length(max=3), ["", "abc", [1, 2]], ["abcd", [1, 2, 3, 4], 7]),
        (length(min=2), ["ab"], ["a"]),
        (email(), ["anna@example.org", "änna@exämple.org"], ["anna", "anna@", "a b@example.org", 7, "a@b"]),
        (choices("open", 1), ["open", 1], ["Open", 2, None]),
        (between(0, 10), [0, 10, "9.99", 0.5, Decimal("1.5")], [-1, 11, "10.01", "x", True, "NaN", [1]]),
        (between(max=5), [-100, 5], [6]),
    ],
)
def test_a_rule(rule: Any, fits: list[Any], does_not: list[Any]) -> None:
    assert [rule(value) for value in fits] == [None] * len(fits)
    assert all(isinstance(rule(value), str) for value in does_not), does_not


def test_all_errors_are_reported_together_by_field() -> None:
    rules: dict[str, list[Rule]] = {
        "name": [required(), length(max=5)],
        "contact.email": [required(), email()],
        "status": [choices("open", "paid")],
        "lines": [required()],
        "lines.quantity": [required(), between(1)],
        "lines.product.id": [required()],
    }
    good: dict[str, Any] = {
        "name": "Anna",
        "contact": {"email": "a@example.org"},
        "lines": [{"quantity": 1, "product": {"id": "p"}}],
    }
    check(rules, good)
    check(rules, {**good, "status": None})
    with pytest.raises(Reject) as caught:
        check(rules, {"name": "Annabella", "contact": None, "status": "lost", "lines": [{"quantity": 0}, "x"]})
    assert caught.value.fields == {
        "name": "is longer than 5 characters",
        "contact.email": "is required",
        "status": "is 'lost', not one of open, paid",
        "lines[0].quantity": "is 0, less than 1",
        "lines[0].product.id": "is required",
        "lines[1].quantity": "is required",
        "lines[1].product.id": "is required",
    }
    with pytest.raises(Reject, match="lines: is required"):
        check(rules, {**good, "lines": []})


def test_a_subscriber_with_rules_needs_no_validate() -> None:
    class Strict(Subscriber):
        system, catalogue = "crm", "customer"
        rules = {"name": [length(max=3)]}

    client: System = FakeSystem("crm", Clock())
    Strict(client).validate({"name": "Ann"})
    with pytest.raises(Reject) as caught:
        Strict(client).validate({"name": "Anna"})
    assert caught.value.fields == {"name": "is longer than 3 characters"}


def test_the_paths_that_may_not_be_empty() -> None:
    assert required_paths({"a": [required()], "b.c": [length(max=3), required()], "d": [email()]}) == {"a", "b.c"}
