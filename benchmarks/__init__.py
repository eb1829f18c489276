"""Benchmarks of the hub: `make bench` runs all of them, `make bench-NAME` one.

Each module with a `run` function is one benchmark. It prints a readable table and, as its last line, one
JSON object. The hub itself does not import this package.
"""
