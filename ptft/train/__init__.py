"""A run: its data, weights, compiled step and state, and the one loop."""
