"""Simulated external systems, for trying Syncflow, for tests and for connector authors."""
