"""The unit step, derivative of relu: the phase of a unit as a node of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions, add
from milp_agt.core.interval import CLEAN, Boxes, Interval
from milp_agt.formulations.registry import register
from milp_agt.formulations.univariate import Univariate

# Slopes beyond this would only blow up the offset at the far end of the range.
STEEPEST = 1e6


@register
@dataclass(frozen=True)
class Heaviside(Univariate):
    """``f(z) = 1`` iff z > 0 (as torch's relu). Stable on iff l > 0, stable off iff u <= 0.

    Planes on an ambiguous range l <= 0 < u: ``a >= z / (2u)`` and ``a <= 1 - z / (2l)``; slope zero
    where stable. Programs use the closure, in which both phases are admitted at z = 0.
    """

    key = "step"
    exactness = "exact where stable; lines through the kink (lp), phase binary (milp)"

    def value(self, *inputs: Tensor) -> Tensor:
        return (inputs[0] > 0).to(inputs[0].dtype)

    def rounds_in_run(self) -> bool:
        return False

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        """A comparison is exact."""
        return torch.zeros_like(value)

    def interval(self, *inputs: Interval) -> Interval:
        (box,) = inputs
        return Interval(self.value(box.lower), self.value(box.upper))

    def is_linear_on(self, box: Interval) -> Tensor:
        return (box.lower > 0) | (box.upper <= 0)

    def residual(self, slope: Tensor | float, box: Interval) -> Interval:
        """Extremes of the pieces: ends, ``0`` from the left (0) and from the right (1)."""
        low, high = box.lower, box.upper
        at_low = (low > 0).to(low.dtype) - slope * low
        at_high = (high > 0).to(low.dtype) - slope * high
        ambiguous = (low <= 0) & (high > 0)
        zero, one = torch.zeros_like(at_low), torch.ones_like(at_low)
        smallest, largest = torch.minimum(at_low, at_high), torch.maximum(at_low, at_high)
        # max(largest, 1), min(smallest, 0): the values next to the kink are 0 and 1.
        return Interval(
            torch.where(ambiguous, torch.minimum(smallest, zero), smallest),
            torch.where(ambiguous, torch.maximum(largest, one), largest),
        )

    def slopes(self, clean: Interval) -> tuple[Tensor, Tensor]:
        low, high = clean.lower, clean.upper
        ambiguous = (low <= 0) & (high > 0)
        zero = torch.zeros_like(low)
        rising = ambiguous & (high > 0.5 / STEEPEST)
        falling = ambiguous & (low < -0.5 / STEEPEST)
        return (
            torch.where(rising, 0.5 / torch.where(rising, high, 1.0), zero),
            torch.where(falling, -0.5 / torch.where(falling, low, 1.0), zero),
        )

    def program_slopes(self, box: Interval) -> tuple[list[Tensor], list[Tensor]]:
        zero = torch.zeros_like(box.lower[CLEAN])
        lower, upper = [zero], [zero]
        for each in (box.clean, Interval(*_hull(box))):
            half_lower, half_upper = self.slopes(Interval(each.lower[0], each.upper[0]))
            lower.append(2.0 * half_lower)
            upper.append(2.0 * half_upper)
        return lower, upper

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        """Stable elements are constants; an ambiguous one is the phase column itself."""
        (argument,), (box,) = inputs, ranges
        hull = box.hull()
        low, high = hull.lower.cpu().numpy(), hull.upper.cpu().numpy()
        ambiguous = (low <= 0) & (high > 0)
        stable = Expression.of((low > 0).astype(np.float64))
        if not ambiguous.any():
            return stable
        some, z, at = restricted(encoder, argument, box, ambiguous)
        phase = encoder.phase(argument, ambiguous)
        # z <= u a and z >= l (1 - a)
        encoder.rows(add([z, phase.scale(-high[ambiguous])]), -np.inf, 0.0)
        from_on = add([z, phase.scale(low[ambiguous])])
        encoder.rows(from_on, low[ambiguous], np.inf)
        with at:
            self.encode_rows(encoder, phase, z, some)
            encoder.conditional(phase, self.interval(some))
        return add([stable, scatter(phase, ambiguous)])


def _hull(box: Interval) -> tuple[Tensor, Tensor]:
    hull = box.hull()
    return hull.lower.unsqueeze(0), hull.upper.unsqueeze(0)


def restricted(
    encoder: Encoder, argument: Expression, box: Interval, mask: npt.NDArray[np.bool_]
) -> tuple[Interval, Expression, AbstractContextManager[None]]:
    """The masked elements of an argument and its box, and the selection columns of their samples.

    Returns the box with shape (states, count), the expression with shape (count,), and a context in
    which the encoder's selection has one entry for each of these elements.
    """
    index = np.flatnonzero(mask)
    picked = torch.from_numpy(index).to(box.lower.device)
    states = Interval(box.lower.flatten(1)[:, picked], box.upper.flatten(1)[:, picked])

    @contextmanager
    def selection() -> Iterator[None]:
        whole = encoder.selection
        if whole is not None:
            encoder.selection = whole.take(index // (mask.size // whole.size))
        try:
            yield
        finally:
            encoder.selection = whole

    return states, argument.take(index), selection()


def scatter(column: Expression, mask: npt.NDArray[np.bool_]) -> Expression:
    """Put columns at the masked elements, zeros elsewhere."""
    index = np.flatnonzero(mask)
    placement = sp.csr_matrix(
        (np.ones(index.size), (index, np.arange(index.size))), shape=(mask.size, index.size)
    )
    return column.apply(placement, mask.shape)
