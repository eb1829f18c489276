"""The HTTP client of systems with a REST API: authentication, signatures, rate limits and failures by status."""
