"""TODO."""

from __future__ import annotations


class Busy(Exception):
    """The record is being delivered at this moment."""
