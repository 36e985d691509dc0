"""What a question returns: bounds over all reachable models, and the same test point by test point."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from milp_agt.bounds.listed import Poisoned
from milp_agt.core.interval import Interval, as_array
from milp_agt.core.reachable import Bounds
from milp_agt.core.rounding import gamma
from milp_agt.errors import SoundnessError
from milp_agt.properties.witness import Witness

Array = npt.NDArray[np.float64]
GroupName = str | int


@dataclass(frozen=True)
class Scores:
    """Bounds of every test point in every case, (cases, n): of what is counted, and of what decides it."""

    value: Interval
    score: Interval


@dataclass(frozen=True)
class Points:
    """One row for each counted test point, (n,) each.

    Attributes:
        index: position of the point among the test points that were given.
        lower, nominal, upper: of the quantity that is counted: 0 or 1 for a share, or a loss. The
            quantity of every reachable model lies in [lower, upper].
        score_lower, score_nominal, score_upper: of what decides it. For classes the safety margin:
            the best score of a safe class less the best of an unsafe one. Of a point that the box of the
            parameters decides by itself (``lower == upper``) they may be bounds from that box.
        groups: the subgroup of each point; None without subgroups.
        reached: the least score that a real training run on admissible data has (of a loss: the largest);
            inf (-inf) where no run was tried, None where nothing was attacked.
        witness: which of ``answer.witnesses`` refutes the point; -1 for none.
        judged: whether a point can be proved or refuted: a loss has no threshold at a point.

    Raises:
        SoundnessError: a real run below its bound, without any tolerance, or a witness of a point that it
            does not get wrong.
    """

    index: npt.NDArray[np.int64]
    lower: Array
    nominal: Array
    upper: Array
    score_lower: Array
    score_nominal: Array
    score_upper: Array
    groups: npt.NDArray[Any] | None = None
    reached: Array | None = None
    witness: npt.NDArray[np.int64] | None = None
    judged: bool = True

    def __post_init__(self) -> None:
        if self.reached is None or not self.judged:
            return
        check_reached(self.score_lower, self.reached)
        if self.witness is not None and (self.reached[self.witness >= 0] >= 0).any():
            raise SoundnessError(
                "A witness refutes a point by a margin below zero",
                "a point with a witness and a margin that is not",
                "please report this run",
            )

    def __len__(self) -> int:
        return len(self.index)

    @property
    def verdict(self) -> npt.NDArray[np.str_] | None:
        """ "PROVED", "REFUTED" or "OPEN" for each point, (n,); None of a loss.

        PROVED: the point is safe (right, unchanged, not reached) for every admissible poisoning.
        REFUTED: a real training run on admissible data makes it unsafe by more than rounding;
        ``result.witness(answer, index)`` gives these data. OPEN: neither is known.
        """
        if not self.judged:
            return None
        refuted = np.zeros(len(self), dtype=bool) if self.witness is None else self.witness >= 0
        return np.where(self.score_lower > 0, "PROVED", np.where(refuted, "REFUTED", "OPEN"))

    def columns(self) -> dict[str, list[Any]]:
        """The table as plain lists by name of the column, for files and tables."""
        names = ("index", "lower", "nominal", "upper")
        scores = ("score_lower", "score_nominal", "score_upper")
        table = {name: getattr(self, name).tolist() for name in (*names, *scores)}
        for name in ("reached", "verdict"):
            if getattr(self, name) is not None:
                table[name] = getattr(self, name).tolist()
        return table if self.groups is None else table | {"group": self.groups.tolist()}


def check_reached(lower: Array, reached: Array) -> None:
    """See that margins of real runs are at least what is certified, (n,) each, without any tolerance.

    Raises:
        SoundnessError: one is not.
    """
    if not (reached >= lower).all():
        worst = int(np.argmin(reached - lower))
        raise SoundnessError(
            "A replayed attack must stay within the certificate of every test point",
            f"point {worst}: a margin of {reached[worst]!r} reached, at least {lower[worst]!r} certified",
            "do not use this certificate; please report this run",
        )


@dataclass(frozen=True, eq=False)
class Answer(Bounds):
    """Bounds of a mean over test points, with the points and the subgroups behind it.

    Guarantee: for every admissible poisoning the mean lies in [lower, upper], that of a subgroup in its
    bounds, and the quantity of each point in its row of the table; ``nominal`` is the value for the data
    as given.

    Attributes:
        points: the table of the test points.
        groups: bounds of the same mean over each subgroup, by name.
        witnesses: the poisoned data that refute points, see ``points.witness``.
        shown: the poisoned data of the run that shows ``reached``; None without one.
        shown_in: the same for ``reached`` of subgroups, by name.
        tried: data sets that a tree trained on with the least margins of points that it did not prove.

    ``reached`` is the worst mean that *one* real run shows. Each point may need poisoned data of its own,
    so that it can stay away from the certified end even where every point is decided.
    """

    points: Points = field(repr=False)
    groups: Mapping[GroupName, Bounds] = field(default_factory=dict)
    witnesses: tuple[Witness, ...] = field(default=(), repr=False)
    shown: Witness | None = field(default=None, repr=False)
    shown_in: Mapping[GroupName, Witness] = field(default_factory=dict, repr=False)
    tried: tuple[Poisoned, ...] = field(default=(), repr=False)


def summarise(
    scores: Scores,
    nominal: tuple[Tensor, Tensor],
    index: Tensor,
    groups: npt.NDArray[Any] | None = None,
) -> Answer:
    """Means over the points in every case, then the worst over the cases.

    ``nominal`` are value and score of every point in the nominal run, (n,) each. A NaN, or a nominal value
    outside its bounds, is a SoundnessError.
    """

    points = Points(
        index=np.asarray(index.cpu().numpy(), dtype=np.int64),
        lower=as_array(scores.value.lower.amin(0)),
        nominal=as_array(nominal[0]),
        upper=as_array(scores.value.upper.amax(0)),
        score_lower=as_array(scores.score.lower.amin(0)),
        score_nominal=as_array(nominal[1]),
        score_upper=as_array(scores.score.upper.amax(0)),
        groups=groups,
    )
    whole = _mean(scores.value, nominal[0])
    parts = _by_group(scores.value, nominal[0], groups)
    return Answer(whole.lower, whole.nominal, whole.upper, points, parts)


def meet(first: Bounds, second: Bounds) -> Bounds:
    """What follows from two bounds of the same quantity that both hold, point by point as well. What
    attacks reached is that of the first; nothing of the second, which may be about a larger threat.
    Raises SoundnessError: the two do not meet, so that one of them is wrong."""
    lower, upper = max(first.lower, second.lower), min(first.upper, second.upper)
    if not isinstance(first, Answer) or not isinstance(second, Answer):
        return replace(first, lower=lower, upper=upper)
    own, other = first.points, second.points
    points = replace(
        own,
        lower=np.maximum(own.lower, other.lower),
        upper=np.minimum(own.upper, other.upper),
        score_lower=np.maximum(own.score_lower, other.score_lower),
        score_upper=np.minimum(own.score_upper, other.score_upper),
    )
    return combined(first, points, above=(first, second), below=(first, second))


def unattacked(bounds: Bounds) -> Bounds:
    """The same bounds without what attacks reached: for a smaller threat, that says nothing."""
    if not isinstance(bounds, Answer):
        return replace(bounds, reached=None)
    points = replace(bounds.points, reached=None, witness=None)
    groups = {name: replace(group, reached=None) for name, group in bounds.groups.items()}
    bare = replace(bounds, reached=None, points=points, groups=groups)
    return replace(bare, witnesses=(), shown=None, shown_in={})


def nested(answers: Sequence[Answer]) -> tuple[Answer, ...]:
    """Answers about growing sets of choices of the adversary, each with what the others imply.

    What a smaller set reaches, a larger one reaches; what a larger set cannot reach, a smaller one
    cannot. The quantity counts what is reached, and its score falls as more can be reached.
    """
    grown = [answers[0]]
    for answer in answers[1:]:
        own, smaller = answer.points, grown[-1].points
        points = replace(
            own,
            lower=np.maximum(own.lower, smaller.lower),
            nominal=np.maximum(own.nominal, smaller.nominal),
            score_nominal=np.minimum(own.score_nominal, smaller.score_nominal),
            score_upper=np.minimum(own.score_upper, smaller.score_upper),
        )
        grown.append(combined(answer, points, above=(answer, grown[-1]), below=(answer,)))
    shrunk = [grown[-1]]
    for answer in reversed(grown[:-1]):
        own, larger = answer.points, shrunk[-1].points
        points = replace(
            own,
            upper=np.minimum(own.upper, larger.upper),
            score_lower=np.maximum(own.score_lower, larger.score_lower),
        )
        shrunk.append(combined(answer, points, above=(answer,), below=(answer, shrunk[-1])))
    return tuple(reversed(shrunk))


def combined(
    own: Answer, points: Points, above: Sequence[Answer], below: Sequence[Answer]
) -> Answer:
    """Means of a table, met with what is known: at least ``above``, at most ``below``; reached as ``own``."""
    lower, upper, nominal = (
        torch.from_numpy(column) for column in (points.lower, points.upper, points.nominal)
    )
    box = Interval(lower.unsqueeze(0), upper.unsqueeze(0))

    def known(mean: Bounds, lowers: Sequence[Bounds], uppers: Sequence[Bounds]) -> Bounds:
        return Bounds(
            max(mean.lower, *(bounds.lower for bounds in lowers)),
            mean.nominal,
            min(mean.upper, *(bounds.upper for bounds in uppers)),
        )

    parts = {
        name: known(mean, [a.groups[name] for a in above], [a.groups[name] for a in below])
        for name, mean in _by_group(box, nominal, points.groups).items()
    }
    whole = known(_mean(box, nominal), above, below)
    return replace(
        own,
        lower=whole.lower,
        nominal=whole.nominal,
        upper=whole.upper,
        points=points,
        groups=parts,
    )


def _by_group(
    value: Interval, nominal: Tensor, groups: npt.NDArray[Any] | None
) -> dict[GroupName, Bounds]:
    """Bounds of the mean over each subgroup; ``value`` (cases, n)."""
    parts: dict[GroupName, Bounds] = {}
    for name in () if groups is None else np.unique(groups):
        own = torch.from_numpy(groups == name).to(nominal.device)
        box = Interval(value.lower[:, own], value.upper[:, own])
        parts[name.item()] = _mean(box, nominal[own])
    return parts


def _mean(value: Interval, nominal: Tensor) -> Bounds:
    """Bounds of the mean of quantities that are never negative; a share is exact."""
    count = nominal.shape[-1]

    def mean(values: Tensor) -> tuple[Tensor, Tensor]:
        counts = ((values == 0) | (values == 1)).all(-1)
        slack = torch.where(counts, 0.0, gamma(2 * count + 8) * values.abs().sum(-1) / count)
        return values.sum(-1) / count, slack

    low, low_slack = mean(value.lower)
    high, high_slack = mean(value.upper)
    return Bounds(
        max(float((low - low_slack).amin()), 0.0),
        float(nominal.sum() / count),
        float((high + high_slack).amax()),
    )
