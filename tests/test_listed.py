"""Finite threats: every data set is trained in plain torch, lies in its box, and the ends are reached."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from boxes import assert_same, resumed
from listed_runs import CASES, Case, data
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.bounds.listed import count_choices, dense, list_choices, runs
from milp_agt.bounds.listed.dense import ErrorNorm
from milp_agt.certification import listing
from milp_agt.core.restriction import Restriction
from milp_agt.errors import SoundnessError
from milp_agt.formulations.loss import get_loss
from milp_agt.training.inputs import labels_of

# What two orders of summation, and the boxes themselves, may differ by on runs of a few steps.
ROUNDING = 1e-9


def flat(state: dict[str, Any], names: Sequence[str]) -> np.ndarray:
    return np.concatenate([np.asarray(state[n]).reshape(-1) for n in names])


@pytest.mark.parametrize("name", CASES)
def test_boxes_hold_every_run_and_no_more(name: str) -> None:
    case, listed, kind = CASES[name]
    result = case.certify()
    assert type(result.models.reached.runs).__name__ == kind
    names = result.reachable.trainable
    models = [case.trained(*each) for each in listed]
    ends = np.stack([flat({n: p.detach() for n, p in m.named_parameters()}, names) for m in models])
    lower, upper = flat(result.reachable.lower, names), flat(result.reachable.upper, names)
    assert (lower <= ends).all()
    assert (ends <= upper).all()
    assert np.abs(ends.min(0) - lower).max() <= ROUNDING
    assert np.abs(ends.max(0) - upper).max() <= ROUNDING
    # Each data set has a box of its own, and each box its data set.
    choices = result.models.reached.runs.choices
    assert len(choices) == len(listed)
    boxes = [r.state for r in result.models.reached]
    for choice in range(len(choices)):
        found = choices.poisoned(choice)
        labels = found.labels[:, 0] if case.training.loss in ("bce", "hinge") else found.labels
        labels = labels if case.training.loss != "cross_entropy" else labels.argmax(1)
        model = case.trained(found.features, labels, found.kept.tolist())
        own = dict(model.named_parameters())
        at, place = choice, 0
        while at >= len(boxes[place][names[0]].lower):
            at, place = at - len(boxes[place][names[0]].lower), place + 1
        for n in names:
            box = boxes[place][n]
            assert bool(((box.lower[at] <= own[n]) & (own[n] <= box.upper[at])).all())
            assert float((box.upper[at] - box.lower[at]).max()) <= ROUNDING


@pytest.mark.parametrize("name", ["two flips", "three classes, momentum", "tanh"])
def test_answers_are_those_of_all_models(name: str) -> None:
    case, listed, _ = CASES[name]
    result = case.certify()
    x, y = data(case.training.loss, 12, classes=result.models.step_graph.outputs)
    models = [case.trained(*each) for each in listed]
    with torch.no_grad():
        outputs = torch.stack([m(x) for m in models])
    binary = outputs.shape[-1] == 1
    right = (outputs[..., 0] > 0) == (y > 0) if binary else outputs.argmax(-1) == y
    share = right.double().mean(1)
    for answer in (result.accuracy(x, y), result.collective(x, y)):
        assert (answer.lower, answer.upper) == pytest.approx(
            (float(share.min()), float(share.max()))
        )
    encoded = labels_of(y, len(y), get_loss(case.training.loss), outputs.shape[-1])
    losses = get_loss(case.training.loss).value(outputs, encoded).mean(1)
    found = result.loss(x, y)
    assert (found.lower, found.upper) == pytest.approx(
        (float(losses.min()), float(losses.max())), abs=ROUNDING
    )
    name = result.reachable.trainable[0]
    row = np.ones_like(result.reachable.nominal[name])
    sums = [float(m.state_dict()[name].sum()) for m in models]
    (form,) = result.functional({name: row})
    assert (form.lower, form.upper) == pytest.approx((min(sums), max(sums)), abs=ROUNDING)
    heaviest = result.suspects(1)[0]
    assert heaviest.share > 0.3


def is_sound(case: Case, models: Sequence[nn.Module]) -> bool:
    try:
        box = case.certify().reachable
    except SoundnessError:  # the nominal run is outside already
        return False
    return all(box.contains(model.state_dict()) for model in models)


@pytest.mark.parametrize("name", ["two flips", "removal, emptied batches"])
def test_a_choice_left_out_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case, listed, _ = CASES[name]
    models = [case.trained(*each) for each in listed]
    assert is_sound(case, models)
    whole = listing.listed.list_choices
    found = []
    for left_out in range(1, len(listed)):

        def shorter(*given: Any, left_out: int = left_out) -> Any:
            choices = whole(*given)
            kept = [c for c in range(len(choices)) if c != left_out]
            return replace(choices, picked=choices.picked[kept])

        monkeypatch.setattr(listing.listed, "list_choices", shorter)
        found.append(not is_sound(case, models))
    assert sum(found) > len(found) / 4  # others lie within the hull of the rest


def test_rounding_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """In one of the runs at least: how a sum is rounded depends on the machine."""
    monkeypatch.setattr(
        runs.CentredRuns, "_grown", lambda own, step, part, bounds: own.radius[part]
    )
    assert not all(
        is_sound(case, [case.trained(*each, order) for each in listed for order in (1, -1)])
        for case, listed, _ in CASES.values()
    )


def test_units_on_their_kink_are_told() -> None:
    """A unit that rounding may switch on moves the run by more than rounding: other bounds take over."""
    case = CASES["two flips"][0]
    model = copy.deepcopy(case.model)
    with torch.no_grad():
        model[0].weight[0] = torch.tensor([1.0, -1.0])
        model[0].bias[0] = 0.0
    x = case.x.clone()
    x[0] = 0.5
    result = replace(case, model=model, x=x).certify()
    assert not result.models.reached[0].single_runs
    assert any("rounding makes the box of one run" in line for line in result.fallbacks)


def test_a_threat_that_changes_nothing_lists_the_clean_run() -> None:
    x, y = data("bce", 4)
    case = Case(network((2, 3, 1)), x, y, agt.Training("bce"), agt.FeaturePoisoning(2, 0.0))
    result = case.certify(selections="enumerated")
    runs_ = result.models.reached.runs
    assert len(runs_.choices) == 1
    assert result.reachable.contains(case.trained(x, y, [True] * 4).state_dict())


def test_restricted_lists() -> None:
    x, y = data("cross_entropy", 5, classes=3)
    loss = get_loss("cross_entropy")
    labels = labels_of(y, 5, loss, 3)
    known = Restriction(inside=frozenset({1}), outside=frozenset({4}))
    for threat, count in ((agt.LabelPoisoning(2), 3 * (1 + 3 * 2)), (agt.Removal(2), 1 + 3)):
        poison = threat.bind(x, labels, loss)
        choices = list_choices(poison, known)
        assert count_choices(poison, known) == count
        assert len(choices) in (count, count + 1)  # the clean run comes first, admitted or not
        changed = {choices.poisoned(c).changed for c in range(1, len(choices))}
        assert not any(4 in each for each in changed)
        assert all(len(set(each) - {1}) <= 1 for each in changed)
        data_sets = [choices.poisoned(c) for c in range(len(choices))]
        told_apart = {(*d.labels.flatten().tolist(), *d.kept.tolist()) for d in data_sets}
        assert len(told_apart) == len(choices)


@pytest.mark.parametrize(
    "threat",
    [
        agt.LabelPoisoning(1, scope="batch"),
        agt.LabelPoisoning(1, static=False),
        agt.FeaturePoisoning(1, 0.1),
        agt.FeatureLabelPoisoning(1, 0.1),
        agt.Removal(1, scope="batch"),
    ],
)
def test_threats_without_a_list(threat: Any) -> None:
    x, y = data("bce", 4)
    loss = get_loss("bce")
    assert count_choices(threat.bind(x, labels_of(y, 4, loss, 1), loss)) == float("inf")


def test_a_list_that_does_not_fit_is_left_out() -> None:
    case = CASES["two flips"][0]
    listed = case.certify()
    assert "22 data sets" in " ".join(listed.notes)
    assert listed.settings["certify"]["selections"] == "listed"
    for options in ({"selections": "joint"}, {"relaxation": "interval"}):
        assert not case.certify(**options).models.reached[0].single_runs
    exact = listed.reachable
    joint = case.certify(selections="joint").reachable
    for name in exact.trainable:
        assert (joint.lower[name] <= exact.upper[name]).all()
    assert exact.mean_width < joint.mean_width


def test_a_slow_list_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["two flips"][0]
    steps: list[int] = []
    monkeypatch.setattr(listing.ListedRun, "_judge", _late)
    result = case.certify(time_limit=60.0, on_step=lambda r, t, n: steps.append(t))
    assert any("left out" in line for line in result.fallbacks)
    assert result.limit_reached
    assert not result.models.reached[0].single_runs
    assert steps == [1, 2, 3, 4]


def _late(run: listing.ListedRun, last: bool) -> None:
    run.gave_up, run.out_of_time = "time limit, the list of data sets is left out", True


def test_checkpoints_of_lists(tmp_path: Any) -> None:
    case = CASES["three classes, momentum"][0]
    assert_same(resumed(case.certify, tmp_path, 3).reachable, case.certify().reachable)


def test_a_run_that_diverges_is_told() -> None:
    listed = CASES["two flips"][0].certify().models.reached.runs
    lost = replace(listed, centre={n: v * float("nan") for n, v in listed.centre.items()})
    for box in lost.boxes(slice(0, 3)).values():
        assert bool((box.lower == -torch.inf).all())
        assert bool((box.upper == torch.inf).all())


# -----------------------------------------------------------------------------
# What rounding grows to in listed runs: spectra of Hessians, and norms of errors.


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("nesterov", [False, True])
def test_growth_is_that_of_the_worst_error(momentum: float, nesterov: bool) -> None:
    """Against the norm of the matrix of the whole step, which ends of the spectrum attain."""
    training = agt.Training(
        "bce",
        0.3,
        epochs=4,
        momentum=momentum,
        nesterov=nesterov and momentum > 0,
        weight_decay=0.01,
    )
    rules = training.update_rules(4)
    lows, highs = (
        torch.tensor([-0.5, -0.4, -0.2, -0.1]).double(),
        torch.tensor([3.0, 2.0, 4.0, 1.0]).double(),
    )
    norms = ErrorNorm.fitted(lows, highs, rules)
    generator = torch.Generator().manual_seed(0)
    for low, high, rule, before, after in zip(lows, highs, rules, norms, norms[1:], strict=False):
        turn = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.float64))[0]
        values = (
            torch.tensor([float(low), float(high), 0.3], dtype=torch.float64) + rule.weight_decay
        )
        values[0] -= rule.weight_decay
        hessian = turn @ torch.diag(values) @ turn.T
        eye = torch.eye(3, dtype=torch.float64)
        _, b, c = rule.theta_from
        _, m, k = rule.velocity_from
        step = torch.cat(
            [torch.cat([eye + c * hessian, b * eye], 1), torch.cat([k * hessian, m * eye], 1)]
        )
        if momentum == 0.0:
            exact = torch.linalg.matrix_norm(eye + c * hessian, 2)
        else:
            exact = torch.linalg.matrix_norm(
                _root(after, eye) @ step @ torch.linalg.inv(_root(before, eye)), 2
            )
        bound = before.growth(low[None], high[None], rule, after)
        assert float(exact) <= float(bound) <= 1.0001 * float(exact)
        error = torch.randn(6, generator=generator, dtype=torch.float64)
        size = (_root(before, eye) @ error).norm()
        assert error[:3].norm() <= before.per_parameter * size
        assert error[3:].norm() <= before.of_velocity * size
        assert size <= before.of_sizes(error[:3].norm(), error[3:].norm())


def _root(norm: ErrorNorm, eye: Tensor) -> Tensor:
    """K with ``|K (e, u)|`` the norm."""
    zero = 0.0 * eye
    first = torch.cat([eye, norm.tilt * norm.scale * eye], 1)
    return torch.cat([first, torch.cat([zero, norm.root * norm.scale * eye], 1)])


@pytest.mark.parametrize(
    "name",
    [
        *("three classes, momentum", "least squares"),
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("two flips", "three flips")),
    ],
)
def test_spectra_hold_those_of_autograd(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the points of all runs, and at points as far as they may be off."""
    case, _, _ = CASES[name]
    checked = []
    inner = dense.DenseNet.bounds

    def checking(
        net: Any, state: Any, values: Any, sizes: Any, shares: Any, near: Any, *rest: Any
    ) -> Any:
        near = near + 1e-3
        found = inner(net, state, values, sizes, shares, near, *rest)
        names = net.step_graph.parameters
        generator = torch.Generator().manual_seed(len(checked))
        row = int(torch.randint(len(near), (1,), generator=generator))
        own = {n: state[n][row] for n in names}
        sizes_of = [own[n].numel() for n in names]
        centre = torch.cat([own[n].flatten() for n in names])
        x, y = values["features"], values["labels"][row]
        x = x if x.dim() == 2 else x[row]
        share = shares[row if len(shares) > 1 else 0]
        phases = values[net.phases][row] if net.phases else None

        def loss(flat: Tensor) -> Tensor:
            parts = dict(zip(names, flat.split(sizes_of), strict=True))
            weight, bias = (parts[n].reshape(own[n].shape) for n in net.last)
            hidden = x
            if net.first:
                w, b = (parts[n].reshape(own[n].shape) for n in net.first)
                hidden = phases * (x @ w.T + b)  # phases as at the point
            each = get_loss(case.training.loss).value(hidden @ weight.T + bias, y)
            return (each * share).sum()

        off = torch.randn(len(centre), generator=generator, dtype=torch.float64)
        for point in (centre, centre + off / off.norm() * 0.999e-3):
            spectrum = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, point))
            assert float(found[0].least[row]) <= float(spectrum[0]) + 1e-12
            assert float(spectrum[-1]) <= float(found[0].greatest[row]) + 1e-12
            slope = torch.autograd.functional.jacobian(loss, point)
            assert float(slope.norm()) <= float(found[0].size[row])
        checked.append(float(found[0].greatest[row] / spectrum[-1]))
        return found

    monkeypatch.setattr(dense.DenseNet, "bounds", checking)
    case.certify()
    assert len(checked) > 4
    assert min(checked) < 6.0  # not far from what there is
