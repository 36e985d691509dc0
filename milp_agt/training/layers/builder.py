"""The graph of a forward pass while it is being built, and the registry of layer handlers."""

from __future__ import annotations

import copy
import importlib
import itertools
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from milp_agt.core.graph import Graph, Node, Operation
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.formulations.leaves import Features, ParameterLeaf
from milp_agt.training.torch_names import replacement

FEATURES = "features"

Handler = Callable[["Builder", Any, str], object]
# What stands in for a layer that has no gradient.
_SMOOTHER = {"MaxPool2d": "AvgPool2d, or a convolution with a stride,"}


@dataclass(frozen=True)
class LayerRule:
    """What is known of a kind of layer; see :func:`handles`."""

    append: Handler
    saved: tuple[str, ...]
    name: str
    frozen_only: bool


_RULES: dict[type[nn.Module], LayerRule] = {}


def handles(
    *kinds: type[nn.Module], saved: tuple[str, ...] = (), name: str = "", frozen_only: bool = False
) -> Callable[[Handler], Handler]:
    """Decorator: enter a function that appends the nodes of such layers.

    Args:
        saved: arguments of the constructor; the layer has attributes of the same names.
        name: of an activation without arguments, for ``activation`` of run files.
        frozen_only: they have no gradient, and stand where nothing before them is trained.
    """

    def enter(handler: Handler) -> Handler:
        for kind in kinds:
            _RULES[kind] = LayerRule(handler, saved, name, frozen_only)
        return handler

    return enter


def layer_rules() -> dict[type[nn.Module], LayerRule]:
    """Every registered rule. All modules of this package are imported first."""
    import milp_agt.training.layers as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    return _RULES


def activations() -> dict[str, type[nn.Module]]:
    """The activations that a run file names."""
    return {rule.name: kind for kind, rule in layer_rules().items() if rule.name}


def supported_layers() -> tuple[str, ...]:
    return ("Sequential", *sorted(kind.__name__ for kind in layer_rules()))


def frozen_only_layers() -> tuple[str, ...]:
    """Names of the layers behind which nothing may be trained, where they stand."""
    return tuple(sorted(kind.__name__ for kind, rule in layer_rules().items() if rule.frozen_only))


@dataclass(frozen=True)
class Unknown:
    """A value that something without a rule gave; what is computed from it is unknown, too."""

    source: str


class Builder:
    """Walks the layers of a model and appends their nodes; ``current`` is the last one.

    What has no rule is noted, and the walk goes on with an unknown value (``lost``), so that
    :meth:`finish` can say everything at once. ``forward`` builds modules with a forward of their own.
    """

    def __init__(
        self,
        model: nn.Module,
        feature_shape: tuple[int, ...],
        forward: Callable[[Builder, nn.Module, str], None],
    ) -> None:
        self.forward, self.model, self.graph = forward, model, Graph()
        self.place, self.lost, self.own_forward = "", False, False
        self.rounded: dict[str, None] = {}  # functions of constants that float32 rounds
        self.problems: list[tuple[str, str]] = []
        self.errors: list[UnsupportedOperationError] = []
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

    def keep_the_rest(self) -> None:
        """Frozen parameters and buffers of the model that its forward does not read. Raises
        InvalidInputError: a trainable parameter that it does not read."""
        named = dict(self.model.named_parameters())
        unread = [n for n, p in named.items() if p.requires_grad and n not in self.initial]
        if unread:
            raise InvalidInputError(
                "Every trainable parameter must influence the output",
                f"{', '.join(unread)}, which the forward does not read",
                "freeze them with requires_grad_(False), or take them out of the model",
            )
        for name, parameter in named.items():
            if not parameter.requires_grad and name not in self.frozen:
                self.weight(parameter)
        buffers = dict(self.model.named_buffers())
        for name in self.model.state_dict().keys() & buffers.keys() - self.frozen.keys():
            self.buffer(buffers[name], name)

    @staticmethod
    def _finite(tensor: Tensor, what: str, remedy: str) -> Tensor:
        value = tensor.detach().to(torch.float64).clone()
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise InvalidInputError(
                f"{what} must be finite", f"{bad} NaN or infinite entries", remedy
            )
        return value

    def append(self, op: Operation, *inputs: Node, name: str | None = None) -> Node:
        """Add a node, by default on top of the current one, and make it the current one."""
        self.current = self.graph.add(op, *(inputs or (self.current,)), name=name)
        return self.current

    def free_name(self, name: str) -> str:
        """``name``, or the first of ``name#2, name#3, ...`` that is not taken."""
        names = itertools.chain([name], (f"{name}#{k}" for k in itertools.count(2)))
        return next(each for each in names if each not in self.graph)

    def note(self, what: str, remedy: str, error: UnsupportedOperationError | None = None) -> None:
        """Keep a problem for :meth:`finish`; the value of the place is lost."""
        self.problems.append((what, remedy))
        self.errors += [error] if error else []
        self.lost = True

    def finish(self) -> None:
        """See that everything had a rule. Raises UnsupportedOperationError: all that had none, each with
        what may stand in its place."""
        if len(self.problems) == 1 and self.errors:
            raise self.errors[0]
        if self.problems:
            raise UnsupportedOperationError.of("The model was to be traced", self.problems)

    def layer(self, layer: nn.Module, path: str, line: str = "") -> None:
        """Append the nodes of a layer; what has no rule is noted. Raises InvalidInputError: sizes that do
        not fit."""
        try:
            self._layer(layer, path, line)
        except UnsupportedOperationError as error:
            before = self.lost
            self.note(f"{error.asked}: {error.found}", error.remedy, error)
            if not before:
                self._stand_in(layer)

    def _stand_in(self, layer: nn.Module) -> None:
        """A leaf of the shape that a layer without a rule gives, so that what follows is looked at."""
        example = torch.zeros(2, *self.current.shape, dtype=torch.float64)
        try:
            with torch.no_grad():
                found = copy.deepcopy(layer).double().eval()(example)
        except Exception:
            return
        if isinstance(found, Tensor) and found.shape[:1] == (2,):
            shape = tuple(found.shape[1:])
            self.current = self.graph.add(Features(shape), name=self.free_name("unknown"))
            self.lost = False

    def _layer(self, layer: nn.Module, path: str, line: str) -> None:
        if type(layer).forward is nn.Sequential.forward:
            assert isinstance(layer, nn.Sequential)
            for name, child in layer._modules.items():
                if child is not None:
                    self.layer(child, f"{path}.{name}" if path else name, line)
            return
        rule = layer_rules().get(type(layer))
        if rule is None and not type(layer).__module__.startswith("torch."):
            self.own_forward = True
            if not self.lost:
                self.forward(self, layer, path)
            return
        kind = type(layer).__name__
        asked = f"Layer '{path or 'model'}' of type {kind}{line} was to be traced"
        if rule is None:
            instead = replacement(kind)
            raise UnsupportedOperationError(
                asked,
                "no rule for it",
                (f"{instead}; layers with rules: " if instead else "use ")
                + f"{', '.join(supported_layers())}, or a module with a forward of functions that are "
                "supported",
            )
        if self.lost:
            return
        before = self.graph.needed_for([self.current.name]) if rule.frozen_only else ()
        trained = [node.name for node in before if isinstance(node.op, ParameterLeaf)]
        if trained:
            raise UnsupportedOperationError(
                f"{asked} behind layers that are trained",
                f"trainable parameters {', '.join(trained)} before it, and no rule for its gradient",
                f"use {_SMOOTHER.get(kind, 'another layer')} in its place, or freeze what comes before "
                "it: layer.requires_grad_(False)",
            )
        rule.append(self, layer, path)
