"""Acceptance: the real processes, followed from outside as an operator would."""
