"""Points that bounds leave open, decided by a search over selections and cells of moves."""

from __future__ import annotations

import torch
from torch import Tensor

from milp_agt.bounds.cells.goals import Asked
from milp_agt.bounds.cells.plan import Cover, TreePlan
from milp_agt.bounds.cells.search import Decided, Limits, Search
from milp_agt.core.interval import Interval
from milp_agt.properties.decision import Decision


def by_tree(
    plan: TreePlan,
    decision: Decision,
    known: Interval,
    points: Tensor,
    seconds: float | None = None,
) -> Interval:
    """Bounds ``known`` of the forms of a decision, (cases, n, forms), met with those of a search.

    Args:
        points: those that are searched, by position.
        seconds: fewer than the plan grants, where less time is left.
    """
    inputs = decision.forms.inputs
    cells = plan.cells
    if cells is None or not len(points) or not torch.equal(inputs.lower, inputs.upper):
        return known
    granted = plan.seconds if seconds is None else min(seconds, plan.seconds)
    found = decide(cells, decision.part(points), Limits(granted)).bounds
    lower, upper = known.lower.clone(), known.upper.clone()
    own = Interval(lower[:, points], upper[:, points])
    cases = Interval(found.lower.expand_as(own.lower), found.upper.expand_as(own.upper))
    met = own.meet(cases, "a form of the outputs by a tree and by other bounds")
    lower[:, points], upper[:, points] = met.lower, met.upper
    return Interval(lower, upper)


def decide(cells: Cover, decision: Decision, limits: Limits) -> Decided:
    """Search until the prediction at every point is proved safe, lost to a real training, or a limit comes.

    Nobody touches the points: ``decision.forms.inputs`` has one value for each of them.
    """
    forms = decision.forms
    asked = Asked(forms.inputs.lower[0], forms.coefficients, forms.constant, decision.margin)
    return Search(cells.run, asked, cells.selections, limits).run()
