"""Points that bounds leave open, decided by trees: over samples and phases, over selections and cells."""

from __future__ import annotations

import torch
from torch import Tensor

from milp_agt.bounds.cells.goals import Asked
from milp_agt.bounds.cells.plan import Cover
from milp_agt.bounds.cells.search import Decided, Limits, Search
from milp_agt.bounds.listed import Poisoned
from milp_agt.core.interval import Interval
from milp_agt.properties.decision import Decision
from milp_agt.properties.last_forms import branched_forms
from milp_agt.properties.models import ReachableModels, both_ends


def by_branching(
    models: ReachableModels, decision: Decision, known: Interval, points: Tensor, seconds: float
) -> Interval:
    """Bounds ``known`` of the forms of a decision, (cases, n, forms), met with those that a tree over samples
    and phases proves of the zonotopes that the models lie in.

    Args:
        points: those that are searched, by position.
        seconds: after which the bounds so far count.
    """
    if models.tree is None or not len(points) or not models.carried:
        return known
    forms = decision.part(points).forms
    nominal = models.at_nominal(forms)
    # What is wrong at the nominal model is true in no case.
    wanted = torch.where(torch.cat([nominal, -nominal], 1).T.flatten() > 0.0, 0.0, -torch.inf)
    boxes = []
    for reached in models.carried:
        assert reached.forward is not None
        rows, own = models.rows_of(reached, forms), seconds / len(models.carried)
        low = branched_forms(reached.forward, rows, reached.state, wanted, own, models.tree.workers)
        boxes.append(both_ends(low, len(forms)))
    lower = torch.cat([box.lower for box in boxes]).amin(0, keepdim=True)
    upper = torch.cat([box.upper for box in boxes]).amax(0, keepdim=True)
    found = Interval(lower, upper)
    return _met(known, points, found, "a form of the outputs by branching and by other bounds")


def by_tree(
    cells: Cover, decision: Decision, known: Interval, points: Tensor, seconds: float
) -> tuple[Interval, tuple[Poisoned, ...]]:
    """The same by a search over selections and cells of moves, for points that nobody touches.

    Beside the bounds, the data sets that it trained on with the least margin of each point that it leaves
    open or finds lost: candidates for attacks.
    """
    inputs = decision.forms.inputs
    if not len(points) or not torch.equal(inputs.lower, inputs.upper):
        return known, ()
    found = decide(cells, decision.part(points), Limits(seconds))
    met = _met(known, points, found.bounds, "a form of the outputs by a tree and by other bounds")
    return met, _worst(cells, decision.part(points), found)


def _worst(cells: Cover, decision: Decision, found: Decided) -> tuple[Poisoned, ...]:
    """The data sets behind the least margins of points that are not proved."""
    box = Interval(found.bounds.lower[None], found.bounds.upper[None])
    worth = ~(decision.margin(box).lower[0] > 0.0) & torch.isfinite(found.reached)
    size = found.samples.shape[1]
    rows = torch.cat([found.samples[worth].to(found.moves.dtype), found.moves[worth]], 1)
    rows = rows.unique(dim=0)
    samples = rows[:, :size].to(torch.int64)
    features, labels = cells.run.moves.data(cells.run.poison, samples, rows[:, size:])
    kept = torch.ones(features.shape[1], dtype=torch.bool, device=rows.device)
    return tuple(
        Poisoned(x, y, kept, tuple(changed))
        for x, y, changed in zip(features, labels, samples.tolist(), strict=True)
    )


def _met(known: Interval, points: Tensor, found: Interval, what: str) -> Interval:
    lower, upper = known.lower.clone(), known.upper.clone()
    own = Interval(lower[:, points], upper[:, points])
    cases = Interval(found.lower.expand_as(own.lower), found.upper.expand_as(own.upper))
    met = own.meet(cases, what)
    lower[:, points], upper[:, points] = met.lower, met.upper
    return Interval(lower, upper)


def decide(cells: Cover, decision: Decision, limits: Limits) -> Decided:
    """Search until the prediction at every point is proved safe, lost to a real training, or a limit comes.

    Nobody touches the points: ``decision.forms.inputs`` has one value for each of them.
    """
    forms = decision.forms
    asked = Asked(forms.inputs.lower[0], forms.coefficients, forms.constant, decision.margin)
    return Search(cells.run, asked, cells.selections, limits).run()
