"""What a run in reduced precision rounds: a node after each operation, off by what one rounding can do."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions
from milp_agt.core.graph import LinearBounds, Operation, Signature
from milp_agt.core.interval import Boxes, Interval, as_array
from milp_agt.core.rounding import Precision
from milp_agt.formulations.registry import ElementwisePlanes, register


class RunError(Protocol):
    """An operation or a loss, as far as its rounding is concerned."""

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor: ...


@register
@dataclass(frozen=True, eq=False)
class RunRounding(Operation):
    """``v = u_0 + d`` with ``|d|`` at most the error of the run in computing ``u_0`` from ``u_1, u_2, ...``.

    ``u_0`` is the exact value of an operation at the numbers that the run holds, and v is what the run
    makes of it. So every rule of the operation stays what it is, and the precision of the run
    stands here alone. The errors of a sample and of a step are any numbers in these bounds.

    Proof that the graph holds the run: by induction over the nodes, the numbers of the run are values
    of the graph, each with ``d = fl(f(u)) - f(u)``, which :meth:`Operation.run_error` bounds on the
    boxes that the ``u`` lie in. Rules of all levels hold for every value of ``d``.

    Beyond ``precision.largest`` a number may have overflowed: the error then is infinite. Since an error is
    at least u times the sum of the terms, it tells how large they were.

    Attributes:
        rule: bounds the error, given the boxes of the operands.
        factor: how many times as large it may be, where a sum goes on over the samples in any order.
    """

    rule: RunError
    precision: Precision
    factor: float = 1.0
    key = "run_rounding"
    rounds_in_run = False
    exactness = "exact up to the rounding of a run in reduced precision, by the sizes of all terms"

    def infer(self, *inputs: Signature) -> Signature:
        return inputs[0]

    def value(self, *inputs: Tensor) -> Tensor:
        return inputs[0]

    def error(self, *inputs: Interval) -> Tensor:
        """Bound of ``|d|``, (states, [n], *shape); infinite where nothing is known."""
        found = self.rule.run_error(self.precision, *inputs[1:]) * self.factor
        known = found <= self.precision.largest * self.precision.unit
        return torch.where(known, found, torch.inf)

    def interval(self, *inputs: Interval) -> Interval:
        return inputs[0].widen(self.error(*inputs))

    def relax(self, *inputs: Interval) -> LinearBounds:
        error = self.error(*inputs)
        size = (inputs[0].magnitude + error).amax(0)
        return ElementwisePlanes(1.0, 1.0, -error, error, size, len(inputs) - 1)

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        return inputs[0].plus_error(as_array(self.error(*ranges).amax(0)))
