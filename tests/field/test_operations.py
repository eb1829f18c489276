"""Brokers, databases and processes that failed: docs/explanation/field-faults.md, group C."""

# C31: the broker blocks publishers

# C32: a database that became read-only

# C33: connections that answer nothing

# C34: a pooler in transaction mode

# C35: a broker that refuses, in its own words

# C36: a parent that is killed
