"""The adversary model of the bounds: boxes of poisoned batches, sums over samples, worst cases."""
