"""The first layer on poisoned features: jointly bounded, still around everything that is reached."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attacks import network
from test_threats import FEATURES, data, problem, widths
from torch import Tensor

import milp_agt as agt
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.interval.bound_propagation import meet_jointly
from milp_agt.bounds.step import NodeOrder
from milp_agt.core.graph import Node
from milp_agt.core.interval import POISONED, Interval
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES as LEAF
from milp_agt.training.tracing import trace

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
    for name, low in whole.reachable.lower.items():
        assert (low == pieces.reachable.lower[name]).all()
