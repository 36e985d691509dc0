"""Tighter levels, smaller threats and weaker adversaries lie inside looser, larger and stronger ones."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from attacks import Problem, Replay, network
from boxes import assert_within
from torch import nn

import milp_agt as agt
from milp_agt.bounds import program
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.linear import linearized_step, window_bounds
from milp_agt.bounds.linear.window_bounds import Collected, PastStep
from milp_agt.bounds.step import State, Step, initial_state
from milp_agt.certification import loop
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.interval import Interval
from milp_agt.core.relaxation import Relaxation
from milp_agt.solvers import choose
from milp_agt.training.training import Training

# Feasibility tolerance of the solver, paid back by the safe dual bound.
SOLVER = 1e-7
# Two floating-point backward passes over the same planes, whose worst cases are added up in different orders.
ROUNDING = 1e-11


def case(
    loss: str = "bce",
    threat: Any = None,
    count: int = 4,
    hidden: tuple[int, ...] = (2,),
    activation: type[nn.Module] = nn.ReLU,
    seed: int = 0,
    **training: Any,
) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    outputs = {"cross_entropy": 3, "mse": 2}.get(loss, 1)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    if loss == "mse":
        y = torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    else:
        y = torch.randint(max(outputs, 2), (count,), generator=generator)
    model = network((2, *hidden, outputs), activation, seed)
    run = Training(loss=loss, **({"learning_rate": 0.5, "epochs": 3} | training))
    return Problem(model, x, y, run, threat or agt.FeaturePoisoning(1, 0.05))


def assert_state_within(inner: State, outer: State, tolerance: float = 0.0) -> None:
    for name, box in outer.items():
        assert (inner[name].lower >= box.lower - tolerance * (1 + box.lower.abs())).all(), name
        assert (inner[name].upper <= box.upper + tolerance * (1 + box.upper.abs())).all(), name


@pytest.mark.parametrize(
    ("loss", "momentum", "inner_bounds"),
    [
        ("bce", 0.0, "linear"),
        ("hinge", 0.6, "interval"),
        *[
            pytest.param(loss, momentum, "linear", marks=pytest.mark.slow)
            for loss in ("mse", "bce", "cross_entropy", "hinge")
            for momentum in (0.0, 0.6)
            if (loss, momentum) != ("bce", 0.0)
        ],
    ],
)
def test_every_level_lies_in_the_looser_one_at_every_step(loss, momentum, inner_bounds) -> None:
    problem = case(loss, momentum=momentum, count=3, epochs=2)
    runs = [
        problem.certify(relaxation=level, window=1, inner_bounds=inner_bounds)[1]
        for level in ("interval", "linear", "lp", "milp")
    ]
    for looser, tighter in itertools.pairwise(runs):
        for outer, inner in zip(looser, tighter, strict=True):
            assert_within(inner, outer)


@pytest.mark.parametrize(
    "loss", ["mse", *[pytest.param(k, marks=pytest.mark.slow) for k in ("hinge", "bce")]]
)
@pytest.mark.usefixtures("linear_alone")
def test_bilinear_levels_lie_in_both_looser_ones_at_every_step(loss) -> None:
    hidden = () if loss == "mse" else (2,)
    seed = 2 if loss == "hinge" else 0  # at 0 linear bounds are exact already
    problem = case(loss, count=2, hidden=hidden, epochs=2, seed=seed)
    runs = {
        level: problem.certify(relaxation=level, window=1)[1]
        for level in ("lp", "milp", "qcqp", "miqp")
    }
    for looser, tighter in (("lp", "milp"), ("lp", "qcqp"), ("milp", "miqp"), ("qcqp", "miqp")):
        for outer, inner in zip(runs[looser], runs[tighter], strict=True):
            assert_within(inner, outer)
    assert runs["miqp"][-1].mean_width < runs["lp"][-1].mean_width


def test_the_order_of_the_levels_is_partial() -> None:
    chains = [[level.value for level in top.chain()] for top in (Relaxation.MIQP, Relaxation.QCQP)]
    assert chains[0] == ["interval", "zonotope", "linear", "lp", "milp", "qcqp", "miqp"]
    assert chains[1] == ["interval", "zonotope", "linear", "lp", "qcqp"]
    assert Relaxation.MILP not in Relaxation.QCQP.chain()
    for level in Relaxation:
        for looser in level.looser:
            assert set(looser.chain()) < set(level.chain())


def one_step(
    problem: Problem, width: float
) -> tuple[Replay, linearized_step.LinearizedStep, State, State]:
    """One step from a box, with its relaxation, the interval box and the bare linear box after it."""
    replay = Replay(problem)
    start = {
        name: Interval((value - width).unsqueeze(0), (value + width).unsqueeze(0))
        for name, value in replay.step_graph.initial.items()
    }
    state = initial_state(replay.step_graph, start, problem.training.momentum > 0)
    batch = replay.batches[0]
    has_velocity = problem.training.momentum > 0
    step = Step(0, batch, replay.poison.take(batch), replay.updates[0], has_velocity)
    joint = Joint(replay.poison)
    ranges = bound_propagation.propagate(
        replay.schedule, state, step, joint, keep=replay.schedule.batched
    )
    boxed = bound_propagation.update(replay.step_graph, state, ranges, step)
    kept = linearized_step.linearize_step(replay.schedule, state, step, ranges, joint)
    walked = window_bounds.bound_state(replay.schedule, [kept], joint, 64)
    return replay, kept, boxed, walked


THREATS = {
    "features": lambda loss: agt.FeaturePoisoning(1, 0.05),
    "labels": lambda loss: agt.LabelPoisoning(2, 0.1 if loss == "mse" else None),
    "both": lambda loss: agt.FeatureLabelPoisoning(
        1, 0.05, label_radius=0.1 if loss == "mse" else None
    ),
}


STEPS = [
    pytest.param(
        loss,
        kind,
        width,
        # A point is the smaller program; one loss has every threat from a box, each has one.
        marks=[] if width == 0.0 or loss == "bce" or kind == "both" else [pytest.mark.slow],
    )
    for loss in ("mse", "bce", "cross_entropy", "hinge")
    for kind in THREATS
    for width in (0.0, 0.02)
]


@pytest.mark.parametrize(("loss", "kind", "width"), STEPS)
def test_programs_dominate_the_linear_engine_at_one_step(loss, kind, width) -> None:
    problem = case(loss, THREATS[kind](loss), count=3, momentum=0.5)
    replay, kept, boxed, walked = one_step(problem, width)
    solver = choose(None)
    bounds = []
    for exact in (False, True) if kind == "both" and loss == "bce" else (False,):
        encoded = program.Window(
            replay.step_graph, replay.schedule, [kept], replay.poison, exact
        ).program()
        bounds.append(program.bound_state(encoded, boxed, program.SolveOptions(solver))[0])
    assert_state_within(bounds[0], walked, SOLVER)
    if len(bounds) == 2:
        assert_state_within(bounds[1], bounds[0], SOLVER)


def recorded(problem: Problem, **options: Any) -> tuple[MemoryRecorder, Replay, int, Any]:
    recorder = MemoryRecorder()
    chunks: list[int] = []
    honest = window_bounds.bound_state

    def spy(*arguments: Any, **named: Any) -> State:
        chunks.append(arguments[3])
        return honest(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window_bounds, "bound_state", spy)
        patch.setattr(loop, "IDLE_STEPS", 99)
        result = agt.certify(
            problem.model,
            problem.data,
            problem.training,
            problem.threat,
            recorder=recorder,
            selections="joint",
            **options,
        )
    return recorder, Replay(problem), chunks[0], result


@pytest.mark.parametrize("window", [1, 2, None])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
def test_recorded_planes_replay_the_very_same_bounds(window, static) -> None:
    threat = agt.FeatureLabelPoisoning(1, 0.05, static=static)
    problem = case(threat=threat, batch_size=3, epochs=2, momentum=0.5)
    recorder, replay, chunk, result = recorded(problem, relaxation="linear", window=window)
    steps = recorder.steps["linear"]
    states = recorder.states["linear"]
    looser = recorder.states["zonotope"]
    past: list[PastStep] = []
    for t, kept in enumerate(steps):
        part = steps[max(0, t + 1 - (window or len(steps))) : t + 1]
        before = [own for own in past if own.index < part[0].step.index]
        ends = Collected()
        again = window_bounds.bound_state(
            replay.schedule, part, Joint(replay.poison), chunk, past=before, collected=ends
        )
        past.append(ends.past(t, kept.state))
        boxed = bound_propagation.update(replay.step_graph, kept.state, kept.ranges, kept.step)
        for name, box in again.items():
            met = boxed[name].meet(box).meet(looser[t][name])
            assert torch.equal(met.lower, states[t][name].lower)
            assert torch.equal(met.upper, states[t][name].upper)
    for name in replay.step_graph.parameters:
        assert (states[-1][name].lower[0].numpy() == result.reachable.lower[name]).all()


ADVERSARIES = [
    ((True, "dataset"), (False, "dataset")),
    ((True, "dataset"), (True, "batch")),
    ((True, "batch"), (False, "batch")),
    ((False, "dataset"), (False, "batch")),
]


@pytest.mark.parametrize(("weaker", "stronger"), ADVERSARIES, ids=str)
@pytest.mark.parametrize("kind", ["features", "both"])
def test_a_stronger_adversary_over_the_same_planes(weaker, stronger, kind) -> None:
    problem = case(threat=THREATS[kind]("bce"), batch_size=2, epochs=2, momentum=0.5)
    recorder, replay, chunk, _ = recorded(problem, relaxation="linear")
    steps = recorder.steps["linear"]
    inner, outer = (
        window_bounds.bound_state(
            replay.schedule,
            steps,
            Joint(replace(replay.poison, static=static, per_batch=scope == "batch")),
            chunk,
        )
        for static, scope in (weaker, stronger)
    )
    assert_state_within(inner, outer, ROUNDING)


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_budget_per_batch_is_budget_per_data_set_for_one_batch(relaxation) -> None:
    base = case(threat=agt.FeaturePoisoning(2, 0.05))
    other = replace(base, threat=agt.FeaturePoisoning(2, 0.05, scope="batch"))
    _, inner = base.certify(relaxation=relaxation)
    _, outer = other.certify(relaxation=relaxation)
    for a, b in zip(inner, outer, strict=True):
        assert_within(a, b, ROUNDING)


@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy", "hinge"])
def test_intervals_grow_with_budget_and_radius(loss) -> None:
    moved = 0.1 if loss == "mse" else None

    def boxes(budget: int, radius: float) -> Any:
        threat = agt.FeatureLabelPoisoning(budget, radius, label_radius=moved)
        return case(loss, threat, batch_size=3).certify(relaxation="interval")[1]

    sweeps = [
        [boxes(k, 0.05) for k in range(5)],
        [boxes(2, r) for r in (0.0, 1e-6, 0.01, 0.05, 0.3)],
    ]
    for sweep in sweeps:
        for smaller, larger in itertools.pairwise(sweep):
            for a, b in zip(smaller, larger, strict=True):
                assert_within(a, b, ROUNDING)


def test_linear_grows_with_the_budget_over_the_same_planes() -> None:
    problem = case(threat=agt.FeatureLabelPoisoning(4, 0.05))
    recorder, replay, chunk, _ = recorded(problem, relaxation="linear")
    steps = recorder.steps["linear"]
    boxes = [
        window_bounds.bound_state(
            replay.schedule, steps, Joint(replace(replay.poison, budget=k)), chunk
        )
        for k in range(5)
    ]
    for smaller, larger in itertools.pairwise(boxes):
        assert_state_within(smaller, larger, ROUNDING)
