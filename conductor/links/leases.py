"""TODO."""

from __future__ import annotations


class LinkLeased(Exception):
    """The record is being delivered at this moment."""
