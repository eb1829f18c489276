"""Dead letters: their store, what operators do with them, and their remedies."""
