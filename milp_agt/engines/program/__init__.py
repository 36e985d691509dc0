"""Programs over a window of training steps: encode once, then one solve for each objective."""

from milp_agt.engines.program.asked import Asked
from milp_agt.engines.program.bounds import ProgramReport, bound_choices, bound_state, ends_of
from milp_agt.engines.program.choices import (
    Choices,
    Encoding,
    Group,
    OneByOne,
    Span,
    Together,
    largest_of,
)
from milp_agt.engines.program.incumbents import Incumbents
from milp_agt.engines.program.objectives import SolveOptions
from milp_agt.engines.program.questions import WindowProgram
from milp_agt.engines.program.tightening import Tightener, Tightening
from milp_agt.engines.program.window import RANGE_LIMIT, EncodedWindow, encode_window
from milp_agt.engines.program.witness import Witness

__all__ = [
    "RANGE_LIMIT",
    "Asked",
    "Choices",
    "EncodedWindow",
    "Encoding",
    "Group",
    "Incumbents",
    "OneByOne",
    "ProgramReport",
    "SolveOptions",
    "Span",
    "Tightener",
    "Tightening",
    "Together",
    "WindowProgram",
    "Witness",
    "bound_choices",
    "bound_state",
    "encode_window",
    "ends_of",
    "largest_of",
]
