"""Login failures other than refused credentials."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulators.salesforce import SalesforceSimulator
from subscribers.errors import SystemDown
from subscribers.salesforce import Salesforce, SalesforceAccount, SalesforceOptions


def options_of(org: SalesforceSimulator) -> SalesforceOptions:
    login = {"consumer_key": "demo-client-id", "consumer_secret": "demo-client-secret"}
    return SalesforceOptions(instance_url=org.url, ca_bundle=org.ca_file, **login)


@pytest.mark.parametrize("status", [200, 403])
def test_a_login_response_cut_in_its_headers_is_no_refused_login(tmp_path: Path, status: int) -> None:
    with SalesforceSimulator(certs=tmp_path) as org:
        accounts = SalesforceAccount(Salesforce("salesforce", options_of(org)))
        if status != 200:
            org.fail(status=status, path="oauth2/token")
        org.drop(when="inside", path="oauth2/token")
        with pytest.raises(SystemDown) as trouble:
            accounts.fetch("001000000000001AAA")
        assert trouble.value.after is None


@pytest.mark.parametrize("more", [{}, {"html": True}, {"status": 500, "code": "UNKNOWN_EXCEPTION"}, {"status": 429}])
def test_a_failing_login_page_is_no_refused_login(tmp_path: Path, more: dict[str, Any]) -> None:
    with SalesforceSimulator(certs=tmp_path) as org:
        accounts = SalesforceAccount(Salesforce("salesforce", options_of(org)))
        org.fail(**{"path": "oauth2/token", "retry_after": "7", **more})
        with pytest.raises(SystemDown) as trouble:
            accounts.fetch("001000000000001AAA")
        assert trouble.value.after == 7
