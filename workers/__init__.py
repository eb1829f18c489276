"""Dramatiq actors, the relay and the periodiq schedule. They parse, call the conductor, and report."""
