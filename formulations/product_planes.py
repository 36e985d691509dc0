"""Linear bounds of sums of products: with slopes that products share, or of their own for each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.formulations.einsum import Letters


@dataclass(frozen=True, slots=True)
class BilinearSlopes:
    """Slopes of planes of ``v = einsum(a, b)`` through the centres ``(a_c, b_c)``."""

    letters: Letters
    centre_a: Tensor
    centre_b: Tensor

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> tuple[Tensor, ...]:
        a, b, out = self.letters
        to_a, to_b = (
            "n" + x if diagonal and out.startswith("n") and not x.startswith("n") else x
            for x in (a, b)
        )
        return (
            _pulled(coefficients, out, self.centre_b, b, to_a),
            _pulled(coefficients, out, self.centre_a, a, to_b),
        )

    def narrow(
        self, axis: int, index: Tensor
    ) -> tuple[BilinearSlopes, tuple[int | None, ...]] | None:
        letter = self.letters[2][axis]
        axes = [x.index(letter) - len(x) if letter in x else None for x in self.letters[:2]]
        centres = [
            centre if at is None else centre.index_select(at, index)
            for centre, at in zip((self.centre_a, self.centre_b), axes, strict=True)
        ]
        return BilinearSlopes(self.letters, *centres), tuple(axes)


@dataclass(frozen=True, slots=True)
class BilinearPlanes(BilinearSlopes):
    """McCormick-type planes of ``v = einsum(a, b)`` through the centres ``(a_c, b_c)``.

    With ``p = b_c`` and ``q = a_c``, both planes are ``einsum(a, b_c) + einsum(a_c, b) + offset``;
    the offsets are sums over the contracted index of the corner values of
    ``a b - p a - q b`` (McCormick 1976 for the four corners; any p and q are valid).
    """

    lower: Tensor
    upper: Tensor
    magnitude: Tensor

    def without_offsets(self) -> BilinearSlopes:
        return BilinearSlopes(self.letters, self.centre_a, self.centre_b)


def _pulled(coefficients: Tensor, out: str, other: Tensor, letters: str, target: str) -> Tensor:
    """``einsum(r out, letters -> r target)``; a plain product where nothing is summed.

    (As an einsum, an elementwise product would become one tiny matrix product for each element.)
    """
    if out == letters == target:
        return coefficients * other
    return torch.einsum(f"r{out},{letters}->r{target}", coefficients, other)


@dataclass(frozen=True, slots=True)
class ProductPlanes:
    """``v = sum_k a_k b_k`` between two parallel planes ``sum_k p_k a_k + q_k b_k + offset``.

    The full index of a scalar product is that of the result, then the contracted one. Any p and q are
    valid; the offsets are sums of the extremes of ``(a - q)(b - p) - p q`` (McCormick 1976).

    Attributes:
        letters: of both operands and of the result; ``n`` is the sample axis.
        full: letters of the full index.
        on_a, on_b: slopes p and q, ([rows], *full).
    """

    letters: Letters
    full: str
    on_a: Tensor
    on_b: Tensor
    lower: Tensor
    upper: Tensor
    magnitude: Tensor

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> tuple[Tensor, ...]:
        first, second, out = self.letters
        pulled = []
        for slopes, letters in ((self.on_a, first), (self.on_b, second)):
            each = diagonal and out.startswith("n") and not letters.startswith("n")
            target = "n" + letters if each else letters
            if out == self.full == target:
                pulled.append(coefficients * slopes)
                continue
            rows = "r" if slopes.dim() > len(self.full) else ""
            equation = f"r{out},{rows}{self.full}->r{target}"
            pulled.append(torch.einsum(equation, coefficients, slopes))
        return tuple(pulled)

    def narrow(self, axis: int, index: Tensor) -> tuple[ProductPlanes, tuple[int | None, ...]]:
        letter = self.letters[2][axis]
        at = self.full.index(letter) - len(self.full)
        axes = [x.index(letter) - len(x) if letter in x else None for x in self.letters[:2]]
        on_a, on_b = self.on_a.index_select(at, index), self.on_b.index_select(at, index)
        return replace(self, on_a=on_a, on_b=on_b), tuple(axes)


def extremes(p: Tensor, q: Tensor, a: Interval, b: Interval) -> tuple[Tensor, Tensor]:
    """Extremes of ``a b - p a - q b`` over boxes, elementwise; differentiable in p and q.

    They lie at corners of the boxes: at the corner (a*, b*) the derivatives are -a* and -b*.
    """
    centre_a, centre_b = a.centre, b.centre
    radius_a, radius_b = (
        torch.maximum(box.upper - centre, centre - box.lower)
        for box, centre in ((a, centre_a), (b, centre_b))
    )
    apply: Any = _Extremes.apply  # torch leaves it untyped
    lower, upper = apply(p, q, centre_a, radius_a, centre_b, radius_b)
    return lower, upper


class _Extremes(torch.autograd.Function):
    """With ``A = a_c - q``, ``B = b_c - p``, signs s and t: ``(A + s r_a)(B + t r_b) - p q``."""

    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        p, q, centre_a, radius_a, centre_b, radius_b = inputs
        away_a, away_b = centre_a - q, centre_b - p
        first, second, both = away_a * radius_b, away_b * radius_a, radius_a * radius_b
        middle = (away_a * away_b).sub_(p * q)
        total, difference = first + second, first.sub_(second)
        alike, apart = total.abs(), difference.abs()
        ctx.shapes = (p.shape, q.shape)
        ctx.save_for_backward(
            total > 0,
            difference > 0,
            alike - apart > 2.0 * both,  # the least corner has equal signs
            apart - alike > 2.0 * both,  # the largest one has signs that differ
            centre_a,
            radius_a,
            centre_b,
            radius_b,
        )
        lower = middle + torch.minimum(both - alike, -both - apart)
        return lower, middle.add_(torch.maximum(alike.add_(both), apart.sub_(both)))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        total, difference, low_alike, high_apart, centre_a, radius_a, centre_b, radius_b = (
            ctx.saved_tensors
        )
        on_lower, on_upper = gradients
        # Signs (s, t): equal ones follow the total, others the difference t A r_b + s B r_a with s = -t.
        low_t = torch.where(low_alike, total, difference).logical_not_()
        low_s = torch.where(low_alike, low_t, ~low_t)
        high_t = torch.where(high_apart, difference, total)
        high_s = torch.where(high_apart, ~high_t, high_t)

        def at(low: Tensor, high: Tensor, centre: Tensor, radius: Tensor) -> Tensor:
            below, above = centre - radius, centre + radius
            return -(
                on_lower * torch.where(low, above, below)
                + on_upper * torch.where(high, above, below)
            )

        shapes = ctx.shapes
        on_p = at(low_s, high_s, centre_a, radius_a)
        on_q = at(low_t, high_t, centre_b, radius_b)
        return on_p.sum_to_size(shapes[0]), on_q.sum_to_size(shapes[1]), None, None, None, None
