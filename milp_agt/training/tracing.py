"""Tracing: from a torch model and a loss name to the graph of one training step."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from milp_agt.core.graph import Graph, Node
from milp_agt.core.rounding import FLOAT64, Precision
from milp_agt.errors import EncodingError, InvalidInputError
from milp_agt.formulations.leaves import Labels
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.loss import LossFunction, get_loss
from milp_agt.training.clipping import clip_gradients
from milp_agt.training.forward import build_forward
from milp_agt.training.hidden_changes import refuse_hidden_changes
from milp_agt.training.layers.builder import FEATURES, Builder, supported_layers
from milp_agt.training.output_layer import check_last_layer, check_output, last_layer
from milp_agt.training.training import Clipping

__all__ = ["FEATURES", "LABELS", "SELECTION", "StepGraph", "supported_layers", "trace"]

LABELS = "labels"
LOSS_GRADIENT = "loss_gradient"
SELECTION = "selection"


@dataclass(frozen=True)
class StepGraph:
    """Forward pass, loss gradient and parameter gradients of one step, as one graph.

    Attributes:
        graph: all nodes; the size of the sample axis is open, so one graph serves all batch sizes.
        loss: the loss whose gradient is in the graph.
        parameters: names of the trainable parameters (as in ``state_dict``), each a leaf of the graph.
        gradients: for each parameter, the node with the *sum* over the batch of its gradients.
        output: name of the node with the model's output.
        initial: initial values of the trainable parameters, float64.
        aliases: further names in ``state_dict`` of a shared parameter -> its name here.
        model: a copy of the traced model.
        clipping: how the gradient of each sample is clipped before the sums, or None. If set, the
            inputs of the sums of ``gradients`` have a norm (coordinates) of at most ``clipping.bound``.
        precision: of the run; other than float64 the graph has its roundings as nodes
            (:func:`milp_agt.training.precision.in_precision`).
        frozen: constant parameters, under their names in ``state_dict``.
        own_forward: whether some module has a forward of the user's own, traced by torch.fx.
        rounded: functions of constants alone in such a forward whose values are others in float32.
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
    own_forward: bool = False
    precision: Precision = FLOAT64
    rounded: tuple[str, ...] = ()

    def to(self, device: torch.device) -> StepGraph:
        """The same graph with its constants on a device; initial values are not moved."""
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
    loss: str | LossFunction,
    feature_shape: tuple[int, ...],
    clipping: Clipping | None = None,
    precision: Precision = FLOAT64,
) -> StepGraph:
    """The graph of one training step of ``model`` (copied, never changed).

    The gradient is built by reverse mode over the nodes of the forward pass, and clipped sample by sample
    if ``clipping`` is given; a run of ``precision`` clips up to its own rounding. Raises
    UnsupportedOperationError: a layer or loss without a rule; hooks and whatever else changes a gradient
    or a call (:func:`refuse_hidden_changes`); InvalidInputError: sizes that do not fit, NaN weights,
    nothing to train; an activation at the end that contradicts the loss
    (:mod:`milp_agt.training.output_layer`).
    """
    refuse_hidden_changes(model)
    chosen = get_loss(loss) if isinstance(loss, str) else loss
    check_last_layer(last_layer(model), chosen.key)
    try:
        own = copy.deepcopy(model)  # shares nothing with the caller's
    except Exception as error:  # whatever a module keeps beside its parameters
        raise InvalidInputError(
            "The model is copied before it is traced",
            f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}",
            "keep only layers and parameters in it: no open files, locks, or tensors that hang on "
            "earlier computations (store these with detach())",
        ) from error
    tracer = Builder(own, feature_shape, build_forward)
    tracer.layer(tracer.model, "")
    tracer.finish()
    if tracer.own_forward:
        tracer.keep_the_rest()
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
    lonely = [n.name for n in graph if n.inputs and not n.batched]
    if lonely:  # bounds on single samples are walked back through nodes with a sample axis
        raise EncodingError("Values of a forward have a sample axis", f"{lonely} have none")
    chosen.classes(output.shape[0])
    check_output(graph, output, chosen.key)
    forward = tuple(graph)
    labels = graph.add(Labels(output.shape), name=LABELS)
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
        own_forward=tracer.own_forward,
        rounded=tuple(tracer.rounded),
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
            if term is not None and name in depends:
                known = [(1.0, cotangents[name])] if name in cotangents else []
                cotangents[name] = Combine.build(graph, [*known, (1.0, term)]) if known else term
    missing = trainable - set(cotangents)
    if missing:
        raise InvalidInputError(
            "Every trainable parameter must influence the output",
            f"{sorted(missing)} do not",
            "freeze them with requires_grad=False",
        )
    return {name: cotangents[name].name for name in trainable}
