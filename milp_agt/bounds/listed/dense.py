"""Gradients of dense networks: how they curve, what rounding does to them, and how errors grow in a step.

For one linear layer, or two with a relu in between, and a loss with bounded curvature. With
``x~ = (x, 1)``, ``h~ = (h, 1)``, ``r = d loss / d f`` and phases ``phi`` the Hessian of the mean loss on a
direction ``(U, V)`` of both layers is

    mean_i  (V h~_i + W2 phi_i U x~_i)' A_i (V h~_i + W2 phi_i U x~_i)  +  2 r_i' V phi_i U x~_i .

The first part is positive semidefinite, and at most ``s1 + s2`` with ``s1`` the largest eigenvalue of
``mean_i |A_i| |W2 phi_i|^2 x~_i x~_i'`` and ``s2 = mean_i |A_i| |h~_i|^2``. The second lies within
``+- max_j |mean_i phi_ij r_i x~_i'|``, unit by unit. The largest eigenvalue is
taken once for all data sets: another such matrix has one that is larger by at most
``mean_i (w_i - w'_i)+ |x~_i|^2``.

A step maps an error (e, u) of (theta, v) to ``((1 + c H) e + b u, k H e + m u)``, H a symmetric matrix with
eigenvalues in [low, high]. In the basis of its eigenvectors these are maps of the plane, one for each
eigenvalue; in the norm ``|(e, u)|^2 = |e|^2 + 2 p e.u' + q |u'|^2`` with ``u' = scale u`` that of H is at
most the largest of theirs, and their norm is convex in the eigenvalue: both ends tell.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from milp_agt.core.interval import Interval
from milp_agt.core.rounding import FLOAT64, TINY, gamma
from milp_agt.training.tracing import FEATURES, LABELS, LOSS_GRADIENT, StepGraph
from milp_agt.training.training import UpdateRule

# Squarings that bring the Frobenius norm of a power to the largest eigenvalue, and what they may round.
SQUARINGS = 7
ROUNDED_ROOT = 1.0 + 1e-6
# Matrices whose bound is beyond the reference by this factor get an eigenvalue of their own.
FAR = 1.2


@dataclass(frozen=True)
class Reference:
    """Weights (n,) of the samples of a batch, and a bound of the largest eigenvalue of their matrix."""

    weights: Tensor
    greatest: float

    @staticmethod
    def of(weights: Tensor, features: Tensor) -> Reference:
        """Of ``sum_i w_i x~_i x~_i'``."""
        return Reference(weights, float(_eigenvalue(weights, _with_ones(features))))


@dataclass(frozen=True)
class GradientBounds:
    """Of the mean gradient of every choice, near the point where its nodes were evaluated, (choices,) each.

    Attributes:
        least, greatest: ends of the spectrum of the Hessian with the phases of the point.
        error: how far the gradient of a run in float64 is from the exact one with these phases.
        size: of the gradient.
        weights: of the matrix of ``s1``, (choices, n).
    """

    least: Tensor
    greatest: Tensor
    error: Tensor
    size: Tensor
    weights: Tensor


@dataclass(frozen=True)
class DenseNet:
    """Where the graph of a step has the parts of a dense network.

    Attributes:
        first: names of weight and bias of the layer before the relu; empty for a single layer.
        last: those of the last layer.
        before, phases, hidden: nodes of the relu's input, its phases and its output; "" for a single layer.
    """

    step_graph: StepGraph
    first: tuple[str, ...]
    last: tuple[str, ...]
    before: str = ""
    phases: str = ""
    hidden: str = ""

    @staticmethod
    def of(step_graph: StepGraph) -> DenseNet | None:
        """The parts; None for any other network, loss or way to clip."""
        model, graph = step_graph.model, step_graph.graph
        if type(model) is not nn.Sequential or step_graph.clipping is not None:
            return None
        if step_graph.loss.options:  # their gradient has another curvature
            return None
        children = list(model.named_children())
        kinds = [type(layer) for _, layer in children]
        if kinds not in ([nn.Linear], [nn.Linear, nn.ReLU, nn.Linear]) or step_graph.aliases:
            return None
        layers = [
            tuple(f"{name}.{own}" for own, _ in layer.named_parameters())
            for name, layer in children
            if isinstance(layer, nn.Linear)
        ]
        one = torch.ones((), dtype=torch.float64)
        outputs = torch.ones(step_graph.outputs, dtype=torch.float64)
        if step_graph.loss.curvature(outputs, outputs, one) is None:
            return None
        if {name for layer in layers for name in layer} != set(step_graph.parameters):
            return None
        if len(layers) == 1:
            return DenseNet(step_graph, (), layers[0])
        (relu,) = (node for node in graph if node.op.key == "relu")
        (phases,) = (n for n in graph if n.op.key == "step" and n.inputs == relu.inputs)
        return DenseNet(step_graph, layers[0], layers[1], relu.inputs[0], phases.name, relu.name)

    def bounds(
        self,
        state: Mapping[str, Tensor],
        values: Mapping[str, Tensor],
        sizes: Tensor,
        shares: Tensor,
        near: Tensor,
        reference: Reference | None,
        features: Tensor,
        moved: Tensor | None = None,
    ) -> tuple[GradientBounds, Reference]:
        """Bounds that hold within ``near`` (choices,) of the state, in the norm of all parameters.

        Args:
            state: parameters, (choices, *shape) each.
            values: of all nodes of the step.
            sizes: bounds of ``|x~_i|``, (choices or 1, n).
            shares: of each sample in the mean, (choices or 1, n); 0 for removed ones.
            reference: of this batch; None to take that of the first choice.
            features: of the batch without poison, (n, d), for the reference.
            moved: which of them are not those of a choice, (choices, n); None for none.
        """
        loss, output = self.step_graph.loss, values[self.step_graph.output]
        gradient, labels = values[LOSS_GRADIENT], values[LABELS]
        near, count, classes = near[:, None], sizes.shape[1], output.shape[-1]
        w2 = _norm(state, self.last[:1]) + near
        summed = gamma(count + 8)
        if self.hidden:
            w1 = _norm(state, self.first) + near
            units = values[self.before].shape[-1]
            off_z = gamma(features.shape[1] + 4) * w1 * sizes
            reach = (near + 2.0 * gamma(features.shape[1] + 4) * w1) * sizes
            kinks = self._kinks(values[self.before], reach)
            off_h = off_z if kinks is None else off_z + kinks.sqrt() * reach
            hidden = (values[self.hidden].square().sum(-1) + 1.0).sqrt() + near * sizes + off_h
            slope = w2 * sizes + hidden
        else:
            units, kinks, off_h, hidden = features.shape[1], None, 0.0 * sizes, sizes
            slope = sizes
        w2b = _norm(state, self.last) + near
        off_f = w2 * off_h + gamma(units + 4) * w2b * hidden
        everywhere = loss.curvature(gradient[:1, :1], labels[:1, :1], sizes[:1, :1] + torch.inf)
        assert everywhere is not None
        steep = float(everywhere)
        around = Interval(output, output).widen((slope * near + off_f)[..., None])
        own = loss.run_error(FLOAT64, around, Interval.point(labels)).norm(dim=-1)
        off_r = steep * off_f + own
        off = 2.0 * off_r + steep * slope * near
        residual = gradient.norm(dim=-1) + off
        curved = loss.curvature(gradient, labels, off)
        assert curved is not None
        error = (shares * (off_r * hidden + residual * (off_h + summed * hidden))).sum(-1)
        size = (shares * residual * hidden).sum(-1)
        if not self.hidden:
            weights = shares * curved
            greatest, reference = self._greatest(
                weights, sizes, reference, features, moved, values[FEATURES]
            )
            return GradientBounds(
                torch.zeros_like(greatest), greatest, error, size, weights
            ), reference
        off_s = w2 * (off_r + (gamma(classes + 4) + summed) * residual)
        if kinks is not None:
            off_s = off_s + kinks * w2 * residual
        error = error + (shares * off_s * sizes).sum(-1)
        size = size + (shares * w2 * residual * sizes).sum(-1)
        phases, inputs = values[self.phases], _with_ones(values[FEATURES])
        bilinear = _largest_unit(phases, gradient, shares, inputs)
        bilinear = bilinear + (shares * (off + summed * residual) * sizes).sum(-1)
        columns = state[self.last[0]].square().sum(-2)
        reached = ((phases @ columns[..., None]).squeeze(-1).sqrt() + near).square()
        weights = shares * curved * reached
        greatest, reference = self._greatest(
            weights, sizes, reference, features, moved, values[FEATURES]
        )
        greatest = greatest + (shares * curved * hidden.square()).sum(-1) + bilinear
        return GradientBounds(-bilinear, greatest, error, size, weights), reference

    @staticmethod
    def _kinks(before: Tensor, reach: Tensor) -> Tensor | None:
        """How many units of each sample may be in another phase, (choices, n); None if none is."""
        unclear = before.abs() <= reach[..., None]
        return unclear.sum(-1).to(before.dtype) if bool(unclear.any()) else None

    @staticmethod
    def _greatest(
        weights: Tensor,
        sizes: Tensor,
        reference: Reference | None,
        features: Tensor,
        moved: Tensor | None,
        own: Tensor,
    ) -> tuple[Tensor, Reference]:
        """Bounds of the largest eigenvalues, (choices,), and the reference that they are taken from."""
        if reference is None:
            reference = Reference.of(weights[0], features)
        known = reference.weights if moved is None else torch.where(moved, 0.0, reference.weights)
        found = reference.greatest + ((weights - known).clamp(min=0.0) * sizes.square()).sum(-1)
        far = (found > FAR * reference.greatest).nonzero()[:, 0]
        if len(far):
            inputs = _with_ones(own if own.dim() == 2 else own[far])
            found[far] = torch.minimum(found[far], _eigenvalue(weights[far], inputs))
        return found, reference


def _norm(state: Mapping[str, Tensor], names: tuple[str, ...]) -> Tensor:
    """The norm of some parameters together, (choices, 1)."""
    return torch.stack([state[n].flatten(1).square().sum(1) for n in names]).sum(0).sqrt()[:, None]


def _eigenvalue(weights: Tensor, inputs: Tensor) -> Tensor:
    """A bound of the largest eigenvalue of ``C = sum_i w_i x~_i x~_i'``, (...): ``|C^k|_F^(1/k)``."""
    matrix = (inputs * weights[..., None]).transpose(-1, -2) @ inputs
    total, power = torch.zeros_like(weights[..., 0]), 1
    for _ in range(SQUARINGS):
        size = matrix.square().sum((-1, -2)).sqrt().clamp(min=1e-200)
        total = total + size.log() / power
        scaled = matrix / size[..., None, None]
        matrix, power = scaled @ scaled, 2 * power
    size = matrix.square().sum((-1, -2)).sqrt().clamp(min=1e-200)
    return (total + size.log() / power).exp() * ROUNDED_ROOT + TINY


def _with_ones(features: Tensor) -> Tensor:
    return torch.cat([features, torch.ones_like(features[..., :1])], -1)


def _largest_unit(phases: Tensor, gradient: Tensor, shares: Tensor, inputs: Tensor) -> Tensor:
    """``max_j |sum_i s_i phi_ij r_i x~_i'|`` (Frobenius) but for rounding, (choices,)."""
    weighed = gradient * shares[..., None]
    beside = torch.zeros_like(weighed[:, 0, 0])
    if gradient.shape[-1] == 2:  # r_2 is -r_1 but for a remainder, which classes leave to rounding
        rest = gradient.sum(-1).abs() * shares * inputs.norm(dim=-1)
        weighed, beside = weighed[..., :1] * 2.0**0.5, rest.sum(-1)
    total = torch.zeros_like(phases[:, 0])
    for each in weighed.unbind(-1):
        turned = (phases * each[..., None]).transpose(1, 2) @ inputs
        total = total + turned.square().sum(-1)
    return total.amax(-1).sqrt() * (1.0 + 1e-9) + beside


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
