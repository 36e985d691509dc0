"""The mean loss as one quantity of the model: planes of losses, sums over points, attacks, mutants."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from hypothesis import given
from hypothesis import strategies as st
from test_cases import problem
from test_questions import OUTPUTS, certified, one_hot, outputs
from test_questions_brute import LABELS, TEST, TRAINING, X, Y, trained
from test_questions_brute import THREATS as TINY_THREATS
from torch import Tensor

import milp_agt as agt
from milp_agt.bounds.program import final_window
from milp_agt.bounds.program.output_objectives import sums_of_box
from milp_agt.core.interval import Interval
from milp_agt.errors import SoundnessError
from milp_agt.formulations.loss import LossPlanes, get_loss
from milp_agt.properties import models as room
from milp_agt.properties.mean_loss import MeanLoss

FORMS = {"mse": 2, "hinge": 1, "bce": 1, "cross_entropy": 3}
Exact = np.longdouble


def exact_loss(name: str, m: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The loss of forms (..., forms) with 64 bits of mantissa."""
    if name == "mse":
        return np.asarray((m * m).mean(-1))
    if name == "hinge":
        return np.asarray(np.maximum(Exact(1) - m, Exact(0)).sum(-1))
    shift = np.maximum((-m).max(-1), Exact(0))
    total = np.exp(-shift) + np.exp(-m - shift[..., None]).sum(-1)
    small = np.exp(-m).sum(-1)
    return np.asarray(np.where(shift > 0, shift + np.log(total), np.log1p(small)))


def box_of_forms(name: str, seed: int, size: float, width: float, points: int = 40) -> Interval:
    rng = np.random.default_rng(seed)
    low = torch.from_numpy(size * rng.normal(size=(1, points, FORMS[name])))
    return Interval(low, low + width * torch.from_numpy(rng.random(low.shape)))


def check_planes(name: str, planes: LossPlanes, box: Interval, seed: int) -> None:
    """At corners, centres and random points of the box, in extended precision and without tolerance."""
    rng = np.random.default_rng(seed)
    low, high = box.lower.numpy(), box.upper.numpy()
    shares = [rng.random(low.shape) for _ in range(20)]
    shares += [rng.random(low.shape).round() for _ in range(20)]
    shares += [np.zeros(low.shape), np.ones(low.shape), np.full(low.shape, 0.5)]
    slopes = [s.numpy().astype(Exact) for s in (planes.slope_lower, planes.slope_upper)]
    for share in shares:
        m = np.clip(low + share * (high - low), low, high).astype(Exact)
        value = exact_loss(name, m)
        assert (((slopes[0] * m).sum(-1) + planes.lower.numpy()) <= value).all()
        assert (value <= ((slopes[1] * m).sum(-1) + planes.upper.numpy())).all()


@given(
    seed=st.integers(0, 10**6),
    size=st.sampled_from([0.0, 1e-3, 1.0, 25.0, 900.0]),
    width=st.sampled_from([0.0, 1e-12, 1e-6, 0.1, 3.0, 60.0, 2000.0]),
)
@pytest.mark.parametrize("name", FORMS)
def test_planes_hold(name: str, seed: int, size: float, width: float) -> None:
    box = box_of_forms(name, seed, size, width)
    check_planes(name, get_loss(name).planes(box), box, seed)


@pytest.mark.parametrize("name", FORMS)
def test_planes_with_other_slopes_hold(name: str) -> None:
    box, other = (box_of_forms(name, seed, 1.0, 1.0) for seed in (0, 1))
    rule = get_loss(name)
    check_planes(name, rule.planes(box).turned(rule.planes(other), box), box, 2)
    own = rule.planes(box)
    same = own.turned(own, box)
    assert torch.allclose(same.lower, own.lower, atol=1e-12)
    assert torch.allclose(same.upper, own.upper, atol=1e-12)


@pytest.mark.parametrize("side", ["lower", "upper", "slope_lower", "slope_upper"])
@pytest.mark.parametrize("name", FORMS)
def test_planes_one_percent_too_tight_are_caught(name: str, side: str) -> None:
    """A hundredth of the gap over the box, or a slope that is off by as much without paying."""
    box = box_of_forms(name, 3, 1.0, 1.0)
    planes = get_loss(name).planes(box)
    centre = box.centre
    gap = (planes.slope_upper * centre).sum(-1) + planes.upper
    gap = gap - (planes.slope_lower * centre).sum(-1) - planes.lower
    known = getattr(planes, side)
    move = {"lower": gap, "upper": -gap, "slope_lower": 1.0, "slope_upper": -1.0}[side]
    mutant = replace(planes, **{side: known + 0.01 * move})
    check_planes(name, planes, box, 4)
    with pytest.raises(AssertionError):
        check_planes(name, mutant, box, 4)


@pytest.mark.parametrize("name", FORMS)
def test_planes_on_an_infinite_box_say_nothing(name: str) -> None:
    box = box_of_forms(name, 5, 1.0, 1.0)
    box.lower[0, 3], box.upper[0, 7, 0] = -torch.inf, torch.inf
    planes = get_loss(name).planes(box)
    assert torch.isfinite(planes.slope_lower).all()
    assert torch.isfinite(planes.slope_upper).all()
    assert planes.lower[0, 3] == -torch.inf
    assert planes.upper[0, 3] == torch.inf
    assert torch.isfinite(planes.upper[0, :3]).all()


@pytest.mark.parametrize("name", ["bce", "cross_entropy"])
def test_large_losses_are_bounded_to_the_last_digits(name: str) -> None:
    """Beyond 20 torch's softplus leaves out ``exp(-x)``: more than bounds grant to rounding."""
    forms = torch.linspace(-60.0, 60.0, 2000, dtype=torch.float64).reshape(1, -1, 1)
    forms = forms.expand(-1, -1, FORMS[name])
    found = get_loss(name).of_forms(Interval.point(forms)).lower[0].numpy()
    truth = exact_loss(name, forms[0].numpy().astype(Exact))
    size = truth + np.abs(forms[0, :, 0].numpy())  # what bounds grant their rounding to
    assert (np.abs(found - truth) <= 1e-14 * size).all()


def boxed(radius: float) -> tuple[room.ReachableModels, Tensor, Tensor]:
    """All linear models within a box around one, and its centre and radius, weights before bias."""
    model = network([2, 1], seed=2)
    known = agt.certify(
        model, (X, Y), TRAINING, agt.FeaturePoisoning(0, 0.0), relaxation="linear"
    ).models
    state = {
        n: Interval(v.unsqueeze(0) - radius, v.unsqueeze(0) + radius)
        for n, v in known.nominal.items()
    }
    reached = replace(known.reached[0], state=state, window=(), outer=None)
    centre = torch.cat([known.nominal["0.weight"][0], known.nominal["0.bias"]])
    return replace(known, reached=(reached,), beside=None), centre, torch.full_like(centre, radius)


def test_sums_over_points_are_exact_where_models_are_linear() -> None:
    known, centre, radius = boxed(0.3)
    one = torch.ones(len(TEST), 1, 1, dtype=torch.float64)
    forms = room.OutputForms(Interval.point(TEST.unsqueeze(0)), one, 0.5 * one[..., 0])
    weights = torch.tensor([[1.0, 1.0, 1.0, 1.0, 1.0], [2.0, -1.0, 0.0, 3.0, -0.5]])[..., None]
    weights = weights.to(torch.float64)
    found = known.bound_sums(forms, weights, known.bound(forms))[0]
    total = weights[..., 0] @ torch.cat([TEST, torch.ones(len(TEST), 1)], 1)
    truth = total @ centre - total.abs() @ radius + 0.5 * weights.sum((1, 2))
    assert (found <= truth).all()
    assert float((truth - found).max()) <= 1e-10
    # One percent less of the box, and the bound is above what a model of the box reaches.
    short = total @ centre - 0.99 * (total.abs() @ radius) + 0.5 * weights.sum((1, 2))
    assert (short > truth).all()
    each = known.bound(forms)
    own = weights[1]
    alone = (own * torch.where(own > 0, each.lower[0], each.upper[0])).sum()
    assert float(alone) < float(found[1]) - 0.1


def test_weights_that_cancel_on_an_output_are_charged_for_their_rounding() -> None:
    known, centre, _ = boxed(0.0)
    coefficients = torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64)
    point = Interval.point(torch.tensor([[[1e8, 1e8]]], dtype=torch.float64))
    forms = room.OutputForms(point, coefficients, torch.zeros(1, 2, dtype=torch.float64))
    weights = torch.tensor([[[1.0, 1.0 - 2.0**-52]]], dtype=torch.float64)
    truth = 2.0**-52 * (1e8 * float(centre[:2].sum()) + float(centre[2]))
    each = known.bound(forms)
    assert float(known.bound_sums(forms, weights, each)[0, 0]) <= truth - 1e-8
    exact = torch.ones(1, 1, 2, dtype=torch.float64)
    assert float(known.bound_sums(forms, exact, each)[0, 0]) <= 0.0


@pytest.mark.parametrize(
    ("loss", "window", "threat"),
    [
        ("cross_entropy", None, "features"),
        ("mse", None, "features"),
        ("mse", 1, "adaptive"),
        ("bce", 1, "adaptive"),
        ("hinge", 1, "features"),
    ],
)
def test_the_mean_holds_under_attack_and_beats_single_points(
    loss: str, window: int | None, threat: str
) -> None:
    result, replay, states, x, y = certified(loss, threat, window)
    f = outputs(replay, states, x)
    encoded = y if loss == "mse" else one_hot(y, 3).double()
    encoded = y[:, None].double() if OUTPUTS[loss] == 1 else encoded
    means = replay.loss.value(f, encoded).mean(-1)
    answer = result.loss(x, y)
    assert answer.lower <= float(means.min())
    assert float(means.max()) <= answer.upper
    alone = answer.points.lower.mean(), answer.points.upper.mean()
    assert alone[0] < answer.lower
    assert answer.upper < alone[1]
    # Subgroups have sums of their own.
    names = np.array(["a", "b", "b"] * (len(x) // 3))
    both = result.loss(x, y, groups=names)
    # The ascents stop together, so the last digits hang on what else is asked.
    assert both.upper == pytest.approx(answer.upper, rel=1e-4)
    for name in ("a", "b"):
        own = torch.from_numpy(names == name)
        assert both.groups[name].upper == pytest.approx(result.loss(x[own], y[own]).upper)


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
@pytest.mark.parametrize("threat", ["features", "one flip"])
def test_the_mean_of_every_reached_model_is_inside(threat: str, selections: str) -> None:
    """All poisons of a tiny run, one by one; cases share slopes and have offsets of their own."""
    result = agt.certify(
        network([2, 2, 1], seed=5),
        (X, Y),
        TRAINING,
        TINY_THREATS[threat],
        relaxation="linear",
        selections=selections,
    )
    answer = result.loss(TEST, LABELS)
    rule, y = get_loss("bce"), LABELS[:, None].double()
    means = [float(rule.value(m(TEST).detach(), y).mean()) for m in trained(threat)]
    assert answer.lower <= min(means)
    assert max(means) <= answer.upper
    assert answer.upper <= answer.points.upper.mean() + 1e-12
    if selections == "enumerated":
        assert max(means) - min(means) >= 0.5 * (answer.upper - answer.lower)


@pytest.mark.usefixtures("unlisted")
def test_a_sum_one_percent_too_tight_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Enumerated flips end in points: hardly any room is left between the bound and the worst of them."""
    real = room.ReachableModels.bound_sums

    def mutant(
        self: room.ReachableModels, forms: room.OutputForms, weights: Tensor, known: Interval
    ) -> Tensor:
        found = real(self, forms, weights, known)
        return found + 0.01 * (self.at_nominal(forms) * weights).sum((1, 2)).abs()

    monkeypatch.setattr(room.ReachableModels, "bound_sums", mutant)
    with pytest.raises((AssertionError, agt.MilpAgtError)):
        test_the_mean_of_every_reached_model_is_inside("one flip", "enumerated")


@pytest.mark.parametrize(
    ("selections", "at_once"),
    [("joint", 2), pytest.param("enumerated", 128, marks=pytest.mark.slow)],
)
def test_the_mean_is_an_objective_of_programs(
    selections: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All poisons of a tiny run lie inside, and nothing is looser than without the programs of the sum."""
    monkeypatch.setattr(final_window, "COUNTED_AT_ONCE", at_once)
    result = agt.certify(
        network([2, 2, 1], seed=5),
        (X, Y),
        TRAINING,
        TINY_THREATS["features"],
        relaxation="lp",
        program_window=2,
        carried="none",
        selections=selections,
    )
    rule, y = get_loss("bce"), LABELS[:, None].double()
    means = [float(rule.value(m(TEST).detach(), y).mean()) for m in trained("features")]
    answer = result.loss(TEST, LABELS)
    assert answer.lower <= min(means)
    assert max(means) <= answer.upper
    program = result.models.program
    count = len(program.reports)
    monkeypatch.setattr(
        final_window.FinalWindow, "bound_sums", lambda *_: torch.tensor([[-torch.inf]]).double()
    )
    without = result.loss(TEST, LABELS)
    assert len(program.reports) < 2 * count
    assert without.lower <= answer.lower
    assert answer.upper <= without.upper
    if selections == "joint":
        assert answer.upper - answer.lower < 0.999 * (without.upper - without.lower)


def test_a_sum_of_programs_that_excludes_a_run_is_found_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A bound above the sum of the nominal model, by one percent of the way from what is proved."""
    case = problem(agt.LabelPoisoning(2, 0.1), "mse", (), samples=5, epochs=1)
    result, _ = case.certify(relaxation="lp", selections="joint")
    result.loss(*case.data)
    real = final_window.improved

    def lying(known: Any, gain: Any, build: Any, options: Any) -> Any:
        return known + 1.01 * gain, real(known, gain, build, options)[1]

    question = MeanLoss.of(result.models, *map(torch.as_tensor, case.data))
    each = result.models.bound(question.on_outputs)
    monkeypatch.setattr(final_window, "improved", lying)
    weights = torch.ones(1, *question.on_outputs.constant.shape, dtype=torch.float64)
    with pytest.raises(SoundnessError, match="sum over test points"):
        result.models.bound_sums(question.on_outputs, weights, each)


@given(seed=st.integers(0, 10**6), size=st.sampled_from([1e-6, 1.0, 1e6]))
def test_sums_of_a_box_hold_and_are_met(seed: int, size: float) -> None:
    """In rational arithmetic, at the corner that the weights favour."""
    rng = np.random.default_rng(seed)
    low = torch.from_numpy(size * rng.normal(size=(2, 3, 2)))
    box = Interval(low, low + size * torch.from_numpy(rng.random(low.shape)))
    weights = torch.from_numpy(rng.normal(size=(4, 3, 2)))
    found = sums_of_box(weights, box)
    for case in range(2):
        for row in range(4):
            ends = torch.where(weights[row] > 0, box.lower[case], box.upper[case])
            pairs = zip(weights[row].flatten().tolist(), ends.flatten().tolist(), strict=True)
            truth = sum((Fraction(w) * Fraction(e) for w, e in pairs), Fraction(0))
            assert Fraction(float(found[case, row])) <= truth
            assert float(truth) - float(found[case, row]) <= 1e-12 * size * 100


def test_a_run_that_has_blown_up_is_unbounded_and_no_error() -> None:
    known, centre, _ = boxed(0.1)
    state = dict(known.reached[0].state)
    state["0.bias"] = Interval(centre[2:, None] - torch.inf, centre[2:, None] + torch.inf)
    wide = replace(known, reached=(replace(known.reached[0], state=state),))
    question = MeanLoss.of(wide, TEST, LABELS[:, None].double())
    answer = question.answer(wide)
    assert answer.lower == 0.0
    assert answer.upper == np.inf
