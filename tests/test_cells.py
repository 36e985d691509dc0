"""Trees over cells: every real training follows one branch after the other down to a leaf that holds it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from checks_cells import (
    ROUNDING,
    Kept,
    assert_cover,
    drawn,
    run_of,
    searched,
    selections_of,
)
from problems import problem
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.bounds.cells import cell as cells
from milp_agt.bounds.cells import search as searches
from milp_agt.bounds.cells import tree as trees
from milp_agt.bounds.cells.cell import Cell, Cells
from milp_agt.bounds.cells.form import Form, Span, States
from milp_agt.bounds.cells.passing import Run, passed
from milp_agt.bounds.cells.search import Decided, Limits
from milp_agt.bounds.cells.tree import Kind, Leaf
from milp_agt.core.interval import Interval

RUNS: dict[str, tuple[str, str, dict[str, Any], tuple[int, ...], dict[str, Any]]] = {
    "bce": ("bce", "features", {"epochs": 5}, (4,), {"budget": 1}),
    "two samples": ("bce", "features", {"epochs": 4}, (3,), {}),
    "two classes": ("cross_entropy", "features", {"epochs": 4}, (4,), {"outputs": 2, "budget": 1}),
    "three classes": ("cross_entropy", "features", {"epochs": 4}, (3,), {"budget": 1}),
    "mse": ("mse", "features", {"learning_rate": 0.1}, (4,), {"budget": 1}),
    "deep": ("bce", "features", {"epochs": 4}, (3, 3), {"budget": 1}),
    "batches": ("bce", "features", {"epochs": 3, "batch_size": 4}, (4,), {}),
    "momentum": ("bce", "features", {"momentum": 0.8, "epochs": 4}, (4,), {"budget": 1}),
    "decay": (
        "bce",
        "features",
        {
            "momentum": 0.5,
            "nesterov": True,
            "weight_decay": 0.1,
            "groups": [agt.ParameterGroup(["0.bias"], weight_decay=0.0)],
        },
        (4,),
        {"budget": 1},
    ),
    "norm 2": ("bce", "features", {}, (4,), {"norm": 2, "budget": 1}),
    "clipped": ("bce", "features", {"clip": 0.4}, (3,), {"budget": 1}),
    "clamped": ("bce", "features", {"clip": 0.2, "clip_mode": "clamp"}, (3,), {"budget": 1}),
    "hinge": ("hinge", "features", {}, (4,), {"budget": 1}),
    "targets": ("mse", "labels", {"learning_rate": 0.1}, (4,), {}),
    "both": ("mse", "both", {"learning_rate": 0.1}, (4,), {"budget": 1}),
}


@pytest.mark.parametrize("radius", [0.02, 0.2])
@pytest.mark.parametrize("name", RUNS)
def test_trainings_lie_in_the_sets_of_their_cells(name: str, radius: float) -> None:
    loss, kind, training, hidden, options = RUNS[name]
    case, _, _ = problem(loss, kind, training, hidden, radius=radius, **options)
    assert_passed(run_of(case))


@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.Tanh, nn.GELU, nn.Softplus, nn.Hardtanh])
def test_other_activations(activation: type[nn.Module]) -> None:
    case, _, _ = problem("bce", "features", {"epochs": 4}, (4,), activation, radius=0.1, budget=1)
    assert_passed(run_of(case))


def assert_passed(run: Run) -> None:
    """States of real trainings are the affine form plus noise that is granted, coordinate by coordinate."""
    selections = selections_of(run)[:5]
    samples, moves = drawn(run, selections, 60)
    done = passed(run, [run.roots(selections)])
    assert len(done.rows) == len(selections)
    assert not done.void.any()
    state = run.trained(samples, moves)
    value = torch.cat([state[name].flatten(1) for name in run.layout.slices], 1)
    sets = done.states.take(torch.arange(len(selections)).repeat_interleave(60))
    away = (sets.on_moves @ (moves - sets.cells.centre)[..., None])[..., 0]
    noise = sets.noise.abs().sum(-1)
    assert ((value - sets.centre - away).abs() <= noise + ROUNDING).all()
    down, up = sets.reach()
    assert (sets.centre - down <= value).all()
    assert (value <= sets.centre + up).all()


@pytest.fixture
def rounded_products() -> Iterator[None]:
    """Torch may round the factors of float32 products to bfloat16."""
    kept = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    yield
    torch.set_float32_matmul_precision(kept)


def noise_in(kind: torch.dtype, products: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """What noise adds to forms, and what it adds at least, where products of a type see other factors."""
    torch.manual_seed(0)
    rows = torch.randn(6, 1, 1, 1, dtype=torch.float64)
    noise = torch.randn(1, 6, 9, dtype=torch.float64)
    one = torch.ones(1, 1, 1, dtype=torch.float64)
    form = Form(one, 0.0 * one, one, one, Span(0, rows))
    none = torch.zeros(1, 0, dtype=torch.float64)
    box = Cells.of([Cell.box(none[0], none[0])])
    states = States(box, none.long(), none.new_ones(1, 6), none.new_zeros(1, 6, 0), noise)
    exact = (rows[:, 0, 0, 0] @ noise[0]).abs().sum()
    plain = Tensor.__matmul__

    def matmul(a: Tensor, b: Tensor) -> Tensor:
        return plain(products(a), products(b)) if a.dtype == kind else plain(a, b)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "__matmul__", matmul)
        return states.reach_of(form)[1].squeeze(), exact


def shortened(part: Tensor) -> Tensor:
    return 0.99 * part


def test_noise_is_not_multiplied_in_float32_where_torch_rounds_its_factors(
    rounded_products: None,
) -> None:
    found, exact = noise_in(torch.float32, shortened)
    assert found >= exact


def test_noise_is_multiplied_in_float32_where_that_is_exact() -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    found, exact = noise_in(torch.float32, shortened)
    assert found < exact


# Radii at which points are near to being lost, so that trees grow.
TREES = {
    "plane": (("bce", "features", {"epochs": 8}, (6,)), {"budget": 1, "radius": 0.5}),
    "pairs": (("bce", "features", {"epochs": 5}, (4,)), {"budget": 2, "radius": 0.3, "count": 4}),
    "classes": (("cross_entropy", "features", {"epochs": 6}, (4,)), {"budget": 1, "radius": 0.5}),
    "smooth": (("bce", "features", {"epochs": 6}, (4,), nn.Tanh), {"budget": 1, "radius": 0.6}),
    # Passes that explode: cells are cut by all phases of a step.
    "wild": (
        ("bce", "features", {"epochs": 12, "learning_rate": 4.0}, (6,)),
        {"budget": 1, "radius": 1.0},
    ),
}


def tree_of(name: str, kind: type[Kept] = Kept, nodes: int = 150) -> tuple[Run, Kept, Decided]:
    given, options = TREES[name]
    case, points, _ = problem(*given, **options)
    run = run_of(case)
    grid = torch.cat(
        [points, torch.randn(20, 2, generator=torch.Generator().manual_seed(1)).double()]
    )
    search, decided = searched(run, grid, Limits(nodes=nodes), kind)
    return run, search, decided


@pytest.mark.parametrize("name", TREES)
def test_every_training_follows_the_tree_to_a_leaf(name: str) -> None:
    run, search, decided = tree_of(name)
    assert any(branch.parent >= 0 for branch in search.tree), "no split: nothing is tested"
    assert_cover(run, search, decided)


def test_cells_whose_passes_explode_are_cut_by_all_phases_of_a_step() -> None:
    run, search, _ = tree_of("wild", nodes=120)
    done = passed(run, [run.roots(search.selections)])
    assert not len(done.rows)
    assert not done.void.any()
    parents = [branch.parent for branch in search.tree if branch.kind is Kind.PHASE]
    assert any(parent not in search.leaves for parent in parents), "one phase at a time"


def test_leaves_without_room_for_states_are_halved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(searches, "MOST_KEPT", 2000)
    run, search, decided = tree_of("plane")
    assert {branch.kind for branch in search.tree} >= {Kind.HALF, Kind.PHASE}
    assert 0 <= search.kept <= 2000
    assert_cover(run, search, decided)


def test_without_a_limit_nothing_is_open_and_witnesses_are_real() -> None:
    run, search, decided = tree_of("plane", nodes=4000)
    assert not decided.limited
    assert not decided.open.any()
    lost = (decided.reached < 0).nonzero()[:, 0]
    assert len(lost)
    state = run.trained(decided.samples[lost], decided.moves[lost])
    outputs = run.outputs(state, search.asked.inputs)
    row = torch.arange(len(lost))
    assert (search.asked.coefficients[lost, 0, 0] * outputs[row, lost, 0] < 0).all()
    lower, upper = run.moves.ranges(decided.samples[lost])
    assert ((lower <= decided.moves[lost]) & (decided.moves[lost] <= upper)).all()


def test_noise_of_fewer_columns_holds_what_it_was_made_of() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(3, 4, 60, generator=generator, dtype=torch.float64) ** 3
    box = Cells.of([Cell.box(-torch.ones(2).double(), torch.ones(2).double())] * 3)
    zero = noise[:, :, 0]
    states = States(box, zero[:, :1].long(), zero, noise[:, :, :2], noise)
    assert states.reduced(60, 6) is states
    reduced = states.reduced(40, 6)
    assert reduced.noise.shape == (3, 4, 10)
    directions = torch.cat([torch.eye(4), torch.randn(50, 4, generator=generator)]).double()
    before, after = ((directions @ part).abs().sum(2) for part in (noise, reduced.noise))
    assert (before <= after).all()
    # Each coordinate by itself is as it was, and what is kept is what would lose most.
    assert torch.allclose(before[:, :4], after[:, :4])
    loss = noise.abs().sum(1) - noise.abs().amax(1)
    kept = reduced.noise[:, :, :6].abs()
    assert torch.equal(kept.sum(1) - kept.amax(1), loss.sort(1, descending=True).values[:, :6])


def _clipped_too_far(self: Cell, normal: Tensor, offset: float) -> Cell | None:
    largest = torch.maximum(self.lower.abs(), self.upper.abs())
    return CUT(self, normal, offset - 0.01 * float(normal.abs() @ largest))


def _one_side(*given: Any) -> list[Any]:
    return SIDES(*given)[:1]


def _one_part_less(*given: Any) -> list[Any]:
    return PARTS(*given)[:-1]


def _wrong_sign(self: Cells, directions: Tensor, plain: Tensor) -> Tensor:
    turned = Cells(self.centre, self.radius, None, -self.normals, self.offsets)
    return DUAL(turned, directions, plain)


class ClosedEarly(Kept):
    """A search that takes the worst leaf for decided."""

    def _push(self, leaf: Leaf) -> None:
        none = torch.full_like(leaf.bounds.lower, 1e-3)
        super()._push(Leaf(**(vars(leaf) | {"bounds": Interval(none, none)})))


CUT, SIDES, PARTS, DUAL = Cell.cut, trees._sides, trees._parts, Cells._dual
MUTANTS = {
    "a clip too far": ("plane", (cells.Cell, "cut", _clipped_too_far), Kept),
    "a side forgotten": ("plane", (trees, "_sides", _one_side), Kept),
    "a part forgotten": ("wild", (trees, "_parts", _one_part_less), Kept),
    "a multiplier of the wrong sign": ("pairs", (cells.Cells, "_dual", _wrong_sign), Kept),
    "a leaf closed early": ("plane", None, ClosedEarly),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_are_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    where, patch, kind = MUTANTS[name]
    if patch is not None:
        monkeypatch.setattr(*patch)
    run, search, decided = tree_of(where, kind)
    with pytest.raises((AssertionError, StopIteration)):
        assert_cover(run, search, decided, 100)


def test_polygons_and_half_spaces_hold_what_they_cut() -> None:
    generator = torch.Generator().manual_seed(0)
    for size in (1, 2, 3, 5):
        for _ in range(20):
            lower = -torch.rand(size, generator=generator, dtype=torch.float64)
            upper = torch.rand(size, generator=generator, dtype=torch.float64)
            cell: Cell | None = Cell.box(lower, upper)
            points = lower + torch.rand(500, size, generator=generator) * (upper - lower)
            for _ in range(6):
                normal = torch.randn(size, generator=generator, dtype=torch.float64)
                offset = float(0.3 * torch.randn(1, generator=generator).abs())
                assert cell is not None
                smaller = cell.cut(normal, offset)
                points = points[points @ normal <= offset]
                if smaller is None:
                    assert not len(points)
                    break
                cell = smaller
                assert ((cell.lower <= points) & (points <= cell.upper)).all()
                directions = torch.randn(1, 30, size, generator=generator, dtype=torch.float64)
                many = Cells.of([cell])
                down, up = many.reach(directions)
                along = directions[0] @ (points - many.centre).T
                assert (along <= up[0][:, None]).all()
                assert (-along <= down[0][:, None]).all()


def test_half_spaces_tighten_supports() -> None:
    cell = Cell.box(-torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    normal = torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64)
    cut = cell.cut(normal, 0.0)
    assert cut is not None
    _, up = Cells.of([cut]).reach(normal[None, None])
    assert float(up) == pytest.approx(0.0, abs=1e-9)
