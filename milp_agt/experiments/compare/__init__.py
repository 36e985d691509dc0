"""Relaxations, windows and solvers side by side on one training run."""

from milp_agt.experiments.compare.comparison import Comparison, ComparisonRow
from milp_agt.experiments.compare.rows import compare

__all__ = ["Comparison", "ComparisonRow", "compare"]
