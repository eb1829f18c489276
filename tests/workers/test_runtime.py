"""The log: one line for each event, and tracebacks without the values of variables."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

#: Packages that show the values of variables in tracebacks as soon as they are installed, reduced to that.
PRETTY = {
    "rich/__init__.py": "",
    "rich/console.py": """
class Console:
    def __init__(self, *, file, **options):
        self.file = file
    def print(self, what):
        self.file.write(what)
""",
    "rich/traceback.py": """
class Traceback:
    @staticmethod
    def from_exception(kind, error, traceback, **options):
        text = "rich traceback"
        while traceback is not None:
            text += repr(traceback.tb_frame.f_locals)
            traceback = traceback.tb_next
        return text
""",
    "better_exceptions.py": """
from rich.traceback import Traceback
def format_exception(*exception):
    return Traceback.from_exception(*exception)
""",
    "sitecustomize.py": """
import sys, threading
from rich.traceback import Traceback
sys.excepthook = lambda *exception: print(Traceback.from_exception(*exception), file=sys.stderr)
threading.excepthook = lambda about: sys.excepthook(about.exc_type, about.exc_value, about.exc_traceback)
""",
}

PROGRAM = """
import logging, threading
from settings import Settings
from workers.runtime import configure_logging

configure_logging(Settings(_env_file=None, log_format={format!r}))

def log_in(typed):
    raise RuntimeError("no such user")

def work():
    try:
        log_in("typed-" + "password")
    except RuntimeError:
        logging.getLogger("hub").exception("it failed")
    log_in("typed-" + "password")

thread = threading.Thread(target=work)
thread.start()
thread.join()
work()
"""


@pytest.mark.parametrize("without", [(), ("rich/__init__.py",)], ids=["rich", "better_exceptions"])
@pytest.mark.parametrize("log_format", ["console", "json"])
def test_s08_no_traceback_shows_variables_whatever_is_installed(
    tmp_path: Path, log_format: str, without: tuple[str, ...]
) -> None:
    for name, text in PRETTY.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        if name not in without:
            (tmp_path / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", "PYTHONNOUSERSITE": "1"}
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(format=log_format)],
        env=environment, cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.stderr.count("no such user") == 4  # twice logged, once uncaught in a thread, once uncaught
    assert "rich traceback" not in ran.stderr and "typed-password" not in ran.stderr
    assert "Traceback (most recent call last)" in ran.stderr


def test_s08_the_stubs_would_show_variables(tmp_path: Path) -> None:
    for name, text in PRETTY.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    ran = subprocess.run(
        [sys.executable, "-c", "def f(typed):\n    1 / 0\nf('typed-' + 'password')"],
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "typed-password" in ran.stderr
