"""Attach the output of the processes to the report of a failed test."""

import signal
from collections.abc import Generator

import pytest

from tests.acceptance import processes

#: How many of the most recently started processes to show: enough for a fleet and its restarted processes.
SHOWN = 12


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c_is_heard() -> None:
    """Restore the SIGINT handler: a run started in the background ignores SIGINT, and its processes inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        report.sections += [(f"output of {one.name}", one.tail()) for one in processes.started[-SHOWN:]]
    return report
