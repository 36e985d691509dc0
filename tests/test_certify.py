"""The loop around the engines: limits, fallbacks, solvers that lie or give up, files, callbacks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from boxes import assert_same, assert_within
from stand_ins import StandIn
from torch import nn

import milp_agt as agt
import milp_agt.certification.certify as certification
from milp_agt.certification import bound_step, saved
from milp_agt.core.results import SolveResult, Termination
from milp_agt.errors import EncodingError, InvalidInputError
from milp_agt.training.training import Training

X = np.random.default_rng(0).normal(size=(4, 2))
Y = np.array([0, 1, 0, 1])


def certify(model: nn.Module | None = None, training: Any = None, **options: Any) -> agt.Result:
    return agt.certify(
        network((2, 2, 1)) if model is None else model,
        (X, Y),
        Training("bce", 0.5, epochs=3) if training is None else training,
        agt.FeaturePoisoning(1, 0.05),
        **options,
    )


def test_the_time_limit_leaves_intervals_and_says_so() -> None:
    limited = certify(relaxation="lp", time_limit=0)
    assert limited.limit_reached
    assert [record.relaxation for record in limited.steps] == ["interval"] * 3
    assert "step 1: time limit, 'linear' left out from here on" in limited.fallbacks[-1]
    assert "with it 'lp'" in limited.fallbacks[-1]
    assert_same(limited.reachable, certify(relaxation="interval").reachable)
    bounds = limited.accuracy(X, Y)
    assert bounds.lower <= bounds.nominal <= bounds.upper
    unlimited = certify(relaxation="linear")
    assert not unlimited.limit_reached
    assert unlimited.fallbacks == ()


@pytest.mark.parametrize("limit", [0.02, 0.1, 0.3])
def test_a_time_limit_in_the_middle_stays_within_the_intervals(limit) -> None:
    result = certify(relaxation="lp", time_limit=limit)
    outer = certify(relaxation="interval")
    assert_within(result.reachable, outer.reachable)
    assert len(result.steps) == 3


def with_solver(monkeypatch: pytest.MonkeyPatch, lie: Any) -> None:
    monkeypatch.setattr(
        certification, "choose", lambda *_: StandIn(lambda _, solve: lie(solve), "fake")
    )


def answer(termination: Termination, bound: float | None) -> SolveResult:
    return SolveResult(termination, bound, None, None, None, "made up", 0.0)


def loosened(solve: Callable[[], SolveResult]) -> SolveResult:
    bound = solve().dual_bound
    return answer(Termination.BOUND_ONLY, bound - 1e-3)


def test_a_solver_at_its_limit_gives_its_dual_bound(monkeypatch) -> None:
    honest = certify(relaxation="lp", window=1)
    linear = certify(relaxation="linear", window=1)
    with_solver(monkeypatch, loosened)
    limited = certify(relaxation="lp", window=1)
    assert limited.limit_reached
    assert any("limit" in text for text in limited.fallbacks)
    first = limited.steps[0].program
    assert first["limited"] == first["solves"] > 0
    assert_within(limited.reachable, linear.reachable)
    assert_within(honest.reachable, limited.reachable, 1e-12)
    assert honest.reachable.mean_width <= limited.reachable.mean_width + 1e-12
    assert limited.reachable.mean_width <= linear.reachable.mean_width


@pytest.mark.parametrize(
    "result",
    [
        answer(Termination.FAILED, None),
        answer(Termination.BOUND_ONLY, None),
        answer(Termination.BOUND_ONLY, float("nan")),
        answer(Termination.OPTIMAL, float("nan")),
        answer(Termination.OPTIMAL, float("-inf")),
    ],
    ids=["failed", "no dual bound", "NaN", "NaN as optimal", "minus infinity"],
)
def test_a_solver_without_a_dual_bound_leaves_the_linear_box(monkeypatch, result) -> None:
    options: dict[str, Any] = {"window": 1, "selections": "enumerated", "carried": "none"}
    linear = certify(relaxation="linear", **options)
    with_solver(monkeypatch, lambda _: result)
    fallen = certify(relaxation="lp", **options)
    assert_same(fallen.reachable, linear.reachable)
    if result.termination is not Termination.OPTIMAL:
        assert fallen.limit_reached
        assert fallen.fallbacks


def test_an_infeasible_program_is_an_encoding_error(monkeypatch) -> None:
    with_solver(monkeypatch, lambda _: answer(Termination.INFEASIBLE, None))
    with pytest.raises(EncodingError, match="feasible") as caught:
        certify(relaxation="lp")
    assert caught.value.found
    assert caught.value.remedy


def test_ranges_beyond_a_solver_are_left_to_the_linear_bounds(monkeypatch) -> None:
    """From a box of its own after the first step, so up to a little of it."""
    monkeypatch.setattr(bound_step, "PROGRAM_RANGE_LIMIT", 1e-3)
    options: dict[str, Any] = {"window": 1, "selections": "joint", "inner_bounds": "interval"}
    result = certify(relaxation="lp", **options)
    linear = certify(relaxation="linear", **options)
    assert_within(result.reachable, linear.reachable, 1e-6)
    assert result.reachable.mean_width == pytest.approx(linear.reachable.mean_width, rel=0.01)
    assert len([text for text in result.fallbacks if "beyond" in text]) == 3
    assert [record.relaxation for record in result.steps] == ["linear"] * 3


def test_auto_picks_and_explains() -> None:
    rich = certify(relaxation="auto", time_limit=1e4)
    poor = certify(relaxation="auto", time_limit=0)
    small = certify(relaxation="auto", memory=1)
    assert rich.steps[-1].relaxation == "lp"
    assert poor.steps[-1].relaxation == small.steps[-1].relaxation == "interval"
    for result in (rich, poor, small):
        assert result.relaxation == "auto"
        assert result.notes[0].startswith("auto picked ")
        assert "predicted" in result.notes[0]
        assert not any("auto" in text for text in result.fallbacks)


def test_a_note_is_no_fallback_and_an_old_file_has_none(tmp_path) -> None:
    """A choice is a note, what could not be had a fallback; both are kept."""
    result = certify(relaxation="auto", memory=1)
    assert [text.split()[0] for text in result.notes] == ["auto"]
    assert [text.split()[0] for text in result.fallbacks] == ["memory"]
    result.save(tmp_path / "run")
    loaded = agt.load(tmp_path / "run")
    assert (loaded.notes, loaded.fallbacks) == (result.notes, result.fallbacks)
    arrays, about = saved.FILE.read(tmp_path / "run")
    del about["notes"]
    saved.FILE.write(tmp_path / "old", arrays, about)
    old = agt.load(tmp_path / "old")
    assert (old.notes, old.fallbacks) == ((), result.fallbacks)


@pytest.mark.parametrize("relaxation", ["interval", "linear", "lp"])
def test_model_and_data_are_not_changed(relaxation) -> None:
    model = network((2, 2, 1))
    before = copy.deepcopy(model.state_dict())
    x, y = torch.from_numpy(X.copy()), torch.from_numpy(Y.copy())
    agt.certify(
        model,
        (x, y),
        Training("bce", 0.5, epochs=2),
        agt.FeatureLabelPoisoning(1, 0.05),
        relaxation=relaxation,
    )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert torch.equal(x, torch.from_numpy(X))
    assert torch.equal(y, torch.from_numpy(Y))


def shared() -> nn.Sequential:
    inner = nn.Linear(2, 2)
    return nn.Sequential(inner, nn.ReLU(), inner, nn.Tanh(), nn.Linear(2, 1)).double()


def frozen() -> nn.Sequential:
    model = network((2, 3, 2, 1))
    model[0].weight.requires_grad_(False)
    for parameter in model[2].parameters():
        parameter.requires_grad_(False)
    return model


def nested() -> nn.Sequential:
    torch.manual_seed(3)
    inner = nn.Sequential(nn.Linear(2, 2, bias=False), nn.LeakyReLU(0.2))
    return nn.Sequential(nn.Flatten(), inner, nn.Sequential(nn.Sigmoid(), nn.Linear(2, 1))).double()


MODELS = {"plain": lambda: network((2, 2, 1)), "shared": shared, "frozen": frozen, "nested": nested}


@pytest.mark.parametrize("make", list(MODELS.values()), ids=list(MODELS))
def test_save_and_load(make, tmp_path) -> None:
    torch.manual_seed(0)
    model = make()
    result = certify(model, relaxation="interval")
    result.save(tmp_path / "run")
    loaded = agt.load(tmp_path / "run.npz")
    assert_same(result.reachable, loaded.reachable)
    assert_same(loaded.reachable, agt.load(tmp_path / "run").reachable)
    kept = "steps total_steps relaxation notes fallbacks limit_reached threat assumptions claim"
    for attribute in kept.split():
        assert getattr(loaded, attribute) == getattr(result, attribute)
    assert loaded.reachable.trainable == result.reachable.trainable
    own, again = result.accuracy(X, Y), loaded.accuracy(X, Y)
    assert again.lower <= own.lower
    assert again.nominal == own.nominal
    assert again.upper >= own.upper
    assert set(loaded.reachable.lower) == set(model.state_dict())
    assert loaded.reachable.contains(dict(result.reachable.nominal))
    loaded.save(tmp_path / "twice.npz")
    assert_same(result.reachable, agt.load(tmp_path / "twice.npz").reachable)


def test_saving_replaces_a_file_at_once(tmp_path) -> None:
    path = tmp_path / "run.npz"
    certify(relaxation="interval").save(path)
    certify(relaxation="linear").save(path)
    assert agt.load(path).relaxation == "linear"
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


def test_shared_parameters_are_counted_once_and_named_twice() -> None:
    torch.manual_seed(0)
    model = shared()
    result = certify(model)
    reachable = result.reachable
    assert set(reachable.lower) == set(model.state_dict())
    assert (reachable.lower["0.weight"] == reachable.lower["2.weight"]).all()
    assert (reachable.upper["0.bias"] == reachable.upper["2.bias"]).all()
    assert reachable.trainable == ("0.weight", "0.bias", "4.weight", "4.bias")
    assert reachable.widths.shape == (4 + 2 + 2 + 1,)


def test_frozen_parameters_have_no_width() -> None:
    model = frozen()
    reachable = certify(model).reachable
    for name, parameter in model.named_parameters():
        width = reachable.upper[name] - reachable.lower[name]
        if parameter.requires_grad:
            assert (width > 0).any(), name
        else:
            assert (width == 0).all()
            assert (reachable.nominal[name] == parameter.detach().numpy()).all()
    assert not {n for n, p in model.named_parameters() if not p.requires_grad} & set(
        reachable.trainable
    )


@pytest.mark.parametrize("make", list(MODELS.values()), ids=list(MODELS))
def test_contains_the_trained_model(make) -> None:
    torch.manual_seed(0)
    model = make()
    reachable = certify(model).reachable
    trained = copy.deepcopy(model)
    optimiser = torch.optim.SGD([p for p in trained.parameters() if p.requires_grad], lr=0.5)
    target = torch.from_numpy(Y).to(torch.float64)[:, None]
    for _ in range(3):
        optimiser.zero_grad()
        out = trained(torch.from_numpy(X))
        nn.functional.binary_cross_entropy_with_logits(out, target).backward()
        optimiser.step()
    state = trained.state_dict()
    assert reachable.contains(state)
    assert reachable.contains({n: v.numpy() for n, v in state.items()})
    for name in state:
        moved = {n: v.clone() for n, v in state.items()}
        moved[name].flatten()[0] += 1.0
        assert not reachable.contains(moved)
        moved[name].flatten()[0] = float("nan")
        assert not reachable.contains(moved)


def test_contains_asks_for_all_parameters() -> None:
    reachable = certify().reachable
    nominal = dict(reachable.nominal)
    with pytest.raises(InvalidInputError, match="weight"):
        reachable.contains({n: v for n, v in nominal.items() if n != "0.weight"})
    with pytest.raises(InvalidInputError, match="shape"):
        reachable.contains(nominal | {"0.weight": np.zeros((3, 3))})


def test_claim_and_assumptions_say_what_is_covered() -> None:
    result = certify()
    assert "up to 1 sample" in result.claim
    assert "0.05" in result.claim
    assert "once, before training" in result.claim
    text = " ".join(result.assumptions)
    for word in ("order of the batches", "Preprocessing", "early stopping", "float64"):
        assert word in text
    assert {record.adversary for record in result.steps} == {"static, dataset"}


def test_margins_decide_accuracy_and_stability() -> None:
    result = certify(relaxation="linear")
    low, high = result.margins(X, Y)
    bounds = result.accuracy(X, Y)
    assert bounds.lower == (low > 0).mean()
    assert bounds.upper == (high >= 0).mean()
    assert result.stable(X).nominal == result.stable(X).upper == 1.0


@pytest.mark.usefixtures("unlisted")
def test_small_runs_use_one_thread_and_give_the_others_back() -> None:
    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(2)
    try:
        honest = certification.BoundedRun.advance

        def watched(self) -> None:
            seen.append(torch.get_num_threads())
            honest(self)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(certification.BoundedRun, "advance", watched)
            agt.certify(
                torch.nn.Sequential(torch.nn.Linear(2, 1)).double(),
                (np.eye(4, 2), np.array([0, 1, 0, 1])),
                agt.Training("bce", 0.1, epochs=2),
                agt.LabelPoisoning(1),
            )
        assert seen == [1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("asked", [None, "interval", "linear"])
@pytest.mark.usefixtures("unlisted")
def test_inner_bounds_that_are_too_dear_are_left_out_and_said_so(asked, monkeypatch) -> None:
    monkeypatch.setattr("milp_agt.certification.planning.REFINING_TIME", 0.0)
    result = agt.certify(
        nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double(),
        (np.eye(4, 2), np.array([0, 1, 0, 1])),
        agt.Training("bce", 0.1, epochs=2),
        agt.LabelPoisoning(1),
        inner_bounds=asked,
    )
    said = [note for note in result.notes if "inner bounds by intervals" in note]
    assert len(said) == (asked is None)
