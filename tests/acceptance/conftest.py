"""On a failure, what the processes printed is shown with it."""

import signal
from collections.abc import Generator

import pytest

from tests.acceptance import processes

#: How many of the processes started last are shown: a fleet with what was started again.
SHOWN = 12


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    """A run that was started in the background ignores SIGINT, and so would every process it starts."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"output of {one.name}", one.tail()) for one in processes.started[-SHOWN:]]
    return report
