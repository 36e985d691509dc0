"""Attacks on training runs: the other side of a certificate.

``attack(model, data, training, threat, objective=...)`` searches for admissible poisoned data that move
an objective as far as possible; ``certify(..., attack=True)`` sets its result beside the bounds.
"""

from milp_agt.attacks.attacker import Attack as Attack
from milp_agt.attacks.attacker import Attacker as Attacker
from milp_agt.attacks.attacker import PoisonedRun as PoisonedRun
from milp_agt.attacks.attacker import Runs as Runs
from milp_agt.attacks.attacker import attack as attack
from milp_agt.attacks.objectives import Accuracy as Accuracy
from milp_agt.attacks.objectives import Backdoor as Backdoor
from milp_agt.attacks.objectives import Envelope as Envelope
from milp_agt.attacks.objectives import Functional as Functional
from milp_agt.attacks.objectives import Loss as Loss
from milp_agt.attacks.objectives import Objective as Objective
from milp_agt.attacks.objectives import Parameter as Parameter
from milp_agt.attacks.objectives import Stable as Stable
from milp_agt.attacks.objectives import Targeted as Targeted
from milp_agt.attacks.sandwich import ParameterSandwich as ParameterSandwich
from milp_agt.attacks.sandwich import Sandwich as Sandwich
from milp_agt.attacks.search_settings import Search as Search
