"""The graph of a step as a run in reduced precision takes it, and what such a run must be made of."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from milp_agt.core.graph import Graph, Node
from milp_agt.core.rounding import FLOAT64, Precision
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.linear import Affine, Reshape
from milp_agt.formulations.loss import LossFunction
from milp_agt.formulations.run_rounding import RunRounding
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import LABELS, LOSS_GRADIENT, StepGraph
from milp_agt.training.training import Training

COVERED = (
    "Linear, Flatten, Identity, ReLU, LeakyReLU, Sigmoid, Tanh, BatchNorm with kept statistics, and "
    "per-sample clipping"
)


def in_precision(step_graph: StepGraph, precision: Precision, batch: int) -> StepGraph:
    """The step graph whose values are those of a run of a precision; as it is for float64.

    A :class:`RunRounding` comes after every operation of the forward and of the backward pass that rounds,
    and one after the gradient of the loss, which torch computes in a way of its own.

    Args:
        batch: the most samples of a batch.

    Raises:
        UnsupportedOperationError: operations whose rounding is not bounded in that precision, all of
            them by name.
    """
    if precision == FLOAT64:
        return step_graph
    old = step_graph.graph
    _refuse_unknown(old, step_graph.loss, precision)
    if step_graph.rounded:
        raise UnsupportedOperationError(
            f"A run in {precision.name} was to be certified",
            f"a forward that computes {', '.join(step_graph.rounded)} of constants alone, which "
            f"{precision.name} rounds in every step",
            "compute it once, in __init__, and keep it as a buffer; or certify the run in float64",
        )
    forward = {node.name for node in old.needed_for([step_graph.output])}
    loss = {node.name for node in old.needed_for([LOSS_GRADIENT])} - forward
    graph = Graph()
    new: dict[str, Node] = {}
    for node in old:
        operands, op = [new[name] for name in node.inputs], node.op
        bounded = op.within(precision, batch) if isinstance(op, SumSamples) else op
        made = new[node.name] = graph.add(bounded, *operands, name=node.name)
        rounding = None
        if node.name == LOSS_GRADIENT:
            rounding = RunRounding(step_graph.loss, precision)
            operands = [new[step_graph.output], new[LABELS]]
        elif node.name not in loss and op.rounds_in_run and not _is_summed_term(old, node):
            factor = 2.0 * batch if _goes_on_summing(old, node) else 1.0
            rounding = RunRounding(op, precision, factor)
        if rounding is not None:
            name = f"{node.name}:{precision.name}"
            new[node.name] = graph.add(rounding, made, *operands, name=name)
    return replace(
        step_graph,
        graph=graph,
        gradients={n: new[g].name for n, g in step_graph.gradients.items()},
        output=new[step_graph.output].name,
        precision=precision,
    )


def _readers(graph: Graph, node: Node) -> list[Node]:
    return [graph[name] for name in graph.nx.successors(node.name)]


def _is_summed_term(graph: Graph, node: Node) -> bool:
    """A plain product that nothing but sums over the samples reads: they cover its one rounding."""
    readers = _readers(graph, node)
    product = isinstance(node.op, Einsum) and not node.op.contracted
    return product and bool(readers) and all(isinstance(r.op, SumSamples) for r in readers)


def _goes_on_summing(graph: Graph, node: Node) -> bool:
    """A sum within each sample that may be one sum with that over the samples, in any order."""
    if not isinstance(node.op, (Affine, Einsum)):
        return False
    reached = [node]
    while reached:
        readers = [r for found in reached for r in _readers(graph, found)]
        if any(isinstance(r.op, SumSamples) for r in readers):
            return True
        reached = [r for r in readers if isinstance(r.op, Reshape)]
    return False


def _refuse_unknown(graph: Graph, loss: LossFunction, precision: Precision) -> None:
    unknown = dict.fromkeys(n.op.key for n in graph if n.op.rounds_in_run is None)
    if not loss.rounds_in_run:
        unknown[f"loss {loss.key}"] = None
    if unknown:
        raise UnsupportedOperationError(
            f"A run in {precision.name} was to be certified",
            f"no bound of the rounding of {', '.join(unknown)} in that precision (convolutions may be "
            "computed by fast algorithms, whose errors are not those of a sum of products)",
            f"train with {COVERED}, or certify the run in float64",
        )


def check_float32(
    step_graph: StepGraph, training: Training, features: Tensor, labels: Tensor, poison: Poison
) -> None:
    """See that all that a float32 run begins with is made of float32 numbers.

    Args:
        features, labels: of the data as given, float64.

    Raises:
        InvalidInputError: numbers that float32 would round, so that the run would start from others.
        UnsupportedOperationError: torch is set to make float32 products in less than float32, or a threat
            to whole samples, whose means are rounded in ways that are not bounded in float32.
    """
    asked = "A run in float32 was to be certified"
    if poison.whole is not None:
        raise UnsupportedOperationError(
            asked,
            f"a threat under which whole samples are {poison.whole.value}, whose rounding in float32 is "
            "not bounded",
            "bound the changes with FeaturePoisoning or LabelPoisoning, or certify the run in float64",
        )
    kept = torch.get_float32_matmul_precision()
    if kept != "highest":
        raise UnsupportedOperationError(
            asked,
            f"torch.get_float32_matmul_precision() = '{kept}', with which float32 products are made in "
            "TF32 or bfloat16",
            "train and certify under torch.set_float32_matmul_precision('highest')",
        )
    data = {"features": features, "labels": labels}
    weights = {**step_graph.initial, **step_graph.frozen}
    model = {f"parameter '{name}'": value for name, value in weights.items()}
    for what, tensor in (data | model).items():
        off = tensor.to(torch.float32).to(torch.float64) != tensor
        remedy = "hand over the model that the run trains: model.float()"
        if what in data:
            remedy = f"hand over those that the run holds: {what}.astype('float32'), or dataset.in_float32()"
        if bool(off.any()):
            raise InvalidInputError(
                f"In a float32 run the {what} are float32 numbers"
                if what in data
                else f"In a float32 run {what} is made of float32 numbers",
                f"{int(off.sum())} of {off.numel()} that are none, for instance "
                f"{float(tensor[off][0])!r}",
                remedy,
            )
    limits = list(training.projection or ())
    clips = (n.op for n in step_graph.graph if isinstance(n.op, Clip))
    limits += [limit for op in clips for limit in (op.low, op.high)]
    for limit in limits:
        near = float(torch.tensor(limit, dtype=torch.float64).float())
        if near != limit:
            raise InvalidInputError(
                f"A float32 run was to clamp to {limit!r}",
                f"no float32 number: the run clamps to {near!r}",
                f"give {near!r} as the limit, in training and here",
            )


def rounded_to(tensor: Tensor, precision: Precision) -> Tensor:
    """Numbers as a run of a precision reads them; rounding is monotone, so that ends of boxes stay ends.
    Raises InvalidInputError: numbers that overflow."""
    if precision == FLOAT64:
        return tensor
    found = tensor.to(torch.float32).to(torch.float64)
    if not bool(torch.isfinite(found).all()):
        raise InvalidInputError(
            f"Test inputs of a {precision.name} model",
            "numbers beyond its range",
            "scale the features",
        )
    return found
