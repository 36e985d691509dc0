"""Threat models in whole runs: every set of moves, and what a user may get wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_inside, assert_sound, network
from pairs import every_value
from refusals import refused

import milp_agt as agt
from milp_agt.errors import InvalidThreatModelError
from milp_agt.training.training import Training

INF, NAN = float("inf"), float("nan")
# Two numbers, a count, and a one-hot feature of three categories.
NUMERIC, COUNT, GROUP = (0, 1), 2, (3, 4, 5)
DOMAIN = ([-2.0, -2.0, 0.0, 0.0, 0.0, 0.0], [2.0, 2.0, 4.0, 1.0, 1.0, 1.0])


def data(samples: int = 7, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    numbers = torch.rand(samples, 2, generator=generator, dtype=torch.float64) * 2 - 1
    counts = torch.randint(0, 5, (samples, 1), generator=generator).double()
    category = torch.randint(0, 3, (samples,), generator=generator)
    return torch.cat([numbers, counts, torch.eye(3, dtype=torch.float64)[category]], 1)


FEATURES: dict[str, dict[str, Any]] = {
    "norm 1": {"radius": 0.2, "norm": 1},
    "norm 2": {"radius": 0.2, "norm": 2},
    "norm 0": {"radius": 0.2, "norm": 0, "coordinates": 2},
    "norm 1, a radius for each feature": {"radius": [0.3, 0.1, 0.0, 0.1, 0.1, 0.2], "norm": "1"},
    "norm 2, a radius for each sample": {"radius": np.linspace(0.0, 0.3, 7), "norm": 2},
    "norm inf, a radius for each entry": {"radius": np.linspace(0.0, 0.2, 42).reshape(7, 6)},
    "domain": {"radius": 0.5, "domain": DOMAIN},
    "domain, norm 1": {"radius": 0.5, "norm": 1, "domain": DOMAIN},
    "domain, norm 2": {"radius": 0.5, "norm": 2, "domain": DOMAIN},
    "anything in the domain": {"radius": INF, "norm": 0, "coordinates": 1, "domain": (-1.0, 4.0)},
    "whole numbers": {"radius": 1.0, "integer": [COUNT], "domain": DOMAIN},
    "whole numbers, norm 2": {"radius": 1.5, "integer": [COUNT], "norm": 2},
    "categories": {"radius": 0.1, "categorical": [GROUP]},
    "categories, norm 1": {"radius": 0.1, "norm": 1, "categorical": [GROUP]},
    "one feature, perhaps the category": {
        "radius": 0.2, "norm": 0, "coordinates": 1, "categorical": [GROUP], "integer": [COUNT],
    },
    "missing": {"radius": 0.05, "missing": 0.0},
    "one missing": {"radius": 0.0, "missing": {0: 0.5, 2: -1.0}, "norm": 0, "coordinates": 1},
    "rows": {"radius": 0.2, "rows": ([[1, -1, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]], [0.05, 0.1])},
    "rows, norm 2": {"radius": 0.2, "norm": 2, "rows": ([[1.0] * 6, [-1.0] * 6], [0.0, 0.0])},
    "rows, categories": {
        "radius": 0.2, "categorical": [GROUP], "rows": ([[1, 0, 0, 1, 0, 0]], [0.5]),
    },
}  # fmt: skip


def problem(
    threat: Any,
    loss: str = "bce",
    hidden: tuple[int, ...] = (3,),
    samples: int = 7,
    **training: Any,
) -> tuple[Problem, torch.Tensor, torch.Tensor]:
    outputs = {"bce": 1, "mse": 2, "cross_entropy": 3}[loss]
    x = data(2 * samples)
    generator = torch.Generator().manual_seed(1)
    if loss == "mse":
        y = torch.randn(2 * samples, outputs, generator=generator, dtype=torch.float64)
    else:
        y = torch.randint(max(outputs, 2), (2 * samples,), generator=generator)
    run = Training(loss=loss, **({"learning_rate": 0.2, "epochs": 2, "batch_size": 4} | training))
    model = network((6, *hidden, outputs), seed=3, scale=0.7)
    case = Problem(model, x[:samples], y[:samples], run, threat)
    return case, x[samples:], y[samples:]


@every_value(
    name=list(FEATURES),
    relaxation=["linear", "interval"],
    static={"static": True, "adaptive": False},
)
def test_no_attack_on_features_leaves_the_bounds(name: str, relaxation: str, static: bool) -> None:
    threat = agt.FeaturePoisoning(2, static=static, **FEATURES[name])
    case, test, labels = problem(threat)
    result = assert_sound(case, test, labels, relaxation=relaxation, attacks=32, in_torch=static)
    rows = "rows" in FEATURES[name]
    assert any("linear rows" in note for note in result.fallbacks) == rows


@pytest.mark.parametrize("relaxation", ["lp", pytest.param("milp", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    # Those with a comma have the rows of two sets at once.
    "name",
    [pytest.param(n, marks=pytest.mark.slow if "," in n else ()) for n in FEATURES],
)
def test_no_attack_on_features_leaves_the_programs(name: str, relaxation: str) -> None:
    options = dict(FEATURES[name])
    if len(radius := np.atleast_1d(options["radius"])) == 7:
        options["radius"] = radius[:3]
    threat = agt.FeaturePoisoning(1, **options)
    case, test, labels = problem(threat, hidden=(), samples=3, epochs=1, batch_size=2)
    result = assert_sound(
        case, test, labels, relaxation=relaxation, program_window=2, carried="none", attacks=32
    )
    assert not any("linear rows" in note for note in result.fallbacks)


LABELS: dict[str, tuple[str, dict[str, Any]]] = {
    "any class": ("cross_entropy", {}),
    "one class": ("cross_entropy", {"target": 1}),
    "two classes": ("cross_entropy", {"target": [0, 2]}),
    "one of two classes": ("bce", {"target": 1}),
    "norm inf": ("mse", {"radius": 0.3}),
    "norm 1": ("mse", {"radius": 0.3, "norm": 1}),
    "norm 2": ("mse", {"radius": 0.3, "norm": 2}),
    "a radius for each output": ("mse", {"radius": [0.3, 0.1], "norm": 2}),
}


@every_value(name=list(LABELS), relaxation=["interval", "linear", "lp"])
def test_no_attack_on_labels_leaves_the_bounds(name: str, relaxation: str) -> None:
    loss, options = LABELS[name]
    small: dict[str, Any] = {}
    if relaxation == "lp":
        small = {"hidden": (), "samples": 3, "epochs": 1, "batch_size": 2}
    case, test, labels = problem(agt.LabelPoisoning(1, **options), loss, **small)
    assert_sound(case, test, labels, relaxation=relaxation, attacks=32)


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_features_and_labels_of_the_same_samples(relaxation: str) -> None:
    threat = agt.FeatureLabelPoisoning(
        2, 0.1, norm=2, categorical=[GROUP], integer=[COUNT], target=0, samples=[0, 1, 4]
    )
    case, test, labels = problem(threat, "cross_entropy")
    assert_sound(case, test, labels, relaxation=relaxation)


def widths(threat: Any, relaxation: str = "linear", **training: Any) -> float:
    case, _, _ = problem(threat, **training)
    return float(case.certify(relaxation=relaxation)[0].reachable.mean_width)


def test_rows_tighten_programs_only() -> None:
    """Under sum(move) = 0 a regression step that reads the sum cannot move."""
    sums = ([[1.0] * 6, [-1.0] * 6], [0.0, 0.0])
    run = {"hidden": (), "samples": 3, "epochs": 1, "batch_size": None}
    free = agt.FeaturePoisoning(1, 0.2)
    tied = agt.FeaturePoisoning(1, 0.2, rows=sums)
    assert widths(tied, "linear", **run) == widths(free, "linear", **run)
    assert widths(tied, "lp", **run) < 0.999 * widths(free, "lp", **run)


# Large moves bring products into play; whole numbers in norm 2 are relaxed.
REACHED = {"anything in the domain": 0.4, "whole numbers, norm 2": 0.55}


def test_attacks_come_close_to_the_bounds_of_one_linear_step() -> None:
    """A step from a point on a linear model: what is certified is (nearly) reached, for every set."""
    for name, options in FEATURES.items():
        if "rows" in options:
            continue
        threat = agt.FeaturePoisoning(1, **options)
        case, test, labels = problem(threat, "mse", (), epochs=1, batch_size=None)
        result, boxes = case.certify(relaxation="linear")
        replay = Replay(case)
        generator = torch.Generator().manual_seed(0)
        low = {n: np.full_like(v, INF) for n, v in result.reachable.lower.items()}
        high = {n: np.full_like(v, -INF) for n, v in result.reachable.lower.items()}
        for attack in replay.all(generator, test, labels, 256, 4, largest=14):
            states = replay.run(attack)
            assert_inside(boxes, states)
            for parameter in low:
                reached = states[-1][parameter].detach().numpy()
                low[parameter] = np.minimum(low[parameter], reached.min(0))
                high[parameter] = np.maximum(high[parameter], reached.max(0))
        reached_width = np.mean(np.concatenate([(high[n] - low[n]).ravel() for n in low]))
        assert reached_width >= REACHED.get(name, 0.85) * result.reachable.mean_width, name


BAD_FEATURES: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown norm": ({"norm": 3}, "norm"),
    "a norm that is no number": ({"norm": True}, "norm"),
    "norm 0 without a count": ({"norm": 0}, "coordinates"),
    "a count beside another norm": ({"norm": 2, "coordinates": 1}, "coordinates"),
    "no coordinate": ({"norm": 0, "coordinates": 0}, "coordinates"),
    "more coordinates than there are": ({"norm": 0, "coordinates": 7}, "coordinates"),
    "a fraction of a coordinate": ({"norm": 0, "coordinates": 1.5}, "coordinates"),
    "a radius below 0": ({"radius": -0.1, "norm": 2}, "radii"),
    "a radius that is no number": ({"radius": NAN, "norm": 1}, "radii"),
    "an infinite radius": ({"radius": INF}, "radii"),
    "an infinite radius in norm 2": ({"radius": INF, "norm": 2, "domain": (-9, 9)}, "radii"),
    "an infinite radius and domain": ({"radius": INF, "domain": (-INF, INF)}, "domain"),
    "radii of a wrong shape": ({"radius": [0.1] * 5}, "shape (5,)"),
    "radii for other samples": ({"radius": np.ones((3, 6))}, "shape (3, 6)"),
    "a domain without an end": ({"domain": (0.0,)}, "domain"),
    "a domain in words": ({"domain": ("low", "high")}, "domain"),
    "a domain that is crossed": ({"domain": (9.0, -9.0)}, "domain"),
    "a domain that is no number": ({"domain": (NAN, 9.0)}, "domain"),
    "a domain of a wrong shape": ({"domain": ([0.0] * 3, [1.0] * 3)}, "shape (3,)"),
    "data outside the domain": ({"domain": (0.0, 9.0)}, "samples outside it"),
    "an integer column of fractions": ({"integer": [0]}, "fractions in"),
    "an integer column that is none": ({"integer": [6]}, "integer columns"),
    "an integer column twice": ({"integer": [2, 2]}, "integer columns"),
    "a group that is not one-hot": ({"categorical": [(0, 1)]}, "one-hot"),
    "a group of one column": ({"categorical": [(3,)]}, "one-hot"),
    "groups that share a column": ({"categorical": [GROUP, (5, 4)]}, "categorical columns"),
    "a group outside the data": ({"categorical": [(5, 6)]}, "categorical columns"),
    "integer and categorical": ({"integer": [3], "categorical": [GROUP]}, "in both"),
    "missing values in norm 1": ({"missing": 0.0, "norm": 1}, "missing"),
    "missing values of a category": ({"missing": {3: 0.0}, "categorical": [GROUP]}, "missing"),
    "a missing value that is no number": ({"missing": NAN}, "missing"),
    "a missing value in words": ({"missing": "none"}, "missing"),
    "a missing column that is none": ({"missing": {9: 0.0}}, "missing columns"),
    "rows of a wrong shape": ({"rows": ([[1.0] * 5], [1.0])}, "(1, 5)"),
    "limits of a wrong shape": ({"rows": ([[1.0] * 6], [1.0, 1.0])}, "(2,)"),
    "limits that forbid no move": ({"rows": ([[1.0] * 6], [-1.0])}, "below 0"),
    "rows that are no numbers": ({"rows": ([[NAN] * 6], [1.0])}, "finite number"),
    "rows in words": ({"rows": ([["a"] * 6], [1.0])}, "rows (A, b)"),
    "rows without limits": ({"rows": ([[1.0] * 6],)}, "rows (A, b)"),
    "an impossible budget": ({"budget": 8}, "data set of 7"),
    "a budget beyond the samples": ({"budget": 2, "samples": [3]}, "only 1 samples"),
    "no samples": ({"samples": []}, "0 samples"),
    "samples that are no list": ({"samples": 3}, "samples"),
    "samples in words": ({"samples": "all"}, "samples"),
    "an array without an axis": ({"samples": np.array(3)}, "array(3)"),
    "ids without an axis": ({"ids": torch.tensor(3)}, "tensor(3)"),
}


@pytest.mark.parametrize("name", BAD_FEATURES)
def test_features_that_cannot_be_poisoned_so(name: str) -> None:
    options, found = BAD_FEATURES[name]
    for kind in (agt.FeaturePoisoning, agt.FeatureLabelPoisoning):
        case, _, _ = problem(kind(**({"budget": 1, "radius": 0.1} | options)))
        with refused(kind.__name__, said=found, kind=InvalidThreatModelError):
            case.certify()


BAD_LABELS: dict[str, tuple[str, dict[str, Any], str]] = {
    "a class that does not exist": ("cross_entropy", {"target": 3}, "0..2"),
    "a class below 0": ("cross_entropy", {"target": -1}, "0..2"),
    "half a class": ("bce", {"target": 0.5}, "0..1"),
    "a class in words": ("bce", {"target": "cat"}, "0..1"),
    "a class twice": ("cross_entropy", {"target": [1, 1]}, "0..2"),
    "no class": ("cross_entropy", {"target": []}, "0..2"),
    "a radius of classes": ("cross_entropy", {"radius": 0.1}, "radius"),
    "a norm of classes": ("cross_entropy", {"norm": 2}, "norm"),
    "a target of a regression": ("mse", {"radius": 0.1, "target": 0}, "target"),
    "norm 0 of a regression": ("mse", {"radius": 0.1, "norm": 0}, "norm 0"),
    "a regression without a radius": ("mse", {}, "radius"),
    "radii of other outputs": ("mse", {"radius": [0.1] * 3}, "shape (3,)"),
    "an infinite move": ("mse", {"radius": INF}, "radii"),
}


@pytest.mark.parametrize("name", BAD_LABELS)
def test_labels_that_cannot_be_poisoned_so(name: str) -> None:
    loss, options, found = BAD_LABELS[name]
    case, _, _ = problem(agt.LabelPoisoning(1, **options), loss)
    with refused(said=found, kind=InvalidThreatModelError):
        case.certify()
    renamed = {"radius": "label_radius", "norm": "label_norm", "target": "target"}
    both = {renamed[key]: value for key, value in options.items()}
    case, _, _ = problem(agt.FeatureLabelPoisoning(1, 0.1, **both), loss)
    with refused(said=found, kind=InvalidThreatModelError):
        case.certify()


def test_samples_that_have_gone_missing_are_named() -> None:
    case, _, _ = problem(agt.FeaturePoisoning(1, 0.1))
    case.features[[2, 5], 1] = NAN
    with refused(said="samples 2, 5"):
        case.certify()


def test_as_many_samples_as_features_must_say_which_is_meant() -> None:
    six = np.linspace(0.05, 0.1, 6)
    case, _, _ = problem(agt.FeaturePoisoning(1, six), samples=6)
    with refused(said="as many samples as features", kind=InvalidThreatModelError):
        case.certify()
    for radius in (six[:, None], np.broadcast_to(six, (6, 6))):
        problem(agt.FeaturePoisoning(1, radius), samples=6)[0].certify(relaxation="interval")


def test_trusted_samples_may_lie_outside_the_domain_and_have_fractions() -> None:
    open_ = [i for i, x in enumerate(data()) if bool((x >= 0).all())]
    threat = agt.FeaturePoisoning(1, INF, domain=(0.0, 4.0), samples=open_[:2])
    case, test, labels = problem(threat)
    assert len(open_) < len(case.features)
    assert_sound(case, test, labels)


@pytest.mark.parametrize("static", [True, False])
def test_a_budget_above_a_batch_is_the_whole_batch(static: bool) -> None:
    found = [
        widths(agt.FeaturePoisoning(k, 0.05, scope="batch", static=static), batch_size=2)
        for k in (1, 2, 3, 7)
    ]
    assert found[0] < found[1]
    assert found[1] == found[2] == found[3]


CLAIMS = {
    "0.2 in the norm 2": agt.FeaturePoisoning(1, 0.2, norm=2),
    "in at most 3 coordinates": agt.FeaturePoisoning(1, 0.2, norm=0, coordinates=3),
    "inside their domain": agt.FeaturePoisoning(1, 0.2, domain=(-2.0, 4.0)),
    "whole numbers in 1 column": agt.FeaturePoisoning(1, 0.2, integer=[COUNT]),
    "1 categorical feature": agt.FeaturePoisoning(1, 0.2, categorical=[GROUP]),
    "missing": agt.FeaturePoisoning(1, 0.2, missing=0.0),
    "under 1 linear row": agt.FeaturePoisoning(1, 0.2, rows=([[1.0] * 6], [1.0])),
    "replaced by class 1": agt.LabelPoisoning(1, target=1),
    "one of the classes 0, 1": agt.FeatureLabelPoisoning(1, 0.1, target=[0, 1]),
}


@pytest.mark.parametrize("words", CLAIMS)
def test_the_claim_says_what_may_move(words: str) -> None:
    result, _ = problem(CLAIMS[words])[0].certify(relaxation="interval")
    assert words in result.claim


def test_the_moves_on_the_page_of_examples_are_threat_models() -> None:
    page = Path(__file__).resolve().parent.parent / "examples" / "README.md"
    text = page.read_text(encoding="utf-8")
    (block,) = re.findall(r"as they come:\n\n```\n(.*?)```", text, re.DOTALL)
    known = {name: getattr(agt, name) for name in agt.__all__}
    made = [eval(line, known) for line in block.splitlines()]
    assert len(made) == 9
    assert all(isinstance(threat.describe(), str) for threat in made)
