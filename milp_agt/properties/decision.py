"""Is the predicted class one of a set? Accuracy, stability, targets and backdoors all ask this."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.bounds.cells.goals import Asked
from milp_agt.bounds.cells.plan import Cover
from milp_agt.bounds.cells.search import Decided, Limits
from milp_agt.bounds.cells.shared import searched
from milp_agt.bounds.listed import Poisoned
from milp_agt.bounds.program import OutputForms
from milp_agt.core.interval import Interval
from milp_agt.properties.answer import Answer, Scores
from milp_agt.properties.last_forms import branched_forms
from milp_agt.properties.models import ReachableModels, both_ends
from milp_agt.properties.question import Question, index_of


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
        rows = self.unsafe[points], self.safe_of[points], self.unsafe_of[points]
        return Decision(*rows, self.forms.part(points))

    def margin(self, bounds: Interval) -> Interval:
        """Bounds of the margins, (..., n), from bounds of the forms, (..., n, forms)."""
        beaten = self._scattered(bounds.lower, self.unsafe_of, "amax", -torch.inf)
        lower = torch.where(self.unsafe, beaten, torch.inf).amin(-1)
        beating = self._scattered(bounds.upper, self.safe_of, "amin", torch.inf)
        upper = torch.where(self.unsafe, -torch.inf, beating).amax(-1)
        return Interval(lower, upper)

    def _scattered(self, values: Tensor, index: Tensor, reduce: str, start: float) -> Tensor:
        """The greatest or least value of the forms of each class, (..., n, classes)."""
        known = values.new_full((*values.shape[:-1], self.unsafe.shape[-1]), start)
        return known.scatter_reduce(-1, index.expand(values.shape), values, reduce)


@dataclass(frozen=True)
class DecisionQuestion(Question):
    """Share of points whose prediction is safe; with ``counts_harm``, of those where it is unsafe.

    A tie counts as harm where harm may be, and in the nominal run. Points that all bounds leave open are
    searched by trees, where the models have one.
    """

    index: Tensor
    decision: Decision

    @classmethod
    def at(cls, models: ReachableModels, features: Tensor, unsafe: Tensor) -> Self:
        """At features (n, *shape) that nobody touches, with unsafe classes (n, classes)."""
        decision = Decision.of(models, Interval.point(features.unsqueeze(0)), unsafe)
        return cls(index_of(features), decision)

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

    def answer(self, models: ReachableModels, groups: npt.NDArray[Any] | None = None) -> Answer:
        known, tried = self.searched(models)
        return replace(self.summary(models, [known], groups), tried=tried)

    def bounds(self, models: ReachableModels) -> list[Interval]:
        return [self.searched(models)[0]]

    def searched(self, models: ReachableModels) -> tuple[Interval, tuple[Poisoned, ...]]:
        """Then by trees: over samples and phases, and over selections and cells.

        Beside the bounds, the data sets with the least margins that the latter trained on, for points that
        it finds lost or leaves open: candidates for attacks.
        """
        (known,), tree = super().bounds(models), models.tree
        # Where nothing is open, nothing is cut short by the end of the time.
        if tree is None or not len(self.open_points([known])) or models.is_late():
            return known, ()
        left = tree.seconds if models.deadline is None else min(tree.seconds, models.deadline.left)
        begun, cells = time.monotonic(), tree.cells
        if tree.branches:
            share = left if cells is None else 0.5 * left
            known = self._by_branching(models, known, share)
        if cells is None:
            return known, ()
        left -= time.monotonic() - begun
        found, tried, limited = self._by_cells(cells, tree.workers, known, left)
        if limited and models.deadline is not None:
            models.deadline.is_over()  # which it notes
        return found, tried

    def _by_branching(self, models: ReachableModels, known: Interval, seconds: float) -> Interval:
        """Bounds ``known`` of the forms met with those that a tree over samples and phases proves of the
        zonotopes that the models lie in."""
        points = self.open_points([known])
        if models.tree is None or not len(points) or not models.carried:
            return known
        forms = self.decision.part(points).forms
        nominal = models.at_nominal(forms)
        # What is wrong at the nominal model is true in no case.
        wanted = torch.where(torch.cat([nominal, -nominal], 1).T.flatten() > 0.0, 0.0, -torch.inf)
        boxes = []
        for part in models.carried:
            assert part.forward is not None
            rows, own = models.rows_of(part, forms), seconds / len(models.carried)
            low = branched_forms(part.forward, rows, part.state, wanted, own, models.tree.workers)
            boxes.append(both_ends(low, len(forms)))
        found = Interval.joined(boxes).of_all
        return _met(known, points, found, "a form of the outputs by branching and by other bounds")

    def _by_cells(
        self, cells: Cover, workers: int, known: Interval, seconds: float
    ) -> tuple[Interval, tuple[Poisoned, ...], bool]:
        """The same by a search over selections and cells of moves, for points that nobody touches; and
        whether it came to its limit."""
        points, inputs = self.open_points([known]), self.decision.forms.inputs
        if not len(points) or not torch.equal(inputs.lower, inputs.upper):
            return known, (), False
        decision = self.decision.part(points)
        found = decide(cells, decision, Limits(seconds), workers)
        proved = decision.margin(found.bounds).lower > 0.0
        met = _met(
            known, points, found.bounds, "a form of the outputs by a tree and by other bounds"
        )
        return met, _worst(cells, found, ~proved), found.limited


def _worst(cells: Cover, found: Decided, points: Tensor) -> tuple[Poisoned, ...]:
    """The data sets behind the least margins of some points."""
    points, size = points & torch.isfinite(found.reached), found.samples.shape[1]
    rows = torch.cat([found.samples[points].to(found.moves.dtype), found.moves[points]], 1)
    rows = rows.unique(dim=0)
    samples = rows[:, :size].to(torch.int64)
    features, labels = cells.run.moves.data(cells.run.poison, samples, rows[:, size:])
    kept = torch.ones(features.shape[1], dtype=torch.bool, device=rows.device)
    return tuple(
        Poisoned(x, y, kept, tuple(changed))
        for x, y, changed in zip(features, labels, samples.tolist(), strict=True)
    )


def decide(cells: Cover, decision: Decision, limits: Limits, workers: int = 1) -> Decided:
    """Search until the prediction at every point is proved safe, lost to a real training, or a limit comes.

    Nobody touches the points: ``decision.forms.inputs`` has one value for each of them.
    """
    forms = decision.forms
    asked = Asked(forms.inputs.lower[0], forms.coefficients, forms.constant, decision.margin)
    return searched(cells, asked, limits, workers)


def _met(known: Interval, points: Tensor, found: Interval, what: str) -> Interval:
    lower, upper = known.lower.clone(), known.upper.clone()
    own = Interval(lower[:, points], upper[:, points])
    cases = Interval(found.lower.expand_as(own.lower), found.upper.expand_as(own.upper))
    met = own.meet(cases, what)
    lower[:, points], upper[:, points] = met.lower, met.upper
    return Interval(lower, upper)


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
