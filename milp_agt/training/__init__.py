"""A training run: its options, its inputs, and the symbolic graph of one step."""
