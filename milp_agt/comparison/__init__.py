"""Relaxations, windows and solvers side by side on one training run."""

from milp_agt.comparison.run import compare
from milp_agt.comparison.table import Comparison, ComparisonRow

__all__ = ["Comparison", "ComparisonRow", "compare"]
