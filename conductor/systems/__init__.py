"""The external systems: whether and how often they may be called, and what an operator does with them."""
