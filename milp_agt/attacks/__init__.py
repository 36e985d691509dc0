"""Attacks on training runs: the other side of a certificate.

``attack(model, data, training, threat, objective=...)`` searches for admissible poisoned data that move
an objective as far as possible; ``certify(..., attack=True)`` sets its result beside the bounds.
"""

from milp_agt.attacks.attacker import Attack, Attacker, PoisonedRun, Runs, attack
from milp_agt.attacks.objectives import (
    Accuracy,
    Backdoor,
    Envelope,
    Functional,
    Loss,
    Objective,
    Parameter,
    Stable,
    Targeted,
)
from milp_agt.attacks.sandwich import ParameterSandwich, Sandwich
from milp_agt.attacks.search_settings import Search

__all__ = [
    "Accuracy",
    "Attack",
    "Attacker",
    "Backdoor",
    "Envelope",
    "Functional",
    "Loss",
    "Objective",
    "Parameter",
    "ParameterSandwich",
    "PoisonedRun",
    "Runs",
    "Sandwich",
    "Search",
    "Stable",
    "Targeted",
    "attack",
]
