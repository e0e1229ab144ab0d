"""Training pairs from a codebase: its files, their symbols, pairs, negatives, and the split."""
