"""Samples removed: what unlearning certifies, and the means of those that are left."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from attacks import Problem, assert_inside, network
from torch import Tensor, nn
from whole import Trainer, subsets
from whole_runs import X, Y, problem, share

import milp_agt as agt
from milp_agt.core.interval import Interval
from milp_agt.formulations.exchange import Remove
from milp_agt.training.training import Training


@pytest.mark.parametrize(("budget", "least"), [(1, 0.99), (2, 0.98)])
def test_removals_one_by_one_are_nearly_exact(budget: int, least: float) -> None:
    """Every selection is one run: its box is that run, up to the kinks that rounding leaves open."""
    case = problem("removal", budget, samples=5, epochs=5)
    result, _ = case.certify(selections="enumerated")
    assert share(case, result) >= least


def test_joint_bounds_are_within_reach() -> None:
    for kind, least in (("removal", 0.6), ("substitution", 0.35), ("insertion", 0.25)):
        case = problem(kind, 1, epochs=2)
        assert share(case, case.certify()[0]) >= least


def iris() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[:120]
    x = (x - x.mean(0)) / x.std(0)
    return torch.from_numpy(x[order]), torch.from_numpy(y[order])


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), (8,)])
def test_unlearning_on_iris(hidden: tuple[int, ...]) -> None:
    """Retrained without each single sample, and without 500 random pairs."""
    x, y = iris()
    run = Training(loss="cross_entropy", learning_rate=0.2, epochs=5, batch_size=40)
    model = network((4, *hidden, 3), seed=0)
    single = Problem(model, x, y, run, agt.Removal(1))
    result, boxes = single.certify(selections="enumerated")
    states = Trainer(single).removed([[i] for i in range(120)])
    assert_inside(boxes, states)
    reached = torch.cat([(v.amax(0) - v.amin(0)).flatten() for v in states[-1].values()])
    assert float(reached.mean()) >= 0.97 * result.reachable.mean_width
    pair = Problem(model, x, y, run, agt.Removal(2))
    rng = np.random.default_rng(0)
    pairs = [rng.choice(120, 2, replace=False).tolist() for _ in range(500)]
    for relaxation in ("interval", "linear"):
        _, boxes = pair.certify(relaxation=relaxation)
        assert_inside(boxes, Trainer(pair).removed(pairs))


def test_unlearning_in_a_convolution() -> None:
    """Gradients of single samples are taken from shared weights as well."""
    torch.manual_seed(0)
    x = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)).double()
    run = Training(loss="bce", learning_rate=0.3, epochs=2)
    case = Problem(model, x, Y[:4], run, agt.Removal(1))
    for selections in ("joint", "enumerated"):
        _, boxes = case.certify(selections=selections)
        assert_inside(boxes, Trainer(case).removed(list(subsets(4, 1))))


@pytest.mark.parametrize("seed", range(20))
def test_means_that_may_be_left(seed: int) -> None:
    """Every mean without i and up to k - 1 others that can be removed, and the extremes are reached."""
    rng = np.random.default_rng(seed)
    count, budget = int(rng.integers(2, 7)), int(rng.integers(1, 5))
    values = torch.from_numpy(rng.normal(size=(count, 2)))
    openness = torch.from_numpy(rng.random(count) < (1.0 if seed % 2 else 0.5))
    openness[0] = True
    chosen = torch.stack([torch.zeros(count), openness.double()]).double().unsqueeze(-1)
    box = Remove(budget).others(Interval.point(values[None]), Interval(chosen, chosen))
    ways = [
        set(gone)
        for gone in subsets(count, min(budget, count - 1))
        if gone and all(openness[i] for i in gone)
    ]
    for i in openness.nonzero()[:, 0].tolist():
        left = [
            values[[j for j in range(count) if j not in gone]].mean(0) for gone in ways if i in gone
        ]
        means = torch.stack(left)
        assert bool((box.lower[0, i] <= means.amin(0)).all())
        assert bool((means.amax(0) <= box.upper[0, i]).all())
        assert float((means.amin(0) - box.lower[0, i]).max()) <= 1e-12
        assert float((box.upper[0, i] - means.amax(0)).max()) <= 1e-12


@pytest.mark.parametrize("chosen", list(itertools.combinations(range(5), 3)))
def test_removals_of_two_out_of_three(chosen: tuple[int, ...]) -> None:
    case = problem("removal", 2, samples=5)
    narrow = Problem(case.model, X, Y, case.training, agt.Removal(2, samples=chosen))
    gone = [s for s in subsets(5, 2) if set(s) <= set(chosen)]
    for relaxation in ("interval", "linear"):
        _, boxes = narrow.certify(relaxation=relaxation)
        assert_inside(boxes, Trainer(narrow).removed(gone))
