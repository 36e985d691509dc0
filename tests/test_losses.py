"""Gradients of the losses: the softmax box is exact. What forms of the outputs say of losses."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from draws import TOL
from instances import Long
from same_run import LOSSES, data_for

from milp_agt.core.graph import Graph
from milp_agt.core.interval import Interval
from milp_agt.formulations.leaves import Features, Labels
from milp_agt.formulations.loss import get_loss


def _gradient_graph(loss: str, outputs: int, width: int) -> tuple[Graph, str]:
    graph = Graph()
    prediction = graph.add(Features((outputs,)), name="f")
    labels = graph.add(Labels((width,)), name="y")
    return graph, get_loss(loss).gradient(graph, prediction, labels).name


def _gradient_box(loss: str, logits: Interval, labels: Interval) -> Interval:
    graph, name = _gradient_graph(loss, logits.lower.shape[-1], labels.lower.shape[-1])
    boxes = {"f": logits, "y": labels}
    for node in graph:
        if node.inputs:
            boxes[node.name] = node.op.interval(*(boxes[i] for i in node.inputs))
    return boxes[name]


def _softmax(f: np.ndarray) -> np.ndarray:
    e = np.exp(f.astype(Long) - f.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


LOGIT_BOXES = {
    "ordinary": lambda rng, k: (rng.normal(size=k), rng.random(k)),
    "point": lambda rng, k: (rng.normal(size=k), np.zeros(k)),
    "hundred": lambda rng, k: (100.0 * np.arange(k) + rng.normal(size=k), rng.random(k)),
    "thousand": lambda rng, k: (1000.0 * np.arange(k)[::-1] + rng.normal(size=k), rng.random(k)),
    "wide": lambda rng, k: (rng.normal(size=k), 500.0 * rng.random(k)),
    "large": lambda rng, k: (1e6 + rng.normal(size=k), rng.random(k)),
}


@pytest.mark.parametrize("kind", LOGIT_BOXES)
@pytest.mark.parametrize("classes", [2, 3, 5])
def test_softmax_box_is_exact(classes: int, kind: str) -> None:
    """Equal to the extremes over the corners of the box; in [0, 1] up to rounding; never NaN."""
    rng = np.random.default_rng(classes)
    centre, radius = LOGIT_BOXES[kind](rng, classes)
    low, high = centre - radius, centre + radius
    logits = Interval(torch.from_numpy(low)[None, None], torch.from_numpy(high)[None, None])
    found = _gradient_box(
        "cross_entropy", logits, Interval.point(torch.zeros(1, 1, classes).double())
    )
    lower, upper = found.lower[0, 0].numpy(), found.upper[0, 0].numpy()
    assert np.isfinite(lower).all()
    assert np.isfinite(upper).all()
    assert (lower >= -1e-13).all()
    assert (upper <= 1 + 1e-12).all()
    corners = np.array(list(itertools.product(*zip(low, high, strict=True))))
    values = _softmax(corners)
    allowed = 1e-13 * (1.0 + np.abs(centre).max())
    assert (lower <= values.min(0).astype(np.float64)).all()
    assert (upper >= values.max(0).astype(np.float64)).all()
    assert (lower >= values.min(0) - allowed).all()
    assert (upper <= values.max(0) + allowed).all()


# -----------------------------------------------------------------------------
# Linear forms of the outputs decide what a loss says: its bounds, and who is right.


@pytest.mark.parametrize("name", LOSSES)
def test_forms_decide_loss_and_correctness(name: str) -> None:
    """``of_forms`` at the forms' own values is the loss; margins are positive iff all is right."""
    loss, outputs = LOSSES[name]
    rule = get_loss(loss)
    rng = np.random.default_rng(1)
    f = torch.from_numpy(2.0 * rng.normal(size=(40, outputs)))
    _, raw = data_for(loss, outputs, samples=40)
    labels = rule.encode(raw, outputs)
    coefficients, constants = rule.forms(labels, outputs)
    forms = torch.einsum("nko,no->nk", coefficients.expand(40, -1, -1), f) + constants
    point = rule.of_forms(Interval.point(forms))
    expected = rule.value(f, labels)
    assert torch.allclose(point.lower, expected, atol=TOL.torch)
    assert torch.allclose(point.upper, expected, atol=TOL.torch)
    if rule.is_classification:
        predicted = (f[:, 0] > 0).long() if outputs == 1 else f.argmax(-1)
        assert torch.equal((forms > 0).all(-1), predicted == raw)
    else:
        assert torch.allclose(forms, f - labels)


@pytest.mark.parametrize("name", LOSSES)
def test_loss_bounds_from_boxes_of_forms(name: str) -> None:
    loss, outputs = LOSSES[name]
    rule = get_loss(loss)
    rng = np.random.default_rng(2)
    count = rule.forms(rule.encode(data_for(loss, outputs)[1], outputs), outputs)[0].shape[1]
    low = torch.from_numpy(3.0 * rng.normal(size=(20, count)))
    high = low + torch.from_numpy(3.0 * rng.random((20, count)))
    bound = rule.of_forms(Interval(low, high))
    assert bound.lower.shape == (20,)
    for _ in range(50):
        pick = low + (high - low) * torch.from_numpy(rng.random((20, count))).round()
        value = rule.of_forms(Interval.point(pick))
        assert bool((bound.lower <= value.lower + 1e-15).all())
        assert bool((value.upper <= bound.upper + 1e-15).all())
