"""The picture of the house matches the current imports."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_picture_is_current() -> None:
    done = subprocess.run(
        [sys.executable, "scripts/house", "draw", "--check"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
