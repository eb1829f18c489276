"""Parse submitted forms into values, and format values for forms."""
