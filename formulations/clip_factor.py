"""The factor by which a gradient of a given squared norm is shortened, and the shortened gradient."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Expression, Expressions
from milp_agt.core.graph import Tensors
from milp_agt.core.interval import Boxes, Interval
from milp_agt.core.rounding import TINY, Precision, gamma
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.einsum import BilinearPlanes
from milp_agt.formulations.registry import register
from milp_agt.formulations.univariate import ClosedForm

# Above the kink a root is at least nine shifts, from where so many steps are more than enough.
NEWTON = 8


@register
@dataclass(frozen=True)
class ClipFactor(ClosedForm):
    """``f(s) = min(1, clip / (sqrt(s) + shift))``, never increasing, values in [0, 1], 1 up to a kink.

    Convex above the kink ``(clip - shift)^2``; ``f' = m`` at ``x^2`` with ``x (x + shift)^2 = clip / -2 m``.
    Torch's ``clip_grad_norm_`` has a shift of 1e-6, at most a tenth of the clip. Planes where the range
    holds the kink: above, the chord from the kink to the upper end, or the constant 1 where most of
    the range lies below the kink; below, the chord. An infinite upper end gives the lower value 0.
    """

    clip: float
    shift: float = 0.0
    key = "clip_factor"
    rises, least, most = -1, 0.0, 1.0
    exactness = "exact below the kink; chord slope with exact offsets; chord and tangent rows"

    @property
    def kinks(self) -> tuple[float, ...]:
        return ((self.clip - self.shift) * (self.clip - self.shift),)

    def value(self, *inputs: Tensor) -> Tensor:
        (s,) = inputs
        return (self.clip / (torch.sqrt(s.clamp(min=0.0)) + self.shift)).clamp(max=1.0)

    def rounding(self, argument: Tensor, value: Tensor) -> Tensor:
        """A square root, a quotient, and the same from a norm that was not squared in between."""
        return value * gamma(16) + TINY

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """The clipping norm is rounded, then a root and a quotient."""
        return self.interval(*inputs).magnitude * precision.gamma(8) + precision.tiny

    def derivative(self, x: Tensor) -> Tensor:
        below = x + self.shift * torch.sqrt(x.clamp(min=0.0)) if self.shift else x
        slope = -0.5 * self.value(x) / below
        return torch.where(x > self.kinks[0], slope, 0.0)

    def stationary(self, slope: Tensor) -> tuple[Tensor, ...]:
        # The kink is an extreme as well.
        target = self.clip / (-2.0 * slope)
        kink = torch.full_like(slope, self.kinks[0])
        if not self.shift:
            return target ** (2.0 / 3.0), kink
        root = target ** (1.0 / 3.0)
        for _ in range(NEWTON):
            # The cubic is convex and rises: from the right, every step comes nearer.
            shifted = root + self.shift
            root = root - (root * shifted - target / shifted) / (shifted + 2.0 * root)
        return root.square(), kink

    def is_linear_on(self, box: Interval) -> Tensor:
        return box.upper <= self.kinks[0]

    def _from_kink(self, box: Interval) -> Tensor:
        """Slope of the chord from the kink, or from the lower end if that is larger, to the upper end."""
        kink = self.kinks[0]
        return self.chord(Interval(box.lower.clamp(min=kink), box.upper.clamp(min=kink)))

    def slopes(self, clean: Interval) -> tuple[Tensor, Tensor]:
        steep = self._from_kink(clean)
        flat = clean.centre <= self.kinks[0]
        return self.chord(clean), torch.where(flat, torch.zeros_like(steep), steep)

    def program_slopes(self, box: Interval) -> tuple[list[Tensor], list[Tensor]]:
        lower, _ = super().program_slopes(box)
        clean = box.of_clean
        zero = torch.zeros_like(clean.lower)
        return lower, [zero, self._from_kink(clean), self._from_kink(box.hull())]


class ShortenPlanes(BilinearPlanes):
    """The planes of a product whose second operand is a single number for each sample."""

    def narrow(self, axis: int, index: Tensor) -> None:
        return None

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> Tensors:
        if not self.letters[2].startswith("n"):
            on_factor = coefficients.flatten(1) @ self.centre_a.flatten()
            return coefficients * self.centre_b, on_factor.unsqueeze(-1)
        ones = [1] * (self.centre_a.dim() - 1)
        gradient = self.centre_a.flatten(1)
        flat = coefficients.flatten(2)
        if flat.shape[1] == 1:
            on_factor = flat[:, 0] @ gradient.T
        else:
            on_factor = torch.einsum("rnu,nu->rn", flat, gradient)
        return coefficients * self.centre_b.reshape(-1, *ones), on_factor.unsqueeze(-1)


@register
@dataclass(frozen=True)
class Shorten(Einsum):
    """A product ``na..,nz->na..`` of a gradient and its clip factor, of which ``|v| <= cap`` is known.

    Without n it is that of a gradient of the whole batch.

    The factor is made from the norm of the gradient, so that no coordinate of the product exceeds the
    clipping norm, whatever the boxes of the operands say; the box is cut there. All other rules are
    those of the product.
    """

    cap: float = torch.inf
    key = "shorten"
    exactness = "McCormick envelopes, cut at the clipping norm"

    def interval(self, *inputs: Interval) -> Interval:
        box = super().interval(*inputs)
        return Interval(box.lower.clamp(-self.cap, self.cap), box.upper.clamp(-self.cap, self.cap))

    def relax(self, *inputs: Interval) -> ShortenPlanes:
        own = super().relax(*inputs)
        return ShortenPlanes(
            own.letters, own.centre_a, own.centre_b, own.lower, own.upper, own.magnitude
        )

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        product = super().encode(encoder, inputs, ranges)
        box = self.interval(*ranges)
        if bool((box.magnitude >= self.cap).any()):
            lower, upper = box.hull().lower, box.hull().upper
            encoder.rows(product, np.asarray(lower.cpu()), np.asarray(upper.cpu()))
            encoder.conditional(product, box)
        return product
