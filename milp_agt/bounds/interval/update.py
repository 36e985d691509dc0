"""The optimiser step as a small graph from the state and the summed gradients to the next state."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from milp_agt.bounds.step import State, Step, velocity_of
from milp_agt.core.graph import Graph, Node, boxes_of
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import FLOAT64, Precision
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.clip_factor import ClipFactor, Shorten
from milp_agt.formulations.leaves import ParameterLeaf
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.optimiser_step import OptimiserStep
from milp_agt.formulations.run_rounding import RunRounding
from milp_agt.formulations.sign import Sign
from milp_agt.formulations.squared_norm import SquaredNorm
from milp_agt.training.training import NORM_SHIFT


@dataclass(frozen=True)
class UpdateGraph:
    """The optimiser step after the gradients are summed; none of its nodes has a sample axis.

    A new kind of step is built here, from operations that have all their rules.

    Attributes:
        nodes: from old state and sums to the new state before projection.
        outputs: for each tensor of the state, the node with its new value before projection.
        projections: for each projected parameter, the node that projects it. It comes last and acts on
            each entry separately, so it maps a box to a box. Engines bound the state before it; once
            that box is final, they relax the projection on it for later steps.
    """

    nodes: tuple[Node, ...]
    outputs: Mapping[str, str]
    projections: Mapping[str, Node] = field(default_factory=dict)

    @staticmethod
    def of(gradients: Sequence[tuple[str, Node]], step: Step, precision: Precision) -> UpdateGraph:
        """The update of a step; ``gradients`` are the nodes of the sums by parameter.

        In a run of reduced ``precision`` a node with its rounding comes after each new value.
        """
        graph, outputs, projections = Graph(), {}, {}
        nodes: list[Node] = []
        if step.update.clip_total is not None:
            gradients, nodes = _clipped(graph, gradients, step, step.update.clip_total, precision)
        for name, gradient in gradients:
            operands = [_leaf(graph, name, gradient.shape)]
            if step.has_velocity:
                operands.append(_leaf(graph, velocity_of(name), gradient.shape))
            operands.append(_leaf(graph, gradient.name, gradient.shape))
            if step.update.l1:
                operands.append(graph.add(Sign(), operands[0], name=f"{name}:sign"))
                nodes.append(operands[-1])
            rank = len(gradient.shape)
            own = step.of(name)
            rules = [(name, own.theta_scalars, own.theta_sizes, 1.0)]
            if own.has_velocity:
                scalars = own.velocity_scalars
                rules.append((velocity_of(name), scalars, own.velocity_sizes, 0.0))
            for target, scales, sizes, kept in rules:
                op = OptimiserStep.of(scales, sizes, rank, kept)
                nodes.append(graph.add(op, *operands, name=f"{target}:next"))
                if precision != FLOAT64:
                    name_rounded = f"{target}:next:{precision.name}"
                    rounding = RunRounding(op, precision)
                    nodes.append(graph.add(rounding, nodes[-1], *operands, name=name_rounded))
                outputs[target] = nodes[-1].name
            if step.update.projection is not None:
                projections[name] = graph.add(
                    Clip(*step.update.projection), graph[outputs[name]], name=f"{name}:projected"
                )
        return UpdateGraph(tuple(nodes), outputs, projections)

    def boxes(self, state: State, ranges: Mapping[str, Interval]) -> dict[str, Interval]:
        """Boxes of the old state, of the sums in ``ranges``, and of all nodes before projection."""
        return boxes_of(self.nodes, {**ranges, **state})

    def projected(self, state: State) -> State:
        """The box of the next state from its box before projection: exact, entry by entry."""
        return {
            name: self.projections[name].op.interval(box) if name in self.projections else box
            for name, box in state.items()
        }


def _clipped(
    graph: Graph,
    gradients: Sequence[tuple[str, Node]],
    step: Step,
    clip: float,
    precision: Precision,
) -> tuple[list[tuple[str, Node]], list[Node]]:
    """The mean gradients, scaled down to a norm over all of them; and all nodes of that, in order.

    The factor is one number, through which all parameters depend on each other.
    """
    nodes: list[Node] = []

    def rounded(node: Node, *operands: Node) -> Node:
        """What a run of reduced precision makes of a node; twice the error, for the mean is rounded, too."""
        nodes.append(node)
        if precision != FLOAT64:
            rounding = RunRounding(node.op, precision, 2.0)
            name = f"{node.name}:{precision.name}"
            nodes.append(graph.add(rounding, node, *operands, name=name))
        return nodes[-1]

    means = []
    for name, gradient in gradients:
        mean = Combine((1.0 / step.count,), None, (False,), len(gradient.shape))
        leaf = _leaf(graph, gradient.name, gradient.shape)
        means.append(graph.add(mean, leaf, name=f"{name}:mean"))
        nodes.append(means[-1])
    norm = SquaredNorm(tuple(len(g.shape) for g in means), batched=False)
    square = rounded(graph.add(norm, *means, name="total:squared_norm"), *means)
    shorten = graph.add(ClipFactor(clip, NORM_SHIFT), square, name="total:factor")
    factor = rounded(shorten, square)
    size = sum(g.signature.size for g in means)
    cap = clip * (1.0 + precision.gamma(4 * size + 64))
    clipped = []
    for (name, _), own in zip(gradients, means, strict=True):
        axes = "abcdef"[: len(own.shape)]
        product = graph.add(
            Shorten(f"{axes},z->{axes}", cap=cap), own, factor, name=f"{name}:shortened"
        )
        clipped.append((name, rounded(product, own, factor)))
    return clipped, nodes


def _leaf(graph: Graph, name: str, shape: tuple[int, ...]) -> Node:
    return graph[name] if name in graph else graph.add(ParameterLeaf(shape), name=name)
