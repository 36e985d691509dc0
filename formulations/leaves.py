"""Leaves of the graph: parameters, constants and the data of a batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions
from milp_agt.core.graph import Graph, Node, Operation, Pulled, Signature, Wanted
from milp_agt.core.interval import Boxes, Interval
from milp_agt.errors import EncodingError
from milp_agt.formulations.registry import register


@dataclass(frozen=True)
class _Leaf(Operation):
    """A node without inputs; the engines bind its value, box or columns."""

    rounds_in_run = False

    shape: tuple[int, ...]
    batched = False

    def infer(self, *inputs: Signature) -> Signature:
        if inputs:
            raise EncodingError(f"A leaf '{self.key}' has no inputs", f"{len(inputs)} inputs")
        return Signature(self.shape, self.batched)

    def _unbound(self, *_: Any) -> Any:
        asked = f"A leaf '{self.key}' was evaluated, bounded or encoded"
        raise EncodingError(asked, "nothing bound to it")

    value = interval = relax = _unbound
    encode = _unbound  # type: ignore[assignment]

    def vjp(self, graph: Graph, node: Node, cotangent: Node, wanted: Wanted) -> Pulled:
        return ()


@register
@dataclass(frozen=True)
class ParameterLeaf(_Leaf):
    """A trainable tensor at the start of the step; its box is part of the reachable set."""

    key = "parameter"
    exactness = "box of the reachable set, or forms through the window"


@register
@dataclass(frozen=True)
class Features(_Leaf):
    """Features of the batch: nominal value plus a perturbation that the threat model admits."""

    key = "features"
    batched = True
    exactness = "perturbation leaf, shared over steps by a static adversary"


@register
@dataclass(frozen=True)
class Labels(_Leaf):
    """Encoded labels of the batch: nominal value plus a move that the threat model admits."""

    key = "labels"
    batched = True
    exactness = "perturbation leaf; class labels move to vertices, bounded jointly"


@register
@dataclass(frozen=True)
class SelectionLeaf(_Leaf):
    """How much of each sample of the batch is exchanged for something else, in [0, 1]: (n, 1)."""

    key = "selection"
    batched = True
    exactness = "one number for each sample, of which the budget are above 0"


@register
@dataclass(frozen=True, eq=False)
class Constant(_Leaf):
    """A fixed tensor without sample axis (a frozen bias, say)."""

    tensor: Tensor
    key = "constant"
    exactness = "exact"

    @staticmethod
    def of(tensor: Tensor) -> Constant:
        return Constant(tuple(tensor.shape), tensor.detach().to(torch.float64))

    def value(self, *inputs: Tensor) -> Tensor:
        return self.tensor

    def interval(self, *inputs: Interval) -> Interval:
        return Interval.point(self.tensor.unsqueeze(0))

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        return Expression.of(self.tensor.cpu().numpy())
