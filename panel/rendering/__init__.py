"""Turn values into text, charts and files for a response."""
