"""Optimised slopes in whole runs: never looser, never unsound, resumed and limited."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_inside, assert_sound, network
from torch import Tensor

import milp_agt as agt
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.adversary.two_budgets import worst_of_both
from milp_agt.bounds.linear import alpha
from milp_agt.bounds.linear.backward import sample_forms
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.linear.slopes import Slopes, free_slopes, with_slopes
from milp_agt.bounds.linear.window_bounds import bound_forms
from milp_agt.bounds.signed_entries import entry_boxes, forms_of_entries
from milp_agt.bounds.step import State
from milp_agt.certification.chains import OPTIMISED
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.cli import main
from milp_agt.core.graph import evaluate
from milp_agt.core.reachable import ReachableSet
from milp_agt.errors import ConfigurationError, InvalidInputError
from milp_agt.runfile.run_file import load_config
from milp_agt.training.tracing import FEATURES

STARTS = {"features": agt.FeaturePoisoning(2, 0.1), "both": agt.FeatureLabelPoisoning(2, 0.05)}


def problem(
    threat: Any = None, loss: str = "bce", hidden: tuple[int, ...] = (3,), **run: Any
) -> Problem:
    generator = torch.Generator().manual_seed(5)
    outputs = 3 if loss == "cross_entropy" else 1
    x = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(max(outputs, 2), (6,), generator=generator)
    if loss == "mse":
        y = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    training = agt.Training(loss=loss, **({"learning_rate": 0.4, "epochs": 3} | run))
    threat = threat or STARTS["features"]
    return Problem(network((2, *hidden, outputs), seed=2), x, y, training, threat)


CASES: dict[str, Problem] = {
    "bce": problem(),
    "labels": problem(agt.LabelPoisoning(1)),
    "three classes": problem(STARTS["both"], "cross_entropy"),
    "hinge": problem(STARTS["both"], "hinge"),
    "mse": problem(loss="mse", hidden=(2, 2), momentum=0.4, weight_decay=0.01),
    "adaptive": problem(agt.FeaturePoisoning(1, 0.05, static=False)),
    "apart": problem(
        agt.SeparatePoisoning(agt.FeaturePoisoning(1, 0.1), agt.LabelPoisoning(1)), hidden=(2,)
    ),
    "batches": problem(STARTS["both"], epochs=2, batch_size=2, shuffle_seed=1),
    "clipped": problem(clip=0.3, clip_mode="norm"),
    "clamped": problem(clip=0.1, clip_mode="clamp", l1=0.01, projection=(-0.6, 0.6)),
    "linear model": problem(loss="mse", hidden=()),
}
SLOW = ("batches", "clamped", "hinge", "adaptive")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in CASES]
)
def test_attacks_stay_inside_and_no_bound_is_looser(name: str) -> None:
    case = CASES[name]
    test, labels = case.features + 0.2, case.labels
    result = assert_sound(
        case, test, labels, attacks=32, iterations=2, alpha_steps=3, alpha_every=1
    )
    assert_never_looser(result, case)


def test_exchanged_samples_have_free_slopes_too() -> None:
    case = problem(agt.Substitution(1), clip=0.2, clip_mode="norm")
    result, _ = case.certify(alpha_steps=3)
    assert_never_looser(result, case)


def assert_never_looser(result: Any, case: Problem) -> None:
    default, _ = case.certify()
    chains = result.steps[-1].chains
    assert chains is not None
    assert chains[OPTIMISED] <= chains["linear"] == default.steps[-1].mean_width
    for end in result.reachable.lower:
        assert (result.reachable.lower[end] >= default.reachable.lower[end]).all()
        assert (result.reachable.upper[end] <= default.reachable.upper[end]).all()


@pytest.mark.parametrize(("every", "where"), [(1, [1, 2, 3, 4]), (3, [3, 4]), (None, [4])])
def test_slopes_are_optimised_where_asked(every: int | None, where: list[int]) -> None:
    """At every k-th step and at the last; in between their chain is carried along."""
    case = problem(epochs=4)
    recorder = MemoryRecorder()
    result, _ = case.certify(alpha_steps=3, alpha_every=every, recorder=recorder)
    assert [s.step for s in result.steps if OPTIMISED in (s.chains or {})] == where
    due = [i for i in range(4) if i == 3 or (i + 1) % (every or 4) == 0]
    assert sorted(recorder.optimised[OPTIMISED]) == due
    last = result.steps[-1].chains
    assert last is not None
    assert last[OPTIMISED] < last["linear"]
    assert last[OPTIMISED] == result.steps[-1].mean_width


def test_moves_end_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bounds by the slopes so far count."""
    case = problem(epochs=2)
    monkeypatch.setattr(alpha, "monotonic", lambda: float("inf"))
    result, _ = case.certify(alpha_steps=5, time_limit=1e6)
    assert result.limit_reached
    assert any("fewer than alpha_steps = 5 moves" in line for line in result.fallbacks)
    assert OPTIMISED in (result.steps[-1].chains or {})
    free, _ = case.certify(alpha_steps=5)
    assert not free.limit_reached
    assert free.reachable.mean_width < result.reachable.mean_width


@pytest.mark.parametrize("name", ["bce", "apart", "linear model", "three classes"])
def test_bounds_get_tighter(name: str) -> None:
    result, _ = CASES[name].certify(alpha_steps=8)
    chains = result.steps[-1].chains
    assert chains is not None
    assert chains[OPTIMISED] < 0.999 * chains["linear"]


def recorded(case: Problem, **options: Any) -> tuple[MemoryRecorder, Replay]:
    recorder = MemoryRecorder()
    case.certify(recorder=recorder, **options)
    return recorder, Replay(case)


def random_slopes(
    run: Replay, window: Sequence[LinearizedStep], rows: int, seed: int
) -> list[Slopes]:
    generator = torch.Generator().manual_seed(seed)
    chosen: list[Slopes] = []
    for relaxed in window:
        own = {}
        for place, free in free_slopes(run.schedule, relaxed).items():
            own[place] = tuple(
                s.lower
                + (s.upper - s.lower)
                * (
                    2.0 * torch.rand(rows, *s.start.shape, generator=generator, dtype=torch.float64)
                    - 0.5
                )
                for s in free
            )
        chosen.append(own)
    return chosen


def boxes_with(
    run: Replay,
    window: Sequence[LinearizedStep],
    chosen: Sequence[Slopes],
    ends: Tensor | None = None,
) -> State:
    """Boxes after a window by given slopes, as the walk makes them."""
    state = window[-1].state
    rows = 2 * sum(box.lower[0].numel() for box in state.values())
    ends = torch.arange(rows) if ends is None else ends
    bounds = torch.full((1, rows), -torch.inf, dtype=torch.float64)
    sloped = [with_slopes(run.schedule, r, s) for r, s in zip(window, chosen, strict=True)]
    adversary, forms = Joint(run.poison), forms_of_entries(state, ends)
    bounds[:, ends] = bound_forms(run.schedule, sloped, forms, adversary).T
    return entry_boxes(state, bounds)


def reached(run: Replay, case: Problem) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    attacks = run.all(generator, case.features, case.labels, 64, 4)
    return [run.run(attack)[-1] for attack in attacks]


def as_set(box: State) -> ReachableSet:
    low, high = ({n: getattr(b, e)[0].numpy() for n, b in box.items()} for e in ("lower", "upper"))
    return ReachableSet(low, high, low, tuple(low))


@pytest.mark.parametrize(
    "name", ["bce", "three classes", "mse", "adaptive", "linear model", "clipped"]
)
def test_random_slopes_hold_attacks(name: str) -> None:
    case = CASES[name]
    recorder, run = recorded(case)
    window = recorder.steps["linear"]
    state = window[-1].state
    rows = 2 * sum(box.lower[0].numel() for box in state.values())
    ends = reached(run, case)
    for seed in range(3):
        box = as_set(boxes_with(run, window, random_slopes(run, window, rows, seed)))
        for state_of in ends:
            assert_inside([box], [{n: v for n, v in state_of.items() if n in box.lower}])


def test_the_recorded_slopes_replay_the_bounds() -> None:
    case = problem(momentum=0.3)
    recorder, run = recorded(case, alpha_steps=4, alpha_every=1)
    kept, steps = recorder.optimised[OPTIMISED], recorder.steps[OPTIMISED]
    assert sorted(kept) == [0, 1, 2]
    bought = 0
    for step, ((ends, chosen),) in kept.items():
        assert ends.tolist() == [e for e in range(52) if step < 2 or e % 26 < 13]
        box = boxes_with(run, steps[: step + 1], chosen, ends)
        for name, found in recorder.states[OPTIMISED][step].items():
            assert bool((found.lower >= box[name].lower).all())
            assert bool((found.upper <= box[name].upper).all())
            loose = recorder.states["linear"][step][name]
            bought += int(((found.lower == box[name].lower) & (found.lower > loose.lower)).sum())
    assert bought > 5


@pytest.mark.parametrize(
    "every",
    [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(None, marks=pytest.mark.slow)],
)
def test_a_resumed_run_goes_on_with_its_slopes(every: int | None, tmp_path: Path) -> None:
    case = problem()

    class Stop(Exception):
        pass

    def stop(_result: Any, step: int, _steps: int) -> None:
        if step == 2:
            raise Stop

    def certify(**options: Any) -> Any:
        return agt.certify(
            case.model,
            case.data,
            case.training,
            case.threat,
            selections="joint",
            alpha_every=every,
            **options,
        )

    whole = certify(alpha_steps=3)
    with pytest.raises(Stop):
        certify(alpha_steps=3, checkpoint=tmp_path, on_step=stop)
    with pytest.raises(InvalidInputError, match="alpha_steps was 3 and is 4"):
        certify(alpha_steps=4, checkpoint=tmp_path)
    resumed = certify(alpha_steps=3, checkpoint=tmp_path)
    for name, low in whole.reachable.lower.items():
        assert low.tobytes() == resumed.reachable.lower[name].tobytes()
        assert whole.reachable.upper[name].tobytes() == resumed.reachable.upper[name].tobytes()
    assert whole.steps[-1].chains == resumed.steps[-1].chains


def test_rows_in_pieces_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each end is optimised by itself, however many share a pass."""
    case = problem(epochs=2)
    whole, _ = case.certify(alpha_steps=3)
    passes: list[int] = []
    honest = alpha._ascend

    def counted(problem: Any, forms: Any, *rest: Any) -> Any:
        passes.append(forms.rows)
        return honest(problem, forms, *rest)

    monkeypatch.setattr(alpha, "_ascend", counted)
    monkeypatch.setattr(alpha, "LIVE_SLOPES", 10**5)
    cut, _ = case.certify(alpha_steps=3)
    assert max(passes) < 26
    for name, low in whole.reachable.lower.items():
        assert np.allclose(low, cut.reachable.lower[name], rtol=0, atol=1e-10)


def test_too_little_memory_keeps_the_first_steps_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alpha, "LIVE_SLOPES", 5 * 10**5)
    result, _ = problem().certify(alpha_steps=1)
    assert any("slopes before those are not optimised" in line for line in result.fallbacks)


def test_forms_of_single_samples_walk_through_sloped_planes() -> None:
    case = problem(epochs=2)
    recorder, run = recorded(case)
    relaxed = recorder.steps["linear"][-1]
    chosen = random_slopes(run, [relaxed], 1, 0)[0]
    sample_chunk = with_slopes(run.schedule, relaxed, chosen).chunks[0]
    graph, output = run.step_graph.graph, run.step_graph.output
    forward = graph.needed_for([output])
    ones = torch.ones(1, 6, 1, dtype=torch.float64)
    own = sample_forms([n for n in forward if n.batched], sample_chunk, output, ones)
    assert own.charges is not None
    assert own.features is not None
    attack = run.random(64, torch.Generator().manual_seed(0), corners=True)
    state, x = run.run(attack)[-2], attack.features[-1]
    moves = x - case.features
    value = evaluate(forward, {**state, FEATURES: x})[output].squeeze(-1)
    below = own.constant.squeeze(-1) - own.charges.squeeze(-1) * (moves != 0).any(-1)
    below = below + (own.features * moves).sum(-1)
    for name, on in own.coefficients.items():
        below = below + (on * state[name].unsqueeze(1)).flatten(2).sum(-1)
    assert bool((below <= value + 1e-12).all())
    assert float((value - below).min()) < 0.1


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"alpha_steps": -1}, "alpha_steps = -1"),
        ({"alpha_steps": 2.5}, "alpha_steps = 2.5 of type float"),
        ({"alpha_steps": 2, "alpha_every": 0}, "alpha_every = 0"),
        (
            {"alpha_steps": 3, "relaxation": "interval"},
            "relaxation 'interval', which has no slopes",
        ),
    ],
)
def test_what_cannot_be_optimised_is_refused(options: dict[str, Any], found: str) -> None:
    with pytest.raises(InvalidInputError) as error:
        problem().certify(**options)
    assert error.value.found == found
    assert "alpha_steps" in error.value.asked or "alpha_every" in error.value.asked
    assert error.value.remedy


RUN = """
[data]
name = "moons"
samples = 12
[model]
layers = [2, 3, 2]
[training]
loss = "cross_entropy"
learning_rate = 0.3
epochs = 2
[threat]
kind = "features"
budget = 1
radius = 0.05
[certify]
selections = "joint"
alpha_steps = 2
alpha_every = 1
"""


def test_the_command_line_optimises_slopes(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text(RUN)
    assert main(["certify", str(run), "--out", str(tmp_path / "out")]) == 0
    steps = json.loads((tmp_path / "out" / "result.json").read_text())["steps"]
    assert all(step["chains"][OPTIMISED] <= step["chains"]["linear"] for step in steps)
    run.write_text(RUN.replace("alpha_steps = 2", "alpha_steps = -2"))
    with pytest.raises(ConfigurationError, match="alpha_steps = -2"):
        load_config(run)


@pytest.mark.usefixtures("linear_alone")
def test_a_comparison_optimises_where_there_are_slopes() -> None:
    case = problem(epochs=2)
    table = agt.compare(
        case.model,
        case.data,
        case.training,
        case.threat,
        ("interval", "linear"),
        alpha_steps=2,
        selections="joint",
    )
    default, _ = case.certify(window=1)
    assert table.rows[1].mean_width < default.reachable.mean_width


def test_budgets_apart_have_gradients() -> None:
    """The worst of features and labels is differentiable: one of the samples at the best multiplier."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(2, 7, 4, generator=generator, dtype=torch.float64)
    hurt = torch.stack([x, y, x + y]).requires_grad_()
    value = worst_of_both(hurt, (2, 1))
    assert torch.equal(value.detach(), worst_of_both(hurt.detach(), (2, 1)))
    (gradient,) = torch.autograd.grad(value.sum(), hurt)
    direction = torch.rand(hurt.shape, generator=generator, dtype=torch.float64)
    moved = (worst_of_both(hurt.detach() + s * 1e-7 * direction, (2, 1)).sum() for s in (1, -1))
    up, down = (float(v) for v in moved)
    assert float((gradient * direction).sum()) == pytest.approx((up - down) / 2e-7, rel=1e-5)
