"""What is quadratic in the move of one sample: no point of a box is beyond it, and a corner attains it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from problems import problem
from torch import nn
from zonotope_runs import Passed, assert_generators, assert_in_boxes, attacks_of

from milp_agt.bounds.zonotope import products, squares
from milp_agt.bounds.zonotope.squares import of_moves, saved

WIDTH = 3
RUNS = [
    ("mse", "features", {"epochs": 6, "momentum": 0.5}, (), {"budget": 1}),
    (
        "mse",
        "features",
        {"epochs": 4, "batch_size": 4, "weight_decay": 0.1},
        (3,),
        {"activation": nn.Tanh},
    ),
    ("bce", "features", {"epochs": 4, "projection": (-0.4, 0.4)}, (), {"budget": 2}),
    ("mse", "both", {"epochs": 4}, (), {"budget": 1}),
]
NONE = [
    ("bce", "features", {"epochs": 3, "clip_total": 0.5}, (), {"budget": 1}),
    ("bce", "features", {"epochs": 3}, (3,), {"budget": 1}),
    ("bce", "labels", {"epochs": 3}, (), {"budget": 1}),
]


def check_saved(share: float = 1.0) -> None:
    """Corners and points of a thousand boxes; where the linear part is large, a corner attains the end."""
    generator = torch.Generator().manual_seed(0)
    draw = {"generator": generator, "dtype": torch.float64}
    linear, matrices = torch.randn(50, 20, WIDTH, **draw), torch.randn(50, 20, WIDTH, WIDTH, **draw)
    matrices = 0.5 * (matrices + matrices.transpose(-1, -2))
    reach = torch.rand(20, WIDTH, **draw)
    corners = torch.tensor(list(itertools.product((-1.0, 1.0), repeat=WIDTH)), dtype=torch.float64)
    units = torch.cat([corners, 2.0 * torch.rand(50, WIDTH, **draw) - 1.0])
    for scale in (0.0, 0.1, 1.0, 10.0):
        g = scale * linear
        less = share * saved(g, matrices.flatten(-2), reach)
        assert (less >= 0.0).all()
        most = (g.abs() * reach).sum(-1) + matrices.abs().sum((-1, -2)) - less
        value = torch.einsum("rmj,mj,uj->rmu", g, reach, units)
        value = value + torch.einsum("rmjk,uj,uk->rmu", matrices, units, units)
        assert (value <= most[..., None] + 1e-12).all()
    far = 100.0 * torch.where(linear > 0.0, 1.0 + linear, linear - 1.0)
    reach = reach + 1.0
    most = (far.abs() * reach).sum(-1) + matrices.abs().sum((-1, -2))
    sign = far.sign()
    corner = (far.abs() * reach).sum(-1) + torch.einsum("rmjk,rmj,rmk->rm", matrices, sign, sign)
    less = share * saved(far, matrices.flatten(-2), reach)
    assert (corner <= most - less + 1e-12).all()
    torch.testing.assert_close(most - saved(far, matrices.flatten(-2), reach), corner)


def test_no_point_of_a_box_is_beyond_what_is_left() -> None:
    check_saved()


def test_one_per_cent_too_much_is_caught() -> None:
    with pytest.raises(AssertionError):
        check_saved(1.01)


def test_matrices_are_the_product_of_two_moves() -> None:
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    first, second = torch.randn(WIDTH, 4, 2, **draw), torch.randn(WIDTH, 4, 5, **draw)
    reach, units = torch.rand(4, WIDTH, **draw), torch.randn(4, WIDTH, **draw)
    found = of_moves(("no", "ni", "noi"), first, second, reach).unflatten(0, (WIDTH, WIDTH))
    torch.testing.assert_close(found, found.transpose(0, 1))
    moves = reach * units
    true = torch.einsum("nw,wno,nv,vni->noi", moves, first, moves, second)
    torch.testing.assert_close(torch.einsum("wvnoi,nw,nv->noi", found, units, units), true)


def passed(run: Any) -> Passed:
    loss, kind, training, hidden, options = run
    return Passed.of(problem(loss, kind, training, hidden, radius=0.2, **options)[0])


@pytest.mark.parametrize("run", RUNS)
def test_runs_lie_within_narrower_sets(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    found = passed(run)
    assert found.last.zonotope.squares.shape[-1]
    for attacks in attacks_of(found):
        assert_in_boxes(found, attacks)
        assert_generators(found, attacks)
    monkeypatch.setattr(squares, "PER_STEP", 0)
    plain = passed(run)
    widths = [sum(float(b.width.sum()) for b in p.last.state().values()) for p in (plain, found)]
    assert widths[1] < 0.998 * widths[0]


@pytest.mark.parametrize("run", NONE)
def test_none_are_kept_where_they_do_not_help(run: Any) -> None:
    """Clipping is not linear; phases tell more; labels meet no data that move."""
    assert not passed(run).last.zonotope.squares.shape[-1]


@pytest.mark.parametrize("factor", [0.0, 0.9, -1.0])
def test_matrices_that_are_not_the_product_are_caught(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    honest = of_moves
    monkeypatch.setattr(products, "of_moves", lambda *given: factor * honest(*given))
    found = passed(RUNS[0])
    drawn = list(attacks_of(found))
    with pytest.raises(AssertionError):
        assert_generators(found, drawn[-1])
