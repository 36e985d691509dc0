"""Attacks on training runs: the other side of a certificate.

``attack(model, data, training, threat, objective=...)`` searches for admissible poisoned data that move
an objective as far as possible; ``certify(..., attack=True)`` sets its result beside the bounds.
"""

from milp_agt.attacks.attack import Attack, Attacker, PoisonedRun, Runs, attack
from milp_agt.attacks.objectives import (
    Accuracy,
    Backdoor,
    Envelope,
    Functional,
    Loss,
    Objective,
    Targeted,
)
from milp_agt.attacks.predictions import Trigger
from milp_agt.attacks.search import Search

__all__ = [
    "Accuracy",
    "Attack",
    "Attacker",
    "Backdoor",
    "Envelope",
    "Functional",
    "Loss",
    "Objective",
    "PoisonedRun",
    "Runs",
    "Search",
    "Targeted",
    "Trigger",
    "attack",
]
