"""Boxes of parameters as users see them, and a tree that narrows them."""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.bounds.cells.search import Limits
from milp_agt.bounds.cells.shared import box_of_parameters
from milp_agt.bounds.step import State, union
from milp_agt.bounds.zonotope import least_by_branching
from milp_agt.core.interval import Interval
from milp_agt.core.reachable import ReachableSet
from milp_agt.errors import InvalidInputError
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.reached import Reached
from milp_agt.training.tracing import StepGraph

# Of the time, for branching on a zonotope where cells are searched, too.
SHARE = 0.3


def narrowed(models: ReachableModels, known: ReachableSet, seconds: float) -> ReachableSet:
    """A reachable set met with the boxes of searches of so many seconds.

    What the run carries as a zonotope is branched on samples and phases first, end by end; then
    selections and cells of their moves are searched, where they can be listed. Raises InvalidInputError:
    models without a tree, or without anything that it can search; SoundnessError: an empty meet.
    """
    asked, begun = "A reachable set is narrowed by a tree", time.monotonic()
    if models.tree is None:
        raise InvalidInputError(
            asked,
            "a result without one: of tree = 0, of data sets that were all trained on (it is as narrow as it "
            "can be), before the last step, or loaded from a file",
            "certify with tree = 60, say",
        )
    cells, carried = models.tree.cells, models.carried
    if cells is None and not carried:
        raise InvalidInputError(
            asked,
            "selections that cannot be listed, and a zonotope that ended before the last step",
            "use a smaller budget or radius, or fewer steps",
        )
    state = dict(models.state)
    if carried and models.tree.branches:
        granted = seconds * (1.0 if cells is None else SHARE) / len(carried)
        found = union([_branched(models, reached, granted) for reached in carried])
        state = _met(state, found, "by a tree over samples and phases and by other bounds")
    left = seconds - (time.monotonic() - begun)
    if cells is not None:
        found = box_of_parameters(cells, Limits(left), state, models.tree.workers)
        state = _met(state, found, "by a tree over cells and by other bounds")
    box = reachable_of(models.step_graph, state, models.nominal)
    lower = {name: np.maximum(box.lower[name], known.lower[name]) for name in box.lower}
    upper = {name: np.minimum(box.upper[name], known.upper[name]) for name in box.upper}
    return ReachableSet(lower, upper, known.nominal, known.trainable)


def _branched(models: ReachableModels, reached: Reached, seconds: float) -> State:
    """The box of the parameters of a zonotope by branch and bound, end by end."""
    assert reached.forward is not None
    assert models.tree is not None
    rows = models.parameter_rows(reached)
    coefficients = models.on_parameters(reached, rows)
    wanted = rows.new_full((len(rows),), torch.inf)
    low, _ = least_by_branching(reached.forward, coefficients, wanted, seconds, models.tree.workers)
    names = models.step_graph.parameters
    shapes = [reached.state[name].lower.shape[1:] for name in names]
    lower, upper = (end.split([shape.numel() for shape in shapes]) for end in low.chunk(2))
    return {
        name: Interval(down.reshape(1, *shape), -up.reshape(1, *shape))
        for name, shape, down, up in zip(names, shapes, lower, upper, strict=True)
    }


def _met(state: State, found: State, how: str) -> dict[str, Interval]:
    return {**state, **{n: found[n].meet(state[n], f"'{n}' {how}") for n in found}}


def reachable_of(
    step_graph: StepGraph, state: State, nominal: Mapping[str, Tensor]
) -> ReachableSet:
    """The box of a state with the nominal parameters, aliases and frozen ones included."""
    lower: dict[str, npt.NDArray[np.float64]] = {}
    upper: dict[str, npt.NDArray[np.float64]] = {}
    centre: dict[str, npt.NDArray[np.float64]] = {}
    for name in step_graph.parameters:
        lower[name] = state[name].lower[0].cpu().numpy()
        upper[name] = state[name].upper[0].cpu().numpy()
        centre[name] = nominal[name].cpu().numpy()
    for name, value in step_graph.frozen.items():
        lower[name] = upper[name] = centre[name] = value.cpu().numpy()
    for alias, name in step_graph.aliases.items():
        lower[alias], upper[alias], centre[alias] = lower[name], upper[name], centre[name]
    return ReachableSet(lower, upper, centre, step_graph.parameters)
