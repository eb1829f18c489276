"""Records that got stuck or were sent in an endless loop: docs/explanation/field-faults.md, group B."""

# B19: an outage answered with 502

# B20: a fetch that answers with another id

# B21: an answer without the record

# B22: a system that normalises and answers 204

# B23: an event that can never be applied

# B24: maintenance codes of the vendor

# B25: a batch that is too large for the system

# B26: a time range that is too old

# B27: a long chain of references

# B28: a create that meets an existing record

# B29: a full poll of unchanged records

# B30: duplicate rules that only warn
