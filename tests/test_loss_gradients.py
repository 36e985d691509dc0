"""Gradients of the losses are the formulas; the softmax box is exact."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from draws import TOL
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


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_softmax_formula(classes: int) -> None:
    """``p_j = 1 / (1 + sum_{k != j} exp(f_k - f_j))``; the gradient is ``softmax(f) - onehot(y)``."""
    from milp_agt.core.graph import evaluate

    rng = np.random.default_rng(0)
    f = torch.from_numpy(rng.normal(size=(6, classes)) * 5)
    labels = torch.from_numpy(rng.integers(0, classes, 6))
    y = get_loss("cross_entropy").encode(labels, classes)
    graph, name = _gradient_graph("cross_entropy", classes, classes)
    found = evaluate(graph, {"f": f, "y": y})[name]
    by_formula = torch.stack(
        [1 / sum(torch.exp(f[:, k] - f[:, j]) for k in range(classes)) for j in range(classes)], -1
    )
    assert torch.allclose(found, by_formula - y, atol=TOL.torch)


def test_gradients_of_the_other_losses_are_the_formulas() -> None:
    from milp_agt.core.graph import evaluate

    f = torch.linspace(-3, 3, 13, dtype=torch.float64).reshape(-1, 1)
    y = (torch.arange(13) % 2).double().reshape(-1, 1)
    sign = 2 * y - 1
    expected = {
        "bce": torch.sigmoid(f) - y,
        "hinge": -sign * (1 - sign * f > 0).double(),
        "mse": 2 * (f - y),
    }
    for loss, gradient in expected.items():
        graph, name = _gradient_graph(loss, 1, 1)
        assert torch.allclose(evaluate(graph, {"f": f, "y": y})[name], gradient, atol=1e-15)
    graph, name = _gradient_graph("mse", 3, 3)
    f, y = f[:12].reshape(4, 3), y[:12].reshape(4, 3)
    assert torch.allclose(evaluate(graph, {"f": f, "y": y})[name], 2 * (f - y) / 3)
