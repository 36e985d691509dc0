"""Losses: how labels are encoded, the gradient as nodes, and what a prediction is worth."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import Precision
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.formulations.loss_planes import LossPlanes, convex_planes

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

    def rounds_in_run(self) -> bool:
        return True

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
