"""How an error of parameters and velocity grows in a step of gradient descent, in a norm of both.

A step maps an error (e, u) of (theta, v) to ``((1 + c H) e + b u, k H e + m u)``, H a symmetric matrix with
eigenvalues in [low, high]. In the basis of its eigenvectors these are maps of the plane, one for each
eigenvalue; in the norm ``|(e, u)|^2 = |e|^2 + 2 p e.u' + q |u'|^2`` with ``u' = scale u`` that of H is at
most the largest of theirs, and their norm is convex in the eigenvalue: both ends tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.training.training import UpdateRule

# Covers what rounding does to a norm of a map of the plane, and to a radius in a step.
ROUNDED = 1.0 + 1e-6
_TILTS = torch.linspace(-3.0, 3.0, 41, dtype=torch.float64)
_WEIGHTS = torch.logspace(-1.0, 3.0, 41, dtype=torch.float64)


@dataclass(frozen=True)
class ErrorNorm:
    """``|(e, u)|^2 = |e|^2 + 2 tilt scale e.u + weight scale^2 |u|^2``; a norm for ``tilt^2 < weight``."""

    scale: float = 1.0
    tilt: float = 0.0
    weight: float = 1.0

    @property
    def per_parameter(self) -> float:
        """``|e|`` is at most this times the norm of (e, u)."""
        return ROUNDED * math.sqrt(self.weight / (self.weight - self.tilt**2))

    def of_sizes(self, parameters: Tensor, velocity: Tensor) -> Tensor:
        """A bound of the norm of (e, u) from those of e and u."""
        other = self.scale * velocity
        square = parameters**2 + 2.0 * abs(self.tilt) * parameters * other + self.weight * other**2
        return square.sqrt() * ROUNDED

    def growth(self, low: Tensor, high: Tensor, rule: UpdateRule) -> Tensor:
        """A bound of the factor of a step; ``low`` and ``high`` are ends of spectra, without weight decay."""
        most = high + rule.weight_decay
        if rule.momentum == 0.0:
            factor = torch.maximum((1.0 + rule.theta_from[2] * low).abs(), (1.0 + rule.theta_from[2] * most).abs())
            return factor * ROUNDED
        return torch.maximum(self._of_mode(low, rule), self._of_mode(most, rule)) * ROUNDED

    def _of_mode(self, value: Tensor, rule: UpdateRule) -> Tensor:
        """The norm of the map of the plane that belongs to an eigenvalue."""
        _, b, c = rule.theta_from
        _, m, k = rule.velocity_from
        tilt, root = self.tilt, math.sqrt(self.weight - self.tilt**2)
        return _norm_of_map(value, b / self.scale, c, m, k * self.scale, tilt, root)

    @staticmethod
    def fitted(lows: Tensor, highs: Tensor, rules: Sequence[UpdateRule]) -> ErrorNorm:
        """The norm of a grid in which spectra like those of the steps, (steps,), let errors grow least."""
        if rules[0].momentum == 0.0:
            return ErrorNorm()
        scale = sorted(rule.rate for rule in rules)[len(rules) // 2]
        tilt, weight = torch.meshgrid(_TILTS, _WEIGHTS, indexing="ij")
        weight = weight + tilt**2
        root = (weight - tilt**2).sqrt()
        total = torch.zeros_like(tilt)
        for low, high, rule in zip(lows.tolist(), highs.tolist(), rules, strict=True):
            _, b, c = rule.theta_from
            _, m, k = rule.velocity_from
            ends = [
                _norm_of_map(torch.full_like(tilt, end), b / scale, c, m, k * scale, tilt, root)
                for end in (low, high + rule.weight_decay)
            ]
            total += torch.maximum(*ends).log()
        best = int(total.argmin())
        return ErrorNorm(scale, float(tilt.flatten()[best]), float(weight.flatten()[best]))


def _norm_of_map(
    value: Tensor, b: float, c: float, m: float, k: float, tilt: Tensor | float, root: Tensor | float
) -> Tensor:
    """The norm of ``K M K^-1``, ``M = ((1 + c v, b), (k v, m))``, ``K = ((1, tilt), (0, root))``."""
    # K M
    a11, a12 = 1.0 + c * value + tilt * k * value, b + tilt * m
    a21, a22 = root * k * value, root * m
    # times K^-1 = ((1, -tilt / root), (0, 1 / root))
    b12, b22 = (a12 - tilt * a11) / root, (a22 - tilt * a21) / root
    total = a11**2 + b12**2 + a21**2 + b22**2
    det = a11 * b22 - b12 * a21
    inner = (total**2 - 4.0 * det**2).clamp(min=0.0).sqrt()
    return (0.5 * (total + inner)).sqrt()
