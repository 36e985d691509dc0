"""Goals of attacks on trained models: parameters, the loss, and the points of a question."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from milp_agt.bounds.program import OutputForms
from milp_agt.core.graph import evaluate
from milp_agt.core.interval import CLEAN, Interval
from milp_agt.core.rounding import gamma
from milp_agt.formulations.loss import LossFunction
from milp_agt.properties.question import Question
from milp_agt.properties.triggers import descended
from milp_agt.training.tracing import FEATURES, StepGraph


@dataclass(frozen=True)
class TrainedModels:
    """Many trained models by the step graph, differentiable in their ``state`` (attacks, *shape) by name."""

    step_graph: StepGraph
    state: Mapping[str, Tensor]

    @property
    def parameters(self) -> Tensor:
        """All trainable parameters one after the other, (attacks, P)."""
        return torch.cat([self.state[n].flatten(1) for n in self.step_graph.parameters], 1)

    def outputs(self, features: Tensor) -> Tensor:
        """Outputs (attacks, n, outputs) on features (n, *shape), or (attacks, n, *shape)."""
        names = self.step_graph.parameters
        if features.dim() == 1 + len(self.step_graph.graph[FEATURES].shape):
            features = features.expand(len(self.state[names[0]]), *features.shape)
        leaves = {n: self.state[n] for n in names} | {FEATURES: features}
        nodes = self.step_graph.graph.needed_for([self.step_graph.output])
        return evaluate(nodes, leaves)[self.step_graph.output]


class Goal(ABC):
    """An objective bound to a model: quantities of the trained model, to be raised or lowered.

    Attributes:
        names: what each quantity is.
        points: how many test points every model is evaluated on.
    """

    names: tuple[str, ...]
    points: int = 0

    @abstractmethod
    def values(self, models: TrainedModels) -> Tensor:
        """Exact values, (attacks, quantities)."""

    def rounding(self, models: TrainedModels) -> float:
        """How far the largest value may be from the exact one: by nothing where its bounds cover that."""
        return 0.0

    def scores(self, models: TrainedModels) -> Tensor:
        """What attacks are ranked by, (attacks, quantities): the values, or what tells more attacks apart."""
        return self.values(models)

    def surrogate(
        self, models: TrainedModels, quantity: Tensor, sign: Tensor, trial: Tensor
    ) -> Tensor:
        """Differentiable, larger where ``sign * quantity`` is (or soon will be), (attacks,).

        Attack a aims at ``quantity[a]``; ``trial[a]`` numbers its attempts, for scales to vary.
        """
        return sign * self.values(models).gather(1, quantity[:, None])[:, 0]


class Parameters(Goal):
    """Every trainable parameter."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names

    def values(self, models: TrainedModels) -> Tensor:
        return models.parameters


class LinearForm(Goal):
    """``c . theta + constant``, coefficients (P,)."""

    def __init__(self, name: str, coefficients: Tensor, constant: float = 0.0) -> None:
        self.names, self.coefficients, self.constant = (name,), coefficients, constant

    def values(self, models: TrainedModels) -> Tensor:
        theta = models.parameters
        return (theta @ self.coefficients.to(theta) + self.constant)[:, None]

    def rounding(self, models: TrainedModels) -> float:
        size = models.parameters.abs() @ self.coefficients.to(models.parameters).abs()
        return gamma(2 * len(self.coefficients) + 8) * (float(size.max()) + abs(self.constant))


class MeanLossGoal(Goal):
    """Mean loss over test points with encoded labels (n, width)."""

    names = ("loss",)

    def __init__(self, loss: LossFunction, features: Tensor, encoded: Tensor) -> None:
        self.loss, self.features, self.encoded = loss, features, encoded
        self.points = len(features)

    def values(self, models: TrainedModels) -> Tensor:
        out = models.outputs(self.features.to(models.parameters))
        encoded = self.encoded.to(out).expand(len(out), *self.encoded.shape)
        return self.loss.value(out, encoded).mean(-1, keepdim=True)


def parameter_names(step_graph: StepGraph) -> tuple[str, ...]:
    """``0.weight[1, 0]`` for every entry of every trainable parameter, in order."""
    return tuple(
        f"{name}[{', '.join(map(str, index))}]"
        for name in step_graph.parameters
        for index in np.ndindex(*step_graph.graph[name].shape)
    )


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
