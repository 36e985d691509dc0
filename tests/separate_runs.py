"""Problems with two budgets, and the best attack on some forms."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from attacks import Problem, network
from torch import Tensor

import milp_agt as agt
from milp_agt.bounds.adversary.model import OnMoves
from milp_agt.bounds.adversary.sums import Masks, PoisonedSum
from milp_agt.bounds.adversary.worst_case import open_worst_case
from milp_agt.bounds.step import Step
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.formulations.loss import get_loss
from milp_agt.threats.poison import Poison
from milp_agt.training.training import UpdateRule

States = tuple[int, ...]  # of each sample: bit 0 for features, bit 1 for labels


def admissible(
    count: int, budgets: tuple[int, int], restriction: Restriction = UNRESTRICTED
) -> list[States]:
    """Every admissible state of every sample."""
    found = []
    for states in itertools.product(range(4), repeat=count):
        spent = [sum(s >> p & 1 for s in states) for p in (0, 1)]
        known = all(states[i] for i in restriction.inside if i < count)
        known &= not any(states[i] for i in restriction.outside if i < count)
        if spent[0] <= budgets[0] and spent[1] <= budgets[1] and known:
            found.append(states)
    return found


def check_sum(seed: int, budgets: tuple[int, int], restriction: Restriction) -> None:
    """Every admissible choice of states gives a sum inside the box."""
    count = 4
    rng = np.random.default_rng(seed)
    middle = rng.normal(size=(1, count, 2))
    radius = rng.random((4, count, 2)) * np.array([0.1, 0.5, 0.5, 1.0])[:, None, None]
    lower, upper = torch.from_numpy(middle - radius), torch.from_numpy(middle + radius)
    summed = PoisonedSum(budgets, count)
    index = torch.arange(count)
    for part in index.split(3):
        masks = Masks.of(restriction, part)
        summed.add(Interval(lower[:, part], upper[:, part]), masks)
    box, size = summed.result()
    assert bool((size >= torch.maximum(upper, -lower).amax(0).sum(0)).all())
    reached = []
    for states in admissible(count, budgets, restriction):
        at = torch.tensor(states)
        low, high = lower[at, index].sum(0), upper[at, index].sum(0)
        assert bool(((box.lower[0] <= low) & (high <= box.upper[0])).all())
        reached.append((low, high))
    # At most the gap of the linear relaxation, one part of the damage of one sample.
    lowest = torch.stack([low for low, _ in reached]).amin(0)
    most = (lower[:1] - lower[1:]).clamp(min=0.0).amax(0).amax(0)
    assert bool((lowest - box.lower[0] <= 0.51 * most + 1e-9).all())


def bound_poison(budgets: tuple[int, int], static: bool, scope: str, loss: str = "bce") -> Poison:
    """Five samples; the features of sample 1 and the labels of sample 3 cannot be poisoned."""
    rng = np.random.default_rng(4)
    x = torch.from_numpy(rng.normal(size=(5, 2)))
    y = torch.from_numpy(rng.integers(2, size=(5, 1)).astype(np.float64))
    threat = separately(
        budgets, static=static, scope=scope, samples=([0, 2, 3, 4], [0, 1, 2, 4]), loss=loss
    )
    return threat.bind(x, y, get_loss(loss))


def separately(
    budgets: tuple[int, int],
    radius: Any = 0.1,
    samples: tuple[Any, Any] = (None, None),
    loss: str = "bce",
    **options: Any,
) -> agt.SeparatePoisoning:
    return agt.SeparatePoisoning(
        agt.FeaturePoisoning(budgets[0], radius, samples=samples[0], **options),
        agt.LabelPoisoning(
            budgets[1], 0.3 if loss == "mse" else None, samples=samples[1], **options
        ),
    )


def check_separate_worst_case(
    budgets: tuple[int, int], static: bool, scope: str, restriction: Restriction, seed: int = 0
) -> None:
    """No admissible choice takes more than is owed, given the state of one sample or not."""
    poison = bound_poison(budgets, static, scope)
    batches = ((0, 1, 2), (3, 4), (2, 0, 4))
    rng = np.random.default_rng(seed)
    rows, count = 3, 5
    perturbation = open_worst_case(poison, rows, restriction)
    own = torch.tensor([0, 1, 2])
    taken = np.zeros((len(batches), rows, count, 4))  # by the samples in each state
    on_x, on_y = np.zeros((rows, count, 2)), np.zeros((rows, count, 1))
    for t, batch in enumerate(batches):
        samples = torch.tensor(batch)
        step = Step(t, samples, poison.take(samples), UpdateRule(0.1, 0.0, 0.0, False), False)
        x = torch.from_numpy(rng.normal(size=(rows, len(batch), 2)))
        y = torch.from_numpy(rng.normal(size=(rows, len(batch), 1)))
        charges = torch.from_numpy(0.2 * rng.random((rows, len(batch), 3)))
        if t == 0:
            eye = torch.eye(3, dtype=torch.float64)[..., None]
            x, y, charges = x * eye, y * eye, charges * eye
        (perturbation.add if t else perturbation.add_own)(step, OnMoves(x, y, charges))
        taken[t][:, list(batch), 1:] += charges.numpy()
        on_x[:, list(batch)] += x.numpy()
        on_y[:, list(batch)] += y.numpy()
        if not static:
            _settle(poison, taken[t], on_x, on_y)
            on_x[:], on_y[:] = 0.0, 0.0
    if static:
        _settle(poison, taken[0], on_x, on_y)
    choices = [
        states
        for states in admissible(count, (count, count), restriction)
        if not states[1] & 1 and not states[3] & 2
    ]
    best = np.full((rows, 5), -np.inf)
    for states in choices if scope == "dataset" or static else ():
        groups = batches if scope == "batch" else (range(count),)
        if any(sum(states[i] >> p & 1 for i in g) > budgets[p] for g in groups for p in (0, 1)):
            continue
        gain = taken[:, :, np.arange(count), list(states)].sum((0, 2))
        for row in range(rows):
            state = states[int(own[row])]
            best[row, 4] = max(best[row, 4], gain[row])
            best[row, state] = max(best[row, state], gain[row])
    if scope == "batch" and not static:  # a fresh choice in every batch
        best = sum(_best_of_batch(taken[t], b, budgets, own, t == 0) for t, b in enumerate(batches))
    given, worst = perturbation.worst_case_given(own).numpy(), perturbation.worst().numpy()
    assert given.shape == (rows, 4)
    assert (worst >= best[:, 4] - 1e-12).all()
    assert (given >= best[:, :4] - 1e-12).all()


def _settle(poison: Poison, taken: Any, on_x: Any, on_y: Any) -> None:
    """Add what moves take: the box of features, the one flip of a label."""
    assert poison.feature_moves is not None
    assert poison.label_moves is not None
    x = np.einsum("rnd,nd->rn", np.abs(on_x), poison.feature_moves.upper.numpy())
    flips = poison.label_moves.lower.numpy() + poison.label_moves.upper.numpy()
    y = np.maximum(-(on_y * flips).sum(-1), 0.0)
    taken[..., 1] += x
    taken[..., 2] += y
    taken[..., 3] += x + y


def _best_of_batch(
    taken: Any, batch: tuple[int, ...], budgets: tuple[int, int], own: Tensor, first: bool
) -> Any:
    best = np.full((len(own), 5), -np.inf)
    for states in admissible(len(batch), budgets):
        at = dict(zip(batch, states, strict=True))
        if at.get(1, 0) & 1 or at.get(3, 0) & 2:
            continue
        gain = sum(taken[:, i, s] for i, s in at.items())
        for row, sample in enumerate(own.tolist()):
            possible = {4} | ({at[sample]} if first else set(range(4)))
            for state in possible:
                best[row, state] = max(best[row, state], gain[row])
    return best


OUTPUTS = {"mse": 2, "bce": 1, "hinge": 1, "cross_entropy": 3}


def problem(loss: str, threat: Any, count: int = 6, seed: int = 0, **run: Any) -> Any:
    outputs = OUTPUTS[loss]
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * count, 2, generator=generator, dtype=torch.float64)
    y: Tensor = torch.randint(max(outputs, 2), (2 * count,), generator=generator)
    if loss == "mse":
        y = torch.randn(2 * count, outputs, generator=generator, dtype=torch.float64)
    training = agt.Training(loss=loss, **({"learning_rate": 0.3, "epochs": 3} | run))
    case = Problem(network((2, 3, outputs), seed=seed), x[:count], y[:count], training, threat)
    return case, x[count:], y[count:]
