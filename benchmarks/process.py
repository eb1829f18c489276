"""Run one process of the hub: `python -m benchmarks.process worker` is `./syncflow worker` with the benchmark systems.

It imports nothing that the hub itself would not, so that its memory can be measured.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from benchmarks.systems import register_all
from cli import main as command
from settings import Settings


def main(arguments: Sequence[str]) -> int:
    """Run one of the commands of `./syncflow`."""
    Settings.model_config["env_file"] = None  # a local .env belongs to another hub
    register_all()
    return command(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
