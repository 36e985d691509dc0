"""Planes with any slopes, a row each: they hold, start at the defaults, and have gradients."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from checks_rules import check_relax
from draws import Draw, all_instances, draws, make_boxes
from hypothesis import given, settings
from instances import Instance
from mutants import MutantPlanes, is_caught, moderate
from torch import Tensor

from milp_agt.bounds.linear.intercepts import Intercepts
from milp_agt.bounds.linear.slopes import RowIntercepts
from milp_agt.core.interval import Interval
from milp_agt.core.planes import LinearBounds

MUTATED = ("layer", "dot", "shorten", "relu-0.0", "step", "sigmoid", "clip")


@dataclass(frozen=True)
class WithSlopes:
    """An operation that relaxes with slopes of somebody's choice."""

    op: Any
    seed: int

    def __getattr__(self, name: str) -> Any:
        return getattr(self.op, name)

    def choose(self, *boxes: Interval) -> list[Tensor]:
        """Within the ranges and far beyond them."""
        generator = torch.Generator().manual_seed(self.seed)
        chosen = []
        for slope in self.op.free_slopes(*boxes):
            share = 4.0 * torch.rand(slope.start.shape, generator=generator, dtype=torch.float64)
            chosen.append(slope.lower + (share - 1.5) * (slope.upper - slope.lower))
        return chosen

    def relax(self, *boxes: Interval) -> LinearBounds:
        planes: LinearBounds = self.op.relax_with(self.choose(*boxes), *boxes)
        return planes


def free_instances() -> list[Instance]:
    rng = np.random.default_rng(0)
    return [
        i
        for i in all_instances()
        if i.op.free_slopes(*make_boxes(i, ("straddle",), ("nested",), rng))
    ]


def test_products_and_univariate_functions_have_free_slopes() -> None:
    keys = {i.op.key for i in free_instances()}
    assert {"bilinear", "relu", "step", "sigmoid", "clip", "shorten", "reciprocal"} <= keys


@pytest.mark.parametrize("instance", free_instances(), ids=str)
@settings(max_examples=2, deadline=None, derandomize=True)
@given(draw=draws())
def test_any_slopes_hold(instance: Instance, draw: Draw) -> None:
    rng = draw.rng
    boxes = make_boxes(instance, draw.kinds, draw.relations, rng)
    shim: Any = WithSlopes(instance.op, int(rng.integers(2**30)))
    check_relax(replace(instance, op=shim), boxes, rng)


@pytest.mark.parametrize("instance", free_instances(), ids=str)
def test_slopes_start_where_the_default_planes_are(instance: Instance) -> None:
    boxes = make_boxes(instance, ("straddle",), ("nested",), np.random.default_rng(1))
    free = instance.op.free_slopes(*boxes)
    default = instance.op.relax(*boxes)
    same = instance.op.relax_with([s.start for s in free], *boxes)
    for end in ("lower", "upper"):
        size = float(same.magnitude.max())
        assert torch.allclose(getattr(default, end), getattr(same, end), atol=1e-12 * size)
    c = torch.randn(3, *default.lower.shape[1:], dtype=torch.float64)
    for one, other in zip(default.backward(c), same.backward(c), strict=True):
        assert torch.allclose(one, other)
    for slope in free:
        assert bool(((slope.lower <= slope.start) & (slope.start <= slope.upper)).all())


@pytest.mark.parametrize("instance", free_instances(), ids=str)
def test_every_row_has_its_own_planes(instance: Instance) -> None:
    boxes = make_boxes(instance, ("straddle",), ("nested",), np.random.default_rng(2))
    chosen = [WithSlopes(instance.op, seed).choose(*boxes) for seed in range(3)]
    stacked = [torch.stack(each) for each in zip(*chosen, strict=True)]
    rows = instance.op.relax_with(stacked, *boxes)
    c = torch.randn(3, *rows.lower.shape[2:], dtype=torch.float64)
    pulled = rows.backward(c)
    for r, own in enumerate(chosen):
        alone = instance.op.relax_with(own, *boxes)
        assert torch.allclose(rows.lower[r], alone.lower)
        assert torch.allclose(rows.upper[r], alone.upper)
        assert torch.allclose(rows.magnitude[r], alone.magnitude)
        for all_rows, one in zip(pulled, alone.backward(c[r : r + 1]), strict=True):
            assert torch.allclose(all_rows[r], one[0])


@pytest.mark.parametrize("instance", free_instances(), ids=str)
def test_gradients_of_offsets(instance: Instance) -> None:
    """The derivative of an offset in a slope, against a difference quotient (extremes move by kinks)."""
    boxes = make_boxes(instance, ("straddle",), ("nested",), np.random.default_rng(3))
    generator = torch.Generator().manual_seed(0)
    start = [
        (s + torch.rand(s.shape, generator=generator, dtype=torch.float64)).requires_grad_()
        for s in WithSlopes(instance.op, 0).choose(*boxes)
    ]
    direction = [torch.rand(s.shape, generator=generator, dtype=torch.float64) for s in start]
    planes = instance.op.relax_with(start, *boxes)
    total = planes.lower.sum() - 0.5 * planes.upper.sum()
    gradients = torch.autograd.grad(total, start)
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, direction, strict=True))

    def at(h: float) -> float:
        moved = [s.detach() + h * d for s, d in zip(start, direction, strict=True)]
        there = instance.op.relax_with(moved, *boxes)
        return float(there.lower.sum() - 0.5 * there.upper.sum())

    h = 1e-7
    assert slope == pytest.approx((at(h) - at(-h)) / (2 * h), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("one", [False, True], ids=["each", "uniform"])
@pytest.mark.parametrize("states", [1, 2, 4])
def test_offsets_of_rows_are_spent_like_those_of_all(states: int, one: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    shape = (3, states, 4, 2)
    low, width, c = (torch.rand(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    coefficients = c[:, 0, :1] - 0.5 if one else c[:, 0] - 0.5

    @dataclass(frozen=True)
    class Planes:
        lower: Tensor
        upper: Tensor
        magnitude: Tensor

    rows: Any = Planes(low, low + width, 2.0 + low[:, 0])
    mine = RowIntercepts.of(rows, True, 1).apply(coefficients)
    for r in range(3):
        alone: Any = Planes(low[r], low[r] + width[r], 2.0 + low[r, 0])
        for found, own in zip(
            mine, Intercepts.of(alone, True, 1).apply(coefficients[r : r + 1]), strict=True
        ):
            assert (found is None) == (own is None)
            assert found is None or torch.allclose(found[r], own[0], rtol=1e-13)


@pytest.mark.parametrize("kind", ["lower", "upper", "slope", "charge"])
@pytest.mark.parametrize("instance", [i for i in free_instances() if i.label in MUTATED], ids=str)
def test_mutants_of_sloped_planes_are_found(
    instance: Instance, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = type(instance.op).relax_with

    def check(seed: int) -> None:
        shim: Any = WithSlopes(instance.op, seed)
        rng = np.random.default_rng(seed)
        check_relax(replace(instance, op=shim), moderate(instance, "nested", seed), rng, count=128)

    check(0)
    monkeypatch.setattr(
        type(instance.op),
        "relax_with",
        lambda op, slopes, *boxes: MutantPlanes(original(op, slopes, *boxes), kind),
    )
    assert is_caught(check)
