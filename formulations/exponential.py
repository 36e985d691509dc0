"""The exponential function, a part of softmax."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.program import Function
from milp_agt.formulations.registry import register
from milp_agt.formulations.univariate import ClosedForm

CAP = 700.0


@register
@dataclass(frozen=True)
class Exponential(ClosedForm):
    """``f(x) = exp(min(x, 700))``, increasing and convex below 700; ``f' = m`` at ``log(m)``.

    The cap keeps ranges finite. Softmax divides by the result: beyond the cap it is off by less
    than 1e-300, which the absolute error granted to every operation covers.
    """

    key = "exponential"
    rises, least = 1, 0.0
    function = Function.EXP

    def value(self, *inputs: Tensor) -> Tensor:
        return torch.exp(inputs[0].clamp(max=CAP))

    def derivative(self, x: Tensor) -> Tensor:
        return torch.where(x > CAP, 0.0, torch.exp(x.clamp(max=CAP)))

    def stationary(self, slope: Tensor) -> tuple[Tensor, ...]:
        # The kink at the cap is an extreme as well.
        return torch.log(slope), torch.full_like(slope, CAP)
