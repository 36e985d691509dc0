"""Balls of the norms 1 and 2, scaled by a radius per coordinate and intersected with a box."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, add
from milp_agt.core.interval import as_array
from milp_agt.core.rounding import gamma
from milp_agt.threats.sets.move_set import (
    InBox,
    Rules,
    exact,
    exact_moves,
    extent,
    gated_columns,
    one_block,
    placed_in,
    row_sums,
    spread,
    truncated,
)

# Tangents to a quarter of a circle in the program rows of the norm 2: two coordinates are bounded to
# within a factor 1 / cos(pi / (4 TANGENTS)) = 1.0012.
TANGENTS = 16


@dataclass(frozen=True)
class Ball(InBox):
    """``||e / radius||_p <= 1`` with p = 1 or 2, within a box ``low <= e <= high``.

    With one radius r this is ``||e||_p <= r``; a coordinate with radius 0 does not move. With
    ``g = |c| radius`` and caps ``b`` (the most that the box allows e / radius in the direction of c)
    the support function is the value of

        p = 1:  min over t >= 0 of  t + sum_j b_j max(0, g_j - t)
        p = 2:  min over t >= 0 of  t / 2 + sum_j max over 0 <= u <= b_j of (g_j u - t u^2 / 2),

    ``max_j g_j`` and ``||g||_2`` if no cap is active: Lagrangian duals, exact by strong duality (Boyd and
    Vandenberghe, Convex Optimization, section 5.2.3), and an upper bound for any t, so that an inexact t
    only costs tightness. Coordinates ``whole`` move by whole numbers; the support function is then that
    of the ball without this condition.

    Attributes:
        order: 1 or 2.
        radius, low, high: (N, size), with ``-radius <= low <= 0 <= high <= radius``.
        capped: whether the box cuts the ball anywhere.
    """

    rules = Rules(
        "norms 1 and 2, scaled by the radii and cut by the domain; whole numbers",
        "exact; without the condition on whole numbers",
        "norm 1: hull; norm 2: tangents, within 0.13 % for each doubling of the coordinates",
        "the same, with whole numbers",
    )

    order: int
    radius: Tensor
    low: Tensor
    high: Tensor
    capped: bool
    whole: tuple[int, ...] = ()

    @property
    def block_of(self) -> Tensor:
        return one_block(self.low)

    @property
    def is_exact(self) -> bool:
        return not self.whole

    def gains(self, coefficients: Tensor) -> Tensor:
        caps = self._caps(coefficients) if self.capped else None
        return self._value(coefficients.abs() * self.radius, caps)

    def radius_supports(self, radius: Tensor) -> Tensor:
        caps = self._shares(self.reach).expand(radius.shape) if self.capped else None
        return self._value(radius * self.radius, caps)

    def _value(self, weights: Tensor, caps: Tensor | None) -> Tensor:
        """The dual value for weights g and caps b (None: no cap is active), (rows, N, 1)."""
        if caps is None:
            return weights.amax(-1, keepdim=True) if self.order == 1 else _norm(weights)
        price, _ = self._multiplier(weights, caps)
        if self.order == 1:
            return price + (caps * (weights - price).clamp(min=0.0)).sum(-1, keepdim=True)
        taken = _taken(weights, caps, price)
        paid = taken * (weights - 0.5 * price * taken)
        return 0.5 * price + paid.sum(-1, keepdim=True)

    def maximise(self, coefficients: Tensor) -> Tensor:
        weights, caps = coefficients.abs() * self.radius, self._caps(coefficients)
        price, shares = self._multiplier(weights, caps)
        if self.order == 2:
            shares = _taken(weights, caps, price)
            norms = shares.square().sum(-1, keepdim=True).sqrt()
            shares = shares * self._inside / norms.clamp(min=1)
        signs = torch.where(coefficients >= 0, 1.0, -1.0).to(coefficients)
        return truncated(self.boxed(signs * shares * self.radius), self.whole)

    @property
    def _inside(self) -> float:
        """A factor that keeps a move on the sphere inside the ball despite rounding."""
        return 1.0 - gamma(4 * self.size + 16)

    def _caps(self, coefficients: Tensor) -> Tensor:
        return self._shares(extent(coefficients, self.low, self.high))

    def _shares(self, moves: Tensor) -> Tensor:
        """``e / radius``, 0 where the radius is 0."""
        return torch.where(self.radius > 0, moves / self.radius.clamp(min=1e-300), 0.0)

    def _multiplier(self, weights: Tensor, caps: Tensor) -> tuple[Tensor, Tensor]:
        """The best multiplier t, (..., N, 1), and for p = 1 the best shares ``|e| / radius``."""
        if self.order == 1:
            ordered, index = weights.sort(dim=-1, descending=True)
            before = caps.gather(-1, index).cumsum(-1)
            room = (1.0 - (before - caps.gather(-1, index))).clamp(min=0.0)
            filled = torch.minimum(caps.gather(-1, index), room)
            # The multiplier is the weight of the first coordinate that no longer fits.
            full = before >= 1.0
            price = torch.where(full, ordered, 0.0).amax(-1, keepdim=True)
            shares = torch.zeros_like(filled).scatter(-1, index, filled)
            if self.capped:
                shares = shares * self._inside
            return price, shares
        return _circle_price(weights, caps), weights

    def project(self, moves: Tensor) -> Tensor:
        boxed = self.boxed(moves)
        shares = self._shares(boxed)
        if self.order == 2:
            norms = _norm(shares)
            nearer = shares * (self._inside / norms.clamp(min=1.0))
        else:
            norms = shares.abs().sum(-1, keepdim=True)
            nearer = _onto_cross_polytope(shares) * self._inside
        inside = torch.where(norms > 1.0, self.boxed(nearer * self.radius), boxed)
        return truncated(inside, self.whole)

    def admits(self, sample: int, nominal: Tensor, given: Tensor) -> bool:
        moves = exact_moves(nominal, given)
        pairs = list(zip(moves, exact(self.radius[sample]), strict=True))
        if not all(self.inside(sample, moves)) or any(m != 0 and r == 0 for m, r in pairs):
            return False
        return sum(abs(move / radius) ** self.order for move, radius in pairs if radius != 0) <= 1

    def on(self, change: Callable[[Tensor], Tensor]) -> Self:
        return replace(
            self, radius=change(self.radius), low=change(self.low), high=change(self.high)
        )

    def add_to(self, encoder: Encoder, gates: Expression) -> Expression:
        low, high, radius = as_array(self.low), as_array(self.high), as_array(self.radius)
        moves = gated_columns(encoder, low, high, spread(gates, self.size), self.whole)
        largest = radius.max(1, keepdims=True)
        # sizes >= |e| largest / radius; factors are rounded down, which loosens the rows.
        with np.errstate(divide="ignore", invalid="ignore"):
            factor = np.where(radius > 0, np.nextafter(largest / radius, 0.0), 0.0)
        factor = np.where(radius == largest, 1.0, factor)
        caps = np.maximum(high, -low) * factor * (1 + 2.0**-50)
        sizes = encoder.columns(np.zeros(low.shape), np.minimum(caps, largest))
        encoder.rows(add([sizes, moves.scale(-factor)]), 0.0, np.inf)
        encoder.rows(add([sizes, moves.scale(factor)]), 0.0, np.inf)
        limit = gates.reshape((len(low),)).scale(-largest[:, 0])
        if self.order == 1:
            total = row_sums(sizes, np.ones(low.shape))
        else:
            total = _norm_of_columns(encoder, sizes, largest)
        encoder.rows(add([total, limit]), -np.inf, 0.0)
        return moves


def _norm(values: Tensor) -> Tensor:
    """The norm 2 over the last axis, which is kept; scaled so that no square underflows."""
    largest = values.abs().amax(-1, keepdim=True)
    scaled = values / torch.where(largest > 0, largest, 1.0)
    return largest * scaled.square().sum(-1, keepdim=True).sqrt()


def _taken(weights: Tensor, caps: Tensor, price: Tensor) -> Tensor:
    """The best shares ``min(b, g / t)`` at a multiplier t."""
    at_cap = (weights >= price * caps) & (weights > 0)
    return torch.where(at_cap, caps, weights / torch.where(price > 0, price, 1.0))


def _circle_price(weights: Tensor, caps: Tensor) -> Tensor:
    """The t with ``sum_j min(b_j, g_j / t)^2 = 1``, 0 if the norm of all caps is below 1.

    Coordinates at their caps are found in rounds: each round caps those that exceed their caps at the
    current t, so t only falls, and there are at most ``size`` rounds.
    """
    at_cap = torch.zeros_like(caps, dtype=torch.bool)
    while True:
        left = (1.0 - torch.where(at_cap, caps.square(), 0.0).sum(-1, keepdim=True)).clamp(min=0.0)
        size = _norm(torch.where(at_cap, 0.0, weights))
        price = torch.where(left > 0, size / torch.where(left > 0, left, 1.0).sqrt(), 0.0)
        more = (weights > price * caps) & ~at_cap
        if not bool(more.any()):
            return torch.nan_to_num(price, posinf=1e150)
        at_cap = at_cap | more


def _onto_cross_polytope(shares: Tensor) -> Tensor:
    """The nearest points with ``sum |u| = 1`` to points outside (Duchi et al. 2008, figure 1)."""
    sizes = shares.abs()
    ordered = sizes.sort(dim=-1, descending=True).values
    count = torch.arange(1, shares.shape[-1] + 1, device=shares.device)
    threshold = (ordered.cumsum(-1) - 1.0) / count
    last = (ordered > threshold).sum(-1, keepdim=True) - 1
    cut = threshold.gather(-1, last.clamp(min=0))
    return torch.sign(shares) * (sizes - cut).clamp(min=0.0)


def _norm_of_columns(encoder: Encoder, sizes: Expression, largest: Array) -> Expression:
    """A column for each sample with rows that bound it from below by about the norm 2, (N,).

    A tree of pairs: ``t >= a cos(phi) + b sin(phi)`` for angles over the quarter circle, so that ``t`` may
    be ``||(a, b)||``; with coefficients rounded down the rows hold for every admissible move.
    """
    samples, width = sizes.shape
    level = sizes
    while width > 1:
        pairs = width // 2
        index = np.arange(samples * width).reshape(samples, width)
        first = level.take(index[:, 0 : 2 * pairs : 2])
        second = level.take(index[:, 1 : 2 * pairs : 2])
        norm = encoder.columns(np.zeros((samples, pairs)), np.repeat(largest, pairs, 1))
        for number in range(TANGENTS + 1):
            angle = 0.5 * math.pi * number / TANGENTS
            down = [max(0.0, v * (1 - 2.0**-50)) for v in (math.cos(angle), math.sin(angle))]
            combined = add([norm, first.scale(-down[0]), second.scale(-down[1])])
            encoder.rows(combined, 0.0, np.inf)
        if width % 2:  # the last one goes on alone
            last = placed_in(level.take(index[:, -1:]), np.array([pairs]), pairs + 1)
            norm = add([placed_in(norm, np.arange(pairs), pairs + 1), last])
        level, width = norm, norm.shape[1]
    return level.reshape((samples,))
