"""The limit up to which long tables are counted for display."""

from __future__ import annotations

#: Counting stops here: "more than" says enough, and the page stays fast.
DISPLAY_LIMIT = 10_000
