"""What a sample owes in either state, against enumeration, and mutants of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from checks_worst_case import (
    check_worst_case,
    check_worst_case_given,
    own_worst_case_problem,
    worst_case_problem,
)
from draws import poison_of
from pairs import every_pair
from torch import Tensor

from milp_agt.bounds.adversary import worst_case
from milp_agt.bounds.adversary.model import OnMoves
from milp_agt.bounds.step import Step
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.training.training import UpdateRule

FULL = ((0, 1, 2, 3, 4), (4, 3, 2, 1, 0))


MINI = ((0, 2, 3), (3, 4), (2, 0, 4), (1, 3))


RESTRICTIONS = {
    "free": UNRESTRICTED,
    "inside": Restriction(inside=frozenset({3})),
    "outside": Restriction(outside=frozenset({0, 4})),
    "both": Restriction(inside=frozenset({2}), outside=frozenset({3})),
    "full": Restriction(inside=frozenset({2, 4})),
}


def is_tight(static: bool, per_batch: bool, batches: Any) -> bool:
    # A static adversary with a budget in each batch is bounded by parts of the data set.
    return not (static and per_batch and batches is MINI)


@every_pair(
    given={
        f"{budget}-{name}": (budget, restriction)
        for budget in (1, 2, 3)
        for name, restriction in RESTRICTIONS.items()
        if len(restriction.inside) <= budget
    },
    batches={"full": FULL, "mini": MINI},
    scope=["dataset", "batch"],
    static={"static": True, "adaptive": False},
    what=["x", "v", "r", "xv"],
)
def test_what_is_owed_in_either_state_is_the_best_selection(
    given: tuple[int, Restriction], batches: Any, scope: str, static: bool, what: str
) -> None:
    (budget, restriction), per_batch = given, scope == "batch"
    case = own_worst_case_problem(
        poison_of(budget, static, per_batch, what), batches, 2 * len(batches[0]), budget
    )
    assert check_worst_case_given(case, restriction, is_tight(static, per_batch, batches)) > 0


@pytest.mark.parametrize("per_batch", [False, True], ids=["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
def test_samples_that_cannot_be_poisoned_have_no_account(static: bool, per_batch: bool) -> None:
    """Sample 1 is closed: alone in the first batch, and known from there on."""
    poison = poison_of(2, static, per_batch, "xv")
    check_worst_case(
        worst_case_problem(poison, ((1,), (0, 1, 2), (1, 2, 3)), 4, 0),
        tight=not static or not per_batch,
    )
    case = own_worst_case_problem(poison, ((1,), (0, 1, 2)), 4, 0)
    assert check_worst_case_given(case, UNRESTRICTED, tight=True) > 0
    perturbation = worst_case.open_worst_case(poison, 4, UNRESTRICTED)
    samples = torch.tensor([1])
    step = Step(0, samples, poison.take(samples), UpdateRule(0.1, 0.0, 0.0, False), False)
    perturbation.add(step, OnMoves(case.features[0], case.labels[0], case.charges[0]))
    for state in (0, 1):
        assert torch.equal(
            perturbation.worst_given(samples.expand(4), state), torch.zeros(4).double()
        )
    assert torch.equal(perturbation.worst(), torch.zeros(4).double())


def test_nobody_owes_anything_without_a_budget() -> None:
    perturbation = worst_case.open_worst_case(poison_of(0, True, False, "xv"), 3, UNRESTRICTED)
    for poisoned in (False, True):
        assert torch.equal(
            perturbation.worst_given(torch.arange(3), poisoned), torch.zeros(3).double()
        )


def _one_fewer(honest: Any) -> Any:
    """The poisoned state leaves budget - 2 for the others."""

    def spent(perturbation: Any, hurt: Tensor, samples: Tensor, budgets: tuple[int, ...]) -> Any:
        fewer = tuple(k - 1 if k < perturbation._poison.budget else k for k in budgets)
        return honest(perturbation, hurt, samples, fewer)

    return spent


def _given(change: Callable[[Callable[[bool], Tensor], bool], Tensor]) -> Any:
    """``worst_given`` with one thing wrong."""
    return lambda honest: (
        lambda perturbation, own, poisoned: change(
            lambda state: honest(perturbation, own, state), poisoned
        )
    )


MUTANTS = {
    "poisoned: budget - 2 for the others": ("_worst_by_group", _one_fewer),
    "poisoned: as if clean": ("worst_given", _given(lambda worst, _: worst(False))),
    "poisoned: its own worst case only": (
        "worst_given",
        _given(lambda worst, p: (worst(True) - worst(False)).clamp(min=0) if p else worst(False)),
    ),
    "clean: drops the others' worst case": (
        "worst_given", _given(lambda worst, p: worst(p) if p else 0.0 * worst(False)),
    ),
    "one per cent too little": ("worst_given", _given(lambda worst, p: 0.99 * worst(p))),
}  # fmt: skip


@pytest.mark.parametrize("per_batch", [False, True], ids=["dataset", "batch"])
@pytest.mark.parametrize(("method", "mutant"), list(MUTANTS.values()), ids=list(MUTANTS))
def test_enumeration_catches_mutants(method, mutant, per_batch, monkeypatch) -> None:
    case = own_worst_case_problem(poison_of(2, True, per_batch, "xv"), FULL, 10, 0)
    check_worst_case_given(case, UNRESTRICTED, True)
    perturbation = worst_case.PerSampleWorstCase
    monkeypatch.setattr(perturbation, method, mutant(getattr(perturbation, method)))
    with pytest.raises(AssertionError, match="worst case below an attack"):
        check_worst_case_given(case, UNRESTRICTED, False)


@pytest.mark.parametrize("poisoned", [False, True])
def test_enumeration_catches_mutants_of_a_fresh_selection(poisoned, monkeypatch) -> None:
    """Adaptive with the budget in each batch: the own part dropped, or the past forgotten."""
    case = own_worst_case_problem(poison_of(2, False, True, "xv"), FULL, 10, 0)
    perturbation = worst_case._PerStepWorstCase
    honest = perturbation.worst_given

    def worst_given(self: Any, own: Tensor, state: bool) -> Tensor:
        if poisoned and state:
            return honest(self, own, False)
        return honest(self, own, state) if poisoned else 0.0 * honest(self, own, state)

    monkeypatch.setattr(perturbation, "worst_given", worst_given)
    with pytest.raises(AssertionError, match="worst case below an attack"):
        check_worst_case_given(case, UNRESTRICTED, False)
