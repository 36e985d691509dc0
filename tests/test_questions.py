"""Questions asked of a result: real poisoned models, with triggers, never leave the answers."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, State, network
from torch import Tensor

import milp_agt as agt
from milp_agt.core.interval import Interval
from milp_agt.properties import decision
from milp_agt.properties.decision import Decision, class_scores

N, TEST, D = 14, 9, 3

THREATS: dict[str, Any] = {
    "features": agt.FeaturePoisoning(budget=2, radius=0.05),
    "labels": agt.LabelPoisoning(budget=1),
    "both": agt.FeatureLabelPoisoning(budget=1, radius=0.05),
    "adaptive": agt.FeaturePoisoning(budget=1, radius=0.05, static=False, scope="batch"),
}
OUTPUTS = {"cross_entropy": 3, "bce": 1, "hinge": 1, "mse": 2}


def problem(loss: str, threat: Any, seed: int = 0) -> tuple[Problem, Tensor, Tensor]:
    """A small run with its test points and labels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(N + TEST, D, generator=generator, dtype=torch.float64)
    if loss == "mse":
        y = torch.stack([x[:, 0], 0.5 * x[:, 1]], 1)
    else:
        classes = max(2, OUTPUTS[loss])
        y = torch.randint(classes, (N + TEST,), generator=generator)
        y[:classes], y[N : N + classes] = torch.arange(classes), torch.arange(classes)
        x[torch.arange(len(y)), y % D] += 1.5
    if loss == "mse" and isinstance(threat, agt.LabelPoisoning):
        threat = agt.LabelPoisoning(budget=1, radius=0.1)
    model = network([D, 4, OUTPUTS[loss]], seed=seed)
    training = agt.Training(loss=loss, learning_rate=0.3, epochs=4)
    return Problem(model, x[:N], y[:N], training, threat), x[N:], y[N:]


@functools.cache
def certified(loss: str, threat: str, window: int | None = None) -> tuple[Any, ...]:
    """Result, replay, final states of many attacks, test points."""
    run, x, y = problem(loss, THREATS[threat])
    result, _ = run.certify(relaxation="linear", window=window)
    replay = Replay(run)
    generator = torch.Generator().manual_seed(1)
    states = [
        replay.run(attack)[-1]
        for attack in replay.all(generator, x, y, attacks=32, iterations=3, largest=8)
    ]
    merged = {name: torch.cat([s[name].detach() for s in states]) for name in states[0]}
    return result, replay, merged, x, y


def outputs(replay: Replay, states: State, x: Tensor) -> Tensor:
    return replay.outputs_at(states, x).detach()


def margins(result: Any, f: Tensor, unsafe: Tensor) -> Tensor:
    """Best safe score less best unsafe score of outputs (..., n, outputs), as one would write it."""
    scores = f @ class_scores(result.models).T
    best_safe = scores.masked_fill(unsafe, -torch.inf).amax(-1)
    best_unsafe = scores.masked_fill(~unsafe, -torch.inf).amax(-1)
    return best_safe - best_unsafe


def assert_holds(answer: agt.Answer, values: Tensor, scores: Tensor) -> None:
    """Values and scores of many models, (attacks, points), lie in the answer; no tolerance."""
    points = answer.points
    assert (torch.from_numpy(points.lower) <= values).all()
    assert (values <= torch.from_numpy(points.upper)).all()
    assert (torch.from_numpy(points.score_lower) <= scores).all()
    assert (scores <= torch.from_numpy(points.score_upper)).all()
    assert answer.lower <= float(values.mean(-1).min())
    assert float(values.mean(-1).max()) <= answer.upper
    assert (points.lower <= points.nominal).all()
    assert (points.nominal <= points.upper).all()


def one_hot(classes: Tensor, count: int) -> Tensor:
    return torch.nn.functional.one_hot(classes.long(), count).bool()


FAST = {
    ("cross_entropy", "features"),
    ("cross_entropy", "both"),
    ("bce", "labels"),
    ("hinge", "adaptive"),
}
CLASSIFIERS = [
    pytest.param(loss, threat, marks=[] if (loss, threat) in FAST else [pytest.mark.slow])
    for loss in ("cross_entropy", "bce", "hinge")
    for threat in THREATS
]


@pytest.mark.parametrize(("loss", "threat"), CLASSIFIERS)
def test_targets_hold_under_attack(loss: str, threat: str) -> None:
    result, replay, states, x, y = certified(loss, threat)
    classes = max(2, OUTPUTS[loss])
    f = outputs(replay, states, x)
    generator = torch.Generator().manual_seed(3)
    masks = torch.rand(len(x), classes, generator=generator) < 0.5
    cases = [
        (int(classes - 1), one_hot(torch.full((len(x),), classes - 1), classes)),
        (y, one_hot(y, classes)),
        ([{int(c)} for c in y], one_hot(y, classes)),
        (masks, masks),
        ([torch.arange(classes)[m].tolist() for m in masks], masks),
    ]
    for targets, unsafe in cases:
        answer = result.targeted(x, targets)
        margin = margins(result, f, unsafe)
        assert_holds(answer, (margin <= 0).double(), margin)


def test_no_unsafe_class_is_never_reached_and_all_of_them_always() -> None:
    result, _, _, x, _ = certified("cross_entropy", "features")
    none = result.targeted(x, np.zeros((len(x), 3), dtype=bool))
    every = result.targeted(x, np.ones((len(x), 3), dtype=bool))
    assert (none.lower, none.nominal, none.upper) == (0.0, 0.0, 0.0)
    assert (every.lower, every.nominal, every.upper) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("threat", ["features", "labels"])
@pytest.mark.parametrize("ends", [(-0.5, 0.5), (-0.2, np.inf), (-np.inf, 0.0), (-np.inf, np.inf)])
def test_unsafe_intervals_hold_under_attack(threat: str, ends: tuple[float, float]) -> None:
    result, replay, states, x, _ = certified("mse", threat)
    box = np.broadcast_to(np.array([ends, (-5.0, 5.0)]), (len(x), 2, 2))
    answer = result.targeted(x, box)
    f = outputs(replay, states, x)
    low, high = torch.from_numpy(box[..., 0].copy()), torch.from_numpy(box[..., 1].copy())
    inside = ((low <= f) & (f <= high)).all(-1)
    margin = torch.maximum(low - f, f - high).amax(-1)
    assert_holds(answer, inside.double(), margin)
    assert answer.lower == 1.0 or ends != (-np.inf, np.inf)


def triggered(
    trigger: Any, x: Tensor, count: int, generator: torch.Generator, corners: bool
) -> Tensor:
    """Inputs of the trigger's set, (count, n, *shape): corners of the box, or uniform."""
    box = trigger.inputs(x)
    share = torch.rand((count, *x.shape), generator=generator, dtype=torch.float64)
    if corners:
        share = share.round()
    inside = box.lower + share * (box.upper - box.lower)
    return torch.minimum(torch.maximum(inside, box.lower), box.upper)


def every_corner(trigger: Any, x: Tensor) -> Tensor:
    box = trigger.inputs(x)
    picks = torch.tensor(list(itertools.product((0.0, 1.0), repeat=x.shape[1])))[:, None]
    return torch.where(picks.bool(), box.upper, box.lower)


TRIGGERS: dict[str, Any] = {
    "ball": agt.BallTrigger(0.15),
    "ball per coordinate": agt.BallTrigger([0.3, 0.0, 0.05]),
    "domain": agt.BallTrigger(0.3, low=-4.0, high=4.0),
    "free": agt.FreeTrigger([1], low=-0.5, high=0.5),
    "patch": agt.PatchTrigger([0, 2], values=[0.5, 9.0, -0.5]),
}


@pytest.mark.parametrize("name", TRIGGERS)
@pytest.mark.parametrize(("loss", "threat"), CLASSIFIERS)
def test_triggers_hold_under_attack(loss: str, threat: str, name: str) -> None:
    """Poisoned models with every corner of the trigger's box and random inputs in it."""
    result, replay, states, x, y = certified(loss, threat)
    trigger, classes = TRIGGERS[name], max(2, OUTPUTS[loss])
    generator = torch.Generator().manual_seed(2)
    inputs = torch.cat(
        [every_corner(trigger, x), triggered(trigger, x, 6, generator, corners=False)]
    )
    for target in (None, classes - 1):
        answer = result.backdoor(x, y, trigger=trigger, target=target)
        counted = torch.arange(len(x)) if target is None else (y != target).nonzero()[:, 0]
        assert answer.points.index.tolist() == counted.tolist()
        own = torch.full_like(counted, classes - 1)
        unsafe = one_hot(own, classes) if target is not None else ~one_hot(y, classes)
        smallest = torch.stack(
            [margins(result, outputs(replay, states, at[counted]), unsafe) for at in inputs]
        ).amin(0)
        success = (smallest <= 0).double()
        assert (success.mean(-1) <= answer.upper).all()
        assert (success <= torch.from_numpy(answer.points.upper)).all()
        assert (torch.from_numpy(answer.points.score_lower) <= smallest).all()


@pytest.mark.parametrize(("loss", "threat"), CLASSIFIERS)
def test_what_is_surely_reached_is_reached(loss: str, threat: str) -> None:
    """The trigger found on the nominal model succeeds on every poisoned model where it must."""
    result, replay, states, x, y = certified(loss, threat)
    answer = result.backdoor(x, y, 0.2)
    classes = max(2, OUTPUTS[loss])
    from milp_agt.properties.backdoor import BackdoorQuestion
    from milp_agt.training import inputs

    encoded = inputs.labels_of(y, len(y), result.models.step_graph.loss, OUTPUTS[loss])
    question = BackdoorQuestion.of(result.models, x, encoded, agt.BallTrigger(0.2), None)
    found = question.tried.forms.inputs.lower[0]
    assert ((found - x).abs() <= 0.2 + 1e-12).all()
    margin = margins(result, outputs(replay, states, found), ~one_hot(y, classes))
    assert (torch.from_numpy(answer.points.lower) <= (margin <= 0).double()).all()
    assert (margin <= torch.from_numpy(answer.points.score_upper)).all()


@pytest.mark.parametrize(("loss", "threat"), CLASSIFIERS)
def test_trigger_of_radius_zero_is_the_error(loss: str, threat: str) -> None:
    result, _, _, x, y = certified(loss, threat)
    right, wrong = result.accuracy(x, y), result.backdoor(x, y, 0.0)
    assert (wrong.points.upper == 1.0 - right.points.lower).all()
    assert (wrong.points.nominal == 1.0 - right.points.nominal).all()
    assert (wrong.points.lower == 1.0 - right.points.upper).all()
    assert (wrong.points.score_lower == right.points.score_lower).all()
    assert (wrong.points.score_upper == right.points.score_upper).all()
    assert wrong.upper == pytest.approx(1.0 - right.lower, abs=1e-15)
    assert wrong.lower == pytest.approx(1.0 - right.upper, abs=1e-15)


def test_support_of_the_trigger_is_exact_for_a_linear_model() -> None:
    """One layer, no poison: the margin over the ball is x's margin less the dual norm times radius."""
    run, x, y = problem("cross_entropy", agt.FeaturePoisoning(budget=0, radius=0.0))
    model = network([D, 3], seed=4)
    result, _ = Problem(model, *run.data, run.training, run.threat).certify(relaxation="linear")
    w = torch.from_numpy(result.reachable.nominal["0.weight"])
    answer = result.backdoor(x, y, 0.25)
    f = result.models.outputs(x)
    gaps = w[y][:, None] - w[None]
    each = f[torch.arange(len(y)), y][:, None] - f - 0.25 * gaps.abs().sum(-1)
    smallest = each.masked_fill(one_hot(y, 3), torch.inf).amin(-1)
    found = torch.from_numpy(answer.points.score_lower)
    assert (found <= smallest + 1e-13).all()
    assert float((smallest - found).max()) <= 1e-10  # rounding of the training run


@pytest.mark.parametrize(("loss", "threat"), [("cross_entropy", "features"), ("mse", "labels")])
def test_functionals_hold_under_attack_and_beat_the_box(loss: str, threat: str) -> None:
    result, _, states, _, _ = certified(loss, threat)
    generator = torch.Generator().manual_seed(0)
    rows = {
        n: torch.randn(6, *v.shape[1:], generator=generator, dtype=torch.float64)
        for n, v in states.items()
    }
    answers = result.functional(rows)
    values = sum(torch.einsum("a...,r...->ar", v, rows[n]) for n, v in states.items())
    assert len(answers) == 6
    for row, bounds in enumerate(answers):
        size = sum(float((states[n] * rows[n][row]).abs().flatten(1).sum(1).max()) for n in states)
        slack = 1e-14 * size  # of the sum here
        assert bounds.lower <= float(values[:, row].min()) + slack
        assert float(values[:, row].max()) - slack <= bounds.upper
        box = 0.0
        for n, c in ((n, c.numpy()) for n, c in rows.items()):
            box += float(
                (np.abs(c[row]) * (result.reachable.upper[n] - result.reachable.lower[n])).sum()
            )
        assert bounds.upper - bounds.lower < box
    name = next(iter(rows))
    (single,) = result.functional({name: rows[name][0]})
    assert single.lower <= single.nominal <= single.upper


def test_unit_functionals_are_no_wider_than_the_box() -> None:
    result, _, _, _, _ = certified("cross_entropy", "features")
    eye = np.eye(12).reshape(12, 4, 3)
    low = result.reachable.lower["0.weight"].reshape(-1)
    for entry, bounds in enumerate(result.functional({"0.weight": eye})):
        assert low[entry] - 1e-12 <= bounds.lower <= low[entry] + 1e-5


@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_subgroups_hold_under_attack(loss: str) -> None:
    result, replay, states, x, y = certified(loss, "features")
    names = np.array(["a", "b", "b"] * (len(x) // 3))
    f = outputs(replay, states, x)
    encoded = y if loss == "mse" else one_hot(y, 3).double()
    each = replay.loss.value(f, encoded)
    answer = result.loss(x, y, groups=names)
    assert set(answer.groups) == {"a", "b"}
    for name, bounds in answer.groups.items():
        own = torch.from_numpy(names == name)
        means = each[:, own].mean(-1)
        assert bounds.lower <= float(means.min())
        assert float(means.max()) <= bounds.upper
        alone = result.loss(x[own], y[own])
        assert bounds.upper == pytest.approx(alone.upper, rel=1e-9)
    if loss == "cross_entropy":
        by_class = result.accuracy(x, y, groups=y)
        assert list(by_class.groups) == [0, 1, 2]
        total = sum(
            by_class.groups[int(c)].lower * int((y == c).sum()) for c in torch.unique(y)
        ) / len(y)
        assert total <= by_class.lower + 1e-12
        assert by_class.points.columns()["group"] == y.tolist()
        hit = result.backdoor(x, y, 0.1, target=0, groups=y)
        assert list(hit.groups) == [1, 2]
        assert set(result.stable(x, groups=names).groups) == {"a", "b"}
        assert set(result.targeted(x, 0, groups=names).groups) == {"a", "b"}


@pytest.mark.parametrize("seed", range(20))
def test_margin_bounds_hold_for_all_outputs_in_the_box(seed: int) -> None:
    """The pure part: margins of sampled scores lie between the bounds made from their pairs."""
    generator = torch.Generator().manual_seed(seed)
    n, classes = 6, 4
    unsafe = torch.rand(n, classes, generator=generator) < 0.5
    result = certified("cross_entropy", "features")[0]
    safe_of, unsafe_of = decision._pairs(unsafe)
    centre = torch.randn(n, classes, generator=generator, dtype=torch.float64)
    scores = centre + 0.3 * torch.randn(200, n, classes, generator=generator, dtype=torch.float64)
    pairs = scores.gather(2, safe_of.expand(200, -1, -1)) - scores.gather(
        2, unsafe_of.expand(200, -1, -1)
    )
    own = Decision(unsafe, safe_of, unsafe_of, None)  # type: ignore[arg-type]
    box = own.margin(Interval(pairs.amin(0), pairs.amax(0)))
    truth = scores.masked_fill(unsafe, -torch.inf).amax(-1) - scores.masked_fill(
        ~unsafe, -torch.inf
    ).amax(-1)
    assert (box.lower <= truth).all()
    assert (truth <= box.upper).all()
    at_points = own.margin(Interval.point(pairs))
    real = torch.isfinite(truth)
    assert torch.allclose(at_points.lower[real], truth[real], atol=1e-15)
    assert (at_points.lower == at_points.upper).all()
    assert result.models is not None


def test_a_tie_helps_the_adversary() -> None:
    """Equal scores: not certified as right, possibly reached, and never surely reached."""
    zero = Interval.point(torch.zeros(1, 2, dtype=torch.float64))
    assert decision.safe(zero).lower.tolist() == [[0.0, 0.0]]
    assert decision.safe(zero).upper.tolist() == [[1.0, 1.0]]
    assert decision.reached(zero).lower.tolist() == [[0.0, 0.0]]
    assert decision.reached(zero).upper.tolist() == [[1.0, 1.0]]
    nothing = Interval.point(torch.full((1, 1), torch.nan, dtype=torch.float64))
    assert decision.safe(nothing).lower.item() == 0.0
    assert decision.reached(nothing).upper.item() == 1.0
    assert decision.reached(nothing).lower.item() == 0.0


def test_an_answer_of_a_saved_result_is_looser_but_holds(tmp_path: Any) -> None:
    result, _, _, x, y = certified("cross_entropy", "features")
    result.save(tmp_path / "r.npz")
    loaded = agt.load(tmp_path / "r.npz")
    full, kept = result.backdoor(x, y, 0.1), loaded.backdoor(x, y, 0.1)
    assert (kept.points.score_lower <= full.points.score_lower).all()
    assert kept.nominal == full.nominal
    rows = {"0.weight": np.ones((4, 3))}
    assert loaded.functional(rows)[0].lower <= result.functional(rows)[0].lower
