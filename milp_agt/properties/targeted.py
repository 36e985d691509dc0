"""How many test points can the adversary push into outputs that are unsafe?"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from milp_agt.bounds.program import OutputForms
from milp_agt.core.arguments import is_at_least
from milp_agt.core.interval import Interval
from milp_agt.core.option_table import KIND, Index
from milp_agt.errors import InvalidInputError, Problem
from milp_agt.properties.answer import Scores
from milp_agt.properties.decision import DecisionQuestion
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.property_table import PROPERTIES, TableOfPoints
from milp_agt.properties.question import Question, index_of
from milp_agt.training.inputs import ArrayLike

Targets = int | ArrayLike | Sequence[Collection[int]]


class TargetedQuestion(DecisionQuestion):
    """Share of points whose prediction is one of the unsafe classes of the point."""

    counts_harm = True


@dataclass(frozen=True)
class UnsafeRegion(Question):
    """Share of points whose outputs lie in the unsafe box of the point (regression).

    The margin is ``max_j max(low_j - f_j, f_j - high_j)`` over the outputs j: the distance by which
    the outputs miss the box. The edge of the box is unsafe.

    Attributes:
        low, high: ends of the box, (n, outputs); infinite for half-lines.
    """

    counts_harm = True

    index: Tensor
    low: Tensor
    high: Tensor
    on_outputs: OutputForms

    @property
    def forms(self) -> tuple[OutputForms, ...]:
        return (self.on_outputs,)

    def _margin(self, bounds: Interval) -> Interval:
        def distance(f_low: Tensor, f_high: Tensor) -> Tensor:
            """From ``low - f_low`` and ``f_high - high``; an infinite end of the box is never missed."""
            below = torch.where(self.low == -torch.inf, -torch.inf, self.low - f_low)
            above = torch.where(self.high == torch.inf, -torch.inf, f_high - self.high)
            return torch.maximum(below, above).amax(-1)

        # One subtraction of floats is exact at zero and keeps the sign; its size is rounded.
        least = distance(bounds.upper, bounds.lower)
        greatest = distance(bounds.lower, bounds.upper)
        infinity = torch.full_like(least, torch.inf)
        moved = torch.nextafter(greatest, infinity)
        return Interval(
            torch.nextafter(least, -infinity), torch.where(greatest == 0, greatest, moved)
        )

    def evaluate(self, bounds: Sequence[Interval]) -> Scores:
        margin = self._margin(bounds[0])
        sure = (margin.upper <= 0).double()
        return Scores(Interval(sure, (~(margin.lower > 0)).double()), margin)

    def nominal(self, values: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        margin = self._margin(Interval.point(values[0]))
        return (margin.upper <= 0).double(), margin.upper


def targeted(models: ReachableModels, features: Tensor, targets: Targets) -> Question:
    """The question for features (n, *shape) and what is unsafe at each of them.

    ``targets``, classification: one class for all points, a class for each (n,), a collection of classes
    for each, or masks (n, classes) bool. Regression: intervals [low, high] of unsafe outputs, one (2,)
    for all points or (n, 2), or (n, outputs, 2) for several outputs; infinite ends make half-lines.
    Raises InvalidInputError: targets of another shape, a class that does not exist, an empty interval.
    """
    outputs = models.step_graph.outputs
    classes = models.step_graph.loss.classes(outputs)
    if classes:
        unsafe = unsafe_classes(targets, len(features), classes).to(features.device)
        return TargetedQuestion.at(models, features, unsafe)
    low, high = unsafe_box(targets, len(features), outputs)
    forms = OutputForms.of_outputs(features, outputs)
    ends = low.to(features.device), high.to(features.device)
    return UnsafeRegion(index_of(features), *ends, forms)


def unsafe_classes(targets: Targets, count: int, classes: int) -> Tensor:
    """Masks of the unsafe classes, (n, classes) bool."""
    kinds = (set, frozenset, list, tuple, range)
    if isinstance(targets, (list, tuple)) and any(isinstance(t, kinds) for t in targets):
        sets = [list(t) if isinstance(t, Collection) else [t] for t in targets]
    else:
        host = targets.detach().cpu() if isinstance(targets, Tensor) else targets
        found = np.asarray(host)
        if found.dtype == np.bool_ and found.shape == (count, classes):
            return torch.from_numpy(found.copy())
        if found.shape not in ((), (count,)) or found.dtype.kind not in "iu":
            raise InvalidInputError(
                f"Targets name the unsafe classes of {count} test points",
                f"shape {found.shape} of type {found.dtype}",
                f"give one class, a class for each point ({count},), a list of sets of classes, or a "
                f"mask ({count}, {classes}) of bools",
            )
        sets = np.broadcast_to(found, (count,))[:, None].tolist()
    if len(sets) != count:
        raise InvalidInputError(
            f"Targets name the unsafe classes of {count} test points",
            f"{len(sets)} sets of classes",
            "give one set for each point",
        )
    chosen = [c for own in sets for c in own]
    bad = [c for c in chosen if not is_at_least(c, 0, whole=True) or c >= classes]
    if bad:
        raise InvalidInputError(
            "Targets must be classes of the model",
            f"{[c for k, c in enumerate(bad[:5]) if c not in bad[:k]]} beside classes 0..{classes - 1}",
            f"use whole numbers from 0 to {classes - 1}",
        )
    rows = torch.arange(count).repeat_interleave(torch.tensor([len(own) for own in sets]))
    masks = torch.zeros(count, classes, dtype=torch.bool)
    masks[rows, torch.tensor(chosen, dtype=torch.int64)] = True
    return masks


def unsafe_box(targets: Targets, count: int, outputs: int) -> tuple[Tensor, Tensor]:
    """Ends of the unsafe boxes, (n, outputs) each."""
    shapes = {(2,): (1, 1, 2), (count, 2): (count, 1, 2), (count, outputs, 2): (count, outputs, 2)}
    if outputs > 1:
        del shapes[(2,)], shapes[(count, 2)]
    try:
        array = np.asarray(targets, dtype=np.float64)
    except (TypeError, ValueError):
        array = np.zeros(())
    if array.shape not in shapes:
        raise InvalidInputError(
            f"Targets are intervals of unsafe outputs for {count} test points",
            f"shape {array.shape}",
            f"give [low, high] with shape {' or '.join(map(str, shapes))}; inf makes a half-line",
        )
    box = torch.from_numpy(array.reshape(shapes[array.shape]).copy()).expand(count, outputs, 2)
    low, high = box[..., 0], box[..., 1]
    if not bool((low <= high).all()):
        wrong = (~(low <= high)).nonzero()[0]
        at = tuple(int(i) for i in wrong)
        raise InvalidInputError(
            "An interval of unsafe outputs needs low <= high",
            f"[{float(low[at])}, {float(high[at])}] at point {at[0]}",
            "swap the ends, or correct the NaN",
        )
    return low, high


@PROPERTIES.register
class TargetedTable(TableOfPoints):
    """Share of points that the adversary can push into unsafe outputs: `unsafe`, `targets`, or `low`
    and `high` say which."""

    what = "share of test points pushed into classes, or outputs, that are unsafe"
    is_share = True
    in_short = "at most {high} of the {part} points can be pushed into unsafe outputs{detail}"
    in_words = (
        "The adversary can push at most {high} of the {part} points into the unsafe outputs; "
        "trained on the data as given, the model has {given} there."
    )
    kind: Literal["targeted"] = Field(description=KIND)
    unsafe: Index | Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None, description="Class, or classes, that are unsafe for every point."
    )
    targets: list[Index | list[Index]] | None = Field(
        default=None,
        description="For each point the class, or the classes, that are unsafe for it, in the order of "
        "`points`, or of the rows in the file.",
    )
    low: float | None = Field(
        default=None,
        description="Least unsafe output of a regression; unless given, all outputs up to `high` are.",
    )
    high: float | None = Field(
        default=None,
        description="Largest unsafe output of a regression; unless given, all outputs from `low` are.",
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().contradictions(given)
        found = [name for name in ("unsafe", "targets") if name in given]
        found += ["low/high"] * bool({"low", "high"} & given.keys())
        if len(found) != 1:
            yield (
                " beside ".join(f"'{n}'" for n in found) or "no unsafe outputs",
                "give one of unsafe = 1, targets = [1, 0], or low and high (regression)",
            )

    @property
    def detail(self) -> str:
        if self.unsafe is not None:
            return f"class {self.unsafe}"
        if self.targets is not None:
            return "chosen classes"
        if self.low is None:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"

    @property
    def is_listed(self) -> bool:
        return super().is_listed or self.targets is not None

    def question(self, models: ReachableModels, features: Tensor, labels: Tensor) -> Question:
        return targeted(models, features, self.targets_of(len(features)))

    def targets_of(self, count: int) -> Targets:
        """What is unsafe at each of so many points: sets of classes, or ends of the outputs."""
        if self.unsafe is not None:
            classes = self.unsafe if isinstance(self.unsafe, list) else [self.unsafe]
            return [classes] * count
        if self.targets is not None:
            return [t if isinstance(t, list) else [t] for t in self.targets]
        low = -np.inf if self.low is None else self.low
        return np.array((low, np.inf if self.high is None else self.high))
