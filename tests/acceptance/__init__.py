"""Acceptance tests: run the real processes and check them from outside, as an operator would."""
