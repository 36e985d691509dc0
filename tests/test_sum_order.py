"""Sums in any order: a bias may stand in front of the products that it is added to."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from milp_agt.core.interval import Interval
from milp_agt.core.rounding import FLOAT32, FLOAT64, Precision
from milp_agt.training.precision import in_precision
from milp_agt.training.tracing import FEATURES, trace

TYPES = {FLOAT32.name: torch.float32, FLOAT64.name: torch.float64}
TERMS = 400


# Convolutions have no runs in float32.
@pytest.mark.parametrize(
    ("kind", "precision"), [("dense", FLOAT32), ("dense", FLOAT64), ("convolution", FLOAT64)]
)
def test_every_product_may_be_lost_beside_the_bias(kind: str, precision: Precision) -> None:
    """1 stays 1 where each of the products is half a unit in its last place."""
    layer: nn.Linear | nn.Conv2d
    if kind == "dense":
        layer, shape = nn.Linear(TERMS, 1), (TERMS,)
        model = nn.Sequential(layer)
    else:
        layer, shape = nn.Conv2d(1, 1, 20), (1, 20, 20)
        model = nn.Sequential(layer, nn.Flatten())
    with torch.no_grad():
        layer.weight.fill_(precision.unit)
        layer.bias.fill_(1.0)
    graph = in_precision(trace(model, "mse", shape, None, precision), precision, 1)
    boxes = {name: Interval.point(value.unsqueeze(0)) for name, value in graph.initial.items()}
    boxes[FEATURES] = Interval.point(torch.ones(1, 1, *shape, dtype=torch.float64))
    for node in graph.graph.needed_for([graph.output]):
        if node.name not in boxes:
            boxes[node.name] = node.op.interval(*(boxes[name] for name in node.inputs))
    run, share = torch.ones((), dtype=TYPES[precision.name]), precision.unit
    for _ in range(TERMS):
        run = run + share
    assert float(run) == 1.0
    found = boxes[graph.output]
    assert float(found.lower) <= 1.0 <= float(found.upper)
