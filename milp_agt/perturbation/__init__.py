"""What a user may say about the moves of one sample, checked against data and turned into a set."""

from milp_agt.perturbation.checks import Numbers, Radius, Rows, is_whole
from milp_agt.perturbation.features import FeatureMoves
from milp_agt.perturbation.labels import LabelMoves

__all__ = ["FeatureMoves", "LabelMoves", "Numbers", "Radius", "Rows", "is_whole"]
