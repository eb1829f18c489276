"""Small stand-ins for external systems: for trying Syncflow, for tests, for authors of connectors."""
