"""Which runs have first layers that are sums over clean samples, and where they stand in the graph."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from milp_agt.bounds.step import NodeOrder
from milp_agt.core.graph import Node
from milp_agt.core.restriction import Restriction
from milp_agt.core.rounding import FLOAT64
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.linear import Combine
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, LABELS, LOSS_GRADIENT, StepGraph
from milp_agt.training.training import UpdateRule


@dataclass(frozen=True)
class Gathered:
    """Where the parts of a run stand in its graph.

    Attributes:
        order: its nodes without sums and outer products over samples.
        terms: of each parameter the node whose sum over samples is its gradient, or the two factors of
            the outer product that is.
        letters: of these products.
        weight, bias: parameters of the first layer; no bias if it is bounded apart.
        output: the node with the outputs of the first layer.
        signal: the gradient of the loss at these outputs.
        on_labels: the derivative of the loss's gradient by its label, where that is one number, or 0.
        softmax: the logits of cross entropy with three and more classes, or ''.
        layers: of nodes with the outputs of dense layers the weight, its inputs, and the bias or ''.
    """

    order: NodeOrder
    terms: Mapping[str, Sequence[str]]
    letters: Mapping[str, tuple[str, str, str]]
    weight: str
    bias: str
    output: str
    signal: str
    on_labels: float = 0.0
    softmax: str = ""
    layers: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)


def gathered(
    step_graph: StepGraph,
    poison: Poison,
    restriction: Restriction,
    updates: Sequence[UpdateRule],
) -> Gathered | str:
    """Where the parts of a run stand, or what of it has no rule, in words."""
    schedule = NodeOrder.of(step_graph)
    for has, what in (
        (schedule.precision != FLOAT64, f"a run in {schedule.precision.name}"),
        (poison.whole is not None or poison.label_moves is None, "threats but those to labels"),
        (poison.feature_moves is not None, "features that are poisoned"),
        (poison.per_batch, "a budget in each batch"),
        (bool(restriction.inside or restriction.outside), "samples known to be poisoned or clean"),
        (any(rule.has_momentum for rule in updates), "momentum"),
        (any(rule.l1 for rule in updates), "an l1 penalty"),
        (any(rule.clip_total is not None for rule in updates), "clipping of the total norm"),
        (any(rule.projection is not None for rule in updates), "projection"),
    ):
        if has:
            return what
    outer = schedule.outer_products
    sums = {node.name: node for node in schedule.sums}
    terms, letters = {}, {}
    for name, node in schedule.gradients:
        if node.name in outer:
            product = outer[node.name]
            assert isinstance(product.op, Einsum)
            terms[name], letters[name] = product.inputs, product.op.letters
        elif node.name in sums:
            terms[name] = node.inputs
        else:
            return f"the gradient of '{name}', which is no plain sum over samples"
    read = {name for used in terms.values() for name in used}
    made = {product.name for product in outer.values()} - read
    order = NodeOrder(
        tuple(n for n in schedule.before if n.name not in made), (), (), (), schedule.precision
    )
    for node in order.before:
        found = _first_layer(node, order, terms, letters, updates)
        if found is not None:
            plain = step_graph.loss.key == "cross_entropy" and not step_graph.loss.options
            plain = plain and f"affine/{step_graph.output}" in step_graph.graph
            softmax = step_graph.output if plain and step_graph.outputs > 2 else ""
            layers = dict(_dense_layers(order))
            scale = _on_labels(step_graph)
            return replace(found, on_labels=scale, softmax=softmax, layers=layers)
    return "a network without a dense layer on the data"


def _first_layer(
    node: Node,
    order: NodeOrder,
    terms: Mapping[str, Sequence[str]],
    letters: Mapping[str, tuple[str, str, str]],
    updates: Sequence[UpdateRule],
) -> Gathered | None:
    """The parts around the product of a weight and the data, if a node is one whose gradient is known."""
    if not (isinstance(node.op, Einsum) and node.op.equation == "hd,nd->nh"):
        return None
    weight = node.inputs[0]
    if node.inputs[1] != FEATURES or letters.get(weight) != ("nh", "nd", "nhd"):
        return None
    signal, data = terms[weight]
    if data != FEATURES:
        return None
    for reader in order.before:
        if reader.inputs[:1] == (node.name,) and _adds_a_bias(reader):
            bias = reader.inputs[1]
            alike = all(rule.of(weight) == rule.of(bias) for rule in updates)
            if alike and terms.get(bias) == (signal,):
                return Gathered(order, terms, letters, weight, bias, reader.name, signal)
    return Gathered(order, terms, letters, weight, "", node.name, signal)


def _dense_layers(order: NodeOrder) -> Iterator[tuple[str, tuple[str, str, str]]]:
    for node in order.before:
        if isinstance(node.op, Einsum) and node.op.equation == "hd,nd->nh":
            weight, inputs = node.inputs
            yield node.name, (weight, inputs, "")
            for reader in order.before:
                if reader.inputs[:1] == (node.name,) and _adds_a_bias(reader):
                    yield reader.name, (weight, inputs, reader.inputs[1])


def _on_labels(step_graph: StepGraph) -> float:
    """The derivative of the loss's gradient by a label where it is one number whatever the outputs, or 0."""
    graph = step_graph.graph
    gradient = graph[LOSS_GRADIENT]
    op = gradient.op
    if not isinstance(op, Combine) or gradient.inputs[1:] != (LABELS,):
        return 0.0
    meets = any(node.name == LABELS for node in graph.needed_for(gradient.inputs[:1]))
    scale = op.scales[1]
    return 0.0 if meets or not isinstance(scale, float) else scale


def _adds_a_bias(node: Node) -> bool:
    op = node.op
    return (
        isinstance(op, Combine)
        and op.scales == (1.0, 1.0)
        and op.constant is None
        and op.batched == (True, False)
    )
