"""Two budgets: rules that are one per cent too tight, or forget one budget, are caught."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attacks import assert_sound
from separate_runs import check_separate_worst_case, check_sum, problem, separately
from torch import Tensor

from milp_agt.bounds.adversary import two_budgets, worst_case
from milp_agt.bounds.adversary.two_budgets import worst_of_both
from milp_agt.bounds.linear import linearized_step
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED
from milp_agt.errors import SoundnessError
from milp_agt.threats.poison import Poison


def caught(check: Any, seeds: int = 8) -> bool:
    """Whether some seed shows that a bound is too tight."""
    for seed in range(seeds):
        try:
            check(seed)
        except (AssertionError, SoundnessError):
            return True
    return False


def _shrunk(honest: Any) -> Any:
    return lambda *arguments: 0.99 * honest(*arguments)


@pytest.mark.parametrize("budgets", [(1, 1), (2, 1)], ids=str)
def test_worst_cases_and_sums_one_per_cent_too_small_are_caught(
    budgets: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worst_case, "worst_of_both", _shrunk(worst_of_both))
    assert caught(
        lambda seed: check_separate_worst_case(budgets, True, "dataset", UNRESTRICTED, seed)
    )
    monkeypatch.setattr(two_budgets, "worst_of_both", _shrunk(worst_of_both))
    assert caught(lambda seed: check_sum(seed, budgets, UNRESTRICTED))


@pytest.mark.parametrize("state", [1, 2, 3])
def test_charges_of_one_state_one_per_cent_too_small_are_caught(
    state: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = worst_case._dev_separate

    def small(*arguments: Any) -> Tensor:
        hurt = honest(*arguments).clone()
        hurt[..., state - 1] *= 0.99
        if state < 3:
            hurt[..., 2] = 0.0  # otherwise both at once hides that one alone is too cheap
        return hurt

    monkeypatch.setattr(worst_case, "_dev_separate", small)
    assert caught(
        lambda seed: check_separate_worst_case((1, 1), True, "dataset", UNRESTRICTED, seed), 16
    )


@pytest.mark.parametrize("kind", ["budget of labels", "both as one", "box"])
def test_attacks_catch_a_threat_that_is_too_small(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    case, test, labels = problem("mse", separately((1, 1), 0.05, loss="mse"), epochs=1)
    case = replace(case, model=torch.nn.Sequential(torch.nn.Linear(2, 2).double()))
    assert_sound(case, test, labels, relaxation="linear")
    if kind == "budget of labels":
        left = Poison.budgets_given
        monkeypatch.setattr(
            Poison, "budgets_given", lambda p, s: (left(p, s)[0], left(p, s)[1] - 1)
        )
    elif (
        kind == "both as one"
    ):  # whoever poisons features must poison the labels of the same sample
        apply = worst_case._worst_within_two
        monkeypatch.setattr(
            worst_case,
            "_worst_within_two",
            lambda hurt, budgets, inside: apply(
                torch.stack([0 * hurt[0], 0 * hurt[1], hurt[2]]), budgets, inside
            ),
        )
    else:
        box = Poison.label_box
        monkeypatch.setattr(Poison, "label_box", lambda p: _tight(box(p)))
    levels = ("linear", "interval")
    assert caught(lambda i: assert_sound(case, test, labels, relaxation=levels[i]), 2)


def _tight(box: Interval) -> Interval:
    lower, upper = box.lower.clone(), box.upper.clone()
    lower[2:], upper[2:] = lower[:1], upper[:1]
    return Interval(lower, upper)


def test_attacks_catch_dropped_charges(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = linearized_step.Intercepts._charges
    monkeypatch.setattr(
        linearized_step.Intercepts, "_charges", lambda *a: torch.zeros_like(honest(*a))
    )

    def check(seed: int) -> None:
        case, test, labels = problem("bce", separately((2, 1), 0.5), seed=seed, learning_rate=1.0)
        assert_sound(case, test, labels, attacks=64, in_torch=False)

    assert caught(check)
