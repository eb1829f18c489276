"""`field_to_data`: a subscriber's mapping, both ways, and the values it makes.

| file         | what it holds                                                        |
|--------------|----------------------------------------------------------------------|
| `fields`     | `Field` and its helpers: what an author writes                       |
| `mapper`     | `Mapper`: a record to external values and back                       |
| `validation` | whether rows of a mapping fit a catalogue                            |
| `transforms` | the named conversions                                                |
| `coercion`   | an external value as a column stores it                              |
| `paths`      | where a value is in nested data                                      |
| `values`     | comparison of values                                                 |
"""

from subscribers.mapping.fields import Field, FieldRow, entry_row, link_to, rows
from subscribers.mapping.mapper import Mapper
from subscribers.mapping.validation import Problem, check_rows
from subscribers.mapping.values import Flat, Links, is_empty, plain, same

__all__ = [
    "Field",
    "FieldRow",
    "Flat",
    "Links",
    "Mapper",
    "Problem",
    "check_rows",
    "entry_row",
    "is_empty",
    "link_to",
    "plain",
    "rows",
    "same",
]
