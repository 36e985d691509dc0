"""The graph at points: values of all nodes, differentiable by torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor

from milp_agt.core.graph import Node


def evaluate(nodes: Iterable[Node], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of ``nodes`` (in topological order) and of ``leaves``, by name.

    Parameters have shape (..., *shape), features and labels (..., samples, *shape), with the same
    leading axes.
    """
    values = dict(leaves)
    for node in nodes:
        if node.name not in values:
            values[node.name] = node.op.value(*(values[name] for name in node.inputs))
    return values
