"""Enumerated selections: the list is complete, every case holds its attacks, grouping changes nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_inside, assert_sound, network
from boxes import assert_same
from draws import poisoned
from pairs import every_value

import milp_agt as agt
from milp_agt.bounds.adversary import enumerated
from milp_agt.bounds.adversary.enumerated import Enumerated, count_cases, list_selections
from milp_agt.certification import certify
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.threats.poison import Poison


def problem(
    threat: Any, loss: str = "bce", hidden: tuple[int, ...] = (3,), samples: int = 6, **run: Any
) -> Problem:
    generator = torch.Generator().manual_seed(5)
    outputs = 3 if loss == "cross_entropy" else 1
    x = torch.randn(samples, 2, generator=generator, dtype=torch.float64)
    y = (
        torch.randn(samples, 1, generator=generator, dtype=torch.float64)
        if loss == "mse"
        else torch.randint(max(outputs, 2), (samples,), generator=generator)
    )
    training = agt.Training(loss=loss, **({"learning_rate": 0.4, "epochs": 3} | run))
    return Problem(network((2, *hidden, outputs), seed=2), x, y, training, threat)


THREATS: dict[str, Any] = {
    "features": agt.FeaturePoisoning(1, 0.05),
    "two": agt.FeaturePoisoning(2, 0.05, samples=(0, 1, 2, 4)),
    "labels": agt.LabelPoisoning(1),
    "two labels": agt.LabelPoisoning(2),
    "both": agt.FeatureLabelPoisoning(1, 0.05),
    "both, one class": agt.FeatureLabelPoisoning(1, 0.05, target=1),
    "adaptive": agt.FeaturePoisoning(1, 0.05, static=False),
}
MOVED = {"targets": agt.LabelPoisoning(2, 0.1), "both": agt.FeatureLabelPoisoning(1, 0.05, 0.1)}
ALL = [(loss, t) for loss in ("bce", "cross_entropy", "hinge") for t in THREATS] + [
    ("mse", t) for t in MOVED
]


def threat_of(loss: str, name: str) -> Any:
    return MOVED[name] if loss == "mse" else THREATS[name]


def bound(case: Problem) -> Poison:
    return Replay(case).poison


@pytest.mark.parametrize("restriction", [(), (0,), (0, 2)], ids=str)
@pytest.mark.parametrize(("loss", "name"), ALL)
def test_the_list_is_complete(loss: str, name: str, restriction: tuple[int, ...]) -> None:
    """Every admissible choice of samples and labels lies in a case."""
    poison = bound(problem(threat_of(loss, name), loss))
    limits = Restriction(frozenset(restriction[:1]), frozenset(restriction[1:]))
    listed = list_selections(poison, limits)
    adversary = Enumerated(poison, listed)
    assert len(listed) == count_cases(poison, limits)
    assert not adversary.mask[0].any()
    labels = adversary.labels(torch.arange(6)) if listed.label_moves is not None else None
    generator = torch.Generator().manual_seed(0)
    picked = poisoned(poison, generator, 200)[..., 0]
    inside = list(limits.inside)
    picked = picked[picked[:, inside].all(1) & ~picked[:, list(limits.outside)].any(1)]
    assert len(picked)
    _, moved = poison.sample_moves(generator, picked[..., None], True)
    for chosen, own in zip(picked, moved, strict=True):
        if labels is None:
            fits = (adversary.mask | ~chosen).all(1)
        elif poison.feature_moves is None:
            fits = (labels == own).all(-1).all(-1)
        else:
            fits = (adversary.mask | ~chosen).all(1) & (labels == own).all(-1).all(-1)
        assert bool(fits.any())


pytestmark = pytest.mark.usefixtures("unlisted")
# Selections know of a loss its labels alone: one has all threats, the others some of them.
ROWS = [(*pair, "linear") for pair in ALL] + [("bce", t, "interval") for t in THREATS]
QUICK = [row for row in ROWS if row[0] in ("bce", "mse") and row[2] == "linear"]
QUICK += [("cross_entropy", t, "linear") for t in ("labels", "both", "both, one class")]
QUICK += [("hinge", "two", "linear"), ("bce", "both", "interval"), ("bce", "adaptive", "interval")]
SOME = [pytest.param(*row, marks=[] if row in QUICK else pytest.mark.slow) for row in ROWS]


@pytest.mark.parametrize(("loss", "name", "inner"), SOME)
def test_attacks_stay_inside(loss: str, name: str, inner: str) -> None:
    case = problem(threat_of(loss, name), loss, momentum=0.3, weight_decay=0.01)
    assert_holds_attacks(case, inner_bounds=inner)


@every_value(
    name=["features", "labels", "both", "adaptive"],
    options={"two": {"batch_size": 2}, "nesterov": {"batch_size": 4, "nesterov": True}},
)
def test_attacks_on_mini_batches_stay_inside(name: str, options: dict[str, Any]) -> None:
    momentum = {"momentum": 0.5} if "nesterov" in options else {}
    case = problem(THREATS[name], epochs=2, shuffle_seed=3, **options, **momentum)
    assert_holds_attacks(case, window=2)


def test_a_deeper_network_and_a_start_box() -> None:
    case = problem(THREATS["both"], hidden=(3, 3))
    start = {
        name: (value.detach().numpy() - 0.01, value.detach().numpy() + 0.01)
        for name, value in case.model.state_dict().items()
    }
    assert_holds_attacks(replace(case, initial=start))


def assert_holds_attacks(
    case: Problem,
    selections: str = "enumerated",
    chain: str = "linear, each selection",
    **options: Any,
) -> None:
    test, labels = case.features + 0.2, case.labels
    result = assert_sound(case, test, labels, selections=selections, **options)
    joint, _ = case.certify(selections="joint", **options)
    assert chain in result.steps[-1].chains
    assert result.reachable.mean_width <= joint.reachable.mean_width


def test_flipped_labels_are_bounded_exactly() -> None:
    """One case is one data set: the union of the cases is the hull of all trainings, to rounding."""
    case = problem(agt.LabelPoisoning(2), "bce", epochs=4)
    result, _ = case.certify(selections="enumerated")
    low = high = None
    for flipped in [c for k in range(3) for c in itertools.combinations(range(6), k)]:
        y = case.labels.clone()
        y[list(flipped)] = 1 - y[list(flipped)]
        run = agt.certify(
            case.model,
            (case.features, y),
            case.training,
            agt.FeaturePoisoning(0, 0.0),
            relaxation="interval",
        ).reachable.nominal
        point = np.concatenate([run[n].ravel() for n in result.reachable.trainable])
        low = point if low is None else np.minimum(low, point)
        high = point if high is None else np.maximum(high, point)
    assert np.allclose(result.reachable.widths, high - low, rtol=1e-9, atol=1e-12)


def parts_of(case: Problem, size: int, monkeypatch: pytest.MonkeyPatch) -> Any:

    honest = certify.planning.make_plan

    def plan(*arguments: Any, **named: Any) -> Any:
        found = honest(*arguments, **named)
        count = int(count_cases(arguments[2])) - 1
        return replace(found, selections=replace(found.selections, groups=-(-count // size)))

    with monkeypatch.context() as patch:
        patch.setattr(certify.planning, "make_plan", plan)
        return case.certify(selections="enumerated")[0]


@pytest.mark.parametrize("name", ["features", "two", "both"])
def test_grouping_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The union of runs with one selection each is the run of all."""
    case = problem(THREATS[name])
    x = case.features + 0.1
    whole = case.certify(selections="enumerated")[0]
    single = parts_of(case, 1, monkeypatch)
    assert len(single.models.reached) == count_cases(bound(case)) - 1
    assert_same(single.reachable, whole.reachable, rtol=1e-9, atol=1e-12)
    y = case.labels
    for question in ("accuracy", "loss"):
        one, other = (getattr(r, question)(x, y) for r in (whole, single))
        assert np.allclose([one.lower, one.upper], [other.lower, other.upper], rtol=1e-9)


@pytest.mark.parametrize("what", ["radius", "perturbation", "labels"])
def test_mutants_are_found(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bound that is 1 % too tight lets an attack out."""
    threat = agt.LabelPoisoning(1) if what == "labels" else agt.FeaturePoisoning(1, 1e-3)
    case = problem(threat, samples=3, epochs=1)
    assert_holds_strong_attacks(case)
    if what == "radius":
        leaves = Enumerated.leaves

        def narrow(self: Enumerated, *arguments: Any) -> Any:
            boxes = leaves(self, *arguments)
            x = boxes["features"]
            centre, radius = x.centre, 0.495 * x.width
            return boxes | {"features": Interval(centre - radius, centre + radius)}

        monkeypatch.setattr(Enumerated, "leaves", narrow)
        monkeypatch.setattr(
            enumerated._SelectionWorstCase,
            "worst_case",
            _scaled(enumerated._SelectionWorstCase.worst_case, 0.99),
        )
    if what == "perturbation":
        monkeypatch.setattr(
            enumerated._SelectionWorstCase,
            "worst_case",
            _scaled(enumerated._SelectionWorstCase.worst_case, 0.99),
        )
    if what == "labels":
        labels = Enumerated.labels

        def partly(self: Enumerated, samples: torch.Tensor) -> torch.Tensor:
            exact, nominal = labels(self, samples), self.poison.labels[samples]
            return nominal + 0.99 * (exact - nominal)

        monkeypatch.setattr(Enumerated, "labels", partly)
    with pytest.raises((AssertionError, agt.errors.SoundnessError)):
        assert_holds_strong_attacks(case)


def test_a_case_left_out_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample that pushes some parameter furthest must be in the list."""
    case = problem(agt.FeaturePoisoning(1, 1e-3), samples=3, epochs=1)
    honest, found = enumerated.list_selections, 0
    for left in ([0, 1, 2], [0, 1, 3], [0, 2, 3]):

        def fewer(
            poison: Poison, restriction: Restriction = UNRESTRICTED, left: list[int] = left
        ) -> enumerated.ListedSelections:
            return enumerated.ListedSelections(honest(poison, restriction).members[left], None)

        monkeypatch.setattr("milp_agt.certification.chains.list_selections", fewer)
        try:
            assert_holds_strong_attacks(case)
        except AssertionError:
            found += 1
    assert found >= 1


def _scaled(method: Any, factor: float) -> Any:
    return lambda self, *arguments: factor * method(self, *arguments)


def assert_holds_strong_attacks(case: Problem) -> None:
    """Gradient attacks on every parameter, and random flips of every label."""
    _, boxes = case.certify(selections="enumerated")
    replay = Replay(case)
    generator = torch.Generator().manual_seed(3)
    for attack in replay.all(generator, case.features, case.labels, 200, 4, largest=50):
        assert_inside(boxes, replay.run(attack))


def test_what_cannot_be_enumerated_is_refused() -> None:
    case = problem(agt.FeaturePoisoning(1, 0.05, scope="batch"))
    with pytest.raises(agt.errors.InvalidInputError) as refusal:
        case.certify(selections="enumerated")
    text = str(refusal.value)
    assert "enumerated" in text
    assert "budget in each batch" in text
    assert "scope='dataset'" in text
    with pytest.raises(agt.errors.InvalidInputError, match="'each'"):
        case.certify(selections="each")
    with pytest.raises(agt.errors.InvalidInputError, match="linear forms"):
        problem(THREATS["features"]).certify(relaxation="interval", selections="enumerated")


def test_selections_are_enumerated_unasked_where_that_is_cheap() -> None:
    case = problem(THREATS["features"])
    result = agt.certify(case.model, case.data, case.training, case.threat, carried="none")
    assert "linear, each selection" in result.steps[-1].chains
    dear = problem(agt.FeaturePoisoning(12, 0.05), samples=24)
    result = agt.certify(dear.model, dear.data, dear.training, dear.threat)
    assert "linear, each selection" not in result.steps[-1].chains
