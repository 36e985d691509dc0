"""From a torch model and a loss name to the graph of one training step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from milp_agt.core.graph import Graph, Node
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.leaves import Features, Labels, Parameter
from milp_agt.formulations.linear import Affine, Combine, Reshape
from milp_agt.formulations.loss import Loss, get_loss
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.tanh import Tanh

FEATURES = "features"
LABELS = "labels"


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
        frozen: parameters that are constants, under their names in ``state_dict``.
    """

    graph: Graph
    loss: Loss
    parameters: tuple[str, ...]
    gradients: Mapping[str, str]
    output: str
    initial: Mapping[str, Tensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    model: nn.Module = field(default_factory=nn.Sequential, repr=False)

    def to(self, device: torch.device) -> StepGraph:
        """The same graph with its constants on a device; initial values stay where they are."""
        return replace(self, graph=self.graph.to(device))

    @property
    def outputs(self) -> int:
        return self.graph[self.output].shape[0]

    @property
    def parameter_count(self) -> int:
        return sum(self.graph[name].signature.size for name in self.parameters)


class _Tracer:
    """Walks the layers of a model and appends their nodes."""

    def __init__(self, model: nn.Module, feature_shape: tuple[int, ...]) -> None:
        self.graph = Graph()
        self.model = model
        self.current = self.graph.add(Features(feature_shape), name=FEATURES)
        self.names: dict[int, str] = {}
        self.aliases: dict[str, str] = {}
        self.initial: dict[str, Tensor] = {}
        self.frozen: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters(remove_duplicate=False):
            first = self.names.setdefault(id(parameter), name)
            if first != name:
                self.aliases[name] = first

    def weight(self, parameter: Tensor) -> Node | Tensor:
        """The node of a trainable parameter, or the value of a frozen one."""
        name = self.names[id(parameter)]
        value = parameter.detach().to(torch.float64).clone()
        if not bool(torch.isfinite(value).all()):
            raise InvalidInputError(
                f"Parameter '{name}' must be finite",
                f"{int((~torch.isfinite(value)).sum())} NaN or infinite entries",
                "initialise the model anew",
            )
        if not parameter.requires_grad:
            self.frozen[name] = value
            return value
        if name in self.graph:
            return self.graph[name]
        self.initial[name] = value
        return self.graph.add(Parameter(tuple(value.shape)), name=name)

    def linear(self, layer: nn.Linear, path: str) -> None:
        source = self.current
        if len(source.shape) != 1 or source.shape[0] != layer.in_features:
            raise InvalidInputError(
                f"Layer '{path}' is Linear({layer.in_features}, {layer.out_features})",
                f"an input of shape {source.shape} for each sample",
                "add nn.Flatten() before it, or match the sizes",
            )
        weight = self.weight(layer.weight)
        has_bias = isinstance(layer.bias, Tensor)
        bias: Node | Tensor | None = self.weight(layer.bias) if has_bias else None
        name = self._free(f"{path}:z")
        if isinstance(weight, Tensor):
            product = self.graph.add(Affine(weight), source)
        else:
            product = self.graph.add(Einsum("hd,nd->nh"), weight, source)
        if bias is None:
            self.current = product
        elif isinstance(bias, Tensor):
            self.current = Combine.build(self.graph, [(1.0, product)], bias, name=name)
        else:
            self.current = Combine.build(self.graph, [(1.0, product), (1.0, bias)], name=name)

    def _free(self, name: str) -> str:
        copies = 1
        candidate = name
        while candidate in self.graph:
            copies += 1
            candidate = f"{name}#{copies}"
        return candidate

    def flatten(self, layer: nn.Flatten, path: str) -> None:
        rank = len(self.current.shape)
        start = layer.start_dim - 1 if layer.start_dim > 0 else rank + layer.start_dim
        end = layer.end_dim - 1 if layer.end_dim > 0 else rank + layer.end_dim
        if layer.start_dim == 0 or start < 0 or end >= rank:
            raise UnsupportedOperationError(
                f"Layer '{path}' flattens dimensions {layer.start_dim} to {layer.end_dim}",
                f"an input of shape {self.current.shape} for each sample",
                "leave the sample axis (0) alone and stay within the input",
            )
        if start < end:
            before = self.current.shape
            merged = 1
            for extent in before[start : end + 1]:
                merged *= extent
            after = (*before[:start], merged, *before[end + 1 :])
            self.current = self.graph.add(Reshape(before, after), self.current)

    def relu(self, layer: nn.ReLU, path: str) -> None:
        self.current = self.graph.add(Relu(), self.current, name=self._free(f"{path}:h"))

    def leaky_relu(self, layer: nn.LeakyReLU, path: str) -> None:
        op = Relu(float(layer.negative_slope))
        self.current = self.graph.add(op, self.current, name=self._free(f"{path}:h"))

    def sigmoid(self, layer: nn.Sigmoid, path: str) -> None:
        self.current = self.graph.add(Sigmoid(), self.current, name=self._free(f"{path}:h"))

    def tanh(self, layer: nn.Tanh, path: str) -> None:
        self.current = self.graph.add(Tanh(), self.current, name=self._free(f"{path}:h"))

    def layer(self, layer: nn.Module, path: str) -> None:
        if layer._forward_hooks or layer._forward_pre_hooks or "forward" in layer.__dict__:
            raise UnsupportedOperationError(
                f"Layer '{path or 'model'}' was to be traced",
                "a forward hook or a replaced forward, whose effect the graph cannot see",
                "remove it from the model",
            )
        if type(layer).forward is nn.Sequential.forward:
            assert isinstance(layer, nn.Sequential)
            for name, child in layer._modules.items():
                self.layer(child, f"{path}.{name}" if path else name)
            return
        handler = _LAYERS.get(type(layer))
        if handler is None:
            raise UnsupportedOperationError(
                f"Layer '{path or 'model'}' of type {type(layer).__name__} was to be traced",
                "no rule for it",
                f"use nn.Sequential of {', '.join(supported_layers())}",
            )
        handler(self, layer, path)


_LAYERS: dict[type[nn.Module], Callable[[_Tracer, nn.Module, str], None]] = {
    nn.Linear: _Tracer.linear,  # type: ignore[dict-item]
    nn.Flatten: _Tracer.flatten,  # type: ignore[dict-item]
    nn.ReLU: _Tracer.relu,  # type: ignore[dict-item]
    nn.LeakyReLU: _Tracer.leaky_relu,  # type: ignore[dict-item]
    nn.Sigmoid: _Tracer.sigmoid,  # type: ignore[dict-item]
    nn.Tanh: _Tracer.tanh,  # type: ignore[dict-item]
}


def supported_layers() -> tuple[str, ...]:
    return ("Sequential", *sorted(layer.__name__ for layer in _LAYERS))


def trace(model: nn.Module, loss: str, feature_shape: tuple[int, ...]) -> StepGraph:
    """The graph of one training step of ``model`` (copied, never changed).

    The gradient is built by reverse mode over the nodes of the forward pass.

    Raises:
        UnsupportedOperationError: a layer or loss without a rule; lists what is supported.
        InvalidInputError: sizes that do not fit, NaN weights, nothing to train.
    """
    tracer = _Tracer(copy.deepcopy(model), feature_shape)
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
