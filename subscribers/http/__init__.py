"""The HTTP client the REST-like systems share: login, signatures, rate limits, and failures by status."""
