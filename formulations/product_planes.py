"""Linear bounds of sums of products with slopes of their own for every scalar product."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


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

    letters: tuple[str, str, str]
    full: str
    on_a: Tensor
    on_b: Tensor
    lower: Tensor
    upper: Tensor
    magnitude: Tensor

    def pull(self, coefficients: Tensor, diagonal: bool = False) -> tuple[Tensor, ...]:
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
