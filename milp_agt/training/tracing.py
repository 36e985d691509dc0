"""From a torch model and a loss name to the graph of one training step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from milp_agt.core.graph import Graph, Node
from milp_agt.core.rounding import FLOAT64, Precision
from milp_agt.errors import InvalidInputError
from milp_agt.formulations.leaves import Labels
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.loss import LossFunction, get_loss
from milp_agt.training.clipping import clip_gradients
from milp_agt.training.layers.builder import FEATURES, Builder, supported_layers
from milp_agt.training.training import Clipping

__all__ = ["FEATURES", "LABELS", "SELECTION", "StepGraph", "supported_layers", "trace"]

LABELS = "labels"
LOSS_GRADIENT = "loss_gradient"
SELECTION = "selection"


@dataclass(frozen=True)
class StepGraph:
    """Forward pass, loss gradient and parameter gradients of one step, as one graph.

    Attributes:
        graph: all nodes; the sample axis is open, so one graph serves batches of any size.
        loss: the loss whose gradient stands in the graph.
        parameters: names of the trainable parameters (as in ``state_dict``), each a leaf of the graph.
        gradients: for each parameter, the node with the *sum* over the batch of its gradients.
        output: name of the node with the model's output.
        initial: initial values of the trainable parameters, float64.
        aliases: further names in ``state_dict`` of a shared parameter -> its name here.
        model: a copy of the traced model.
        clipping: how the gradient of each sample is clipped before the sums, or None. With it, the
            inputs of the sums of ``gradients`` have no norm (no coordinate) above ``clipping.bound``.
        precision: of the run; other than float64 the graph has its roundings as nodes
            (:func:`milp_agt.training.precision.in_precision`).
        frozen: parameters that are constants, under their names in ``state_dict``.
    """

    graph: Graph
    loss: LossFunction
    parameters: tuple[str, ...]
    gradients: Mapping[str, str]
    output: str
    initial: Mapping[str, Tensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    model: nn.Module = field(default_factory=nn.Sequential, repr=False)
    clipping: Clipping | None = None
    precision: Precision = FLOAT64

    def to(self, device: torch.device) -> StepGraph:
        """The same graph with its constants on a device; initial values stay where they are."""
        return replace(self, graph=self.graph.to(device))

    @property
    def outputs(self) -> int:
        return self.graph[self.output].shape[0]

    @property
    def gradient_nodes(self) -> tuple[tuple[str, Node], ...]:
        """The node of the summed gradient of every parameter."""
        return tuple((name, self.graph[self.gradients[name]]) for name in self.parameters)

    @property
    def parameter_count(self) -> int:
        return sum(self.graph[name].signature.size for name in self.parameters)


def trace(
    model: nn.Module,
    loss: str,
    feature_shape: tuple[int, ...],
    clipping: Clipping | None = None,
    precision: Precision = FLOAT64,
) -> StepGraph:
    """The graph of one training step of ``model`` (copied, never changed).

    The gradient is built by reverse mode over the nodes of the forward pass, and clipped sample by
    sample if ``clipping`` is given; a run of ``precision`` clips up to its own rounding.

    Raises:
        UnsupportedOperationError: a layer or loss without a rule; lists what is supported.
        InvalidInputError: sizes that do not fit, NaN weights, nothing to train.
    """
    tracer = Builder(copy.deepcopy(model), feature_shape)
    tracer.layer(tracer.model, "")
    graph, output = tracer.graph, tracer.current
    if not tracer.initial:
        raise InvalidInputError(
            "A training run needs at least one trainable parameter",
            f"{len(tracer.frozen)} frozen ones",
            "set requires_grad=True on a layer that the output depends on",
        )
    if len(output.shape) != 1:
        raise InvalidInputError(
            "A model must give one vector for each sample",
            f"an output of shape {output.shape}",
            "end it with nn.Flatten() and nn.Linear",
        )
    chosen = get_loss(loss)
    chosen.classes(output.shape[0])
    forward = tuple(graph)
    width = output.shape[0]
    labels = graph.add(Labels((width,)), name=LABELS)
    cotangents = {output.name: chosen.gradient(graph, output, labels)}
    gradients = _reverse_mode(graph, forward, cotangents, set(tracer.initial))
    if clipping is not None:
        gradients = clip_gradients(
            graph, {n: gradients[n] for n in tracer.initial}, clipping, precision
        )
    return StepGraph(
        graph=graph,
        loss=chosen,
        parameters=tuple(tracer.initial),
        gradients=gradients,
        output=output.name,
        initial=tracer.initial,
        aliases=tracer.aliases,
        frozen=tracer.frozen,
        model=tracer.model,
        clipping=clipping,
    )


def _reverse_mode(
    graph: Graph, forward: tuple[Node, ...], cotangents: dict[str, Node], trainable: set[str]
) -> dict[str, str]:
    """Append the gradient nodes of all trainable parameters; returns their names by parameter."""
    depends = set(trainable)
    for node in forward:
        if depends & set(node.inputs):
            depends.add(node.name)
    for node in reversed(forward):
        cotangent = cotangents.get(node.name)
        if cotangent is None or not node.inputs:
            continue
        wanted = tuple(name in depends for name in node.inputs)
        if not any(wanted):
            continue
        pulled = node.op.vjp(graph, node, cotangent, wanted)
        for name, term in zip(node.inputs, pulled, strict=True):
            if term is None or name not in depends:
                continue
            known = cotangents.get(name)
            cotangents[name] = (
                term if known is None else Combine.build(graph, [(1.0, known), (1.0, term)])
            )
    missing = trainable - set(cotangents)
    if missing:
        raise InvalidInputError(
            "Every trainable parameter must influence the output",
            f"{sorted(missing)} do not",
            "freeze them with requires_grad=False",
        )
    return {name: cotangents[name].name for name in trainable}
