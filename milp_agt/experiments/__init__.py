"""Many certificates side by side: comparisons, sweeps, the largest threat, benchmarks."""
