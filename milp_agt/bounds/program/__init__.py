"""Programs over a window of training steps: encode once, then one solve for each objective.

How a bound comes about, from what is asked to what is proved:

1. ``choices``: a :class:`Span` is the steps of one program, each with the ranges that its relaxations stand
   on. :class:`Together` has one span for all choices of poisoned samples, :class:`OneByOne` one for each.
2. ``window``: :class:`Encoding` makes of a span an :class:`EncodedWindow`, columns and rows of a program
   that no solver has seen. Operations encode themselves; ``moves`` are the columns of the adversary,
   ``influence`` ties the start of a window to who is poisoned, ``tightening`` makes ranges smaller first.
3. ``bounds`` (the state after the window) and ``questions`` (forms of the model's outputs: ``asked``, and
   counts of test points: ``collective``) put forms on top: ``Objectives``, with what they need of it.
4. ``leaves``: the loosest choice is solved first, until the bound rests on choices that are solved.
5. ``objectives``: solves in the order of what may be gained, here or on workers; dual bounds only.
6. ``incumbents`` are what solvers find, for attacks; by ``witness`` real runs are held against every bound.
"""

from milp_agt.bounds.program.choices import (
    Choices,
    Encoding,
    Group,
    OneByOne,
    Span,
    Together,
    largest_of,
)
from milp_agt.bounds.program.final_window import FinalWindow
from milp_agt.bounds.program.incumbents import Incumbents
from milp_agt.bounds.program.output_objectives import OutputObjectives
from milp_agt.bounds.program.solves import SolveOptions
from milp_agt.bounds.program.state_bounds import ProgramReport, bound_choices, bound_state, ends_of
from milp_agt.bounds.program.tightening import Tightener, Tightening
from milp_agt.bounds.program.window import RANGE_LIMIT, EncodedWindow, encode_window
from milp_agt.bounds.program.witness import Witness

__all__ = [
    "RANGE_LIMIT",
    "Choices",
    "EncodedWindow",
    "Encoding",
    "FinalWindow",
    "Group",
    "Incumbents",
    "OneByOne",
    "OutputObjectives",
    "ProgramReport",
    "SolveOptions",
    "Span",
    "Tightener",
    "Tightening",
    "Together",
    "Witness",
    "bound_choices",
    "bound_state",
    "encode_window",
    "ends_of",
    "largest_of",
]
