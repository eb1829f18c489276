"""`field_to_data`: the mapping of a subscriber, in both directions.

| file         | what it holds                                                        |
|--------------|----------------------------------------------------------------------|
| `fields`     | `Field` and its helpers, which an author writes                      |
| `mapper`     | `Mapper`: converts a record to external values and back              |
| `validation` | checks the rows of a mapping against a catalogue                     |
| `transforms` | the named conversions of values                                      |
| `coercion`   | converts an external value to the type of a column                   |
| `paths`      | the place of a value in nested data                                  |
| `values`     | compares values, and converts them to JSON                           |
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
