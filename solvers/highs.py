"""HiGHS through highspy: the default back end."""

from __future__ import annotations

from dataclasses import replace

from milp_agt.core.program import Array, Program
from milp_agt.core.results import Limits, Termination
from milp_agt.solvers.highs_relaxation import HighsRelaxation
from milp_agt.solvers.safe import farkas_ray
from milp_agt.solvers.session import Session, SolverAnswer
from milp_agt.solvers.solver import Solver, register
from milp_agt.solvers.tree import Tree


@register
class Highs(Solver):
    """LP by HiGHS (Huangfu and Hall 2018), MIT licence; programs with integer columns, bilinear
    terms and functions by a :class:`Tree` of LPs, whose bounds do not depend on its tolerances."""

    name = "highs"
    requires = ("highspy",)
    distribution = "highspy"
    rank = 0
    note = "open source (MIT); the default; all bounds are proved"

    def open(self, program: Program) -> HighsSession:
        self.check_available()
        return HighsSession(program)


class HighsSession(Session):
    """The relaxation, warm-started from the basis of the previous objective or node.

    Nodes of a program with bilinear terms have their own rows, and large nodes are solved by another
    method than the objectives of the relaxation, so nodes get a second model.
    """

    def __init__(self, program: Program) -> None:
        super().__init__(program)
        self._relaxation = HighsRelaxation(program)
        self._nodes: HighsRelaxation | None = None

    def solve_lp(self, costs: Array, time: float | None) -> SolverAnswer:
        return self._relaxation.over(self.program).solve(costs, time)

    def solve_tree(self, costs: Array, limits: Limits) -> SolverAnswer:
        return Tree(self.program, self._solve_node, costs, limits).search()

    def _solve_node(self, node: Program, costs: Array, time: float) -> SolverAnswer:
        answer = self._node(node).solve(costs, time)
        if answer.termination is Termination.INFEASIBLE and answer.multipliers is None:
            return replace(answer, multipliers=farkas_ray(node, _multipliers))
        return answer

    def _node(self, node: Program) -> HighsRelaxation:
        if node.is_linear and not self._relaxation.large:
            return self._relaxation.over(node)
        if self._nodes is None:
            self._nodes = HighsRelaxation(node, warm=True)
        return self._nodes.over(node)

    def close(self) -> None:
        self._relaxation.close()
        if self._nodes is not None:
            self._nodes.close()


def _multipliers(program: Program, costs: Array) -> Array | None:
    relaxation = HighsRelaxation(program)
    try:
        return relaxation.solve(costs, None).multipliers
    finally:
        relaxation.close()
