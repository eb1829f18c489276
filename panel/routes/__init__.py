"""Routes for programs: webhook senders, probes and metric scrapers."""
