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
_TILTS = torch.linspace(-3.0, 3.0, 17, dtype=torch.float64)
_ROOTS = torch.logspace(-0.5, 1.5, 17, dtype=torch.float64)


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

    @property
    def of_velocity(self) -> float:
        """``|u|`` is at most this times the norm of (e, u)."""
        return ROUNDED / (self.scale * math.sqrt(self.weight - self.tilt**2))

    def growth(self, low: Tensor, high: Tensor, rule: UpdateRule, after: ErrorNorm) -> Tensor:
        """A bound of the norm ``after`` a step by this one before it.

        ``low`` and ``high`` are ends of the spectra of H without weight decay.
        """
        most = high + rule.weight_decay
        if rule.momentum == 0.0:
            rate = rule.theta_from[2]
            return torch.maximum((1.0 + rate * low).abs(), (1.0 + rate * most).abs()) * ROUNDED
        ends = [_norm_of_map(_map(end, rule, self.scale), self, after) for end in (low, most)]
        return torch.maximum(*ends) * ROUNDED

    @staticmethod
    def fitted(lows: Tensor, highs: Tensor, rules: Sequence[UpdateRule]) -> tuple[ErrorNorm, ...]:
        """Norms before each step and after the last in which errors of spectra like these grow least.

        The best sequence out of a grid, by dynamic programming; ``lows`` and ``highs`` are (steps,).
        """
        if rules[0].momentum == 0.0:
            return (ErrorNorm(),) * (len(rules) + 1)
        rates = sorted(rule.rate for rule in rules)
        scale = rates[len(rates) // 2] or rates[-1]
        tilt, root = (g.flatten() for g in torch.meshgrid(_TILTS, _ROOTS, indexing="ij"))
        before, after = _Grid(tilt, root), _Grid(tilt[:, None], root[:, None])
        cost = (1.0 + (tilt / root) ** 2).log() / 2
        choices = []
        for low, high, rule in reversed(list(zip(lows, highs, rules, strict=True))):
            ends = [
                _norm_of_map(_map(end, rule, scale), before, after)
                for end in (low, high + rule.weight_decay)
            ]
            cost, chosen = (torch.maximum(*ends).log() + cost[:, None]).min(0)
            choices.append(chosen)
        at = int(cost.argmin())
        path = [at]
        for chosen in reversed(choices):
            at = int(chosen[at])
            path.append(at)
        return tuple(
            ErrorNorm(scale, float(tilt[k]), float(tilt[k] ** 2 + root[k] ** 2)) for k in path
        )

    @property
    def root(self) -> float:
        """``K = ((1, tilt), (0, root))`` takes this norm to the Euclidean one."""
        return math.sqrt(self.weight - self.tilt**2)


@dataclass(frozen=True)
class _Grid:
    """``tilt`` and ``root`` of many norms."""

    tilt: Tensor
    root: Tensor


Map = tuple[Tensor, float, Tensor, float]


def _map(value: Tensor, rule: UpdateRule, scale: float) -> Map:
    """What a step does to (e, scale u) of an eigenvector, row by row; ``value`` is its eigenvalue."""
    _, b, c = rule.theta_from
    _, m, k = rule.velocity_from
    return 1.0 + c * value, b / scale, k * scale * value, m


def _norm_of_map(step: Map, before: ErrorNorm | _Grid, after: ErrorNorm | _Grid) -> Tensor:
    """The norm of ``K M K'^-1`` for the matrices K of the norm after and K' of the norm before."""
    a11 = step[0] + after.tilt * step[2]
    a12 = step[1] + after.tilt * step[3]
    a21, a22 = after.root * step[2], after.root * step[3]
    b12, b22 = (a12 - before.tilt * a11) / before.root, (a22 - before.tilt * a21) / before.root
    total = a11**2 + b12**2 + a21**2 + b22**2
    determinant = a11 * b22 - b12 * a21
    inner = (total**2 - 4.0 * determinant**2).clamp(min=0.0).sqrt()
    return (0.5 * (total + inner)).sqrt()
