"""One step: poisoned sums, worst cases, leaves and updates against what an adversary can do."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from checks_rules import check_leaf_boxes, check_poisoned_sum
from checks_steps import (
    check_step_interval,
    check_step_linear,
    check_update,
    check_walk_of_update,
    mlp,
    small_data,
    step_case,
)
from checks_worst_case import WorstCaseProblem, check_worst_case, worst_case_problem
from draws import Draw, draws, make_box, poison_of, poisoned
from hypothesis import given, settings
from hypothesis import strategies as st
from instances import per_sample
from pairs import every_pair

import milp_agt as agt
from milp_agt.bounds.adversary.sums import Masks
from milp_agt.core.interval import Interval
from milp_agt.training.training import Training


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("budget", [0, 1, 2, 4])
@settings(max_examples=12, deadline=None, derandomize=True)
@given(draw=draws(), pieces=st.integers(1, 3))
def test_poisoned_sum_is_exact(budget: int, masked: bool, draw: Draw, pieces: int) -> None:
    """``sum clean - topk max(0, clean - poisoned)``, against all admissible sets."""
    rng = draw.rng
    # Of a sample that is known to be poisoned, "no move" is still an admissible move.
    relation = "nested" if masked else "apart"
    parts = [make_box(per_sample(2), draw.kinds, relation, rng) for _ in range(2)]
    terms = Interval(
        torch.cat([p.lower for p in parts], 1)[:, :4], torch.cat([p.upper for p in parts], 1)[:, :4]
    )
    masks = Masks()
    if masked and budget >= 1:
        masks = Masks(
            torch.tensor([True, False, False, False]), torch.tensor([False, False, True, False])
        )
    check_poisoned_sum(terms, budget, masks, pieces, rng)


ONE_BATCH = ((0, 1, 2, 3, 4), (0, 1, 2, 3, 4), (4, 3, 2, 1, 0))
BATCHES = ((0, 1, 2), (3, 4), (2, 0, 4), (1, 3))


@every_pair(
    static={"static": True, "adaptive": False},
    per_batch={"dataset": False, "batch": True},
    batches={"full": ONE_BATCH, "mini": BATCHES},
    what=["x", "v", "r", "xv"],
)
def test_worst_case_is_the_best_attack(
    static: bool, per_batch: bool, batches: tuple[tuple[int, ...], ...], what: str
) -> None:
    poison = poison_of(2, static, per_batch, what)
    case: WorstCaseProblem = worst_case_problem(poison, batches, rows=3, seed=1)
    # A static adversary with a budget in each batch is bounded by parts of the data set.
    check_worst_case(case, tight=not (static and per_batch and batches is BATCHES))


@pytest.mark.parametrize("what", ["x", "v", "r", "xr"])
def test_boxes_of_the_leaves_hold_the_moves(what: str) -> None:
    poison = poison_of(3, True, False, what)
    check_leaf_boxes(poison)
    selection = poisoned(poison, torch.Generator().manual_seed(0), 64)
    assert selection.sum(1).max() == 3
    assert not bool(selection[:, 1].any())


UPDATES = {
    "plain": {},
    "decay": {"weight_decay": 0.1},
    "turned": {"weight_decay": 15.0},
    "momentum": {"momentum": 0.9, "weight_decay": 0.05},
    "nesterov": {"momentum": 0.9, "nesterov": True, "weight_decay": 20.0},
}


@pytest.mark.parametrize("loss", ["mse", "bce", "hinge"])
@pytest.mark.parametrize("options", UPDATES)
def test_one_step_stays_inside(options: str, loss: str) -> None:
    training = Training(loss=loss, learning_rate=0.1, **UPDATES[options])
    data = small_data(6, 2, 0 if loss == "mse" else 2, seed=4)
    case = step_case(mlp(2, 3, 1), data, training, agt.FeaturePoisoning(budget=2, radius=0.1))
    rng = np.random.default_rng(5)
    check_update(case, rng)
    check_step_interval(case, rng)
    check_step_linear(case, rng)
    check_walk_of_update(case, rng)


@pytest.mark.parametrize(
    "activation", [torch.nn.Sigmoid, torch.nn.Tanh, lambda: torch.nn.LeakyReLU(0.1)]
)
def test_one_step_of_three_classes_stays_inside(activation: type[torch.nn.Module]) -> None:
    training = Training(loss="cross_entropy", learning_rate=0.5)
    model = mlp(2, 3, 3, activation=activation)
    threat = agt.FeatureLabelPoisoning(budget=2, radius=0.05)
    case = step_case(model, small_data(5, 2, 3, seed=6), training, threat, width=0.01)
    rng = np.random.default_rng(7)
    check_update(case, rng)
    check_step_interval(case, rng)
    check_step_linear(case, rng)
    check_walk_of_update(case, rng)
