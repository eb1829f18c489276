"""`make setup` and `make run`: what they install."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: A Python that is recent enough, and notes which file pip is to install.
PYTHON = """#!/bin/sh
[ "$1" != -m ] || { while [ "$1" != -r ]; do shift; done; echo "$2" >>.venv/installed; }
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    for name in ("requirements.txt", "requirements-demo.txt", "requirements-dev.txt", "constraints.txt", "Makefile"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "bootstrap", tmp_path / "scripts")
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").write_text(PYTHON)
    (tmp_path / ".venv" / "bin" / "python").chmod(0o755)
    (tmp_path / "syncflow").write_text("#!/bin/sh\n")
    (tmp_path / "syncflow").chmod(0o755)
    return tmp_path


def installed(clone: Path, *targets: str) -> list[str]:
    """Return the files that pip was asked to install."""
    for target in targets:
        subprocess.run(["make", "-s", target], cwd=clone, check=True, capture_output=True)
    return (clone / ".venv" / "installed").read_text().split()


def test_w11_a_server_gets_no_package_of_the_demo(clone: Path) -> None:
    assert installed(clone, "setup") == ["requirements.txt"]
    assert "localstripe" not in (ROOT / "requirements.txt").read_text()


def test_w11_the_demo_gets_its_packages(clone: Path) -> None:
    assert installed(clone, "setup", "run") == ["requirements.txt", "requirements-demo.txt"]


@pytest.mark.parametrize("first", ["run", "setup-dev"])
def test_what_is_installed_already_is_not_installed_again(clone: Path, first: str) -> None:
    assert len(installed(clone, first, "setup", "run", "setup")) == 1
