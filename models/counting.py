"""TODO."""

from __future__ import annotations

#: Counting stops here: "more than" says enough, and the page stays fast.
COUNT_LIMIT = 10_000
