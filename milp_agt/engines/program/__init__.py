"""Programs over a window of training steps: encode once, then one solve for each objective."""

from milp_agt.engines.program.bounds import ProgramReport, bound_state, bound_state_by_choice
from milp_agt.engines.program.leaves import Leaf
from milp_agt.engines.program.objectives import SolveOptions
from milp_agt.engines.program.questions import WindowProgram
from milp_agt.engines.program.tightening import Tightener, Tightening
from milp_agt.engines.program.window import RANGE_LIMIT, EncodedWindow, encode_window

__all__ = [
    "RANGE_LIMIT",
    "EncodedWindow",
    "Leaf",
    "ProgramReport",
    "SolveOptions",
    "Tightener",
    "Tightening",
    "WindowProgram",
    "bound_state",
    "bound_state_by_choice",
    "encode_window",
]
