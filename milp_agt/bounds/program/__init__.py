"""Programs over a window of training steps: encode once, then one solve for each objective.

From the choices of the adversary to a proved bound:

1. ``span``: a :class:`Span` is the steps of one program, with the ranges that its relaxations need.
2. ``window``: :class:`Encoding` turns a span into an :class:`EncodedWindow`, the columns and rows of a
   solver-neutral program. Operations encode themselves; ``move_columns`` are the columns of the adversary,
   ``selection_rows`` tie the start of a window to the selection.
3. ``state_bounds`` (the state after the window) and ``final_window`` (forms of the model's outputs:
   ``output_objectives``, and counts of test points: ``counts``) add forms: ``Objectives``, with the part of
   the program that they need.
4. ``solves``: solves ordered by possible gain, in this process or on workers; dual bounds only.
5. ``zonotope_rows``: one program for all steps, on the rows of a hybrid zonotope; ``final_zonotope`` asks it
   for the ends of the state and for forms of it.
6. ``incumbents``: points found by solvers, as starts for attacks; ``witness`` checks real runs against
   every bound.
"""

from milp_agt.bounds.program.final_window import FinalWindow
from milp_agt.bounds.program.final_zonotope import FinalZonotope
from milp_agt.bounds.program.incumbents import Incumbents
from milp_agt.bounds.program.output_objectives import OutputObjectives
from milp_agt.bounds.program.solves import SolveOptions
from milp_agt.bounds.program.span import Encoding, Span, largest_of
from milp_agt.bounds.program.state_bounds import ProgramReport, bound_state, ends_of
from milp_agt.bounds.program.window import RANGE_LIMIT, EncodedWindow, encode_window
from milp_agt.bounds.program.witness import Witness

__all__ = [
    "RANGE_LIMIT",
    "EncodedWindow",
    "Encoding",
    "FinalWindow",
    "FinalZonotope",
    "Incumbents",
    "OutputObjectives",
    "ProgramReport",
    "SolveOptions",
    "Span",
    "Witness",
    "bound_state",
    "encode_window",
    "ends_of",
    "largest_of",
]
