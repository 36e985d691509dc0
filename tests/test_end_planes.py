"""Planes of products with parameters through ends of ranges: below every product, and exact at their ends."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from milp_agt.core.interval import Interval
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.einsum import EndPlanes, Ends

POINTS = 2000


def _inside(low: Tensor, high: Tensor) -> Tensor:
    """Random corners of a box."""
    ends = torch.rand(POINTS, *low.shape, dtype=torch.float64) < 0.5
    return torch.where(ends, low, high)


def _excess(planes: EndPlanes, op: Einsum, ends: list[tuple[Tensor, Tensor]]) -> Tensor:
    """How far forms lie above the products that they bound, at most, for each of some random forms."""
    shape = (5, *planes.slack.shape)
    coefficients = torch.randn(shape, dtype=torch.float64)
    on = planes.backward(coefficients, True)
    constant, _, _ = planes.apply_diagonal(coefficients)
    points = [_inside(*end) for end in ends]
    true = (coefficients * op.value(*points).unsqueeze(1)).flatten(3).sum(-1)
    form = constant[..., 0]
    for mine, point in zip(on, points, strict=True):
        assert mine is not None
        one = point if point.dim() == mine.dim() else point.unsqueeze(1)
        form = form + (mine * one.unsqueeze(1)).flatten(3).sum(-1)
    return (form - true).flatten(2).amax((0, 2))


@pytest.mark.parametrize("ends", list(Ends))
@pytest.mark.parametrize("equation", ["hd,nd->nh", "nh,hd->nd", "na,a->na", "a,na->na"])
def test_forms_lie_below_products_and_not_one_per_cent_higher(ends: Ends, equation: str) -> None:
    torch.manual_seed(0)
    op, sizes = Einsum(equation), {"n": 3, "h": 2, "d": 2, "a": 2}
    boxes, points = [], []
    for letters in op.letters[:2]:
        centre = torch.randn([sizes[letter] for letter in letters], dtype=torch.float64)
        radius = torch.rand_like(centre)
        points.append((centre - radius, centre + radius))
        boxes.append(Interval((centre - radius)[None], (centre + radius)[None]))
    first = int(op.letters[0].startswith("n"))
    planes = op.relax_at_ends(ends, first, *boxes)
    assert (_excess(planes, op, points) <= 0.0).all()
    assert (_excess(planes, op, points) >= -1e-9).any()  # met at a corner
    assert (_excess(replace(planes, reach=0.99 * planes.reach), op, points) > 0.0).any()
