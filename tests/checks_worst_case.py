"""Checks of worst cases against every admissible selection, one by one.

Every ``check_*`` function raises AssertionError where a rule breaks its contract, so that a mutant
that is one per cent too tight can be shown to fail the very same check.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from checks_rules import subsets
from instances import Long
from torch import Tensor

from milp_agt.bounds.adversary.model import OnMoves
from milp_agt.bounds.adversary.worst_case import open_worst_case
from milp_agt.bounds.step import Step
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import Box, Vertices
from milp_agt.training.training import UpdateRule


@dataclass(frozen=True)
class WorstCaseProblem:
    """Coefficients of some forms on the moves of a few steps, and charges."""

    poison: Poison
    batches: tuple[tuple[int, ...], ...]
    features: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    charges: tuple[Tensor, ...]

    @property
    def rows(self) -> int:
        return len(self.features[0])


def worst_case_problem(
    poison: Poison, batches: Sequence[Sequence[int]], rows: int, seed: int
) -> WorstCaseProblem:
    rng = np.random.default_rng(seed)

    def draw(*shape: int) -> Tensor:
        return torch.from_numpy(rng.normal(size=shape))

    sizes = [len(b) for b in batches]
    return WorstCaseProblem(
        poison,
        tuple(tuple(b) for b in batches),
        tuple(draw(rows, n, *poison.features.shape[1:]) for n in sizes),
        tuple(draw(rows, n, poison.labels.shape[1]) for n in sizes),
        tuple(0.3 * draw(rows, n, poison.states - 1) for n in sizes),
    )


def _selections(case: WorstCaseProblem) -> Iterator[list[tuple[int, ...]]]:
    """Admissible sets of poisoned samples, one for each step."""
    poison, count = case.poison, len(case.poison.open)
    is_open = [i for i in range(count) if bool(poison.open[i])]
    if not poison.per_batch:
        for chosen in itertools.combinations(is_open, min(poison.budget, len(is_open))):
            yield [tuple(i for i in chosen if i in batch) for batch in case.batches]
        return
    if poison.static:
        for mask in itertools.product((False, True), repeat=len(is_open)):
            chosen = tuple(i for i, m in zip(is_open, mask, strict=True) if m)
            picked = [tuple(i for i in chosen if i in batch) for batch in case.batches]
            if all(len(p) <= poison.budget for p in picked):
                yield picked
        return
    each = []
    for batch in case.batches:
        allowed = [i for i in batch if i in is_open]
        each.append(list(itertools.combinations(allowed, min(poison.budget, len(allowed)))))
    yield from (list(p) for p in itertools.product(*each))


def _drop(case: WorstCaseProblem, row: int, sample: int, steps: Sequence[int]) -> Long:
    """The most that one poisoned sample lowers one form over steps that share its move."""
    poison = case.poison
    on_x = np.zeros(poison.features.shape[1:], dtype=Long)
    on_y = np.zeros(poison.labels.shape[1], dtype=Long)
    charge = Long(0)
    for t in steps:
        i = case.batches[t].index(sample)
        on_x = on_x + case.features[t][row, i].numpy()
        on_y = on_y + case.labels[t][row, i].numpy()
        charge = charge + Long(float(case.charges[t][row, i, 0]))
    gain = charge
    for moves, on in ((poison.feature_moves, on_x), (poison.label_moves, on_y)):
        if isinstance(moves, Box):
            gain = gain + (np.abs(on) * moves.high[sample].numpy()).sum()
        elif isinstance(moves, Vertices):
            gain = gain + max(-(on * v).sum() for v in moves.points[sample].numpy())
    return Long(gain)


def check_worst_case(case: WorstCaseProblem, tight: bool) -> None:
    """``worst`` is at least what any admissible adversary takes; equal to the best where ``tight``."""
    poison = case.poison
    perturbation = open_worst_case(poison, case.rows, UNRESTRICTED)
    for t, batch in enumerate(case.batches):
        samples = torch.tensor(batch)
        step = Step(t, samples, poison.take(samples), UpdateRule(0.1, 0.0, 0.0, False), False)
        on_x = case.features[t] if poison.feature_moves is not None else None
        has_labels = poison.label_moves is not None
        on_y = case.labels[t] if has_labels else None
        perturbation.add(step, OnMoves(on_x, on_y, case.charges[t]))
    worst = perturbation.worst().numpy()
    best = np.zeros(case.rows, dtype=Long)
    for picked in _selections(case):
        for row in range(case.rows):
            taken = Long(0)
            if poison.static:
                for sample in set().union(*picked):
                    steps = [t for t, p in enumerate(picked) if sample in p]
                    taken += max(Long(0), _drop(case, row, sample, steps))
            else:
                for t, chosen in enumerate(picked):
                    for sample in chosen:
                        taken += max(Long(0), _drop(case, row, sample, [t]))
            best[row] = max(best[row], taken)
    slack = 1e-13 * (1.0 + np.abs(best))
    assert (worst >= best - slack).all(), f"worst case below an attack: {worst} < {best}"
    if tight:
        assert (worst <= best + slack).all(), f"worst case above the best attack: {worst} > {best}"


def own_worst_case_problem(
    poison: Poison, batches: Sequence[Sequence[int]], rows: int, seed: int
) -> WorstCaseProblem:
    """The same, where the forms of the first step see one sample each: row r the sample r % n."""
    n = len(batches[0])
    case = worst_case_problem(poison, batches, rows, seed)
    mask = torch.eye(n, dtype=torch.float64).repeat(-(-rows // n), 1)[:rows]
    return replace(
        case,
        features=(case.features[0] * mask[..., None], *case.features[1:]),
        labels=(case.labels[0] * mask[..., None], *case.labels[1:]),
        charges=(case.charges[0] * mask[..., None], *case.charges[1:]),
    )


def best_given(case: WorstCaseProblem, restriction: Restriction, steps: int, poisoned: bool) -> Any:
    """What the best admissible selection takes over the first steps, (rows,); -inf: there is none.

    The selection holds, or avoids, the sample that each row sees in the first step.
    """
    poison, batches = case.poison, case.batches[:steps]
    count, rows = len(poison.open), case.rows
    own = [batches[0][row % len(batches[0])] for row in range(rows)]
    gains = np.zeros((steps, rows, count), dtype=Long)
    for row, sample in itertools.product(range(rows), range(count)):
        if not poison.open[sample]:
            continue
        met = [t for t in range(steps) if sample in batches[t]]
        for part in [met] if poison.static else [[t] for t in met]:
            if part:
                gains[part[0], row, sample] = max(Long(0), _drop(case, row, sample, part))

    def best(parts: Sequence[int], groups: Sequence[Sequence[int]], conditional: bool) -> Any:
        """The best of the selections with the budget in each group, over some of the steps."""
        found = np.full(rows, -np.inf, dtype=Long)
        for chosen in subsets(count, count):
            picked = set(chosen)
            if picked & restriction.outside or not all(poison.open[i] for i in picked):
                continue
            if any(len(picked & set(group)) > poison.budget for group in groups):
                continue
            present = set().union(*groups)
            if not restriction.inside & present <= picked:
                continue
            taken = gains[list(parts)][:, :, list(chosen)].sum((0, 2))
            fits = np.array(
                [not conditional or (own[r] in picked) == poisoned for r in range(rows)]
            )
            found = np.where(fits, np.maximum(found, taken), found)
        return found

    if not poison.per_batch:
        return best(range(steps), [range(count)], True)
    if poison.static:
        return best(range(steps), batches, True)
    return sum(best([t], [batches[t]], t == 0) for t in range(steps))


def check_worst_case_given(case: WorstCaseProblem, restriction: Restriction, tight: bool) -> int:
    """``worst_given`` holds for each stop of a backward pass; equal to the best selection where ``tight``.

    Returns how many comparisons there were.
    """
    poison, seen = case.poison, 0
    perturbation = open_worst_case(poison, case.rows, restriction)
    own = torch.tensor([case.batches[0][r % len(case.batches[0])] for r in range(case.rows)])
    has_labels = poison.label_moves is not None
    for t, batch in enumerate(case.batches):
        samples = torch.tensor(batch)
        step = Step(t, samples, poison.take(samples), UpdateRule(0.1, 0.0, 0.0, False), False)
        on_x = case.features[t] if poison.feature_moves is not None else None
        on_y = case.labels[t] if has_labels else None
        (perturbation.add if t else perturbation.add_own)(
            step, OnMoves(on_x, on_y, case.charges[t])
        )
        for poisoned in (False, True):
            worst_case = perturbation.worst_given(own, poisoned).numpy()
            best = best_given(case, restriction, t + 1, poisoned)
            some = np.isfinite(best)
            slack = 1e-13 * (1.0 + np.abs(best[some]))
            what = f"step {t}, poisoned {poisoned}: {worst_case[some]}, best {best[some]}"
            assert (worst_case[some] >= best[some] - slack).all(), (
                f"worst case below an attack: {what}"
            )
            if tight:
                assert (worst_case[some] <= best[some] + slack).all(), (
                    f"worst case above the best: {what}"
                )
            seen += int(some.sum())
    return seen
