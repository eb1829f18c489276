"""Outward: a change on its way to the systems: routing, recovery, delivery, loading, planning, sending, results."""
