"""Linear bounds of sums of products."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.planes import Tensors
from milp_agt.formulations.einsum import Letters


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


def _pulled(coefficients: Tensor, out: str, other: Tensor, letters: str, target: str) -> Tensor:
    """``einsum(r out, letters -> r target)``; a plain product where nothing is summed.

    (As an einsum, an elementwise product would become one tiny matrix product for each element.)
    """
    if out == letters == target:
        return coefficients * other
    return torch.einsum(f"r{out},{letters}->r{target}", coefficients, other)
