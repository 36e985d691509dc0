"""Scalar functions applied elementwise: every rule follows from the extremes of ``f(x) - m x``."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions, Index, add
from milp_agt.core.graph import Graph, LinearBounds, Node, Operation, Pulled, Signature, Wanted
from milp_agt.core.interval import Boxes, Interval
from milp_agt.core.program import Function
from milp_agt.core.rounding import ELEMENTARY, TINY, UNIT_ROUNDOFF, Precision, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.bilinear import times
from milp_agt.formulations.registry import ElementwisePlanes


def on_line(slope: Tensor | float, x: Tensor) -> Tensor:
    """``slope * x``, and 0 on a level line at infinite x."""
    level = torch.as_tensor(slope, device=x.device) == 0.0
    return torch.where(level & torch.isinf(x), 0.0, slope * x)


class Univariate(Operation):
    """``v = f(u)`` elementwise.

    A subclass states ``f`` and, for any real slope ``m``, the exact extremes of ``f(x) - m x`` over a
    box (:meth:`residual`). The box of ``v`` is the case m = 0; linear bounds take one slope for each
    side and the extreme as offset, once for each poisoning state; the rows of a program do the same
    for several slopes.
    """

    lazy_rows: ClassVar[bool] = False  # further rows of a program only wait for a point beyond them
    rises: ClassVar[int] = 0  # 1 if f never falls, -1 if it never rises
    least: ClassVar[float] = -math.inf  # what the run's values never pass
    most: ClassVar[float] = math.inf

    def infer(self, *inputs: Signature) -> Signature:
        if len(inputs) != 1:
            raise EncodingError(f"Operation '{self.key}' has one input", f"{len(inputs)} inputs")
        return inputs[0]

    @abstractmethod
    def residual(self, slope: Tensor | float, box: Interval) -> Interval:
        """``[min, max]`` of ``f(x) - slope * x`` over ``box``, up to rounding."""

    @abstractmethod
    def slopes(self, clean: Interval) -> tuple[Tensor, Tensor]:
        """Slopes of the lower and of the upper plane, from the clean range (without states)."""

    @abstractmethod
    def program_slopes(self, box: Interval) -> tuple[list[Tensor], list[Tensor]]:
        """Further slopes of lower and upper rows of a program, besides :meth:`slopes`."""

    def is_linear_on(self, box: Interval) -> Tensor:
        """Mask of the elements on whose box (without states) f is linear, so that planes are exact."""
        return torch.zeros_like(box.lower, dtype=torch.bool)

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        """Bound of ``|fl(f(x)) - f(x)|`` for ``|x| <= argument`` and ``|f(x)| <= value``."""
        return value * (gamma(2)) + TINY

    def interval(self, *inputs: Interval) -> Interval:
        (box,) = inputs
        if self.rises:
            ends = (box.lower, box.upper)
            return self.monotone(*ends[:: self.rises]).within(self.least, self.most)
        exact = self.residual(0.0, box)
        return exact.widen(self.rounding(box.magnitude, exact.magnitude))

    def monotone(self, low: Tensor, high: Tensor) -> Interval:
        """Box of a monotone function whose smallest value is at ``low`` and largest at ``high``."""
        lower, upper = self.value(low), self.value(high)
        return Interval(lower, upper).widen(
            self.rounding(low.abs(), lower.abs()), self.rounding(high.abs(), upper.abs())
        )

    def relax(self, *inputs: Interval) -> LinearBounds:
        (box,) = inputs
        return self.relax_with(self.slopes(box.of_clean), box)

    def relax_with(self, slopes: Sequence[Tensor], *inputs: Interval) -> LinearBounds:
        """Linear bounds that hold on the given range, with any slopes of the lower and the upper plane."""
        (box,), (slope_lower, slope_upper) = inputs, slopes
        parallel = slope_lower is slope_upper
        rank = box.lower.dim() - 1
        steepest = (
            slope_lower.abs() if parallel else torch.maximum(slope_lower.abs(), slope_upper.abs())
        )
        at_lower, at_upper, at_steepest = (
            slope.unsqueeze(slope.dim() - rank) for slope in (slope_lower, slope_upper, steepest)
        )
        below = self.residual(at_lower, box)
        above = below if parallel else self.residual(at_upper, box)
        argument = box.magnitude
        value = self.interval(box).magnitude
        size = value + on_line(at_steepest, argument)
        slack = self.rounding(argument, value) + gamma(8) * size
        return ElementwisePlanes(
            slope_lower,
            slope_upper,
            below.lower - slack,
            above.upper + slack,
            size.amax(size.dim() - rank - 1),
        )

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        """A column for each element; one on/off row for each slope and side."""
        (argument,), (box,) = inputs, ranges
        own = self.interval(box)
        exact = encoder.pure(argument, box) if encoder.exact_products else None
        column = encoder.columns_of(own)
        self.encode_rows(encoder, column, argument, box)
        encoder.conditional(column, own)
        return column if exact is None else self.encode_exactly(encoder, column, exact, box)

    def encode_exactly(
        self, encoder: Encoder, column: Expression, argument: Index, box: Interval
    ) -> Expression:
        """Add the function itself, where programs know it; the value of the run from the column.

        The column then is the exact value of the function, from which the run is off by rounding.
        """
        return column

    def blurred(self, column: Expression, box: Interval) -> Expression:
        """The value that the run computes, from a column with the exact one."""
        hull = box.hull()
        value = self.interval(box).hull().magnitude
        rounding = self.rounding(hull.magnitude, value)
        return column.plus_error(np.asarray(rounding.cpu().numpy(), dtype=np.float64))

    def encode_rows(
        self, encoder: Encoder, column: Expression, argument: Expression, box: Interval
    ) -> None:
        own = self.slopes(box.of_clean)
        size, value = box.magnitude, self.interval(box).magnitude
        for side, (first, more) in enumerate(zip(own, self.program_slopes(box), strict=True)):
            for rank, slope in enumerate([first, *more]):
                lazy = rank > 0 and self.lazy_rows
                slack = self.rounding(size, value) + gamma(8) * (value + slope.abs() * size)
                form = add([column, argument.scale(-slope.detach().cpu().numpy())])
                offsets = self.residual(slope, box)
                if side:
                    encoder.at_most(form, offsets.upper + slack, lazy)
                else:
                    encoder.at_least(form, offsets.lower - slack, lazy)

    def slope_node(self, graph: Graph, node: Node) -> Node | None:
        """The derivative at a node of this function, as torch takes it; None if no gradient passes."""
        return None

    def vjp(self, graph: Graph, node: Node, cotangent: Node, wanted: Wanted) -> Pulled:
        slope = self.slope_node(graph, node)
        if slope is None:
            return super().vjp(graph, node, cotangent, wanted)
        return (times(graph, cotangent, slope),)


class Smooth(Univariate):
    """A differentiable function; ``f(x) - m x`` has its extremes at ends and where ``f'(x) = m``."""

    rounds_in_run: ClassVar[bool | None] = True
    lazy_rows: ClassVar[bool] = True

    @abstractmethod
    def derivative(self, x: Tensor) -> Tensor: ...

    @property
    def bend(self) -> float:
        """An upper bound of ``|f''|`` everywhere."""
        return math.inf

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """Elementary functions: the same grant in units of the run."""
        size = self.interval(*inputs).magnitude
        grant = precision.unit * (ELEMENTARY + 4.0 * inputs[0].magnitude)
        return size * grant + precision.tiny

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        """Elementary functions: a grant that grows with the argument, as range reduction does."""
        return value * (UNIT_ROUNDOFF * (ELEMENTARY + 4.0 * argument)) + TINY

    def chord(self, box: Interval) -> Tensor:
        """Slope of the secant over the box, or the derivative where the box is too narrow for it."""
        width = box.upper - box.lower
        narrow = width <= 1e-7 * (1.0 + box.magnitude)
        secant = (self.value(box.upper) - self.value(box.lower)) / torch.where(narrow, 1.0, width)
        return torch.where(narrow, self.derivative(box.centre), secant)

    def slopes(self, clean: Interval) -> tuple[Tensor, Tensor]:
        chord = self.chord(clean)
        return chord, chord

    def program_slopes(self, box: Interval) -> tuple[list[Tensor], list[Tensor]]:
        clean, hull = box.of_clean, box.hull()
        points = [clean.lower, clean.upper, clean.centre, hull.lower, hull.upper]
        slopes = [self.derivative(x) for x in points] + [self.chord(hull)]
        return slopes, slopes


class ClosedForm(Smooth):
    """A smooth function with a formula for all x with ``f'(x) = m``.

    A stationary point that is off by d moves the extreme by at most ``max|f''| d^2 / 2``, far below
    the rounding that is granted anyway.
    """

    exactness = "chord slope with exact offsets; chord and tangent rows; exact in qcqp, miqp"
    function: ClassVar[Function | None] = None  # as programs know it

    @abstractmethod
    def stationary(self, slope: Tensor) -> tuple[Tensor, ...]:
        """All x with ``f'(x) = slope``; NaN or infinite where there is none."""

    def residual(self, slope: Tensor | float, box: Interval) -> Interval:
        slope = torch.as_tensor(slope, dtype=box.lower.dtype, device=box.lower.device)
        ends = [box.lower, box.upper]
        # At an extreme the derivative is zero: where it lies does not change with the slope.
        for point in self.stationary(slope.detach()):
            inside = torch.minimum(torch.maximum(point, box.lower), box.upper)
            ends.append(torch.where(torch.isnan(inside), box.lower, inside))
        values = torch.stack([self.value(x) - on_line(slope, x) for x in ends])
        return Interval(values.amin(0), values.amax(0))

    def encode_exactly(
        self, encoder: Encoder, column: Expression, argument: Index, box: Interval
    ) -> Expression:
        if self.function is None:
            return column
        encoder.curve(self.function, column.matrix.indices, argument, box)
        return self.blurred(column, box)
