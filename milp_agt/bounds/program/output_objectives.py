"""Objectives about the model after a window: forms of its outputs at test inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.bounds.step import State
from milp_agt.core.expression import Expression, add
from milp_agt.core.graph import Node, boxes_of, evaluate
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.training.tracing import FEATURES


@dataclass(frozen=True)
class OutputObjectives:
    """Forms ``coefficients . f(x) + constant`` of the outputs f at test inputs x.

    Attributes:
        forward: the forward pass, in topological order.
        inputs: box of each test input, (1, n, *shape).
        coefficients, constant: (n, forms, outputs) and (n, forms).
    """

    forward: Sequence[Node]
    inputs: Interval
    coefficients: Tensor
    constant: Tensor

    def __len__(self) -> int:
        return len(self.constant)

    def part(self, points: Tensor) -> OutputObjectives:
        """The forms of some of the test points."""
        inputs = self.inputs.each(lambda end: end[:, points])
        return OutputObjectives(
            self.forward, inputs, self.coefficients[points], self.constant[points]
        )

    def boxes(self, state: State) -> dict[str, Interval]:
        """Ranges of all nodes of the forward pass over a box of the parameters."""
        return boxes_of(self.forward, dict(state) | {FEATURES: self.inputs})

    def at(self, states: Mapping[str, Tensor], output: str) -> tuple[Tensor, Tensor]:
        """Values for models (models, *shape) at the centres of the inputs, (models, n, forms).

        Also bounds of their rounding errors: outputs are taken as the float64 run computes them, so only
        the rounding of the forms counts.
        """
        models = len(next(iter(states.values())))
        points = self.inputs.centre[0].expand(models, *self.inputs.lower.shape[1:])
        found = evaluate(self.forward, {**states, FEATURES: points})[output]
        value = torch.einsum("nfo,mno->mnf", self.coefficients, found) + self.constant
        size = torch.einsum("nfo,mno->mnf", self.coefficients.abs(), found.abs())
        size = size + self.constant.abs()
        return value, gamma(2 * self.coefficients.shape[-1] + 16) * size + TINY

    def forms_of(self, outputs: Expression) -> Expression:
        """The forms of all test points as one flat expression of the outputs, rounding included."""
        weights = self.coefficients.detach().cpu().numpy()
        points, count, width = weights.shape
        blocks = sp.csr_matrix(sp.block_diag(list(weights), format="csr"))
        flat = outputs.reshape((points * width,)).apply(blocks, (points * count,))
        shift = self.constant.detach().cpu().numpy().reshape(-1)
        moved = add([flat, Expression.of(shift)])
        rounding = 2.0**-50 * (np.abs(shift) + np.abs(moved.constant))
        return moved.plus_error(rounding)

    def sums_of(self, outputs: Expression, largest: Tensor, weights: Tensor) -> Expression:
        """Weighted sums of the forms, one for each row of ``weights`` (rows, n, forms), rounding included.

        ``largest`` is the magnitude of the outputs, (n, outputs).
        """
        rows = weights.flatten(1)
        size = torch.einsum("nfo,no->nf", self.coefficients.abs(), largest) + self.constant.abs()
        error = gamma(2 * self.coefficients.numel() + 16) * (rows.abs() @ size.flatten()) + TINY
        linear_map = sp.csr_matrix(rows.cpu().numpy())
        summed = self.forms_of(outputs).apply(linear_map, (len(rows),))
        return summed.plus_error(error.cpu().numpy())


def sums_of_box(weights: Tensor, box: Interval) -> Tensor:
    """Lower ends of ``sum_i weights_i . form_i`` over a box of the forms, (choices, rows), rounded down.

    ``weights`` is (rows, n, forms), the box (choices, n, forms).
    """
    positive, negative = weights.clamp(min=0.0), weights.clamp(max=0.0)
    low = torch.einsum("rnf,cnf->cr", positive, box.lower)
    low = low + torch.einsum("rnf,cnf->cr", negative, box.upper)
    size = torch.einsum("rnf,cnf->cr", weights.abs(), box.magnitude)
    found = low - gamma(2 * weights[0].numel() + 16) * size - TINY
    return torch.nan_to_num(found, nan=-torch.inf)
