"""Linear bounds by a backward pass through the steps of a window."""
