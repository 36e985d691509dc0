"""What programs prove of a selection stays with it: its box is smaller from there on, and holds its runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from attacks import Problem, Replay
from test_cases import problem
from test_leaves import OPTIONS, _attacked

import milp_agt as agt
from milp_agt.bounds.program import state_bounds
from milp_agt.certification.chains import ENUMERATED
from milp_agt.properties.models import Reached


def case(**run: Any) -> Problem:
    return problem(agt.FeaturePoisoning(1, 0.3), "bce", (2,), samples=4, **({"epochs": 3} | run))


def outside(one: Problem, reached: Reached) -> int:
    """How many attacks on single samples end outside the box of the selection of that sample."""
    count = 0
    for sample in range(len(one.features)):
        threat = agt.FeaturePoisoning(1, 0.3, samples=(sample,))
        replay, generator = Replay(replace(one, threat=threat)), torch.Generator().manual_seed(0)
        for corners in (True, False):
            final = replay.run(replay.random(200, generator, corners))[-1]
            for name, value in final.items():
                box = reached.state[name]
                low, high = box.lower[1 + sample], box.upper[1 + sample]
                count += int(((value < low) | (value > high)).any())
    return count


@pytest.mark.parametrize(
    "run", [{}, pytest.param({"momentum": 0.5, "projection": (-1.0, 1.0)}, marks=pytest.mark.slow)]
)
def test_boxes_of_selections_gain_and_hold_their_attacks(run: dict[str, Any]) -> None:
    one = case(**run)
    programs, boxes = one.certify(relaxation="lp", **OPTIONS)
    linear, _ = one.certify(relaxation="linear", **OPTIONS)
    own, bare = programs.steps[-1].chains[ENUMERATED], linear.steps[-1].chains[ENUMERATED]
    assert own < 0.999 * bare
    _attacked(one, boxes)
    for result in (programs, linear):
        (reached,) = result.models.reached
        assert outside(one, reached) == 0


def test_gains_of_the_wrong_selection_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the choices in another order: boxes miss the attacks of their samples, or exclude others."""
    original = state_bounds.minimise_leaves

    def mixed(*given: Any) -> Any:
        found = original(*given)
        return replace(found, bounds=found.bounds[::-1].copy())

    monkeypatch.setattr(state_bounds, "minimise_leaves", mixed)
    one = case()
    try:
        result, _ = one.certify(relaxation="lp", **OPTIONS)
    except agt.errors.MilpAgtError:
        return
    assert outside(one, result.models.reached[0]) > 0
