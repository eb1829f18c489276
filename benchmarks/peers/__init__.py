"""Alternatives to the hub, each written from its project's documentation and run as in production.

All do the same work: each change of a record goes to three subscribers, which map 8 of its 12 fields and send them to a
receiver. They run in their own environment and import only `benchmarks.receiver` and `benchmarks.records`.
"""
