"""The time of a run: what is measured decides which levels go on, and cheap ones are never starved."""

from __future__ import annotations

import math
from time import monotonic
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from boxes import assert_within

import milp_agt as agt
from milp_agt.bounds.interval import bound_propagation
from milp_agt.certification import machine, planning, time_limit
from milp_agt.certification.options import CertifyOptions
from milp_agt.certification.time_limit import TimeLimit
from milp_agt.core.restriction import UNRESTRICTED
from milp_agt.training.inputs import labels_of
from milp_agt.training.tracing import trace

STEPS = 4


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that stands still; tests move it."""
    now = [monotonic()]
    monkeypatch.setattr(time_limit, "monotonic", lambda: now[0])
    return now


def test_predictions_grow_with_the_walk_until_the_window_is_full() -> None:
    spent = TimeLimit(None, steps=10, window=4)
    assert spent.predicted("linear", 0) == 0.0
    spent.note("linear", 1, 3.0)
    assert [spent.predicted("linear", t) for t in (0, 1, 2, 3, 9)] == [1.5, 3.0, 4.5, 6.0, 6.0]
    assert spent.refusal("linear", [], 9) is None
    assert spent.spend_until(["interval"], 2) is None


def test_levels_without_backward_passes_cost_the_same_at_every_step(clock: list[float]) -> None:
    spent = TimeLimit(clock[0] + 90.0, steps=100, window=100, flat=["interval"])
    spent.note("interval", 0, 0.02)
    assert [spent.predicted("interval", t) for t in (0, 50, 99)] == [0.02, 0.02, 0.02]
    spent.note("linear", 0, 0.05)
    # 99 steps of intervals take 2 s, not the 101 s of passes that grow: linear bounds go on.
    assert spent.left(["interval"], 0) == pytest.approx(90.0 - 99 * 0.02)
    assert spent.refusal("linear", ["interval"], 1) is None


def test_a_level_that_was_never_measured_is_not_free(clock: list[float]) -> None:
    """One step of a wide model may outlast the whole limit: it is not begun."""
    spent = TimeLimit(clock[0] + 60.0, steps=160, window=160, forecast={"linear": 600.0})
    why = spent.refusal("linear", [], 0)
    assert why is not None
    assert "about 150 s for the step" in why
    spent.note("linear", 0, 0.5)  # what is measured counts
    assert spent.refusal("linear", [], 0) is None


def test_a_run_says_which_of_its_levels_have_no_backward_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[TimeLimit] = []
    honest = TimeLimit.note

    def note(self: TimeLimit, chain: str, step: int, measured: float) -> None:
        made.append(self)
        honest(self, chain, step, measured)

    monkeypatch.setattr(TimeLimit, "note", note)
    run(relaxation="linear", time_limit=60.0)
    assert list(made[0].flat) == ["interval", "zonotope"]


def test_dear_levels_end_when_what_is_left_belongs_to_cheaper_ones(clock: list[float]) -> None:
    start = clock[0]
    spent = TimeLimit(start + 30.0, steps=10, window=1)
    for chain, seconds in (("interval", 0.5), ("linear", 2.0), ("lp", 6.0)):
        spent.note(chain, 0, seconds)
    cheaper = ["interval", "linear"]
    # 9 steps are left: 22.5 s for intervals and linear forms, of 30.
    assert spent.left(cheaper, 0) == pytest.approx(7.5)
    assert spent.spend_until(cheaper, 0) == pytest.approx(start + 7.5)
    assert spent.refusal("lp", cheaper, 0) is None
    clock[0] = (
        start + 8.5
    )  # 21.5 s are left, 20 of them set aside if what is measured once is right
    assert spent.refusal("lp", cheaper, 1) is None
    clock[0] = start + 11.0
    why = spent.refusal("lp", cheaper, 2)  # 19 s are left, 17.5 of them set aside
    assert why is not None
    for said in ("step 3", "'lp' left out", "about 6 s", "1.5 s left", "interval, linear"):
        assert said in why
    assert spent.refusal("linear", ["interval"], 2) is None
    clock[0] = start + 27.9
    assert spent.refusal("linear", ["interval"], 9) is None
    assert spent.refusal("linear", ["interval"], 8) is not None
    clock[0] = start + 28.1
    assert spent.refusal("linear", ["interval"], 9) is not None
    clock[0] = start + 31.0
    assert spent.refusal("linear", [], 9) is not None


def run(**options: object) -> agt.Result:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(5, 2)), np.arange(5) % 2
    training = agt.Training(loss="bce", learning_rate=0.3, epochs=STEPS)
    threat = agt.FeaturePoisoning(budget=1, radius=0.01)
    return agt.certify(network((2, 2, 1), seed=1), (x, y), training, threat, window=2, **options)


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
def test_programs_end_first_and_linear_forms_go_on(
    selections: str, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the clock a step of programs takes 5 s and one of linear forms 1 s; there are 17 s."""
    seconds = {"linear": 1.0, "lp": 5.0}

    def note(self: TimeLimit, chain: str, step: int, measured: float) -> None:
        clock[0] += seconds.get(chain, 0.0)
        self.measured[chain] = (max(step, 1), seconds.get(chain, 0.0))

    monkeypatch.setattr(TimeLimit, "note", note)
    limited = run(relaxation="lp", selections=selections, inner_bounds="interval", time_limit=17.0)
    used = [record.relaxation for record in limited.steps]
    assert limited.limit_reached
    assert used == ["lp", "lp", "linear", "linear"]
    assert any("step 3: time limit, 'lp' left out" in text for text in limited.fallbacks)
    linear = run(relaxation="linear", selections=selections, inner_bounds="interval")
    for t in range(STEPS):
        own, alone = (run.steps[t].chains["linear"] for run in (limited, linear))
        # Where programs end, linear forms go on from their boxes, which are never wider.
        assert own == alone if t < 2 else own <= alone, (t, own, alone)
        assert limited.steps[t].mean_width <= linear.steps[t].mean_width * (1 + 1e-12)
    # Questions still stand on the forms through the window.
    x, y = np.array([[0.3, -0.2], [1.0, 0.5]]), np.array([0, 1])
    assert limited.loss(x, y).upper <= linear.loss(x, y).upper + 1e-12


def test_what_is_inherited_holds_for_all_runs(
    clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Selections end after two steps; an attack outside what intervals make of their boxes would raise."""

    def note(self: TimeLimit, chain: str, step: int, measured: float) -> None:
        clock[0] += 1000.0 * (step == 1 and chain == "linear, each selection")
        self.measured[chain] = (step, 1.0 * (chain != "interval"))

    monkeypatch.setattr(TimeLimit, "note", note)
    options: dict[str, Any] = {"relaxation": "linear", "selections": "enumerated"}
    options["inner_bounds"] = "interval"
    limited = run(**options, time_limit=900.0, attack=True)
    assert list(limited.steps[1].chains)[-1] == "linear, each selection"
    assert list(limited.steps[-1].chains) == ["interval"]
    assert limited.sandwich is not None
    whole, alone = run(**options), run(relaxation="interval")
    assert_within(whole.reachable, limited.reachable)
    assert limited.reachable.mean_width < 0.95 * alone.reachable.mean_width


def test_steps_without_any_bound_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    honest = bound_propagation.propagate

    def propagate(schedule: Any, state: Any, step: Any, *given: Any) -> Any:
        calls.append(step.index)
        return honest(schedule, state, step, *given)

    monkeypatch.setattr(bound_propagation, "propagate", propagate)
    monkeypatch.setattr(time_limit.TimeLimit, "is_over", lambda self: len(calls) >= 30)
    x, y = np.random.default_rng(0).normal(size=(6, 2)), np.arange(6) % 2
    training = agt.Training(loss="cross_entropy", learning_rate=1.0, epochs=120)
    found = agt.certify(
        network((2, 4, 4, 2), seed=1),
        (x, y),
        training,
        agt.FeaturePoisoning(budget=6, radius=10.0),
        relaxation="interval",
        time_limit=1e6,
    )
    assert all((low == -math.inf).all() for low in found.reachable.lower.values())
    assert all((high == math.inf).all() for high in found.reachable.upper.values())
    assert 30 <= len(calls) < len(found.steps) == 120
    (line,) = found.fallbacks
    assert "no parameter has a bound from here on" in line
    accuracy, loss = found.accuracy(x, y), found.loss(x, y)
    assert (accuracy.lower, accuracy.upper, loss.upper) == (0.0, 1.0, math.inf)
    assert found.limit_reached


CANCER = (455, (30, 8, 2))  # samples and layers of a usual run


def planned(threat: agt.ThreatModel, **options: Any) -> planning.Plan:
    """The plan of 75 steps with momentum; nothing is bounded."""
    count, sizes = CANCER
    x, y = torch.zeros(count, sizes[0], dtype=torch.float64), torch.arange(count) % 2
    training = agt.Training(
        loss="cross_entropy", learning_rate=0.1, epochs=5, batch_size=32, momentum=0.9
    )
    graph = trace(network(sizes, seed=0), training.loss, (sizes[0],))
    labels = labels_of(y, count, graph.loss, graph.outputs)
    poison = threat.bind(x, labels, graph.loss)
    chosen = CertifyOptions(relaxation="linear").changed(options)
    return planning.make_plan(
        graph, training.batch_order(count), poison, training, chosen, UNRESTRICTED
    )


def test_windows_are_shortened_where_each_selection_can_be_bounded_by_itself_then() -> None:
    short = planned(agt.LabelPoisoning(1))
    assert (short.window, short.selections.groups > 0) == (2, True)
    assert any("window 2 in place of the whole run" in note for note in short.remarks.notes)
    for options in ({"window": "T"}, {"selections": "joint"}, {"time_limit": 5.0}):
        whole = planned(agt.LabelPoisoning(1), **options)
        assert (whole.window, whole.selections.groups) == (75, 0), options
    assert planned(agt.LabelPoisoning(3)).window == 75  # 15 million selections


def test_a_slow_machine_is_allowed_less_in_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "slowness", lambda: 1.0)
    usual = planned(agt.LabelPoisoning(1), time_limit=60.0)
    assert usual.window == 1
    monkeypatch.setattr(planning, "slowness", lambda: 4.0)
    slow = planned(agt.LabelPoisoning(1), time_limit=60.0)
    assert slow.window == 75
    assert slow.first_walk == 4 * usual.first_walk
    assert planned(agt.LabelPoisoning(1)).window == 2  # without a limit machines agree


def test_the_speed_of_this_machine_is_a_power_of_two_and_found_at_once() -> None:
    machine.slowness.cache_clear()
    begun = monotonic()
    found = machine.slowness()
    assert monotonic() - begun < 5.0
    assert found > 0
    assert math.log2(found) == round(math.log2(found))
    assert machine.slowness() == found


def test_a_long_run_is_predicted_before_its_first_step(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="milp_agt")
    run(relaxation="linear")
    assert not caplog.messages
    monkeypatch.setattr("milp_agt.certification.certify.TOLD_FROM", 0.0)
    for level in ("linear", "zonotope"):
        caplog.clear()
        run(relaxation=level)
        (line,) = caplog.messages
        for part in ("predicted: about", f"by '{level}' over a window of", "Less time: a shorter"):
            assert part in line


def test_intervals_that_do_not_end_in_time_end(clock: list[float]) -> None:
    """Of 100 steps at a second each, 60 are bounded; a rest within the grace is."""
    spent = TimeLimit(clock[0] + 60.0, steps=100, window=1, flat=["interval"], limit=60.0)
    ended = []
    for step in range(100):
        if spent.is_lost("interval", step):
            ended.append(step)
        clock[0] += 1.0
        spent.note("interval", step, 1.0)
    assert ended == list(range(60, 97))  # three steps are a twentieth of the limit


def test_auto_begins_what_it_cannot_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A level of which a tenth or a few steps fit is taken under a time limit, and none without."""
    monkeypatch.setattr(planning, "slowness", lambda: 1.0)
    threat = agt.LabelPoisoning(budget=3)
    options: dict[str, Any] = {"relaxation": "auto", "selections": "joint"}
    short, long = (planned(threat, time_limit=t, **options) for t in (0.3, 60.0))
    without = planned(threat, **options)
    assert short.relaxation.value == "interval"
    few = planned(threat, time_limit=4.0, **options)  # less than a tenth of any level
    assert (few.relaxation.value, few.whole > 40.0) == ("zonotope", True)
    few = planned(agt.FeaturePoisoning(3, 0.01), time_limit=2.0, **options)
    assert few.relaxation.value == "linear"  # gets more than twice as far
    assert "as far as it gets" in long.remarks.notes[0]
    assert long.relaxation.value in ("zonotope", "linear")
    assert long.whole > 60.0
    assert long.helps(60.0)[-1].startswith("time_limit = ")
    (first, *_) = planned(threat, time_limit=20.0, relaxation="linear").helps(20.0)
    assert first.startswith("relaxation = 'zonotope' with time_limit = ")
    assert "as far as it gets" not in without.remarks.notes[0]
