"""Whole samples exchanged: rules that are too tight are caught."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks import assert_inside
from torch import Tensor
from whole_runs import assert_form_meets_the_ball, problem, share, truth

from milp_agt.core.interval import Interval
from milp_agt.errors import MilpAgtError
from milp_agt.formulations import exchange
from milp_agt.formulations.exchange import Substitute


def caught(kind: str, budget: int = 1, **training: Any) -> bool:
    """Whether brute force notices that something is wrong."""
    for relaxation, selections in (
        ("interval", "joint"),
        ("linear", "joint"),
        ("linear", "enumerated"),
    ):
        if kind == "insertion" and selections == "enumerated":
            continue
        case = problem(kind, budget, samples=5, epochs=1, **training)
        try:
            _, boxes = case.certify(relaxation=relaxation, selections=selections)
            assert_inside(boxes, truth(case))
        except (AssertionError, MilpAgtError):
            continue
        return False
    return True


@pytest.mark.parametrize("kind", ["substitution", "insertion"])
def test_mutant_with_too_little_room_for_others(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not caught(kind, clip_mode="clamp")
    original = Substitute.others

    def narrow(op: Substitute, *boxes: Interval) -> Interval:
        box = original(op, *boxes)
        return Interval(0.99 * box.lower, 0.99 * box.upper)

    monkeypatch.setattr(Substitute, "others", narrow)
    assert caught(kind, clip_mode="clamp")


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize("rule", ["_least_mean", "_mean_of_case"])
def test_mutants_of_the_mean_that_is_left(rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean over n instead of n - k, and 1 % too narrow."""
    for kind in ("scaled", "centred"):
        original = getattr(exchange, rule)

        def mutant(*given: Any, kind: str = kind, original: Any = original) -> Any:
            found = original(*given)
            factor = 0.8 if kind == "scaled" else 0.99
            if isinstance(found, Interval):
                return Interval(factor * found.lower, factor * found.upper)
            return factor * found

        with monkeypatch.context() as patch:
            patch.setattr(exchange, rule, mutant)
            results = [_fails(s) for s in ("joint", "enumerated")]
        assert results[0 if rule == "_least_mean" else 1]


def _fails(selections: str) -> bool:
    case = problem("removal", 1, samples=5, epochs=1)
    try:
        _, boxes = case.certify(relaxation="linear", selections=selections)
        if selections == "enumerated":
            # The looser chains are right: look at the cases only.
            result, _ = case.certify(relaxation="linear", selections="enumerated")
            assert share(case, result) <= 1.0
        assert_inside(boxes, truth(case))
    except (AssertionError, MilpAgtError):
        return True
    return False


def test_mutant_of_the_ball(monkeypatch: pytest.MonkeyPatch) -> None:
    """With more taken back than the ball allows, the closed form is missed."""
    original = torch.linalg.vector_norm
    from milp_agt.bounds.linear import clipped_ball

    class Shrunk:
        @staticmethod
        def vector_norm(tensor: Tensor, dim: int) -> Tensor:
            return 0.99 * original(tensor, dim=dim)

    class Torch:
        linalg = Shrunk
        cat = staticmethod(torch.cat)

    monkeypatch.setattr(clipped_ball, "torch", Torch)
    with pytest.raises((AssertionError, MilpAgtError)):
        assert_form_meets_the_ball("substitution", "norm")


def test_mutant_without_the_skipped_step(monkeypatch: pytest.MonkeyPatch) -> None:
    from milp_agt.bounds.adversary.joint import Joint

    monkeypatch.setattr(Joint, "emptied", lambda self, step: None)
    case = problem("removal", 2, samples=3, batch_size=1, epochs=1)
    with pytest.raises((AssertionError, MilpAgtError)):
        assert_inside(case.certify()[1], truth(case))
