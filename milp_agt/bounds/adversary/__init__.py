"""How poison meets a batch: the adversary as the bounds see it, and what it can add up to."""
