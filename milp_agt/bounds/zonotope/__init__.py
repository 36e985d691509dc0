"""The reachable states as a hybrid zonotope with a cardinality constraint, one pass forward through training.

``x_t = c + sum_i A_i e_i + sum_f (F_f phi_f + Q_f rho_f) + noise``: a generator for the move of each sample
that can be poisoned, a binary generator for each phase that poison may flip, and noise that the
Jacobians of later steps carry on. Bounds are Lagrangian duals over rows that hold for every admissible
choice of poisoned samples, so that nobody has to be listed. See ``dual.py`` for the bound, ``flips.py``
for the rows, ``transformer.py`` for the steps in between, and ``state.py`` for order reduction.
"""

from milp_agt.bounds.zonotope.bounds import Effort
from milp_agt.bounds.zonotope.engine import WILD, ZonotopePass, pack_forward, unpack_forward
from milp_agt.bounds.zonotope.questions import (
    Cause,
    Charges,
    charges,
    least,
    least_by_branching,
    least_by_sample,
)
from milp_agt.bounds.zonotope.supported import check_supported, refusal

__all__ = [
    "WILD",
    "Cause",
    "Charges",
    "Effort",
    "ZonotopePass",
    "charges",
    "check_supported",
    "least",
    "least_by_branching",
    "least_by_sample",
    "pack_forward",
    "refusal",
    "unpack_forward",
]
