"""Losses: how labels are encoded, the gradient as nodes, what a prediction is worth, and linear bounds."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, Precision, gamma
from milp_agt.errors import InvalidInputError, UnsupportedOperationError

Plane = tuple[Tensor, Tensor]  # slope (..., n, forms) and offset (..., n)


@dataclass(frozen=True)
class LossPlanes:
    """Planes below and above the loss of each point, in its forms m.

    For every m in the box that they were made for

        slope_lower . m + lower  <=  loss(m)  <=  slope_upper . m + upper,

    with room for the rounding of the planes and of an evaluated loss.

    Attributes:
        slope_lower, slope_upper: (..., n, forms), finite.
        lower, upper: (..., n); infinite where nothing is known.
    """

    slope_lower: Tensor
    slope_upper: Tensor
    lower: Tensor
    upper: Tensor

    @staticmethod
    def of(below: Plane, above: Plane, error: Tensor) -> LossPlanes:
        """Planes that hold but for ``error``, (..., n)."""
        slopes, offsets = [], []
        for (slope, offset), sign in ((below, -1.0), (above, 1.0)):
            shifted = offset + sign * error
            known = torch.isfinite(shifted)
            slopes.append(torch.where(known.unsqueeze(-1), slope, 0.0))
            offsets.append(torch.where(known, shifted, sign * torch.inf))
        return LossPlanes(*slopes, *offsets)

    def turned(self, other: LossPlanes, box: Interval) -> LossPlanes:
        """Planes with the slopes of others: the offsets pay for the turn over the box."""
        largest, forms = box.magnitude, box.lower.shape[-1]

        def turn(own: Tensor, slope: Tensor, offset: Tensor) -> Interval:
            ends = torch.stack([(own - slope) * box.lower, (own - slope) * box.upper])
            size = offset.abs() + ((own.abs() + slope.abs()) * largest).sum(-1)
            error = gamma(32 + 4 * forms) * size
            return Interval(
                offset + ends.amin(0).sum(-1) - error, offset + ends.amax(0).sum(-1) + error
            )

        lower = turn(self.slope_lower, other.slope_lower, self.lower).lower
        upper = turn(self.slope_upper, other.slope_upper, self.upper).upper
        return LossPlanes(
            other.slope_lower,
            other.slope_upper,
            lower.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf),
            upper.nan_to_num(nan=torch.inf, posinf=torch.inf, neginf=torch.inf),
        )


def convex_planes(
    box: Interval, value: Callable[[Tensor], Tensor], derivative: Callable[[Tensor], Tensor]
) -> LossPlanes:
    """Of ``sum_k f(m_k)``, f convex: tangents at the centres, chords over the box.

    A line is above a convex function on an interval if it is at both ends. ``derivative`` may be off by
    64 units in the last place.
    """
    low, high, centre = box.lower, box.upper, box.centre
    width = high - low
    narrow = width <= 1e-7 * (1.0 + box.magnitude)
    tangent = derivative(centre)
    at_low, at_high, at_centre = value(low), value(high), value(centre)
    chord = torch.where(narrow, tangent, (at_high - at_low) / torch.where(narrow, 1.0, width))
    below = at_centre - tangent * centre
    above = torch.maximum(at_low - chord * low, at_high - chord * high)
    values = torch.maximum(torch.maximum(at_low, at_high), at_centre)
    size = (values + 4.0 * (tangent.abs() + chord.abs()) * box.magnitude).sum(-1)
    error = gamma(128 + 8 * low.shape[-1]) * size + TINY
    return LossPlanes.of((tangent, below.sum(-1)), (chord, above.sum(-1)), error)


def log_sum_exp_planes(box: Interval) -> LossPlanes:
    """Of ``log(1 + sum_k exp(-m_k))``: tangent at the centre; above, the chords of the exponentials
    under the tangent of the logarithm at their sum (Wei et al. 2023, section 3).

    Everything is scaled by ``exp(-shift)``, so that nothing overflows.
    """
    low, high, centre = box.lower, box.upper, box.centre
    shift = (-low).amax(-1, keepdim=True).clamp(min=0.0)
    largest, count = box.magnitude, low.shape[-1]

    zero = torch.zeros_like(centre[..., :1])
    weights = torch.softmax(torch.cat([zero, -centre], -1), -1)[..., 1:]
    at_centre = torch.logsumexp(torch.cat([zero, -centre], -1), -1)
    below = at_centre + (weights * centre).sum(-1)

    at_low, at_high = torch.exp(-low - shift), torch.exp(-high - shift)
    width = high - low
    narrow = width <= 1e-7 * (1.0 + largest)
    chord = (at_high - at_low) / torch.where(narrow, 1.0, width)
    chord = torch.where(narrow, -torch.exp(-centre - shift), chord)
    offset = torch.maximum(at_low - chord * low, at_high - chord * high)
    one = torch.exp(-shift).squeeze(-1)
    total = one + (chord * centre + offset).sum(-1)
    slope = chord / total.unsqueeze(-1)
    above = shift.squeeze(-1) + torch.log(total) - 1.0 + (one + offset.sum(-1)) / total

    # exp and the softmax are off by 16 units, and by one for each unit of their arguments.
    arguments = 1.0 + largest + shift
    size_below = at_centre + 4.0 * (weights * largest * arguments).sum(-1)
    terms = one * (1.0 + shift.squeeze(-1)) + (
        (at_low + offset.abs() + 2.0 * chord.abs() * largest) * arguments
    ).sum(-1)
    size_above = shift.squeeze(-1) + torch.log(total).abs() + 1.0 + 4.0 * terms / total
    error = gamma(128 + 16 * count) * (size_below + size_above) + TINY
    return LossPlanes.of((-weights, below), (slope, above), error)


_LOSSES: dict[str, LossFunction] = {}


class LossFunction(ABC):
    """A per-sample loss ``loss(f, y)``; the training run minimises its mean over the batch."""

    key: ClassVar[str]
    is_classification: ClassVar[bool]
    formula: ClassVar[str]

    @abstractmethod
    def classes(self, outputs: int) -> int:
        """Count of classes for a model with that many outputs; 0 for regression.

        Raises:
            InvalidInputError: the loss does not fit that many outputs.
        """

    @abstractmethod
    def encode(self, labels: Tensor, outputs: int) -> Tensor:
        """Labels as the graph sees them: classes (n,) or targets (n, outputs) -> (n, width) float64."""

    @abstractmethod
    def gradient(self, graph: Graph, prediction: Node, labels: Node) -> Node:
        """Append ``d loss_i / d f_i`` for each sample i and return it."""

    def configured(self, **options: Any) -> LossFunction:
        """The same loss with options of torch; those that are None or 0 are left out.

        Options are in the gradient alone: :meth:`value` and questions are about the plain loss.

        Raises:
            InvalidInputError: an option that this loss does not have.
        """
        given = {name: value for name, value in options.items() if value}
        known = self._fields()
        unknown = sorted(given.keys() - set(known))
        if unknown:
            raise InvalidInputError(
                f"Loss '{self.key}' was asked for with {', '.join(unknown)}",
                f"options of it: {', '.join(known) or 'none'}",
                "leave it out, or use the loss that has it",
            )
        own: Any = self
        return replace(own, **given) if given else self

    def _fields(self) -> tuple[str, ...]:
        own: Any = self
        return tuple(field.name for field in fields(own)) if is_dataclass(own) else ()

    @property
    def options(self) -> dict[str, Any]:
        """Options that are set, by name."""
        return {name: value for name in self._fields() if (value := getattr(self, name))}

    def divisor(self, labels: Tensor) -> Tensor | None:
        """By what the sum over a batch of labels (..., n, width) is divided, (...); None for n."""
        return None

    @property
    def rounds_in_run(self) -> bool:
        """Whether :meth:`run_error` is there: whether runs in reduced precision can be bounded."""
        return False

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """Bound of the error of the gradient of the loss in a run of a precision, from outputs and labels.

        As torch computes it from outputs as they are, in one piece (log softmax, then backward), or by
        autograd from the formula; division by the size of the batch included. The bound leaves room
        for one more operation, and is for gradients before that division. Only where :meth:`rounds_in_run`.
        """
        raise UnsupportedOperationError(
            f"The rounding of loss '{self.key}' in {precision.name} was asked for",
            "no bound of it",
            "certify the run in float64",
        )

    def curvature(self, gradient: Tensor, labels: Tensor, off: Tensor) -> Tensor | None:
        """Bound of the norm of ``d^2 loss_i / d f_i^2``, (...), wherever the gradient is near a given one.

        Near: within ``off``, (...), of ``gradient``, (..., outputs), in the norm; all outputs where ``off``
        is infinite. None for a loss without such a bound, or with kinks.
        """
        return None

    @abstractmethod
    def value(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """Loss of each sample, (..., n), from outputs (..., n, outputs) and encoded labels."""

    def plain(self, prediction: Tensor, labels: Tensor) -> Tensor:
        """The mean over a batch as a user of torch writes it, options included, from encoded labels."""
        return self.value(prediction, labels).mean()

    @abstractmethod
    def forms(self, labels: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
        """Linear forms of the outputs that decide loss and correctness of each point.

        Returns coefficients (n, forms, outputs) and constants (n, forms). Classification: margins,
        all positive iff the prediction is the label. Regression: residuals ``f - y``.
        """

    @abstractmethod
    def of_forms(self, forms: Interval) -> Interval:
        """Bounds on the loss of each point, (n,), from bounds on its forms, (n, forms)."""

    @abstractmethod
    def planes(self, forms: Interval) -> LossPlanes:
        """Linear bounds of the loss of each point on a box of its forms, (..., n, forms)."""

    def vertices(self, outputs: int) -> Tensor:
        """All encoded labels, (classes, width)."""
        return self.encode(torch.arange(self.classes(outputs)), outputs)


def margin_forms(labels: Tensor, outputs: int) -> Tensor:
    """Coefficients of ``f_y - f_k`` for all k != y: (n, outputs - 1, outputs)."""
    eye = torch.eye(outputs, dtype=torch.float64)
    others = torch.arange(outputs).expand(len(labels), outputs)
    others = others[others != labels[:, None]].reshape(len(labels), outputs - 1)
    return eye[labels][:, None, :] - eye[others]


class BinaryLoss(LossFunction):
    """A loss of the margin ``y f`` of one logit, y = -1 or 1 for labels 0 and 1."""

    rounds_in_run = True

    is_classification = True

    def classes(self, outputs: int) -> int:
        if outputs != 1:
            raise InvalidInputError(
                f"Loss '{self.key}' needs a model with one output",
                f"{outputs} outputs",
                "use loss 'cross_entropy', or a last layer with one output",
            )
        return 2

    def encode(self, labels: Tensor, outputs: int) -> Tensor:
        return labels.to(torch.float64).reshape(-1, 1)

    @abstractmethod
    def of_margin(self, margin: Tensor) -> Tensor:
        """The loss, convex and never rising."""

    @abstractmethod
    def slope_of_margin(self, margin: Tensor) -> Tensor:
        """Its derivative."""

    def forms(self, labels: Tensor, outputs: int) -> tuple[Tensor, Tensor]:
        signs = (2.0 * labels - 1.0).reshape(-1, 1, 1)
        return signs, torch.zeros(len(labels), 1, dtype=torch.float64)

    def of_forms(self, forms: Interval) -> Interval:
        least, most = (self.of_margin(m).squeeze(-1) for m in (forms.upper, forms.lower))
        return Interval(least, most)

    def planes(self, forms: Interval) -> LossPlanes:
        return convex_planes(forms, self.of_margin, self.slope_of_margin)


def register_loss(loss: type[LossFunction]) -> type[LossFunction]:
    """Class decorator: enter a loss under its key."""
    if loss.key in _LOSSES:
        raise UnsupportedOperationError(f"Loss '{loss.key}' was registered twice", "", "rename it")
    _LOSSES[loss.key] = loss()
    return loss


def losses() -> dict[str, LossFunction]:
    """Every registered loss by name."""
    from milp_agt.formulations.registry import operations

    operations()  # imports every module of the package
    return dict(sorted(_LOSSES.items()))


def get_loss(name: str) -> LossFunction:
    """Look a loss up; raises UnsupportedOperationError that lists the supported ones."""
    found = losses().get(name)
    if found is None:
        raise UnsupportedOperationError(
            f"Loss '{name}' was asked for", "no such loss", f"use one of {', '.join(losses())}"
        )
    return found
