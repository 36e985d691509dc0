"""float32 runs: what plain torch trains in float32 lies inside, at every level, without a tolerance."""

from __future__ import annotations

import copy
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
    in_double,
    in_float32,
    runs_of,
    trained_in_float32,
)
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from problems import problem as small
from torch import nn

import milp_agt as agt
from milp_agt.bounds.adversary.enumerated import count_cases
from milp_agt.errors import InvalidInputError, UnsupportedOperationError

DRAWN = settings(max_examples=10, deadline=None, derandomize=True)
FEW = settings(max_examples=2, deadline=None, derandomize=True)
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


@FEW
@given(problem=float32_problems(), kernel=st.sampled_from(KERNELS))
def test_zonotopes_hold_float32_runs(problem: Problem, kernel: dict[str, bool]) -> None:
    result, boxes = certified(problem, relaxation="zonotope")
    assert_holds(problem, result, boxes, kernel)


@DRAWN
@given(problem=float32_problems(), kernel=st.sampled_from(KERNELS), data=st.data())
def test_linear_forms_hold_float32_runs(
    problem: Problem, kernel: dict[str, bool], data: Any
) -> None:
    poison = Replay(problem).poison
    ways: list[dict[str, Any]] = [{"selections": "joint"}]
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


def normalised() -> nn.Module:
    """A float32 model with statistics that are kept, and a leaky relu."""
    torch.manual_seed(3)
    norm = nn.BatchNorm1d(3).eval()
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return nn.Sequential(nn.Linear(2, 3), norm, nn.LeakyReLU(0.1), nn.Linear(3, 3))


def wide() -> nn.Module:
    """Sums over many terms, and a frozen layer in front."""
    torch.manual_seed(4)
    first = nn.Linear(2, 60).requires_grad_(False)
    return nn.Sequential(first, nn.Tanh(), nn.Linear(60, 3))


@pytest.mark.parametrize("model", [normalised, wide])
@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_other_layers_in_float32(model: Any, relaxation: str) -> None:
    options = {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "batch_size": 4}
    case, _, _ = small("cross_entropy", "features", options, count=10)
    problem = in_float32(replace(case, model=model()))
    result, boxes = problem.certify(relaxation=relaxation, **FLOAT32)
    assert_holds(problem, result, boxes, {"foreach": True})


DEEP = {"epochs": 2, "batch_size": 8, "momentum": 0.9, "weight_decay": 0.01, "learning_rate": 0.1}


@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy", "hinge"])
def test_without_a_threat_the_box_has_the_width_of_rounding_alone(loss: str) -> None:
    """Half of it is within two orders of magnitude of how far the float32 run is from the float64 run.

    Errors of a real run largely cancel, those of a bound never do: after four steps with momentum 0.9 it is
    17 to 94 times as large, after twenty 140 to 330 times.
    """
    case, _, _ = small(loss, "features", DEEP, count=16, budget=0, hidden=(8,))
    problem = in_float32(case)
    attacks, row = next(iter(runs_of(problem)))
    states, _ = trained_in_float32(problem, attacks, row, {})
    exact = Replay(in_double(problem))
    theirs = exact.run(exact.random(1, torch.Generator().manual_seed(0), False))[-1]
    off = max(float((states[-1][n].double() - theirs[n][0]).abs().max()) for n in states[-1])
    result, boxes = problem.certify(**FLOAT32)
    width = result.reachable.max_width
    assert off > 0.0
    assert off <= width <= 2.0 * 100.0 * off, (width, off, width / off)
    double, _ = in_double(problem).certify()
    assert double.reachable.max_width < 1e-5 * width
    assert not any(
        (b.lower[n] > b.nominal[n]).any() or (b.nominal[n] > b.upper[n]).any()
        for b in boxes
        for n in b.lower
    )


def test_float32_never_makes_a_box_smaller() -> None:
    problem = in_float32(small("cross_entropy", "both", {"momentum": 0.5})[0])
    single, _ = problem.certify(relaxation="interval", **FLOAT32)
    double, _ = in_double(problem).certify(relaxation="interval", precision="float64")
    for name in single.reachable.lower:
        assert (single.reachable.lower[name] < double.reachable.lower[name]).all()
        assert (single.reachable.upper[name] > double.reachable.upper[name]).all()
    assert single.reachable.max_width < 1.1 * double.reachable.max_width


def tiny_run(**changes: Any) -> dict[str, Any]:
    x = torch.tensor([[1.0, -2.0], [0.5, 0.25], [-1.0, 2.0], [0.0, 1.0]])
    run: dict[str, Any] = {
        "model": network((2, 3, 1)).float(),
        "data": (x, torch.tensor([0, 1, 1, 0])),
        "training": agt.Training("bce", epochs=2),
        "threat": agt.FeaturePoisoning(1, 0.1),
        "precision": "float32",
    }
    return run | changes


def certify(run: dict[str, Any]) -> agt.Result:
    return agt.certify(
        run.pop("model"), run.pop("data"), run.pop("training"), run.pop("threat"), **run
    )


X64 = torch.tensor([[0.1, -2.0], [0.5, 0.25], [-1.0, 2.0], [0.0, 1.0]], dtype=torch.float64)
Y = torch.tensor([0, 1, 1, 0])


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"precision": "tf32"}, InvalidInputError, r"TF32.*What to do: train in float32"),
        ({"precision": "float16"}, InvalidInputError, "half precision.*65504.*What to do"),
        ({"precision": "torch.bfloat16"}, InvalidInputError, "bfloat16.*What to do"),
        ({"precision": "mixed"}, InvalidInputError, "casts and loss scaling.*What to do"),
        ({"precision": "double"}, InvalidInputError, "none of float64, float32.*What to do"),
        ({"data": (X64, Y)}, InvalidInputError, r"1 of 8.*0\.1.*astype\('float32'\)"),
        ({"data": (X64.float(), 0.1 + Y.double()), "training": agt.Training("mse")},
         InvalidInputError, r"labels are float32 numbers.*0\.1.*astype\('float32'\)"),
        ({"model": network((2, 3, 1), scale=0.3)}, InvalidInputError,
         r"'0.weight'.*model\.float\(\)"),
        ({"training": agt.Training("bce", projection=(-1.0, 0.1))}, InvalidInputError,
         r"clamp to 0\.1\..*0\.10000000149011612.*What to do: give 0\.10000000149011612"),
        ({"training": agt.Training("bce", clip=0.1, clip_mode="clamp")}, InvalidInputError,
         r"clamp to -0\.1\."),
        ({"threat": agt.Removal(1)}, UnsupportedOperationError,
         "whole samples are removed.*FeaturePoisoning"),
        ({"threat": agt.Substitution(1), "training": agt.Training("bce", clip=0.5)},
         UnsupportedOperationError, "whole samples are substituted"),
        (
            {
                "model": nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(2, 1)),
                "data": (X64.float().reshape(4, 1, 1, 2), Y),
            },
            UnsupportedOperationError,
            r"unfold.*fast algorithms.*What to do: train with Linear",
        ),
    ],
)  # fmt: skip
def test_what_a_float32_run_is_not(
    changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        certify(tiny_run(**changes))


def test_products_in_tf32_are_refused() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        with pytest.raises(UnsupportedOperationError, match=r"'high'.*TF32.*What to do.*'highest'"):
            certify(tiny_run())
    finally:
        torch.set_float32_matmul_precision(before)


def test_of_a_run_that_overflows_nothing_is_said() -> None:
    """Float64 goes on to 1e42; float32 overflows there, and its box is the whole line."""
    training = agt.Training("mse", learning_rate=1e7, epochs=6)
    x, y = X64.float()[:, :1] + 1.0, torch.ones(4)
    model = nn.Linear(1, 1)
    run = tiny_run(model=model, data=(x, y), training=training, threat=agt.FeaturePoisoning(0, 0.0))
    trainer = Trainer(model, training, {})
    for _ in range(6):
        trainer.step(x, y[:, None], 1e7)
    assert not bool(torch.isfinite(trainer.model.weight).all())
    reachable = certify(dict(run)).reachable
    assert np.isneginf(reachable.lower["weight"]).all()
    assert np.isposinf(reachable.upper["weight"]).all()
    twin = copy.deepcopy(model).double()
    double = certify({**run, "model": twin, "data": (x.double(), y), "precision": "float64"})
    assert np.isfinite(double.reachable.max_width)


def test_claim_assumptions_and_settings_name_the_precision(tmp_path: Path) -> None:
    single = certify(tiny_run())
    double = certify(tiny_run(precision="float64", model=network((2, 3, 1)), data=(X64, Y)))
    assert "training in float32 for 2 of 2 steps" in single.claim
    assert "float32" not in double.claim
    assert (single.precision, double.precision) == ("float32", "float64")
    told = " ".join(single.assumptions)
    for word in ("float32", "TF32", "Winograd", "deterministic", "nominal values are those of"):
        assert word in told
    assert "Training runs in float64" in " ".join(double.assumptions)
    assert single.settings["certify"]["precision"] == "float32"
    single.save(tmp_path / "run")
    loaded = agt.load(tmp_path / "run")
    assert loaded.precision == "float32"
    assert loaded.claim == single.claim
    assert loaded.assumptions == single.assumptions
    point = X64.numpy()
    for first, second in (
        (loaded.predictions(point), loaded.predictions(X64.float())),
        (single.predictions(point), single.predictions(X64.float())),
    ):
        assert np.array_equal(first.lower, second.lower)  # as the float32 model reads it
    box = loaded.predictions(point)
    assert (box.upper - box.lower > 0).all()


def test_a_loaded_float32_result_predicts_in_float32(tmp_path: Path) -> None:
    """At a point box of parameters, outputs still have the width of float32."""
    run = tiny_run(threat=agt.FeaturePoisoning(0, 0.0))
    result = certify(run)
    result.save(tmp_path / "run")
    box = agt.load(tmp_path / "run").predictions(X64)
    assert (box.upper - box.lower > 1e-7).all()
    assert (box.upper - box.lower < 1e-3).all()


def test_a_checkpoint_of_another_precision_is_refused(tmp_path: Path) -> None:
    def stop(result: agt.Result, step: int, steps: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        certify(tiny_run(checkpoint=tmp_path, on_step=stop))
    model = network((2, 3, 1)).float().double()
    data = (tiny_run()["data"][0].double(), Y)
    with pytest.raises(InvalidInputError, match="precision"):
        certify(tiny_run(checkpoint=tmp_path, model=model, data=data, precision="float64"))
    again = certify(tiny_run(checkpoint=tmp_path))
    assert np.array_equal(
        again.reachable.lower["0.weight"], certify(tiny_run()).reachable.lower["0.weight"]
    )


def test_triggered_inputs_are_rounded_to_the_model(tmp_path: Path) -> None:
    """Ends of a trigger are float32 numbers that hold what the rounded inputs may be."""
    result = certify(tiny_run())
    answer = result.backdoor(X64, Y, 0.1)
    assert 0.0 <= answer.lower <= answer.upper <= 1.0
    (forms,) = {id(f): f for f in _forms(result)}.values()
    low, high = forms.inputs.lower[0], forms.inputs.upper[0]
    for end in (low, high):
        assert torch.equal(end.float().double(), end)
    x = X64.float().double()
    assert bool((low <= (x - 0.1).float().double()).all())
    assert bool(((x + 0.1).float().double() <= high).all())


def _forms(result: agt.Result) -> list[Any]:
    from milp_agt.properties.backdoor import BackdoorQuestion
    from milp_agt.properties.triggers import BallTrigger

    x = X64.float().double()
    question = BackdoorQuestion.of(result.models, x, Y.double()[:, None], BallTrigger(0.1), None)
    return [question.over_box.forms]
