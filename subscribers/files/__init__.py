"""A folder of CSV or JSON-lines files as a system."""
