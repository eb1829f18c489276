"""Moves and renames must not silently break the table of mutants."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_each_mutant_names_a_function_and_a_text_in_it() -> None:
    command = [sys.executable, "scripts/mutants", "--check"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
