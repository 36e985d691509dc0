"""Boxes of parameters as users see them, and a tree that narrows them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from milp_agt.bounds.cells.ends import box_of_parameters
from milp_agt.bounds.cells.search import Limits
from milp_agt.bounds.step import State
from milp_agt.core.reachable import ReachableSet
from milp_agt.errors import InvalidInputError
from milp_agt.properties.models import ReachableModels
from milp_agt.training.tracing import StepGraph


def narrowed(models: ReachableModels, known: ReachableSet, seconds: float) -> ReachableSet:
    """A reachable set met with the box of a search of so many seconds.

    Raises:
        InvalidInputError: models without a tree.
        SoundnessError: an empty meet.
    """
    if models.tree is None:
        raise InvalidInputError(
            "A reachable set is narrowed by a tree",
            "a result without one: of tree = 0, before the last step, or loaded from a file",
            "certify with tree = 60, say",
        )
    found = box_of_parameters(models.tree, Limits(seconds))
    state = models.state
    met = {
        name: found[name].meet(state[name], f"'{name}' by a tree and by steps") for name in found
    }
    box = reachable_of(models.step_graph, {**state, **met}, models.nominal)
    lower = {name: np.maximum(box.lower[name], known.lower[name]) for name in box.lower}
    upper = {name: np.minimum(box.upper[name], known.upper[name]) for name in box.upper}
    return ReachableSet(lower, upper, known.nominal, known.trainable)


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
