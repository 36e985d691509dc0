"""Whole runs under attack: nothing that an admissible poisoning reaches lies outside a bound."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from attacks import (
    Attacks,
    Certified,
    Problem,
    Replay,
    assert_inside,
    assert_properties,
    assert_sound,
    assert_torch_agrees,
    network,
    outside,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import milp_agt as agt
from milp_agt import bounding
from milp_agt.attacks.unrolled import Poisoning
from milp_agt.core.restriction import Restriction
from milp_agt.engines import adversary, joint, relaxed
from milp_agt.engines.adversary import worst_sum
from milp_agt.errors import SoundnessError
from milp_agt.formulations import bilinear
from milp_agt.reachable import ReachableSet
from milp_agt.training import Training

OUTPUTS = {"mse": 2, "bce": 1, "hinge": 1, "cross_entropy": 3}


def data(loss: str, count: int = 6, width: int = 2, seed: int = 0, outputs: int | None = None):
    """Training and test data, with labels for the loss."""
    outputs = OUTPUTS[loss] if outputs is None else outputs
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2 * count, width, generator=generator, dtype=torch.float64)
    if loss == "mse":
        y = torch.randn(2 * count, outputs, generator=generator, dtype=torch.float64)
    else:
        y = torch.randint(max(outputs, 2), (2 * count,), generator=generator)
    return x[:count], y[:count], x[count:], y[count:]


def threat(kind: str, loss: str, budget: int = 2, radius: Any = 0.1, **options: Any) -> Any:
    moved = 0.3 if loss == "mse" else None
    if kind == "features":
        return agt.FeaturePoisoning(budget, radius, **options)
    if kind == "labels":
        return agt.LabelPoisoning(budget, moved, **options)
    return agt.FeatureLabelPoisoning(budget, radius, label_radius=moved, **options)


def problem(
    loss: str,
    kind: str,
    training: dict[str, Any] | None = None,
    hidden=(3,),
    activation: type[nn.Module] = nn.ReLU,
    seed: int = 0,
    outputs: int | None = None,
    count: int = 6,
    **options: Any,
):
    x, y, test, labels = data(loss, count=count, seed=seed, outputs=outputs)
    out = OUTPUTS[loss] if outputs is None else outputs
    model = network((2, *hidden, out), activation, seed=seed)
    run = Training(loss=loss, **({"learning_rate": 0.3, "epochs": 3} | (training or {})))
    return Problem(model, x, y, run, threat(kind, loss, **options)), test, labels


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
@pytest.mark.parametrize("scope", ["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
@pytest.mark.parametrize("kind", ["features", "labels", "both"])
@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy", "hinge"])
def test_every_threat_and_loss(loss, kind, static, scope, relaxation) -> None:
    run = {"batch_size": 4, "epochs": 2, "shuffle_seed": 1}
    case, test, labels = problem(loss, kind, run, static=static, scope=scope)
    inner_bounds = None if relaxation == "interval" else "linear"
    assert_sound(case, test, labels, relaxation=relaxation, inner_bounds=inner_bounds)


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
@pytest.mark.parametrize("hidden", [(), (3,), (3, 2), (2, 3, 2)], ids=str)
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
def test_every_depth_and_activation(activation, hidden, relaxation) -> None:
    case, test, labels = problem(
        "cross_entropy",
        "both",
        hidden=hidden,
        activation=activation,
        outputs=2,
        seed=2,
        radius=0.02,
    )
    assert_sound(case, test, labels, relaxation=relaxation)


OPTIMISERS = {
    "momentum": {"momentum": 0.9},
    "nesterov": {"momentum": 0.5, "nesterov": True},
    "decay": {"weight_decay": 0.1},
    "decay beyond 1 / rate": {"weight_decay": 5.0},
    "decay with momentum": {"weight_decay": 4.0, "momentum": 0.6, "nesterov": True},
    "decay at 1 / rate": {"learning_rate": 0.1, "weight_decay": 10.0},
    "inverse time": {"schedule": agt.InverseTimeDecay(0.5, 0.1)},
    "listed rates": {"schedule": [0.5, 0.1, 0.7, 0.2, 0.3, 0.1]},
    "mini-batches": {"batch_size": 4, "epochs": 2, "momentum": 0.9},
    "recorded batches": {"batches": [[0, 2, 4], [5], [1, 2, 3, 0]], "epochs": 1},
}


@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
@pytest.mark.parametrize("relaxation", ["interval", "linear"])
@pytest.mark.parametrize("options", list(OPTIMISERS.values()), ids=list(OPTIMISERS))
def test_every_optimiser_option(options, relaxation, static) -> None:
    case, test, labels = problem("bce", "both", options, radius=0.05, seed=3, static=static)
    assert_sound(case, test, labels, relaxation=relaxation)


PROGRAMS = {
    "lp": {"relaxation": "lp", "window": 1},
    "lp, two steps": {"relaxation": "lp", "window": 2, "program_window": 2},
    "milp": {"relaxation": "milp", "window": 1},
}
PROGRAM_CASES = [
    pytest.param(options, id=name, marks=() if name == "lp" else pytest.mark.slow)
    for name, options in PROGRAMS.items()
]
EXPENSIVE = pytest.param("lp", marks=pytest.mark.slow)
MORE_EXPENSIVE = pytest.param("milp", marks=pytest.mark.slow)


@pytest.mark.parametrize("options", PROGRAM_CASES)
@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy", "hinge"])
def test_programs_of_every_loss(loss, options) -> None:
    case, test, labels = problem(
        loss, "both", {"epochs": 2}, hidden=(2,), count=3, budget=1, radius=0.05, outputs=None
    )
    assert_sound(case, test, labels, **options)


@pytest.mark.parametrize("options", PROGRAM_CASES)
@pytest.mark.parametrize("scope", ["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
def test_programs_of_every_threat(static, scope, options) -> None:
    run = {"batch_size": 2, "epochs": 1, "momentum": 0.5, "weight_decay": 0.1, "shuffle_seed": 0}
    case, test, labels = problem(
        "bce", "both", run, hidden=(2,), count=3, budget=1, radius=0.05, static=static, scope=scope
    )
    assert_sound(case, test, labels, **options)


@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize(
    ("loss", "inner_bounds"),
    [("bce", "interval"), pytest.param("cross_entropy", "linear", marks=pytest.mark.slow)],
)
def test_programs_of_every_activation(loss, inner_bounds, activation) -> None:
    outputs = 2 if loss == "cross_entropy" else 1
    case, test, labels = problem(
        loss, "features", {"epochs": 2}, (2,), activation, count=3, budget=1, outputs=outputs
    )
    assert_sound(case, test, labels, relaxation="lp", inner_bounds=inner_bounds)


@pytest.mark.parametrize("window", [1, 2, None])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
def test_every_window(window, static) -> None:
    run = {"batch_size": 2, "epochs": 2, "momentum": 0.5, "shuffle_seed": 4}
    case, test, labels = problem("bce", "both", run, seed=4, radius=0.05, static=static)
    assert_sound(case, test, labels, relaxation="linear", window=window)


@pytest.mark.parametrize("options", [{"relaxation": "interval"}, {}, {"relaxation": "lp"}], ids=str)
def test_a_box_of_initial_parameters(options) -> None:
    case, test, labels = problem("bce", "features", {"momentum": 0.5}, (2,), count=4, budget=1)
    box = {
        name: (value.detach() - 0.01, value.detach() + (0.02 if "weight" in name else 0.0))
        for name, value in case.model.named_parameters()
    }
    case = replace(case, initial=box)
    assert_sound(case, test, labels, attacks=128, **options)


EDGES = {
    "budget 0": {"budget": 0},
    "budget n": {"budget": 6},
    "radius 0": {"radius": 0.0},
    "zeros in the radius": {"radius": [0.0, 0.2]},
    "named samples": {"samples": [1, 4, 5]},
    "one named sample": {"samples": [3], "budget": 1},
    "a huge radius": {"radius": 10.0},
    "a tiny radius": {"radius": 1e-12},
}


@pytest.mark.parametrize("relaxation", ["interval", "linear", EXPENSIVE])
@pytest.mark.parametrize("options", list(EDGES.values()), ids=list(EDGES))
def test_edges_of_the_threat(options, relaxation) -> None:
    run = {"batch_size": 4, "epochs": 1}
    hidden = (2,) if relaxation == "lp" else (3,)
    for kind in ("features", "both"):
        case, test, labels = problem("bce", kind, run, hidden, **options)
        assert_sound(case, test, labels, attacks=24, iterations=2, relaxation=relaxation)


DATA = {
    "identical samples": lambda x: x[:1].expand(x.shape).clone(),
    "zero features": torch.zeros_like,
    "a constant feature": lambda x: torch.cat([x[:, :1], torch.ones_like(x[:, 1:])], 1),
    "large": lambda x: 1e3 * x,
    "small": lambda x: 1e-9 * x,
    "cancelling": lambda x: torch.cat([x[:3], -x[:3]]),
}


@pytest.mark.parametrize("relaxation", ["interval", "linear", EXPENSIVE])
@pytest.mark.parametrize("change", list(DATA.values()), ids=list(DATA))
def test_edges_of_the_data(change, relaxation) -> None:
    hidden = (2,) if relaxation == "lp" else (3,)
    case, test, labels = problem("bce", "both", {"epochs": 2}, hidden, radius=0.01)
    case = replace(case, features=change(case.features))
    assert_sound(case, test, labels, attacks=24, iterations=2, relaxation=relaxation)


@pytest.mark.parametrize("relaxation", ["interval", "linear", "lp", MORE_EXPENSIVE])
@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU])
@pytest.mark.parametrize("budget", [0, 1])
def test_a_sample_exactly_on_a_kink(relaxation, activation, budget) -> None:
    model = network((2, 2, 1), activation)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0], [1.0, 1.0]]))
        model[0].bias.copy_(torch.tensor([0.0, -2.0]))
    x = torch.tensor([[1.0, 1.0], [0.5, 0.5], [2.0, 0.0], [0.25, -1.0]], dtype=torch.float64)
    y = torch.tensor([1, 0, 1, 0])
    run = Training(loss="bce", learning_rate=0.5, epochs=2)
    case = Problem(model, x, y, run, agt.FeaturePoisoning(budget, 0.01))
    assert_sound(case, x, y, relaxation=relaxation)


@pytest.mark.parametrize("relaxation", ["interval", "linear", "lp"])
def test_hinge_exactly_on_its_kink(relaxation) -> None:
    model = network((1, 1), nn.ReLU)
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[0].bias.fill_(0.0)
    x = torch.tensor([[1.0], [-1.0], [0.5]], dtype=torch.float64)
    y = torch.tensor([1, 0, 1])
    run = Training(loss="hinge", learning_rate=0.5, epochs=3)
    case = Problem(model, x, y, run, agt.FeatureLabelPoisoning(1, 0.01))
    assert_sound(case, x, y, relaxation=relaxation)


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy", "hinge"])
def test_midpoint_radius_products(loss, relaxation, monkeypatch) -> None:
    monkeypatch.setattr(bilinear, "EXACT_PRODUCTS_LIMIT", 0)
    case, test, labels = problem(loss, "both", {"momentum": 0.5}, (3, 2), radius=0.02)
    assert_sound(case, test, labels, relaxation=relaxation)


@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
@pytest.mark.parametrize("samples", [None, [4, 5]], ids=["all", "closed fragments"])
@pytest.mark.parametrize("loss", ["mse", "bce", "cross_entropy", "hinge"])
def test_fragments_of_a_batch_change_nothing(loss, samples, static, monkeypatch) -> None:
    run = {"momentum": 0.5, "epochs": 2}
    case, test, labels = problem(
        loss, "both", run, seed=5, radius=0.02, samples=samples, static=static
    )
    # The walks of inner bounds go through the fragments of past steps, too.
    options = {"relaxation": "linear", "inner_bounds": "linear" if loss == "bce" else "interval"}
    whole, _ = case.certify(**options)
    honest, sizes = bounding.relax_step, []

    def cut(*arguments: Any) -> Any:
        sizes.append(len(honest(*arguments[:-1], 2).fragments))
        return honest(*arguments[:-1], 2)

    monkeypatch.setattr(bounding, "relax_step", cut)
    pieces = assert_sound(case, test, labels, attacks=24, iterations=2, **options)
    assert set(sizes) == {3}
    for name, low in whole.reachable.lower.items():
        room = 1e-9 * (1 + whole.reachable.upper[name] - low)
        assert (abs(pieces.reachable.lower[name] - low) <= room).all()
        assert (abs(pieces.reachable.upper[name] - whole.reachable.upper[name]) <= room).all()


RESTRICTIONS = [
    Restriction(inside=frozenset({1})),
    Restriction(outside=frozenset({0, 5})),
    Restriction(inside=frozenset({4}), outside=frozenset({2, 3})),
    Restriction(inside=frozenset({0, 3})),
]


@pytest.mark.parametrize("scope", ["dataset", "batch"])
@pytest.mark.parametrize("static", [True, False], ids=["static", "adaptive"])
@pytest.mark.parametrize("relaxation", ["interval", "linear", EXPENSIVE])
@pytest.mark.parametrize("restriction", RESTRICTIONS, ids=str)
def test_restrictions(restriction, relaxation, static, scope) -> None:
    run = {"batch_size": 4, "epochs": 1 if relaxation == "lp" else 2}
    hidden = (2,) if relaxation == "lp" else (3,)
    case, test, labels = problem("bce", "both", run, hidden, static=static, scope=scope)
    case = replace(case, restriction=restriction)
    assert_sound(
        case, test, labels, attacks=24, iterations=2, relaxation=relaxation, in_torch=False
    )


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_the_choices_of_one_sample_cover_budget_one(relaxation) -> None:
    case, test, labels = problem("bce", "features", budget=1, radius=0.05)
    whole, _ = case.certify(relaxation=relaxation)
    parts = []
    for sample in range(len(case.features)):
        others = frozenset(range(len(case.features))) - {sample}
        part = replace(case, restriction=Restriction(frozenset({sample}), others))
        parts.append(part.certify(relaxation=relaxation)[1])
    replay = Replay(case)
    generator = torch.Generator().manual_seed(0)
    for attack in replay.all(generator, test, labels):
        for t, state in enumerate(replay.run(attack)):
            covered = None
            for boxes in parts:
                inside = torch.ones(len(next(iter(state.values()))), dtype=torch.bool)
                for name, value in state.items():
                    low, high = (
                        torch.from_numpy(e[name]) for e in (boxes[t].lower, boxes[t].upper)
                    )
                    inside &= ((low <= value) & (value <= high)).flatten(1).all(1)
                covered = inside if covered is None else covered | inside
            assert covered is not None
            assert covered.all()
    widest = max(boxes[-1].mean_width for boxes in parts)
    assert widest <= whole.reachable.mean_width * (1 + 1e-9)


def tiny(threat: Any, loss: str = "bce", epochs: int = 3) -> Problem:
    model = network((2, 2, 1), seed=7)
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(4, 2, generator=generator, dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0])
    return Problem(model, x, y, Training(loss=loss, learning_rate=0.5, epochs=epochs), threat)


def enumerated(case: Problem, moves: list[list[tuple[Any, Any]]], budget: int) -> Attacks:
    """Every choice of up to ``budget`` samples and of one move for each of them."""
    replay = Replay(case)
    features, labels = [], []
    for count in range(budget + 1):
        for chosen in itertools.combinations(range(len(case.features)), count):
            for combination in itertools.product(*(moves[i] for i in chosen)):
                x, y = replay.poison.features.clone(), replay.poison.labels.clone()
                for sample, (dx, dy) in zip(chosen, combination, strict=True):
                    x[sample] = x[sample] + dx
                    y[sample] = y[sample] + dy
                features.append(x)
                labels.append(y)
    start = replay.start(len(features), torch.Generator())
    poisoning = Poisoning((torch.stack(features),), (torch.stack(labels),))
    return Attacks(replay.unrolled, poisoning, start)


FLIPS = [
    pytest.param(
        budget,
        loss,
        relaxation,
        marks=[pytest.mark.slow]
        if relaxation == "milp" or (relaxation == "lp" and (budget, loss) != (2, "bce"))
        else [],
    )
    for budget in (1, 2)
    for loss in ("bce", "hinge")
    for relaxation in ("interval", "linear", "lp", "milp")
]


@pytest.mark.parametrize(("budget", "loss", "relaxation"), FLIPS)
def test_every_label_flip_of_a_tiny_run(relaxation, loss, budget) -> None:
    case = tiny(agt.LabelPoisoning(budget), loss, epochs=2 if relaxation == "milp" else 3)
    flips = [[(0.0, 1.0 - 2.0 * float(label))] for label in case.labels]
    attacks = enumerated(case, flips, budget)
    result, boxes = case.certify(relaxation=relaxation)
    replay = Replay(case)
    states = replay.run(attacks)
    assert len(states[0]["0.weight"]) == {1: 5, 2: 11}[budget]
    assert_inside(boxes, states)
    assert_properties(replay, Certified.of(result, case.features, case.labels), states[-1])
    assert_torch_agrees(replay, attacks, boxes, range(5))


@pytest.mark.parametrize("relaxation", ["interval", "linear", "lp"])
def test_every_feature_corner_of_a_tiny_run(relaxation) -> None:
    radius = 0.1
    case = tiny(agt.FeaturePoisoning(2, radius))
    signs = list(itertools.product((-radius, radius), repeat=2))
    corners = [[(torch.tensor(s, dtype=torch.float64), 0.0) for s in signs]] * 4
    attacks = enumerated(case, corners, 2)
    result, boxes = case.certify(relaxation=relaxation)
    replay = Replay(case)
    states = replay.run(attacks)
    assert len(states[0]["0.weight"]) == 1 + 4 * 4 + 6 * 16
    assert_inside(boxes, states)
    assert_properties(replay, Certified.of(result, case.features, case.labels), states[-1])


@settings(derandomize=True, deadline=None, max_examples=20, database=None)
@given(
    loss=st.sampled_from(["mse", "bce", "cross_entropy", "hinge"]),
    kind=st.sampled_from(["features", "labels", "both"]),
    hidden=st.sampled_from([(), (2,), (3, 2)]),
    activation=st.sampled_from([nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh]),
    run=st.fixed_dictionaries(
        {
            "learning_rate": st.sampled_from([0.01, 0.3, 1.5]),
            "epochs": st.integers(1, 3),
            "batch_size": st.sampled_from([None, 2, 3]),
            "shuffle_seed": st.sampled_from([None, 1]),
            "momentum": st.sampled_from([0.0, 0.5, 0.9]),
            "weight_decay": st.sampled_from([0.0, 0.1, 2.0]),
        }
    ),
    budget=st.integers(0, 4),
    radius=st.sampled_from([0.0, 1e-9, 0.01, 0.3]),
    static=st.booleans(),
    scope=st.sampled_from(["dataset", "batch"]),
    relaxation=st.sampled_from(["interval", "linear"]),
    window=st.sampled_from([None, 1, 2]),
    seed=st.integers(0, 10_000),
)
def test_random_configurations(
    loss, kind, hidden, activation, run, budget, radius, static, scope, relaxation, window, seed
) -> None:
    case, test, labels = problem(
        loss,
        kind,
        run,
        hidden,
        activation,
        seed,
        count=4,
        budget=budget,
        radius=radius,
        static=static,
        scope=scope,
    )
    assert_sound(
        case,
        test,
        labels,
        attacks=24,
        iterations=2,
        seed=seed,
        relaxation=relaxation,
        window=window,
    )


def caught(case: Problem, boxes: list[Any], test: Any, labels: Any, iterations: int = 6) -> bool:
    replay = Replay(case)
    generator = torch.Generator().manual_seed(0)
    for attack in replay.all(generator, test, labels, 64, iterations, largest=50):
        if any(outside(box, s) for box, s in zip(boxes, replay.run(attack), strict=True)):
            return True
    return False


def shrunk(box: ReachableSet, share: float) -> Any:
    middle = {n: 0.5 * (box.lower[n] + box.upper[n]) for n in box.lower}
    keep = 1.0 - share
    lower = {n: middle[n] + keep * (box.lower[n] - middle[n]) for n in box.lower}
    upper = {n: middle[n] + keep * (box.upper[n] - middle[n]) for n in box.lower}
    return SimpleNamespace(lower=lower, upper=upper)


def regression(kind: str) -> tuple[Problem, Any, Any]:
    case, test, labels = problem(
        "mse", kind, {"epochs": 1, "learning_rate": 0.1}, (), outputs=1, radius=0.05, budget=2
    )
    return case, test, labels


@pytest.mark.parametrize("kind", ["features", "labels"])
def test_attacks_catch_a_box_one_per_cent_too_tight(kind) -> None:
    case, test, labels = regression(kind)
    _, boxes = case.certify(relaxation="linear")
    assert not caught(case, boxes, test, labels)
    assert caught(case, [shrunk(b, 0.01) for b in boxes], test, labels)


def test_attacks_catch_a_dropped_charge(monkeypatch) -> None:
    def uncharged(self: Any, *arguments: Any) -> Any:
        return torch.zeros_like(honest(self, *arguments))

    honest = relaxed.Offsets._charges
    monkeypatch.setattr(relaxed.Offsets, "_charges", uncharged)
    escaped = False
    for seed in range(6):
        case, test, labels = problem(
            "bce", "features", {"epochs": 4, "learning_rate": 1.0}, (4,), seed=seed, radius=0.5
        )
        try:
            _, boxes = case.certify(relaxation="linear")
        except SoundnessError:
            continue
        escaped = escaped or caught(case, boxes, test, labels)
    assert escaped


def test_attacks_catch_a_budget_one_too_small(monkeypatch) -> None:
    case, test, labels = regression("labels")
    monkeypatch.setattr(adversary, "worst_sum", lambda hurt, budget: worst_sum(hurt, budget - 1))
    monkeypatch.setattr(joint, "worst_sum", lambda hurt, budget: worst_sum(hurt, budget - 1))
    _, boxes = case.certify(relaxation="linear")
    assert caught(case, boxes, test, labels)
