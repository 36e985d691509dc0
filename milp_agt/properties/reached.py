"""What a run leaves to questions: boxes with the steps behind them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.gathered import GatheredPass
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.linear.window_bounds import PastStep
from milp_agt.bounds.program import FinalZonotope
from milp_agt.bounds.step import State
from milp_agt.bounds.zonotope import ZonotopePass


@dataclass(frozen=True)
class Reached:
    """Boxes of parameters, one for each case, and the steps that led to them.

    ``window`` may be empty (a loaded result): then only the boxes count. ``outer`` is one box, (1, *shape),
    that holds all of them, too. ``past`` is what the steps before the window have proved. ``forward`` is the
    set as a hybrid zonotope, where the run was bounded by one, and ``rows`` are programs on its rows, where
    it was bounded by programs; ``gathered`` is the set as sums over samples. Of ``single_runs`` case c is
    choice c of a listed threat: one run with its rounding.
    """

    state: State
    window: Sequence[LinearizedStep]
    adversary: AdversaryModel
    outer: State | None = None
    past: Sequence[PastStep] = ()
    forward: ZonotopePass | None = None
    rows: FinalZonotope | None = None
    single_runs: bool = False
    gathered: GatheredPass | None = None

    @property
    def keeps_forms(self) -> bool:
        """Whether more than boxes is known."""
        return bool(self.window) or self.forward is not None

    @property
    def boxes(self) -> State:
        """The boxes of the parameters, each of which holds by itself."""
        if self.outer is None:
            return self.state
        return {n: b.meet(self.outer[n], f"'{n}' of two chains") for n, b in self.state.items()}
