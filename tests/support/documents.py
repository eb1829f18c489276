"""Read marked code blocks and tables of the documentation."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def marked(name: str, page: str, language: str = "python") -> str:
    """Return the code block that follows the comment `<!-- name -->`."""
    block = rf"(?ms)^( *)<!-- {re.escape(name)} -->\n *```{language}\n(.*?)^ *```"
    match = re.search(block, (ROOT / page).read_text())
    assert match, f"{page} has no block marked {name!r}"
    return textwrap.dedent(match[2])


def table(name: str, page: str) -> list[list[str]]:
    """Return the rows of the table that follows the comment `<!-- name -->`, as cells."""
    text = (ROOT / page).read_text().split(f"<!-- {name} -->\n")[1].split("\n\n")[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
