"""Gradients of the losses are the formulas; the softmax box is exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from instances import Long

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
