"""Is the predicted class one of a set? Accuracy, stability, targets and backdoors all ask this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.properties.answer import Scores
from milp_agt.properties.models import OutputForms, ReachableModels


@dataclass(frozen=True)
class Decision:
    """The safety margin of each test point: best score of a safe class less the best unsafe one.

    With scores f_k, safe classes K and unsafe classes S, the margin is
    ``max_{k in K} f_k - max_{s in S} f_s``. The prediction is safe if it is above zero and unsafe if
    it is below; a tie may go either way, so it counts as success for the adversary and never as a
    sure one. From bounds of the pairs ``f_k - f_s``

        min_s max_k lower(f_k - f_s)  <=  margin  <=  max_k min_s upper(f_k - f_s).

    Without unsafe classes the margin is inf, without safe ones -inf.

    Attributes:
        unsafe: (n, classes) bool.
        safe_of, unsafe_of: the classes k and s of each form, (n, forms).
        forms: ``f_k - f_s``; a model with one output has the scores 0 and f.
    """

    unsafe: Tensor
    safe_of: Tensor
    unsafe_of: Tensor
    forms: OutputForms

    @staticmethod
    def of(models: ReachableModels, inputs: Interval, unsafe: Tensor) -> Decision:
        """The decision on test inputs (1, n, *shape) with unsafe classes (n, classes)."""
        safe_of, unsafe_of = _pairs(unsafe)
        scores = class_scores(models).to(inputs.lower)
        coefficients = scores[safe_of] - scores[unsafe_of]
        constant = coefficients.new_zeros(coefficients.shape[:2])
        return Decision(unsafe, safe_of, unsafe_of, OutputForms(inputs, coefficients, constant))

    def part(self, points: Tensor) -> Decision:
        """The decision on some of the points."""
        return Decision(
            self.unsafe[points],
            self.safe_of[points],
            self.unsafe_of[points],
            self.forms.part(points),
        )

    def margin(self, bounds: Interval) -> Interval:
        """Bounds of the margins, (..., n), from bounds of the forms, (..., n, forms)."""
        beaten = self._scattered(bounds.lower, self.unsafe_of, "amax", -torch.inf)
        lower = torch.where(self.unsafe, beaten, torch.inf).amin(-1)
        beating = self._scattered(bounds.upper, self.safe_of, "amin", torch.inf)
        upper = torch.where(self.unsafe, -torch.inf, beating).amax(-1)
        return Interval(lower, upper)

    def _scattered(self, values: Tensor, index: Tensor, reduce: str, start: float) -> Tensor:
        """The greatest or least value of the forms of each class, (..., n, classes)."""
        size = (*values.shape[:-1], self.unsafe.shape[-1])
        return values.new_full(size, start).scatter_reduce(
            -1, index.expand(values.shape), values, reduce
        )


@dataclass(frozen=True)
class DecisionQuestion:
    """Share of points whose prediction is safe; with ``counts_harm``, of those where it is unsafe.

    A tie counts as harm where harm may be, and in the nominal run.
    """

    counts_harm: ClassVar[bool] = False

    index: Tensor
    decision: Decision

    @property
    def forms(self) -> tuple[OutputForms, ...]:
        return (self.decision.forms,)

    def evaluate(self, bounds: Sequence[Interval]) -> Scores:
        margin = self.decision.margin(bounds[0])
        return Scores((reached if self.counts_harm else safe)(margin), margin)

    def nominal(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        found = self.evaluate([Interval.point(values[0])])
        harm_or_not = found.value.upper if self.counts_harm else found.value.lower
        return harm_or_not, found.score.lower


def class_scores(models: ReachableModels) -> Tensor:
    """The score of each class as a form of the outputs, (classes, outputs)."""
    outputs = models.step_graph.outputs
    if outputs == 1:
        return torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    return torch.eye(outputs, dtype=torch.float64)


def classes_of(models: ReachableModels, labels: Tensor) -> Tensor:
    """Classes (n,) of encoded labels (n, width)."""
    vertices = models.step_graph.loss.vertices(models.step_graph.outputs).to(labels)
    return (labels[:, None] == vertices).all(-1).to(torch.int64).argmax(-1)


def only(classes: Tensor, count: int) -> Tensor:
    """Masks of one class each, (n, count)."""
    return torch.nn.functional.one_hot(classes, count).to(torch.bool)


def safe(margin: Interval) -> Interval:
    """1 where the prediction is surely (lower) or possibly (upper) safe; a NaN is never sure."""
    return Interval((margin.lower > 0).double(), (~(margin.upper < 0)).double())


def reached(margin: Interval) -> Interval:
    """1 where the prediction is surely (lower) or possibly (upper) unsafe."""
    return Interval((margin.upper < 0).double(), (~(margin.lower > 0)).double())


def _pairs(unsafe: Tensor) -> tuple[Tensor, Tensor]:
    """Safe and unsafe class of each pair, (n, pairs); short rows repeat their first pair.

    A row without pairs holds pairs of a class with itself, whose form is zero.
    """
    classes = unsafe.shape[1]
    wanted = (~unsafe[:, :, None] & unsafe[:, None, :]).flatten(1)
    longest = max(1, int(wanted.sum(1).max()))
    order = torch.argsort((~wanted).to(torch.int8), dim=1, stable=True)[:, :longest]
    picked = torch.where(wanted.gather(1, order), order, order[:, :1])
    return picked // classes, picked % classes
