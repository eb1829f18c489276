"""On a failure, what the processes printed is shown with it."""

from collections.abc import Generator

import pytest

from tests.acceptance import processes

#: How many of the processes started last are shown: a fleet with what was started again.
SHOWN = 12


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"output of {one.name}", one.tail()) for one in processes.started[-SHOWN:]]
    return report
