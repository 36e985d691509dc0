"""float32 runs: what plain torch trains in float32 lies inside, at every level, without a tolerance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, network
from float32_runs import (
    KERNELS,
    Trainer,
    assert_holds,
    float32_problems,
    in_float32,
    runs_of,
    trained_in_float32,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import problem as small
from torch import nn

import milp_agt as agt
from milp_agt.bounds.adversary.charged import can_be_charged
from milp_agt.bounds.adversary.enumerated import count_cases
from milp_agt.errors import InvalidInputError, UnsupportedOperationError

DRAWN = settings(max_examples=40, deadline=None, derandomize=True)
FEW = settings(max_examples=8, deadline=None, derandomize=True)
FLOAT32 = {"precision": "float32"}


def certified(problem: Problem, **options: Any) -> tuple[agt.Result, list[Any]]:
    """A float32 certificate; examples whose nominal run diverges are given up."""
    try:
        return problem.certify(**FLOAT32, **options)
    except InvalidInputError as error:
        assume("stay finite" not in str(error))
        raise


@DRAWN
@given(problem=float32_problems(), kernel=st.sampled_from(KERNELS))
def test_intervals_hold_float32_runs(problem: Problem, kernel: dict[str, bool]) -> None:
    result, boxes = certified(problem, relaxation="interval")
    assert_holds(problem, result, boxes, kernel)


@DRAWN
@given(problem=float32_problems(), kernel=st.sampled_from(KERNELS), data=st.data())
def test_linear_forms_hold_float32_runs(
    problem: Problem, kernel: dict[str, bool], data: Any
) -> None:
    poison = Replay(problem).poison
    plain = problem.training.clip is None and problem.training.projection is None
    ways: list[dict[str, Any]] = [{"selections": "joint"}, {"alpha_steps": 2}]
    if plain and not problem.training.l1 and can_be_charged(poison, problem.restriction):
        ways += [{"selections": "charged"}] * 2
    if count_cases(poison) < 40:
        ways += [{"selections": "enumerated"}]
    options = data.draw(st.sampled_from(ways)) | {
        "window": data.draw(st.sampled_from((1, 2, None))),
        "inner_bounds": data.draw(st.sampled_from(("interval", "linear"))),
    }
    result, boxes = certified(problem, **options)
    assert_holds(problem, result, boxes, kernel)


@FEW
@given(
    problem=float32_problems(most=3, hidden=2),
    level=st.sampled_from(("lp", "milp")),
    window=st.sampled_from((1, 2)),
)
def test_programs_hold_float32_runs(problem: Problem, level: str, window: int) -> None:
    result, boxes = certified(
        problem,
        relaxation=level,
        window=window,
        program_window=window,
        solver="highs",
        solve_limits=agt.Limits(nodes=5),
    )
    assert_holds(problem, result, boxes, {})
