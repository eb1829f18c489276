"""Data that was lost or wrong in the field: docs/explanation/field-faults.md, group A."""

# A1: an edit there that was not seen before ours went out

# A2: a deletion that arrives late

# A3: restored under the same id

# A4: parts of a nested object that are not mapped

# A5: a row that cannot be read

# A6: the system answers 404 for everything

# A7: a code that only may mean gone

# A8: a system that leaves empty fields out

# A9: unique values freed and taken again

# A10: REPLACE INTO displaces another row

# A11: edits that only bytes tell apart, padded keys, partitions

# A12: a row that is absent without a captured deletion

# A13: records listed late, or dated in the future

# A14: currencies whose minor units differ by vendor

# A15: column types without a JSON form

# A16: a system whose clock is wrong

# A17: match values written differently

# A18: two hubs on one account
