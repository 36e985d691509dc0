"""relu and leaky relu: triangle relaxation, big-M rows with a phase shared with the step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add
from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import Precision
from milp_agt.formulations.bent import Bent, Mask, Part
from milp_agt.formulations.heaviside import Heaviside
from milp_agt.formulations.linear import Combine
from milp_agt.formulations.registry import register


@register
@dataclass(frozen=True)
class Relu(Bent):
    """``f(z) = z`` for z > 0 and ``k z`` otherwise, with the negative slope k (0 for relu).

    Planes on an ambiguous range l < 0 < u: the chord ``(u - k l) / (u - l)`` on one side, a line
    through the kink on the other (slope 1 if u > -l, else k; Zhang et al. 2018). Which side is the
    chord depends on k <= 1. Stable ranges are exact. Triangle rows: Ehlers (2017); big-M rows:
    Tjeng et al. (2019). ``qcqp`` adds ``f(z) = step(z) z`` for k = 0.
    """

    negative_slope: float = 0.0
    key = "relu"
    exactness = (
        "exact where stable; triangle (lp), big-M with a phase binary (milp), product (qcqp)"
    )

    def value(self, *inputs: Tensor) -> Tensor:
        (z,) = inputs
        k = self.negative_slope
        return torch.relu(z) if k == 0.0 else torch.where(z > 0, z, k * z)

    @property
    def rounds_in_run(self) -> bool:
        return self.negative_slope not in (0.0, 1.0)

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """One product with a slope that is rounded itself."""
        below = (-inputs[0].lower).clamp(min=0.0)
        return abs(self.negative_slope) * below * precision.gamma(4) + precision.tiny

    def interval(self, *inputs: Interval) -> Interval:
        """Increasing for k >= 0; relu itself is a comparison and a copy, without rounding."""
        (box,) = inputs
        if self.negative_slope < 0.0:
            return super().interval(box)
        if self.negative_slope > 0.0:
            return self.monotone(box.lower, box.upper)
        return Interval(self.value(box.lower), self.value(box.upper))

    def is_linear_on(self, box: Interval) -> Tensor:
        return (box.lower > 0) | (box.upper <= 0)

    def residual(self, slope: Tensor | float, box: Interval) -> Interval:
        kink = torch.clamp(torch.zeros_like(box.lower), min=box.lower, max=box.upper)
        points = (box.lower, kink, box.upper)
        return Interval.spanning(self.value(x) - slope * x for x in points)

    def _chord(self, box: Interval) -> Tensor:
        ambiguous = (box.lower < 0) & (box.upper > 0)
        width = torch.where(ambiguous, box.upper - box.lower, 1.0)
        chord = (box.upper - self.negative_slope * box.lower) / width
        return torch.where(ambiguous, chord, self._stable(box))

    def _stable(self, box: Interval) -> Tensor:
        return self._slope(box.lower + box.upper > 0)

    def slopes(self, clean: Interval) -> tuple[Tensor, Tensor]:
        chord, line = self._chord(clean), self._stable(clean)
        return (line, chord) if self.negative_slope <= 1.0 else (chord, line)

    def _slope(self, on: Tensor) -> Tensor:
        """1 where the mask holds, k elsewhere; torch would make float32 of two plain numbers."""
        one = torch.ones_like(on, dtype=torch.float64)
        return torch.where(on, one, self.negative_slope * one)

    def program_slopes(self, box: Interval) -> tuple[list[Tensor], list[Tensor]]:
        hull = box.hull()
        one = torch.ones_like(hull.lower)
        pieces, chords = [one, self.negative_slope * one], [self._chord(hull)]
        clean = box.of_clean
        if not (torch.equal(clean.lower, hull.lower) and torch.equal(clean.upper, hull.upper)):
            chords.append(self._chord(clean))
        return (pieces, chords) if self.negative_slope <= 1.0 else (chords, pieces)

    def straight(self, argument: Expression, low: Array, high: Array, bent: Mask) -> Expression:
        slope = np.where(low > 0, 1.0, self.negative_slope) * ~bent
        error = np.abs(self.negative_slope) * np.maximum(np.abs(low), np.abs(high)) * 2.0**-52
        return argument.scale(slope).plus_error(error * ~bent)

    def bent_columns(self, encoder: Encoder, part: Part) -> Expression:
        """A column for each element, which shares a phase with the step.

        ``v = a z`` is kept where it makes relaxed phases exact (``qcqp``); integral ones are. With a slope
        below the kink its rounding would have to be kept, too.
        """
        # The phase comes first: rows are kept or dropped with the newest of their columns.
        phase = encoder.phase(part.argument, part.mask)
        column = encoder.columns_of(self.interval(part.box))
        relaxed = encoder.exact_products and not encoder.exact_phases
        if relaxed and self.negative_slope == 0.0:
            first, second = (e.matrix.indices.astype(np.int64) for e in (column, phase))
            encoder.product(first, second, encoder.pure(part.x, part.box))
        return column

    def phase_rows(self, encoder: Encoder, part: Part, column: Expression) -> None:
        """``v`` lies within ``|1 - k| u a`` of ``k z`` and within ``|1 - k| |l| (1 - a)`` of ``z``."""
        k, low, high = self.negative_slope, part.low, part.high
        phase = encoder.phase(part.argument, part.mask)
        sign, spread = (1.0 if k <= 1.0 else -1.0), abs(1.0 - k)
        rounding = 2.0**-50 * (1.0 + abs(k)) * np.maximum(np.abs(low), np.abs(high))
        for slope, reach, side in ((k, high, 0.0), (1.0, low, -spread * low)):
            away = add([column, part.x.scale(-slope)]).plus_error(rounding).scale(sign)
            encoder.rows(add([away, phase.scale(-spread * reach)]), -np.inf, side)

    def slope_node(self, graph: Graph, node: Node) -> Node:
        """``f'(z) = k + (1 - k) step(z)``; torch takes the negative slope at z = 0, and so do we."""
        (argument,), k = graph.inputs(node), self.negative_slope
        step = graph.add(Heaviside(), argument)
        if k == 0.0:
            return step
        constant = torch.tensor(k, dtype=torch.float64)
        return Combine.build(graph, [(1.0 - k, step)], constant)
