"""The report of a benchmark: the machine, a readable table, and one JSON object as its last line."""

from __future__ import annotations

import math
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import orjson
import sqlalchemy as sa

K = TypeVar("K")
T = TypeVar("T")

#: Packages whose version affects the measurements.
_PACKAGES = ("dramatiq", "pika", "SQLAlchemy", "psycopg", "flask", "orjson")


@dataclass(frozen=True)
class Goal:
    """The target, the measured value, and whether the target is met."""

    what: str
    aim: str
    measured: str
    reached: bool


@dataclass
class Result:
    """The outcome of one benchmark.

    `columns` and `rows` are the readable table (numbers as text, units in the column's name); `figures` are for
    programs, numbers with their unit in the name (`_ms`, `_per_s`, `_mb`); `settings` are the parameters used.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    figures: dict[str, Any]
    settings: dict[str, Any] = field(default_factory=dict)
    goals: Sequence[Goal] = ()
    notes: Sequence[str] = ()


def interleaved(candidates: Mapping[K, Callable[[], T]], rounds: int) -> dict[K, list[T]]:
    """Run each candidate once per round, so that a disturbance of the machine affects all of them."""
    seen: dict[K, list[T]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            seen[name].append(run())
    return seen


def median(values: Sequence[float]) -> float:
    """Return the median."""
    return float(statistics.median(values))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share (0..1) of the values does not exceed (nearest rank).

    Raises:
      ValueError: there are no values.
    """
    if not values:
        raise ValueError("no values to take a percentile of")
    ranked = sorted(values)
    return ranked[max(math.ceil(share * len(ranked)) - 1, 0)]


def machine() -> dict[str, Any]:
    """Return the properties that affect the figures: processor, cores, memory, versions."""
    found: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_before": round(os.getloadavg()[0], 2),
    }
    for package in _PACKAGES:
        try:
            found[package.lower()] = version(package)
        except PackageNotFoundError:
            continue
    return found


def postgres_settings(url: str) -> dict[str, str]:
    """Return the server's version, and the settings that trade durability or memory for speed."""
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            names = ("server_version", "fsync", "synchronous_commit", "full_page_writes", "shared_buffers")
            return {name: str(connection.exec_driver_sql(f"SHOW {name}").scalar()) for name in names}
    finally:
        engine.dispose()


def show(result: Result, where: dict[str, Any]) -> None:
    """Print a result."""
    print(f"\n## {result.name}\n")
    print(", ".join(f"{name} {value}" for name, value in where.items()))
    if result.settings:
        print(", ".join(f"{name} {value}" for name, value in result.settings.items()))
    print()
    _table(result.columns, result.rows)
    if result.goals:
        print()
        _table(
            ("goal", "aim", "measured", "reached"),
            [(g.what, g.aim, g.measured, "yes" if g.reached else "NO") for g in result.goals],
        )
    for note in result.notes:
        print(f"\n{note}")
    values = {
        "bench": result.name,
        "figures": result.figures,
        "settings": result.settings,
        "goals": [vars(goal) for goal in result.goals],
        "machine": where,
    }
    print("\n" + orjson.dumps(values, default=str).decode(), flush=True)


def _table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [tuple(columns), *(tuple(_text(cell) for cell in row) for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    lines.insert(1, tuple("-" * width for width in widths))
    for number, line in enumerate(lines):
        cells = [
            cell.ljust(width) if i == 0 or number == 1 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("| " + " | ".join(cells) + " |")


def _text(cell: object) -> str:
    if isinstance(cell, float):
        return f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:,.1f}" if abs(cell) >= 1 else f"{cell:.3f}"
    return f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)


def _processor() -> str:
    try:
        said = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return platform.machine()
    names = [line.split(":", 1)[1].strip() for line in said.splitlines() if line.startswith("Model name")]
    return names[0] if names else platform.machine()
