"""``attack()``: what an adversary really reaches, and the runs that show it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from milp_agt.attacks.objectives import Direction, Envelope, Objective
from milp_agt.attacks.packed import Aim, Packed
from milp_agt.attacks.proposed import packed_of
from milp_agt.attacks.question_time import QuestionTime
from milp_agt.attacks.replay import ModuleModels, confirm, replay, state_dict_of
from milp_agt.attacks.search import Hunt
from milp_agt.attacks.search_settings import Search
from milp_agt.attacks.unrolled import State, Unrolled
from milp_agt.bounds.program import Incumbents
from milp_agt.core.deadline import Deadline
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.torch_modes import own_modes
from milp_agt.data import Dataset
from milp_agt.data.origin import Origin
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.recording import RecordedRun, Recording, of_recording
from milp_agt.threats import ThreatModel
from milp_agt.training import inputs
from milp_agt.training.exchanged import check_batches, check_clipping
from milp_agt.training.groups import check_groups
from milp_agt.training.same_forward import check_forward
from milp_agt.training.tracing import trace
from milp_agt.training.training import Training

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PoisonedRun:
    """One training run on poisoned data.

    Attributes:
        poisoned: samples that were changed or removed, at any step: rows of the file of a data set, else
            positions in the arrays. Inserted samples are counted on from the size of either.
        positions: the same by position in the training part.
        batches: features and labels (classes, or targets) that each step trained on.
        state_dict: the trained model, for ``load_state_dict``.
    """

    poisoned: tuple[int, ...]
    batches: tuple[tuple[Array, npt.NDArray[Any]], ...]
    state_dict: Mapping[str, Tensor]
    positions: tuple[int, ...] = ()


@dataclass(frozen=True)
class Runs:
    """Distinct poisoned runs, trained in plain torch.

    Attributes:
        unrolled: the training run that was attacked.
        data: what each run changed.
        state: trained parameters by name, (runs, *shape).
        origin: rows of the samples in the user's file; None for plain arrays.
    """

    unrolled: Unrolled
    data: Packed
    state: State
    origin: Origin | None = None

    def parts(self, most: int) -> Iterator[ModuleModels]:
        """The trained models, at most so many at a time."""
        for part in torch.arange(len(self)).split(most):
            state = {n: v[part] for n, v in self.state.items()}
            yield ModuleModels(self.unrolled.step_graph, state)

    def __len__(self) -> int:
        return len(self.data)

    def data_set(self, index: int) -> tuple[Array, npt.NDArray[Any]]:
        """The poisoned data set of a run against a static threat, without the samples removed.

        Raises:
            InvalidInputError: an adaptive threat.
        """
        if not self.unrolled.poison.static:
            raise InvalidInputError(
                "The poisoned data set of an attack was asked for",
                "an adaptive adversary, whose data differ from step to step",
                "read attack.best.batches, one pair for each step",
            )
        data = self.data.rows(torch.tensor([index])).unpacked(self.unrolled)
        return self._present(data.features, data.labels, data.there)

    def describe(self, index: int) -> PoisonedRun:
        """Everything about one run."""
        run, part = self.unrolled, self.data.rows(torch.tensor([index]))
        data = part.unpacked(run)
        positions = sorted(set(run.cover[part.index[part.index >= 0]].tolist()))
        rows = positions if self.origin is None else map(self.origin.row, positions)
        return PoisonedRun(
            poisoned=tuple(sorted(rows)),
            batches=tuple(self._present(*run.batch(data, t)) for t in range(len(run.batches))),
            state_dict=state_dict_of(run.step_graph, self.state, index),
            positions=tuple(positions),
        )

    def _present(
        self, features: Tensor, labels: Tensor, there: Tensor | None
    ) -> tuple[Array, npt.NDArray[Any]]:
        """Features and labels, as users give them, of the samples of one run (1, n, ...) that are there."""
        kept = slice(None) if there is None else there[0] > 0
        return features[0][kept].cpu().numpy(), self.unrolled.decoded(labels[0][kept])


@dataclass(frozen=True)
class Attack:
    """What attacks reached, each number by a real training run on admissible data.

    So it is a bound on the adversary from the other side: attack <= truth <= certificate. All runs
    that count were trained again in plain torch, and the numbers are taken from there.

    Attributes:
        objective: what was aimed at, for instance ``min accuracy``.
        value: the best that was reached; for the envelope its mean width.
        nominal: the same for the data as given; 0 for the envelope.
        reached: least and largest value that any kept run has; for the envelope of its widths.
        lower, upper: ends of each trainable parameter over the kept runs and the nominal one.
        trained: models that were trained in the search.
        proposed: how many of them are what programs of the certificate had their adversary do.
        exhaustive: whether every admissible poisoning was tried, so that ``value`` is the optimum (of
            a backdoor: for the triggers that were found).
        limit_reached: whether the time limit of the search cut it short.
        seed, seconds: of the search.
        runs: the best run for each end that was aimed at.
    """

    objective: str
    value: float
    nominal: float
    reached: tuple[float, float]
    lower: Mapping[str, Array]
    upper: Mapping[str, Array]
    trained: int
    proposed: int
    exhaustive: bool
    limit_reached: bool
    seed: int
    seconds: float
    runs: Runs = field(repr=False)
    winner: int = field(repr=False)
    attacker: Attacker = field(repr=False)

    def towards(
        self, objective: Objective, incumbents: Sequence[Sequence[Incumbents]] = ()
    ) -> Attack:
        """Both ends of another objective of the same run, starting from the runs found here.

        And from ``incumbents``, what programs had their adversaries do.
        """
        _check_objective(objective)
        return self.attacker.attack(objective, ("min", "max"), self.runs, incumbents)

    @property
    def widths(self) -> Array:
        """Widths of all trainable parameters, one after the other."""
        return np.concatenate([(self.upper[n] - self.lower[n]).reshape(-1) for n in self.lower])

    @property
    def mean_width(self) -> float:
        """Mean of :attr:`widths`; at most that of the reachable set."""
        return float(self.widths.mean())

    @property
    def max_width(self) -> float:
        """Largest of :attr:`widths`."""
        return float(self.widths.max())

    @property
    def is_static(self) -> bool:
        """Whether the data are poisoned once, before training."""
        return self.runs.unrolled.poison.static

    @property
    def best(self) -> PoisonedRun:
        """The run that reached ``value``; for the envelope the one that ends farthest away."""
        return self.runs.describe(self.winner)

    @property
    def poisoned(self) -> tuple[int, ...]:
        """Samples that the best run changed: rows of the file of a data set, positions in arrays."""
        return self.best.poisoned

    @property
    def features(self) -> Array:
        """Poisoned features of the best run, (N, *shape); refused for an adaptive threat."""
        return self.runs.data_set(self.winner)[0]

    @property
    def labels(self) -> npt.NDArray[Any]:
        """Poisoned labels of the best run: classes (N,) or targets (N, outputs); likewise."""
        return self.runs.data_set(self.winner)[1]

    @property
    def state_dict(self) -> Mapping[str, Tensor]:
        """The trained model of the best run."""
        return self.best.state_dict


@dataclass(frozen=True)
class Attacker:
    """One training problem, ready to be attacked for any objective."""

    unrolled: Unrolled
    search: Search
    restriction: Restriction = UNRESTRICTED
    origin: Origin | None = None

    @own_modes()
    def attack(
        self,
        objective: Objective,
        directions: tuple[Direction, ...] | None = None,
        known: Runs | None = None,
        incumbents: Sequence[Sequence[Incumbents]] = (),
    ) -> Attack:
        """Search for the worst poisoning.

        Args:
            objective: what to reach.
            directions: which ends, in place of those of the objective.
            known: runs of an earlier search, from which this one starts as well.
            incumbents: likewise, what programs had their adversaries do, window by window.

        Raises:
            InvalidInputError: an objective that does not fit the model.
            UnsupportedOperationError: a threat that changes nothing.
            SoundnessError: plain torch does not confirm a run.
        """
        begun = time.perf_counter()
        if not self.has_moves:
            raise UnsupportedOperationError(
                "An attack needs moves of the features or labels of samples",
                "a threat that names none, and nothing that happens to whole samples either",
                "bound it with certify, without attack=, or give its Poison moves",
            )
        goal = objective.bind(self.unrolled)
        signs = [1.0 if d == "max" else -1.0 for d in directions or objective.directions]
        device, count = self.unrolled.cover.device, len(goal.names)
        sign = torch.tensor(signs, dtype=torch.float64, device=device).repeat_interleave(count)
        aim = Aim(torch.arange(count, device=device).repeat(len(signs)), sign)
        deadline = Deadline.within(self.search.time_limit)
        checked = replace(QuestionTime.of(self.unrolled, deadline), witnesses=0)
        most = max(1, checked.fits(len(sign)))
        searched = self.search.within(checked.of_search(most))
        hunt = Hunt(self.unrolled, goal, aim, searched, self.restriction)
        proposed = packed_of(hunt.selector, incumbents, hunt.chunk)
        found = None if known is None else known.data
        starts = [data for data in (found, proposed) if data is not None]
        best = hunt.run(Packed.cat(starts) if starts else None)
        runs = self.trained_again(best.data.rows(best.first_of_each_run(most)), hunt.chunk)
        nominal = self.trained_again(Packed.of(self.unrolled.nominal(1), self.unrolled), hunt.chunk)
        as_given, *each = [goal.values(m) for r in (nominal, runs) for m in r.parts(hunt.chunk)]
        values = torch.cat(each)
        everything = torch.cat([as_given, values])
        low, high = everything.amin(0), everything.amax(0)
        ends = {n: torch.cat([nominal.state[n], v]) for n, v in runs.state.items()}
        if isinstance(objective, Envelope):
            widths = high - low
            value, nominal_value = float(widths.mean()), 0.0
            reached = (float(widths.min()), float(widths.max()))
            winner = int((values - as_given).abs().sum(1).argmax())
        else:
            at_most = objective.direction == "min"
            winner = int(values[:, 0].argmin() if at_most else values[:, 0].argmax())
            value, nominal_value = float(values[winner, 0]), float(as_given[0, 0])
            reached = (float(low[0]), float(high[0]))
        return Attack(
            objective=objective.describe(goal),
            value=value,
            nominal=nominal_value,
            reached=reached,
            lower={n: v.amin(0).cpu().numpy() for n, v in ends.items()},
            upper={n: v.amax(0).cpu().numpy() for n, v in ends.items()},
            trained=best.runs,
            proposed=0 if proposed is None or hunt.exhaustive else len(proposed),
            exhaustive=hunt.exhaustive,
            limit_reached=hunt.deadline.missed or deadline.missed,
            seed=self.search.seed,
            seconds=time.perf_counter() - begun,
            runs=runs,
            winner=winner,
            attacker=self,
        )

    @property
    def has_moves(self) -> bool:
        """Whether the threat names moves that can be tried."""
        poison = self.unrolled.poison
        still = poison.feature_moves is None and poison.label_moves is None
        return not (poison.budget and still and self.unrolled.present is None)

    def trained_again(self, data: Packed, chunk: int) -> Runs:
        """The runs in plain torch, compared with the ones of the search."""
        states: list[State] = []
        for part in torch.arange(len(data)).split(chunk):
            poisoning = data.rows(part).unpacked(self.unrolled)
            with torch.no_grad():
                expected = self.unrolled.run(poisoning)
            *_, final = replay(self.unrolled, poisoning)
            states.append(final)
            confirm(states[-1], expected)
        state = {n: torch.cat([s[n] for s in states]) for n in states[0]}
        return Runs(self.unrolled, data, state, self.origin)


@own_modes()
def attack(
    model: nn.Module | Recording | RecordedRun,
    data: tuple[inputs.ArrayLike, inputs.ArrayLike] | Dataset | ThreatModel,
    training: Training | None = None,
    threat: ThreatModel | None = None,
    *,
    objective: Objective | None = None,
    search: Search | None = None,
    device: str = "cpu",
) -> Attack:
    """Attack a training run: find admissible poisoned data that move an objective as far as possible.

    Random and extreme poisonings, samples by themselves at the moves that flip units of theirs and the best
    of them together, gradient ascent through the unrolled run, exchanges of poisoned samples and local moves
    of them, all for many attacks at once; label flips and removals are tried one and all where they are few.
    New samples (``Substitution``, ``Insertion``) are searched within some distance of the data.

    Guarantee: every number of the result is reached by a float64 training run on data that the threat
    model admits, and was confirmed by training in plain torch. Nothing is claimed about what stronger
    attacks reach; that is what :func:`milp_agt.certify` bounds.

    Args:
        model: a torch module of supported layers; copied, never changed. Or a recorded run, which is
            called as ``attack(run, threat)``.
        data: features (n, *shape) and labels, or a data set, as in ``certify``.
        training: the run.
        threat: what the adversary may change.
        objective: from ``milp_agt.attacks``; None for :class:`Envelope`, every parameter from both
            sides.
        search: how much is tried, and the seed.
        device: "cpu", "cuda" or "auto".

    Raises:
        InvalidInputError, InvalidThreatModelError, UnsupportedOperationError: see the message.
        SoundnessError: plain torch does not confirm a run; a bug.
    """
    model, given, training, threat, _ = of_recording(model, data, training, threat)
    arrays, threat, origin = inputs.located(given, threat)
    inputs.check_run(model, arrays, training, threat)
    if search is not None:
        inputs.of_kind(search, Search, "A search", "give agt.attacks.Search(...)")
    if objective is not None:
        _check_objective(objective)
    target = inputs.device_of(device)
    inputs.warn_of_float32(model, arrays[0])
    features = inputs.features_of(arrays[0])
    step_graph = trace(model, training.objective, tuple(features.shape[1:]), training.clipping)
    check_forward(step_graph, model, features)
    check_groups(training.groups, step_graph.parameters)
    labels = inputs.labels_of(arrays[1], len(features), step_graph.loss, step_graph.outputs)
    poison = threat.bind(features, labels, step_graph.loss).to(target)
    check_clipping(step_graph, poison)
    check_batches(step_graph, training, poison)
    unrolled = Unrolled.of(step_graph.to(target), training, poison)
    return Attacker(unrolled, search or Search(), origin=origin).attack(objective or Envelope())


def _check_objective(objective: object) -> None:
    remedy = "give agt.attacks.Accuracy(x, y), for instance, or leave it out"
    inputs.of_kind(objective, Objective, "The objective of an attack", remedy)
