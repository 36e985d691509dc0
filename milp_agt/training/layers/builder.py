"""The graph of a forward pass while it is being built, and the registry of layer handlers."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable

import torch
from torch import Tensor, nn

from milp_agt.core.graph import Graph, Node, Operation
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.formulations.leaves import Features, ParameterLeaf

FEATURES = "features"

Handler = Callable[["Builder", nn.Module, str], None]
_HANDLERS: dict[type[nn.Module], Handler] = {}
# What stands in for a layer that has no gradient.
_SMOOTHER = {"MaxPool2d": "AvgPool2d, or a convolution with a stride,"}
_FROZEN_ONLY: set[type[nn.Module]] = set()


def handles(*kinds: type[nn.Module], frozen_only: bool = False) -> Callable[[Handler], Handler]:
    """Decorator: enter a function that appends the nodes of such layers.

    With ``frozen_only`` they have no gradient, and stand where nothing before them is trained.
    """

    def enter(handler: Handler) -> Handler:
        for kind in kinds:
            _HANDLERS[kind] = handler
        if frozen_only:
            _FROZEN_ONLY.update(kinds)
        return handler

    return enter


def handlers() -> dict[type[nn.Module], Handler]:
    """Every registered handler. All modules of this package are imported first."""
    import milp_agt.training.layers as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _HANDLERS


def supported_layers() -> tuple[str, ...]:
    return ("Sequential", *sorted(kind.__name__ for kind in handlers()))


def frozen_only_layers() -> tuple[str, ...]:
    """Names of the layers behind which nothing may be trained, where they stand."""
    handlers()
    return tuple(sorted(kind.__name__ for kind in _FROZEN_ONLY))


class Builder:
    """Walks the layers of a model and appends their nodes; ``current`` is the last one."""

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
        if id(parameter) not in self.names:
            raise UnsupportedOperationError(
                "Every weight of a layer is a parameter of the model",
                f"a tensor of shape {tuple(parameter.shape)} in the place of one, which no optimiser "
                "is given",
                "store it as nn.Parameter, with requires_grad=False where it is not trained",
            )
        name = self.names[id(parameter)]
        value = self._finite(parameter, f"Parameter '{name}'", "initialise the model anew")
        if not parameter.requires_grad:
            self.frozen[name] = value
            return value
        if name in self.graph:
            return self.graph[name]
        self.initial[name] = value
        return self.graph.add(ParameterLeaf(tuple(value.shape)), name=name)

    def optional_weight(self, parameter: Tensor | None) -> Node | Tensor | None:
        return None if parameter is None else self.weight(parameter)

    def buffer(self, value: Tensor, name: str) -> Tensor:
        """A constant of the model that is not a parameter."""
        self.frozen[name] = self._finite(value, f"Buffer '{name}'", "run the model on finite data")
        return self.frozen[name]

    @staticmethod
    def _finite(tensor: Tensor, what: str, remedy: str) -> Tensor:
        value = tensor.detach().to(torch.float64).clone()
        if not bool(torch.isfinite(value).all()):
            raise InvalidInputError(
                f"{what} must be finite",
                f"{int((~torch.isfinite(value)).sum())} NaN or infinite entries",
                remedy,
            )
        return value

    def append(self, op: Operation, *inputs: Node, name: str | None = None) -> Node:
        """Add a node, by default on top of the current one, and make it the current one."""
        self.current = self.graph.add(op, *(inputs or (self.current,)), name=name)
        return self.current

    def free_name(self, name: str) -> str:
        """``name``, or the first of ``name#2, name#3, ...`` that is not taken."""
        copies = 1
        candidate = name
        while candidate in self.graph:
            copies += 1
            candidate = f"{name}#{copies}"
        return candidate

    def layer(self, layer: nn.Module, path: str) -> None:
        """Append the nodes of a layer.

        Raises:
            UnsupportedOperationError: no rule for it.
            InvalidInputError: sizes that do not fit.
        """
        if type(layer).forward is nn.Sequential.forward:
            assert isinstance(layer, nn.Sequential)
            for name, child in layer._modules.items():
                if child is not None:
                    self.layer(child, f"{path}.{name}" if path else name)
            return
        handler = handlers().get(type(layer))
        if handler is None:
            raise UnsupportedOperationError(
                f"Layer '{path or 'model'}' of type {type(layer).__name__} was to be traced",
                "no rule for it",
                f"use nn.Sequential of {', '.join(supported_layers())}",
            )
        if type(layer) in _FROZEN_ONLY:
            self._refuse_trained(layer, path)
        handler(self, layer, path)

    def _refuse_trained(self, layer: nn.Module, path: str) -> None:
        trained = [
            node.name
            for node in self.graph.needed_for([self.current.name])
            if isinstance(node.op, ParameterLeaf)
        ]
        if trained:
            name = type(layer).__name__
            raise UnsupportedOperationError(
                f"Layer '{path or 'model'}' of type {name} was to be traced behind layers that are trained",
                f"trainable parameters {', '.join(trained)} before it, and no rule for its gradient",
                f"use {_SMOOTHER.get(name, 'another layer')} in its place, or freeze what comes before "
                "it: layer.requires_grad_(False)",
            )
