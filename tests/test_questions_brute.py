"""Tiny runs, every poison enumerated and every trigger on a grid: answers hold, and mutants are caught."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network, torch_loss
from test_questions import test_support_of_the_trigger_is_exact_for_a_linear_model as exact_support
from torch import Tensor

import milp_agt as agt
from milp_agt.bounds.linear import window_bounds
from milp_agt.core.interval import Interval
from milp_agt.properties import decision, models, triggers

X = torch.tensor([[0.9, 0.2], [-0.8, 0.5], [0.4, -1.0], [-0.5, -0.6]], dtype=torch.float64)
Y = torch.tensor([1, 0, 1, 0])
TEST = torch.tensor([[0.3, 0.1], [-0.3, 0.4], [0.05, -0.2], [-0.02, 0.1], [0.8, 0.8]])
TEST = TEST.to(torch.float64)
LABELS = torch.tensor([1, 0, 1, 0, 1])
TRAINING = agt.Training(loss="bce", learning_rate=0.6, epochs=3)
THREATS: dict[str, Any] = {
    "one flip": agt.LabelPoisoning(budget=1),
    "two flips": agt.LabelPoisoning(budget=2),
    "features": agt.FeaturePoisoning(budget=1, radius=0.2),
    "both": agt.FeatureLabelPoisoning(budget=1, radius=0.1),
}


def poisons(threat: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """All admissible label flips, with features on a 3 x 3 grid of the ball."""
    radius = getattr(threat, "radius", None)
    flips = not isinstance(threat, agt.FeaturePoisoning)
    grid = [-1.0, 0.0, 1.0] if radius is not None else [0.0]
    for chosen in itertools.combinations(range(len(X)), threat.budget):
        for flipped in itertools.product((False, True) if flips else (False,), repeat=len(chosen)):
            for shift in itertools.product(grid, repeat=2):
                x, y = X.clone(), Y.clone()
                for sample, flip in zip(chosen, flipped, strict=True):
                    y[sample] = 1 - y[sample] if flip else y[sample]
                    x[sample] += (radius or 0.0) * torch.tensor(shift, dtype=torch.float64)
                yield x, y


@functools.cache
def trained(threat: str) -> tuple[torch.nn.Module, ...]:
    """Every model that plain torch reaches."""
    found = []
    for x, y in poisons(THREATS[threat]):
        model = network([2, 2, 1], seed=5)
        optimiser = torch.optim.SGD(model.parameters(), lr=TRAINING.learning_rate)
        for _ in range(3):
            optimiser.zero_grad()
            torch_loss("bce", model(x), y[:, None].double()).backward()
            optimiser.step()
        found.append(model)
    return tuple(found)


@functools.cache
def certified(threat: str, relaxation: str) -> Any:
    return agt.certify(
        network([2, 2, 1], seed=5),
        (X, Y),
        TRAINING,
        THREATS[threat],
        relaxation=relaxation,
        refute="none",
    )


def logits(threat: str, inputs: Tensor) -> Tensor:
    reached = trained(threat)
    with torch.no_grad():
        return torch.stack([model(inputs)[..., 0] for model in reached])


CASES = [(threat, level) for threat in THREATS for level in ("interval", "linear", "lp")]


@pytest.mark.parametrize(("threat", "relaxation"), CASES)
def test_untargeted_and_targeted_hold(threat: str, relaxation: str) -> None:
    result = certified(threat, relaxation)
    f = logits(threat, TEST)
    right = ((f > 0) == (LABELS == 1)).double()
    accuracy = result.accuracy(TEST, LABELS)
    assert (torch.from_numpy(accuracy.points.lower) <= right).all()
    assert (right <= torch.from_numpy(accuracy.points.upper)).all()
    # How many are wrong at the same time is bounded as well.
    assert accuracy.lower <= float(right.mean(-1).min())
    hit = (f >= 0).double()
    targeted = result.targeted(TEST, 1)
    assert targeted.lower <= float(hit.mean(-1).min())
    assert float(hit.mean(-1).max()) <= targeted.upper
    margin = torch.where(LABELS == 1, f, -f)
    assert (torch.from_numpy(accuracy.points.score_lower) <= margin).all()
    assert (margin <= torch.from_numpy(accuracy.points.score_upper)).all()


@pytest.mark.parametrize(("threat", "relaxation"), CASES)
@pytest.mark.parametrize("target", [None, 0, 1])
def test_backdoors_hold(threat: str, relaxation: str, target: int | None) -> None:
    result = certified(threat, relaxation)
    radius = 0.15
    grid = torch.tensor(list(itertools.product((-1.0, -0.5, 0.0, 0.5, 1.0), repeat=2)))
    inputs = TEST + radius * grid.to(torch.float64)[:, None]
    f = torch.stack([logits(threat, at) for at in inputs])
    counted = torch.ones(len(TEST), dtype=torch.bool) if target is None else target != LABELS
    wanted = 1 - LABELS if target is None else torch.full_like(LABELS, target)
    hits = torch.where(wanted == 1, f >= 0, f <= 0).any(0)[:, counted].double()
    answer = result.backdoor(TEST, LABELS, radius, target=target)
    assert float(hits.mean(-1).max()) <= answer.upper
    assert (hits <= torch.from_numpy(answer.points.upper)).all()


def test_the_sandwich_is_narrow_where_nothing_bends() -> None:
    """One flip over three steps: the certificate names the very points that enumeration reaches."""
    result = certified("one flip", "linear")
    f = logits("one flip", TEST)
    reached = ((f <= 0) == (LABELS == 1)).any(0)
    answer = result.backdoor(TEST, LABELS, 0.0)
    possible = torch.from_numpy(answer.points.upper == 1.0)
    assert int(possible.sum()) <= int(reached.sum()) + 1
    width = answer.points.score_upper - answer.points.score_lower
    real = (f.amax(0) - f.amin(0)).numpy()
    assert (width >= real).all()
    assert (width <= 3.0 * real).all()


def shrunk(trigger_inputs: Any) -> Any:
    """The trigger's box, one percent too small."""

    def inputs(self: Any, features: Tensor) -> Interval:
        box = trigger_inputs(self, features)
        centre, radius = box.centre, 0.5 * box.width
        return Interval(centre - 0.99 * radius, centre + 0.99 * radius)

    return inputs


def test_a_trigger_one_percent_too_small_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        triggers.BallTrigger, "inputs", shrunk(triggers.BallTrigger.inputs), raising=True
    )
    with pytest.raises(AssertionError):
        exact_support()


def forms_over_a_box() -> tuple[Tensor, Tensor]:
    """Bounded and true minimum of the logit of a linear model over boxes of inputs."""
    model = network([2, 1], seed=2)
    threat = agt.FeaturePoisoning(budget=0, radius=0.0)
    known = agt.certify(model, (X, Y), TRAINING, threat, relaxation="linear").models
    box = triggers.BallTrigger([0.3, 0.1]).inputs(TEST)
    one = torch.ones(len(TEST), 1, 1, dtype=torch.float64)
    found = known.bound(models.OutputForms(box, one, one[..., 0]))
    weight, bias = known.nominal["0.weight"][0], known.nominal["0.bias"]
    reach = torch.tensor([0.3, 0.1], dtype=torch.float64)
    return found.lower[0, :, 0], TEST @ weight + bias + 1.0 - reach @ weight.abs()


def test_forms_over_a_box_of_inputs_are_exact() -> None:
    found, truth = forms_over_a_box()
    assert (found <= truth).all()
    assert float((truth - found).max()) <= 1e-10


def test_a_support_one_percent_too_small_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    real = window_bounds.per_sample

    def cheap(values: Tensor, weights: Tensor) -> Tensor:
        support = bool((values >= 0).all()) and bool((weights >= 0).all())
        return (0.99 if support else 1.0) * real(values, weights)

    monkeypatch.setattr(window_bounds, "per_sample", cheap)
    found, truth = forms_over_a_box()
    assert not (found <= truth).all()


def test_a_margin_that_forgets_a_class_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The best of the unsafe classes taken as the worst of them."""
    from test_questions import test_targets_hold_under_attack as attacked

    def wrong(self: Any, bounds: Interval) -> Interval:
        beaten = self._scattered(bounds.lower, self.unsafe_of, "amax", -torch.inf)
        lower = torch.where(self.unsafe, beaten, -torch.inf).amax(-1)
        return Interval(lower, torch.full_like(lower, torch.inf))

    monkeypatch.setattr(decision.Decision, "margin", wrong)
    with pytest.raises((AssertionError, agt.MilpAgtError)):
        attacked("cross_entropy", "features")


def test_a_functional_one_percent_too_tight_is_caught() -> None:
    """The extreme values of a parameter, found by enumeration, need the whole bound."""
    result = certified("two flips", "linear")
    (bounds,) = result.functional({"2.bias": np.ones(1)})
    values = [float(model[2].bias.detach()) for model in trained("two flips")]  # type: ignore[index]
    assert bounds.lower <= min(values)
    assert max(values) <= bounds.upper
    assert (max(values) - min(values)) >= 0.5 * (bounds.upper - bounds.lower)
