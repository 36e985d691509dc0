"""What poisoned data look like under any options, and the first layer on them, jointly bounded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_inside, network
from boxes import assert_same
from hypothesis import given, settings
from hypothesis import strategies as st
from test_threats import COUNT, DOMAIN, FEATURES, GROUP, data, problem, widths
from torch import Tensor

import milp_agt as agt
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.interval.bound_propagation import meet_jointly
from milp_agt.bounds.step import NodeOrder
from milp_agt.core.graph import Node
from milp_agt.core.interval import POISONED, Interval
from milp_agt.formulations.loss import get_loss
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES as LEAF
from milp_agt.training.tracing import trace

SAMPLES, SIZE, ROUNDING = 7, 6, 1e-12
OPEN = [0, 2, 3, 6]
ROWS = ([[1.0, 1.0, 0, 0, 0, 0], [-1.0, 0.5, 0.2, 0, 0, 0]], [0.05, 0.1])


@dataclass(frozen=True)
class Case:
    """Options, and the radius of every entry that they mean."""

    options: dict[str, Any]
    radius: np.ndarray
    fills: dict[int, float]

    def bind(self, budget: int = 4) -> Poison:
        threat = agt.FeaturePoisoning(budget, samples=OPEN, **self.options)
        return threat.bind(data(), torch.zeros(SAMPLES, 1).double(), get_loss("bce"))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    norm = draw(st.sampled_from(["inf", 2, 1, 0]))
    options: dict[str, Any] = {"norm": norm}
    # Shorter ones would be lost in the rounding of x + move.
    lengths = st.one_of(st.just(0.0), st.floats(0.01, 2.0))
    kind = draw(st.sampled_from(["one", "feature", "sample", "entry"]))
    if kind == "one":
        options["radius"] = draw(lengths)
        radius = np.full((SAMPLES, SIZE), options["radius"])
    else:
        shape = {"feature": (SIZE,), "sample": (SAMPLES,), "entry": (SAMPLES, SIZE)}[kind]
        options["radius"] = np.array(draw(st.lists(lengths, min_size=42, max_size=42)))[
            : int(np.prod(shape))
        ].reshape(shape)
        column = options["radius"][:, None] if kind == "sample" else options["radius"]
        radius = np.broadcast_to(column, (SAMPLES, SIZE))
    if norm == 0:
        options["coordinates"] = draw(st.integers(1, 3))
    if draw(st.booleans()):
        options["domain"] = DOMAIN
    if draw(st.booleans()):
        options["integer"] = [COUNT]
    if draw(st.booleans()):
        options["categorical"] = [GROUP]
    fills: dict[int, float] = {}
    if norm in ("inf", 0) and draw(st.booleans()):
        options["missing"] = fills = {0: 0.25, COUNT: -1.5}
    if draw(st.booleans()):
        options["rows"] = ROWS
    return Case(options, radius, fills)


def assert_as_said(case: Case, poisoned: torch.Tensor) -> None:
    """Poisoned data (attacks, N, size) are what the options admit."""
    options, x, new = case.options, data().numpy(), poisoned.numpy()
    moves = new - x
    closed = [i for i in range(SAMPLES) if i not in OPEN]
    assert (moves[:, closed] == 0).all()
    blank = np.zeros(new.shape, dtype=bool)
    for column, value in case.fills.items():
        blank[..., column] = np.abs(new[..., column] - value) <= ROUNDING
    if "domain" in options:
        low, high = (np.asarray(end) for end in DOMAIN)
        slack = ROUNDING if case.fills else 0.0
        inside = (low - slack <= new) & (new <= high + slack)
        assert (inside | blank | (moves == 0)).all()
    if "integer" in options:
        assert ((new[..., COUNT] == np.round(new[..., COUNT])) | blank[..., COUNT]).all()
    counted = np.ones(SIZE, dtype=bool)
    changed = (moves != 0).sum(-1)
    if "categorical" in options:
        group = new[..., list(GROUP)]
        assert (((group == 0) | (group == 1)).all(-1) & (group.sum(-1) == 1)).all()
        counted[list(GROUP)] = False
        changed = (moves[..., counted] != 0).sum(-1) + (moves[..., ~counted] != 0).any(-1)
    own = np.where(blank | ~counted, 0.0, moves)
    assert (np.abs(own) <= case.radius + ROUNDING).all()
    if options["norm"] == 0:
        assert (changed <= options["coordinates"]).all()
    if options["norm"] in (1, 2):
        shares = own / np.where(case.radius > 0, case.radius, 1.0)
        shares = np.where(np.abs(own) <= ROUNDING, 0.0, shares)
        assert (np.linalg.norm(shares, ord=options["norm"], axis=-1) <= 1 + 1e-9).all()
    if "rows" in options:
        matrix, limits = (np.asarray(part) for part in ROWS)
        assert (moves @ matrix.T <= limits + ROUNDING).all()


@settings(max_examples=100, deadline=None, derandomize=True)
@given(case=cases(), seed=st.integers(0, 2**16))
def test_poisoned_data_are_what_the_options_say(case: Case, seed: int) -> None:
    poison = case.bind()
    generator = torch.Generator().manual_seed(seed)
    everyone = torch.ones(20, SAMPLES, 1, dtype=torch.bool)
    drawn = [poison.sample_moves(generator, everyone, corners)[0] for corners in (True, False)]
    on = torch.randn(20, SAMPLES, SIZE, generator=generator, dtype=torch.float64)
    best, _, gains = poison.steepest(on, torch.zeros(20, SAMPLES, 1).double())
    far = data() + torch.randn(20, SAMPLES, SIZE, generator=generator, dtype=torch.float64)
    near, _ = poison.project(far, poison.labels.expand(20, SAMPLES, 1))
    worst_case = poison.support(-on, None)
    box = poison.feature_box()
    for poisoned in (*drawn, best, near):
        assert_as_said(case, poisoned)
        gained = (on * (poisoned - poison.features)).sum(-1)
        assert bool((gained <= worst_case + 1e-12 * (1 + worst_case)).all())
        assert bool((box.lower[-1] <= poisoned).all() and (poisoned <= box.upper[-1]).all())
    assert bool((gains[..., 0] <= worst_case + 1e-12 * (1 + worst_case)).all())
    assert poison.feature_moves is not None
    if poison.feature_moves.is_exact:
        assert torch.allclose(gains[..., 0], worst_case, rtol=1e-9, atol=1e-9)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(case=cases(), linear=st.booleans(), seed=st.integers(0, 2**16))
def test_trained_attacks_lie_inside_whatever_the_options(
    case: Case, linear: bool, seed: int
) -> None:
    """A step on a linear model, from poisoned data of two samples."""
    labels = torch.arange(SAMPLES) % 2
    run = agt.Training(loss="bce", learning_rate=0.5, epochs=2)
    threat = agt.FeaturePoisoning(2, samples=OPEN, **case.options)
    problem = Problem(network((6, 2, 1), seed=1), data(), labels, run, threat)
    _, boxes = problem.certify(relaxation="linear" if linear else "interval")
    replay = Replay(problem)
    generator = torch.Generator().manual_seed(seed)
    for corners in (True, False):
        assert_inside(boxes, replay.run(replay.random(64, generator, corners)))


JOINT = [name for name, o in FEATURES.items() if "norm" in o or "categorical" in o]


def first_product(threat: Any, width: float) -> tuple[Node, dict[str, Interval], Poison]:
    """The node ``W x``, the boxes of its inputs, and the data."""
    x = data()
    graph = trace(network((6, 3, 1)), "bce", (6,))
    labels = torch.zeros(len(x), 1, dtype=torch.float64)
    poison = threat.bind(x, labels, graph.loss)
    (node,) = [n for n in NodeOrder.of(graph).before if LEAF in n.inputs and "bias" not in n.name][
        :1
    ]
    assert node.inputs[1] == LEAF
    value = graph.initial[node.inputs[0]]
    generator = torch.Generator().manual_seed(1)
    down, up = (
        width * torch.rand(value.shape, generator=generator, dtype=torch.float64) for _ in "du"
    )
    weights = Interval((value - down).unsqueeze(0), (value + up).unsqueeze(0))
    return node, {node.inputs[0]: weights, LEAF: poison.feature_box()}, poison


def reached(boxes: dict[str, Interval], node: Node, poison: Poison) -> Tensor:
    """``W x`` at corners of W and at the moves that serve them best, (many, n, outputs)."""
    weights = boxes[node.inputs[0]]
    low, high = weights.lower[0], weights.upper[0]
    generator = torch.Generator().manual_seed(2)
    found = []
    moves = poison.feature_moves
    assert moves is not None
    everyone = torch.ones(200, len(poison.open), 1, dtype=torch.bool)
    for corners in (True, False):
        x, _ = poison.sample_moves(generator, everyone, corners)
        share = torch.rand(200, *low.shape, generator=generator, dtype=torch.float64).round()
        found.append(torch.einsum("ahd,and->anh", low + share * (high - low), x))
    for towards in (1.0, -1.0):
        for ends in (low, high, 0.5 * (low + high), torch.where(low + high > 0, high, low)):
            for row in ends:
                best = moves.maximise(towards * row.expand(1, len(poison.open), -1))[0]
                for weight in (low, high, ends, torch.where(best[0] > 0, high, low)):
                    found.append(torch.einsum("hd,nd->nh", weight, poison.features + best)[None])
    return torch.cat(found)


@pytest.mark.parametrize("width", [0.0, 0.1])
@pytest.mark.parametrize("name", JOINT)
def test_everything_reached_lies_inside(name: str, width: float) -> None:
    node, boxes, poison = first_product(agt.FeaturePoisoning(2, **FEATURES[name]), width)
    plain = node.op.interval(*(boxes[i] for i in node.inputs))
    box = meet_jointly(node, plain, boxes, poison)
    values = reached(boxes, node, poison)
    assert bool((box.lower[POISONED] <= values).all() and (values <= box.upper[POISONED]).all())
    assert bool((plain.lower <= box.lower).all() and (box.upper <= plain.upper).all())


@pytest.mark.parametrize("name", ["norm 2", "norm 1", "norm 0", "categories"])
def test_bounds_of_a_point_are_reached(name: str) -> None:
    """One per cent less would be too little."""
    node, boxes, poison = first_product(agt.FeaturePoisoning(2, **FEATURES[name]), 0.0)
    plain = node.op.interval(*(boxes[i] for i in node.inputs))
    box = meet_jointly(node, plain, boxes, poison)
    values = reached(boxes, node, poison)
    clean = torch.einsum("hd,nd->nh", boxes[node.inputs[0]].lower[0], poison.features)
    assert bool((values.amax(0) - clean >= 0.99 * (box.upper[POISONED] - clean)).all())
    assert bool((clean - values.amin(0) >= 0.99 * (clean - box.lower[POISONED])).all())


@pytest.mark.parametrize("name", ["norm 2", "norm 1", "norm 0", "categories, norm 1"])
def test_intervals_are_tighter_with_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    threat = agt.FeaturePoisoning(2, **FEATURES[name])
    with_it = widths(threat, "interval")
    monkeypatch.setattr(bound_propagation, "meet_jointly", lambda node, box, *rest: box)
    assert with_it < 0.9 * widths(threat, "interval")


def test_pieces_of_the_weights_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case, _, _ = problem(agt.FeaturePoisoning(2, 0.2, norm=1))
    whole, _ = case.certify(relaxation="interval")
    monkeypatch.setattr(bound_propagation, "ELEMENTS", 1)
    pieces, _ = case.certify(relaxation="interval")
    assert_same(whole.reachable, pieces.reachable)
