"""A question about test points as the goal of an attack: every point's safety margin, and their mean."""

from __future__ import annotations

import torch
from torch import Tensor

from milp_agt.attacks.goals import Goal, TrainedModels
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.properties.models import OutputForms
from milp_agt.properties.question import Question
from milp_agt.properties.triggers import descended

# Widths of the smooth step that stands for "is hit", in units of the mean margin.
SHARPNESS = (1.0, 0.3, 0.1, 0.03)
TRIGGER_STEPS = 6


class QuestionGoal(Goal):
    """Quantity k < n is the harm at point k, its safety margin with the sign turned; quantity n is the
    share of unsafe points.

    Margins follow from the forms of the question at the trained models, as its bounds do from bounds of
    these forms. Inputs that a trigger may move are searched anew for every model.
    """

    def __init__(self, question: Question) -> None:
        self.question = question
        count = len(question.index)
        self.names = (*(f"point {k}" for k in question.index.tolist()), "share")
        self.points = count * sum(forms.coefficients.shape[1] for forms in question.forms)

    def margins(self, models: TrainedModels) -> Tensor:
        """The least margin at each point that was found, (attacks, n); inf for a model that is no number."""
        forms = enumerate(self.question.forms)
        return self._margins([self._at(models, f, self._inputs(models, k)) for k, f in forms])

    def _margins(self, values: list[Tensor]) -> Tensor:
        broken = torch.stack([v.isnan().any(-1) for v in values]).any(0)
        known = [torch.where(v.isnan(), 0.0, v) for v in values]
        found = self.question.evaluate([Interval.point(v) for v in known]).score.lower
        return torch.where(broken, torch.inf, found)

    def _at(self, models: TrainedModels, forms: OutputForms, inputs: Tensor) -> Tensor:
        """Forms of the trained models, (attacks, n, forms)."""
        outputs = models.outputs(inputs)
        return torch.einsum("nfo,ano->anf", forms.coefficients, outputs) + forms.constant

    def _inputs(self, models: TrainedModels, which: int) -> Tensor:
        """The test inputs (n, *shape), or the worst that were found in their boxes, (attacks, n, *shape)."""
        forms = self.question.forms[which]
        if torch.equal(forms.inputs.lower, forms.inputs.upper):
            return forms.inputs.lower[CLEAN]
        centres = [other.inputs.centre[CLEAN] for other in self.question.forms]
        others = [
            self._at(models, other, centre).detach()
            for other, centre in zip(self.question.forms, centres, strict=True)
        ]

        def margins(inputs: Tensor) -> Tensor:
            values = [*others[:which], self._at(models, forms, inputs), *others[which + 1 :]]
            return self._margins(values)

        start = centres[which].expand(len(models.parameters), *centres[which].shape)
        return descended(margins, start, forms.inputs, [2.0**k for k in range(TRIGGER_STEPS)])

    def values(self, models: TrainedModels) -> Tensor:
        harm = -self.margins(models)
        return torch.cat([harm, (harm > 0).to(harm).mean(-1, keepdim=True)], -1)

    def scores(self, models: TrainedModels) -> Tensor:
        harm = -self.margins(models)
        return torch.cat([harm, _smooth(harm, SHARPNESS[1])[:, None]], -1)

    def surrogate(
        self, models: TrainedModels, quantity: Tensor, sign: Tensor, trial: Tensor
    ) -> Tensor:
        harm = -self.margins(models)
        share = _smooth(harm, _sharpness(trial))
        last = harm.shape[1] - 1
        alone = harm.gather(1, quantity.clamp(max=last)[:, None])[:, 0]
        return sign * torch.where(quantity > last, share, alone)


class ShareGoal(QuestionGoal):
    """The mean of what a question counts; a margin of zero, or no number, counts for nobody."""

    def __init__(self, name: str, question: Question) -> None:
        super().__init__(question)
        self.names, self.toward = (name,), 1.0 if question.counts_harm else -1.0

    def values(self, models: TrainedModels) -> Tensor:
        harm = -self.margins(models)
        counted = harm > 0 if self.question.counts_harm else ~(harm >= 0)
        return counted.to(harm).mean(-1, keepdim=True)

    def scores(self, models: TrainedModels) -> Tensor:
        return _smooth(-self.toward * self.margins(models), SHARPNESS[1])[:, None]

    def surrogate(
        self, models: TrainedModels, quantity: Tensor, sign: Tensor, trial: Tensor
    ) -> Tensor:
        return sign * _smooth(-self.toward * self.margins(models), _sharpness(trial))


def _sharpness(trial: Tensor) -> Tensor:
    known = torch.tensor(SHARPNESS, dtype=torch.float64, device=trial.device)
    return known[trial % len(SHARPNESS)][:, None]


def _smooth(harm: Tensor, sharpness: Tensor | float) -> Tensor:
    """Mean of smooth steps of the harm, (attacks,): tells attacks of one share apart."""
    finite = torch.where(torch.isfinite(harm), harm, 0.0)
    size = finite.detach().abs().mean(-1, keepdim=True) + 1e-300
    return torch.sigmoid(finite / (size * sharpness)).mean(-1)
