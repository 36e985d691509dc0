"""Programs over a window of training steps: encode once, then one solve for each objective.

From the choices of the adversary to a proved bound:

1. ``window``: a :class:`Window` is the steps of one program, with the ranges that its relaxations need, and
   becomes an :class:`EncodedWindow`, the columns and rows of a solver-neutral program. Operations encode
   themselves; ``move_columns`` are the columns of the adversary, and tie the start of a window to the
   selection.
2. ``state_bounds``: solves ordered by possible gain, in this process or on workers, dual bounds only; and
   both ends of the state after the window.
3. ``final_window``: forms of the model's outputs and counts of test points (``output_objectives``), added to
   a window for questions.
4. ``zonotope_rows``: one program for all steps, on the rows of a hybrid zonotope, asked for the ends of the
   state and for forms of it.
5. ``incumbents``: points found by solvers, as starts for attacks; ``witness`` checks real runs against
   every bound.
"""

from milp_agt.bounds.program.final_window import FinalWindow
from milp_agt.bounds.program.incumbents import Incumbents
from milp_agt.bounds.program.output_objectives import OutputForms
from milp_agt.bounds.program.state_bounds import ProgramReport, SolveOptions, bound_state, ends_of
from milp_agt.bounds.program.window import RANGE_LIMIT, EncodedWindow, Window
from milp_agt.bounds.program.witness import Witness
from milp_agt.bounds.program.zonotope_rows import FinalZonotope

__all__ = [
    "RANGE_LIMIT",
    "EncodedWindow",
    "FinalWindow",
    "FinalZonotope",
    "Incumbents",
    "OutputForms",
    "ProgramReport",
    "SolveOptions",
    "Window",
    "Witness",
    "bound_state",
    "ends_of",
]
