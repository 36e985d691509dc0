"""Frozen layers in front of the trainable ones, bounded once for the whole run.

A static perturbation of the input moves the outputs of these layers once for the whole run, so bounds
need not pass through them in every step: the run is certified on their outputs as features, each in
the box that the poisoned inputs can reach.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from milp_agt.bounds.frozen.patches import moves_within, refined, walked
from milp_agt.core.graph import Graph, Node, boxes_of, evaluate
from milp_agt.core.interval import Interval
from milp_agt.core.remarks import Remarks
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.convolution import Convolution
from milp_agt.formulations.leaves import Features
from milp_agt.formulations.linear import Affine, Combine, Reshape
from milp_agt.formulations.max_pool import MaxPool
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.rounding_error import RoundingError
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.tanh import Tanh
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import Box
from milp_agt.training.tracing import FEATURES, StepGraph

LINEAR = (Affine, Combine, Convolution, Reshape)
KNOWN = (*LINEAR, MaxPool, Relu, Sigmoid, Tanh)
# Most elements of boxes at once; most elements of coefficients over all samples for linear bounds.
BOXED_ELEMENTS = 2**24
WALKED_ELEMENTS = 2**33
# The latter for each layer in between: up to five minutes on one core.
REFINED_ELEMENTS = 2**32


@dataclass(frozen=True)
class Body:
    """The frozen layers: nodes from the features of a sample to the last node without a parameter."""

    nodes: tuple[Node, ...]
    output: Node

    @staticmethod
    def of(step_graph: StepGraph) -> Body | None:
        """The frozen layers of a graph if they hold a convolution or a pooling, else None.

        Dense frozen layers stay in the graph: they cost little there, and backward passes through them
        keep the shape of the set of moves, which a box of their outputs loses.
        """
        graph = step_graph.graph
        inside = {FEATURES}
        for node in graph.needed_for([step_graph.output]):
            if node.inputs and set(node.inputs) <= inside and isinstance(node.op, KNOWN):
                inside.add(node.name)
        read = {
            name
            for node in graph
            if node.name not in inside
            for name in node.inputs
            if name in inside
        }
        if len(read) != 1 or FEATURES in read:
            return None
        nodes = graph.needed_for(read)
        if not any(isinstance(node.op, (Convolution, MaxPool)) for node in nodes):
            return None
        return Body(nodes, nodes[-1])

    def value(self, features: Tensor) -> Tensor:
        """Outputs of the layers, (n, *shape)."""
        return evaluate(self.nodes, {FEATURES: features})[self.output.name]

    def boxes(self, features: Interval) -> dict[str, Interval]:
        """Boxes of all nodes."""
        return boxes_of(self.nodes, {FEATURES: features})

    def rounding(self, boxes: Mapping[str, Interval]) -> Tensor:
        """How far the float64 output may be from exact arithmetic at any point of the box, (n, *shape).

        Node by node: a linear map passes on ``|L| error``, read off the box of its image, and adds its
        own rounding, which grows with the magnitude. Other functions stretch errors by at most their
        Lipschitz constant.
        """
        error = torch.zeros_like(boxes[FEATURES].lower)
        for node in self.nodes[1:]:
            magnitude = boxes[node.inputs[0]].magnitude
            if isinstance(node.op, LINEAR):
                passed = node.op.interval(Interval(-error, error)).width
                error = 0.5 * (passed + node.op.interval(Interval.point(magnitude)).width)
            elif isinstance(node.op, MaxPool):
                error = node.op.value(error)
            else:
                steepest = 1.0
                if isinstance(node.op, Relu):
                    steepest = max(1.0, abs(node.op.negative_slope))
                assert isinstance(node.op, (Relu, Sigmoid, Tanh))
                own = node.op.rounding(magnitude, boxes[node.name].magnitude)
                error = steepest * error + own
            error = error * (1.0 + gamma(8)) + TINY
        return error[0]


def split(step_graph: StepGraph, poison: Poison) -> tuple[StepGraph, Poison, Remarks]:
    """The graph and the threat of a run on the outputs of frozen layers; unchanged if there are none.

    Nodes keep their names. The moves of a sample become the box of all features that its admissible
    inputs reach, by intervals and, if that is cheap, by linear bounds. The rounding of the layers is
    allowed again in every step. A note says how.
    """
    body = Body.of(step_graph)
    if body is None:
        return step_graph, poison, Remarks()
    largest = sum(node.signature.size for node in body.nodes)
    rows = 2 * body.output.signature.size
    moved = poison.feature_moves is not None and not poison.is_clean
    by_forms = moved and rows * largest * int(poison.open.sum()) <= WALKED_ELEMENTS
    per_layer = REFINED_ELEMENTS // max(1, int(poison.open.sum()))
    at_once = max(1, BOXED_ELEMENTS // (largest * (rows if by_forms else 4)))
    parts = [
        _bounded(body, poison.take(index), by_forms, per_layer)
        for index in torch.arange(len(poison.features)).split(at_once)
    ]
    nominal, low, high, error = (torch.cat(pieces) for pieces in zip(*parts, strict=True))
    features = replace(
        poison,
        features=nominal,
        feature_moves=Box(low.flatten(1), high.flatten(1)) if moved else None,
        domain=None,
    )
    head = replace(step_graph, graph=_headed(step_graph, body, error.amax(0)))
    if not moved:
        return head, features, Remarks()
    how = "intervals and linear forms" if by_forms else "intervals"
    note = (
        f"the frozen layers up to '{body.output.name}' were bounded once, before the first step: what a "
        f"poisoned sample can make of their output is a box by {how}"
    )
    return head, features, Remarks(notes=(note,))


def _bounded(
    body: Body, poison: Poison, by_forms: bool, per_layer: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Nominal features of some samples, the lower and upper ends of their moves, and the rounding error."""
    nominal = body.value(poison.features)
    box = poison.feature_box()
    moves = poison.feature_moves is not None
    worst = Interval(box.lower[-1:], box.upper[-1:]) if moves else box
    boxes = body.boxes(worst)
    error = body.rounding(boxes)
    reached = boxes[body.output.name]
    exposed = poison.open.nonzero()[:, 0]
    if by_forms and len(exposed):
        part = {n: box.each(lambda end: end[:, exposed]) for n, box in boxes.items()}
        what = f"'{body.output.name}' by intervals and by linear forms"
        moving = poison.take(exposed)
        part = refined(body.nodes, moving, part, per_layer)
        met = part[body.output.name].meet(walked(body.nodes, moving, part), what)
        lower, upper = reached.lower.clone(), reached.upper.clone()
        lower[:, exposed], upper[:, exposed] = met.lower, met.upper
        reached = Interval(lower, upper)
    moves_of_output = moves_within(nominal, reached)
    still = ~poison.open.reshape(-1, *[1] * (nominal.dim() - 1))
    moved = moves_of_output.each(lambda end: torch.where(still, 0.0, end))
    return nominal, moved.lower, moved.upper, error


def _headed(step_graph: StepGraph, body: Body, error: Tensor) -> Graph:
    """The graph with features in place of the frozen layers, named as their output."""
    inside = {node.name for node in body.nodes}
    graph = Graph()
    leaf = graph.add(Features(body.output.shape), name=FEATURES)
    graph.add(RoundingError(error), leaf, name=body.output.name)
    for node in step_graph.graph:
        if node.name not in inside:
            graph.add(node.op, *(graph[name] for name in node.inputs), name=node.name)
    return graph
