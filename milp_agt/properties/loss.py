"""How large can the loss on test points become?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.errors import InvalidInputError
from milp_agt.formulations.loss import Loss
from milp_agt.properties.answer import Scores
from milp_agt.properties.models import Models, OutputForms


@dataclass(frozen=True)
class MeanLoss:
    """Mean of the training loss over test points: the exact function of the float64 outputs."""

    index: Tensor
    loss: Loss
    on_outputs: OutputForms

    @staticmethod
    def of(models: Models, features: Tensor, labels: Tensor) -> MeanLoss:
        """For features (n, *shape) and encoded labels (n, width)."""
        loss = models.step_graph.loss
        coefficients, constant = loss.forms(labels.cpu(), models.step_graph.outputs)
        inputs = Interval.point(features.unsqueeze(0))
        forms = OutputForms(inputs, coefficients.to(features), constant.to(features))
        return MeanLoss(torch.arange(len(features), device=features.device), loss, forms)

    @property
    def forms(self) -> tuple[OutputForms, ...]:
        return (self.on_outputs,)

    def evaluate(self, bounds: Sequence[Interval]) -> Scores:
        (forms,) = bounds
        each = self.loss.of_forms(forms)
        size = each.magnitude + forms.magnitude.amax(-1)
        wide = each.widen(gamma(64 + 8 * forms.lower.shape[-1]) * size + TINY)
        each = Interval(wide.lower.clamp(min=0.0), wide.upper)
        return Scores(each, each)

    def nominal(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """From the same forms as the bounds: log sum exp(f) - f_y would cancel for large logits.

        Raises:
            InvalidInputError: a loss that is not finite.
        """
        each = self.loss.of_forms(Interval.point(values[0])).lower
        if not bool(torch.isfinite(each).all()):
            raise InvalidInputError(
                "The loss of the nominal model must be finite",
                f"{float(each.mean())} over {len(each)} test points",
                "the nominal run has diverged: lower the learning rate or scale the data",
            )
        return each, each
