"""Benchmarks anyone can run: `make bench` for all of them, `make bench-NAME` for one.

Each module with a `run` is one benchmark. It prints a table for people and, as its last line, one
JSON object. Nothing of the hub imports from here.
"""
