"""Einsums of two operands: index letters, one for each axis that is no state, and linear bounds."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from milp_agt.core.graph import Tensors

Letters = tuple[str, str, str]  # of both operands and of the result


def contracted(letters: Letters) -> str:
    """Letters that are summed over, in alphabetical order."""
    a, b, out = letters
    return "".join(sorted(set(a + b) - set(out)))


def full_index(letters: Letters) -> str:
    """Letters of a scalar product: those of the result, then the contracted ones."""
    return letters[2] + contracted(letters)


def einsum(letters: Letters, a: Tensor, b: Tensor) -> Tensor:
    """``einsum(a, b)``; leading axes (states, many attacks at once) broadcast."""
    first, second, out = letters
    return torch.einsum(f"...{first},...{second}->...{out}", a, b)


def aligned(own: str, full: str, tensor: Tensor) -> Tensor:
    """(..., *own) as (..., *full), with axes of length 1 for the letters that are not there."""
    lead = tensor.dim() - len(own)
    present = [x for x in full if x in own]
    tensor = tensor.permute(*range(lead), *(lead + own.index(x) for x in present))
    for position, letter in enumerate(full):
        if letter not in own:
            tensor = tensor.unsqueeze(lead + position)
    return tensor


def terms(letters: Letters, a: Tensor, b: Tensor) -> int:
    """How many scalar products each number of the result is the sum of."""
    sizes: dict[str, int] = {}
    for own, operand in zip(letters, (a, b), strict=False):
        sizes |= zip(own, operand.shape[-len(own) :], strict=True)
    return math.prod(sizes[letter] for letter in contracted(letters))


@dataclass(frozen=True, slots=True)
class BilinearSlopes:
    """Slopes of planes of ``v = einsum(a, b)`` through the centres ``(a_c, b_c)``."""

    letters: Letters
    centre_a: Tensor
    centre_b: Tensor

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> Tensors:
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


class Ends(Enum):
    """The end of h of :class:`EndPlanes`."""

    LEAST = "where c . (w_c h) is least: where that is, planes are exact"
    NEAREST = "nearer to 0: exact, too, where w is chosen against the form"


@dataclass(frozen=True, slots=True)
class EndPlanes:
    """Planes of ``v = einsum(w, h)`` through the centre of w and, form by form, an end of h.

    With w within ``reach`` of its centre, ``|(w - w_c) (h - h_0)| <= reach |h - h_0|``, which is linear in h
    if h_0 is an end of it. So a form c . v is at least

        c . (w_c h + w h_0 - w_c h_0) - |c| . reach |h - h_0|.

    Attributes:
        ends: which end h_0 is.
        letters: of w, h and v.
        first: which operand of the product w is, 0 or 1.
        centre, reach: of w.
        low, high: of h.
        slack: rounding, as v.
        magnitude: sizes of all terms, as v.
    """

    ends: Ends
    letters: Letters
    first: int
    centre: Tensor
    reach: Tensor
    low: Tensor
    high: Tensor
    slack: Tensor
    magnitude: Tensor

    def _chosen(self, coefficients: Tensor) -> tuple[Tensor, Tensor]:
        """h_0, and the coefficients on h, for each form."""
        w, h, out = self.letters
        plain = _pulled(coefficients, out, self.centre, w, h)
        less = _pulled(coefficients.abs(), out, self.reach, w, h)
        lowers = plain >= 0.0
        if self.ends is Ends.NEAREST:
            lowers = (self.low.abs() <= self.high.abs()).expand_as(plain)
        return torch.where(lowers, self.low, self.high), plain - torch.where(lowers, less, -less)

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> Tensors:
        """Of forms of single samples, (r, n, *v), as all that these planes are for."""
        w, h, out = self.letters
        end, on_h = self._chosen(coefficients)
        on_w = torch.einsum(f"r{out},r{h}->rn{w}", coefficients, end)
        return (on_w, on_h) if self.first == 0 else (on_h, on_w)

    def apply_diagonal(self, coefficients: Tensor) -> tuple[Tensor, Tensor, None]:
        """Constants (r, n, 1) and magnitudes (r, n) of these forms."""
        end, on_h = self._chosen(coefficients)
        size = coefficients.abs()
        constant = (end * on_h).flatten(2).sum(-1) + (size * self.slack).flatten(2).sum(-1)
        return -constant.unsqueeze(-1), (size * self.magnitude).flatten(2).sum(-1), None

    def apply(self, coefficients: Tensor) -> tuple[Tensor, Tensor, None]:
        raise AssertionError("only forms of single samples have an end for each")

    def narrow(self, axis: int, index: Tensor) -> None:
        return None


def _pulled(coefficients: Tensor, out: str, other: Tensor, letters: str, target: str) -> Tensor:
    """``einsum(r out, letters -> r target)``; a plain product where nothing is summed.

    (As an einsum, an elementwise product would become one tiny matrix product for each element.)
    """
    if out == letters == target:
        return coefficients * other
    return torch.einsum(f"r{out},{letters}->r{target}", coefficients, other)
