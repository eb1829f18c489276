"""The systems that the tests of situations in the field share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_httpserver import HTTPServer

from simulators.stripe import StripeLike
from tests.support.awkward_rest import AwkwardRest
from tests.support.stripe_hub import emptied


@pytest.fixture(scope="package")
def stripe_server() -> Iterator[StripeLike]:
    with StripeLike() as stripe:
        yield stripe


@pytest.fixture
def stripe(stripe_server: StripeLike) -> StripeLike:
    """Return the Stripe-like system, empty."""
    return emptied(stripe_server)


@pytest.fixture
def system(httpserver: HTTPServer) -> AwkwardRest:
    """Return a REST system whose ways a test chooses."""
    return AwkwardRest(httpserver)


@pytest.fixture
def ahead(httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> AwkwardRest:
    """Return a system whose clock may be wrong, also in the header `Date`."""
    system = AwkwardRest(httpserver)
    handler = httpserver.server.RequestHandlerClass  # type: ignore[union-attr]
    monkeypatch.setattr(handler, "date_time_string", lambda handler, timestamp=None: system.date())
    return system
