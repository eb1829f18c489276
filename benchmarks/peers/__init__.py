"""What a user would pick instead of the hub, each written from its project's documentation as it is run in production.

All do the same work: a change of a record goes to three subscribers, each maps 8 of its 12 fields and sends that to a
sink. They run in an environment of their own and use nothing of the hub but `benchmarks.sink` and `benchmarks.records`.
"""
