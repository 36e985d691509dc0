"""Branch and bound over a zonotope: equal to a MILP on the same rows, and every real run inside."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Replay
from problems import problem
from scipy.optimize import Bounds, LinearConstraint, milp
from stand_ins import threads
from torch import Tensor, nn
from zonotope_runs import Passed

import milp_agt as agt
from milp_agt.bounds.zonotope import branching, node_dual
from milp_agt.bounds.zonotope.branching import EndTrees, branched
from milp_agt.bounds.zonotope.node_dual import OFF, ON, Known
from milp_agt.bounds.zonotope.state import HybridZonotope

# Trees end once multipliers are found up to this, relative to the span.
FOUND = 0.02


@functools.cache
def usual() -> tuple[Passed, Tensor]:
    """A run whose trees are small, and the largest values of its loosest directions by a MILP."""
    passed = passed_of()
    zonotope, bounds = passed.last.zonotope, passed.last.bounds
    rows = _directions(passed)
    spread = zonotope.spread(rows, bounds.terms)
    return passed, torch.from_numpy(by_milp(zonotope, spread.towards(torch.ones(len(rows)))))


def passed_of(**options: Any) -> Passed:
    given = {"radius": 0.1, "budget": 2, "count": 8, "training": {"epochs": 8}} | options
    return Passed.of(problem("bce", "features", **given)[0])


def by_milp(zonotope: HybridZonotope, d: Any) -> np.ndarray:
    """The largest values of directions over the rows of a zonotope with one group of units: scipy's HiGHS."""
    flips, samples = zonotope.flips, zonotope.samples
    m, w, f, q = samples.count, samples.width, flips.count, flips.rows
    at_s, at_phi, at_rho = m * w, m * w + m, m * w + m + f
    size, reach = at_rho + f, samples.reach.numpy()
    column = flips.column.numpy()

    def rows(count: int) -> np.ndarray:
        return np.zeros((count, size))

    above = rows(q)
    above[:, :at_s] = flips.on_moves.flatten(1).numpy()
    above[:, at_phi:at_rho], above[:, at_rho:] = flips.on_phase.numpy(), flips.on_bend.numpy()
    below = above.copy()
    above[:, at_s:at_phi] += flips.up.numpy()
    below[:, at_s:at_phi] -= flips.down.numpy()
    above[:, at_phi + column] += flips.charge.numpy()
    below[:, at_phi + column] -= flips.charge.numpy()
    first, second = -above, below
    first[np.arange(q), at_phi + column] += flips.least.numpy()
    second[np.arange(q), at_phi + column] -= flips.beyond.numpy()
    third = rows(flips.limits)
    third[:, at_s:at_phi] = -flips.threshold.numpy()
    third[np.arange(flips.limits), at_phi + flips.limited.numpy()] = 1.0
    alone = flips.paid_alone.numpy()
    own = rows(len(alone))
    own[np.arange(len(alone)), at_phi + alone] = 1.0
    own[np.arange(len(alone)), at_s + flips.own.numpy()[alone]] = -1.0
    bent = rows(f)
    bent[np.arange(f), at_rho + np.arange(f)] = 1.0
    bent[np.arange(f), at_phi + np.arange(f)] = -flips.largest.numpy()
    budget = rows(1)
    budget[0, at_s:at_phi] = 1.0
    moved = np.concatenate([rows(m * w), rows(m * w)])
    each, owner = np.arange(m * w), np.arange(m).repeat(w)
    for part, sign in ((0, 1.0), (m * w, -1.0)):
        moved[part + each, each] = sign
        moved[part + each, at_s + owner] = -reach.flatten()
    ends = [
        (flips.quiet - flips.margin + flips.above).numpy(),
        (flips.margin + flips.below).numpy(),
        np.zeros(flips.limits + len(alone) + f),
        samples.budgets.numpy(),
        np.zeros(2 * m * w),
    ]
    table = np.concatenate([first, second, third, own, bent, budget, moved])
    limits = LinearConstraint(table, -np.inf, np.concatenate(ends))
    upper = np.concatenate([reach.flatten(), np.ones(m + f), flips.largest.numpy()])
    lower = np.concatenate([-reach.flatten(), np.zeros(m + 2 * f)])
    whole = np.zeros(size)
    whole[at_s:at_rho] = 1
    found = []
    for row in range(d.rows):
        cost = np.concatenate(
            [d.on_moves[row].flatten(), d.up[row], d.on_phase[row], d.on_bend[row]]
        )
        cost[at_phi + column] += d.charge[row].numpy()
        solved = milp(-cost, constraints=limits, bounds=Bounds(lower, upper), integrality=whole)
        found.append(-solved.fun + float(d.base[row]))
    return np.array(found)


def search(passed: Passed, nodes: float = 1e5) -> tuple[Tensor, Tensor, Any]:
    """The loosest ends of the state as directions, their bounds by trees, and these."""
    zonotope, bounds = passed.last.zonotope, passed.last.bounds
    rows = _directions(passed)
    enough = rows.new_full((len(rows),), -torch.inf)
    found = branched(zonotope, bounds, rows, enough, 120.0, nodes)
    return rows, found.most, found


def _directions(passed: Passed) -> Tensor:
    eye = torch.eye(passed.last.zonotope.size, dtype=torch.float64)
    return torch.cat([eye, -eye])[_loosest(passed)]


def _loosest(passed: Passed) -> Tensor:
    return torch.cat([passed.last.bounds.above, passed.last.bounds.below]).topk(5).indices


def check_attacks(passed: Passed, rows: Tensor, most: Tensor) -> None:
    case, generator = passed.replay.problem, torch.Generator().manual_seed(0)
    points = case.features[:4], case.labels[:4]
    for attacks in passed.replay.all(generator, *points, 64, 3):
        final = passed.replay.run(attacks)[-1]
        value = torch.cat([final[name].flatten(1) for name in passed.last.layout.slices], 1)
        assert ((value - passed.last.zonotope.centre) @ rows.T <= most + 1e-12).all()


def check_milp() -> None:
    passed, exact = usual()
    _, most, found = search(passed)
    bounds = passed.last.bounds
    assert passed.last.zonotope.flips.count >= 8
    assert not found.limited
    before = torch.cat([bounds.above, bounds.below])[_loosest(passed)]
    assert (most >= exact * (1.0 - 1e-6)).all()
    assert (most - exact <= FOUND * before).all()
    # What branching is for: more than half of the gap of the dual is gone in some directions.
    assert ((before - most) > 0.5 * (before - exact))[before - exact > 0.04 * before].any()
    check_cover(found.trees)


def check_cover(trees: EndTrees) -> None:
    """Every node is a leaf, or has both sides of one unit or phase below it."""
    for node in trees.parent[trees.parent >= 0].unique().tolist():
        below = (trees.parent == node).nonzero()[:, 0]
        assert sorted(trees.side[below].tolist()) == [False, True]
        assert len(trees.variable[below].unique()) == 1
        assert (trees.direction[below] == trees.direction[node]).all()
        assert (trees.bound[below] <= trees.bound[node]).all()


def test_trees_meet_a_milp_on_the_same_rows() -> None:
    check_milp()
    passed, _ = usual()
    rows, most, _ = search(passed, 400)
    check_attacks(passed, rows, most)


@pytest.mark.parametrize(
    "options",
    [
        {"scope": "batch", "radius": 0.3, "training": {"epochs": 3, "batch_size": 4}},
        {"static": False, "radius": 0.3, "training": {"epochs": 3}},
        {"radius": 0.3, "training": {"epochs": 4, "momentum": 0.6}},
    ],
    ids=str,
)
def test_attacks_stay_within_limited_trees(options: dict[str, Any]) -> None:
    passed = passed_of(**options)
    rows, most, _ = search(passed, 400)
    before = torch.cat([passed.last.bounds.above, passed.last.bounds.below])[_loosest(passed)]
    assert float((most / before).min()) < 0.998
    check_attacks(passed, rows, most)


def one_side(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = branching._Search._children

    def wrong(self: Any, parents: Any) -> Any:
        both = honest(self, parents)
        return both.take(torch.arange(0, len(both), 2))

    monkeypatch.setattr(branching._Search, "_children", wrong)


def other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Known.with_side

    def wrong(self: Known, variable: Tensor, side: Tensor, *of: Any) -> Known:
        unit = variable < self.units.shape[1]
        both = honest(self, variable, torch.where(unit, True, side), *of)
        return both

    monkeypatch.setattr(Known, "with_side", wrong)


def closed_early(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = branching._Search._most

    def wrong(self: Any, open_: Any) -> Tensor:
        return honest(self, replace(open_, bound=torch.where(open_.split < 0, -1.0, open_.bound)))

    monkeypatch.setattr(branching._Search, "_most", wrong)


def unpaid(monkeypatch: pytest.MonkeyPatch) -> None:
    """A unit that is known to be poisoned costs nothing."""
    honest = node_dual._Point.of

    def wrong(d: Any, flips: Any, samples: Any, known: Known, alpha: Any) -> Any:
        units = torch.where(known.units == ON, OFF, known.units).to(torch.int8)
        return honest(d, flips, samples, Known(units, known.flips), alpha)

    monkeypatch.setattr(node_dual._Point, "of", staticmethod(wrong))


def too_tight(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = node_dual.solved

    def wrong(*given: Any) -> Any:
        found = honest(*given)
        return replace(found, value=0.99 * found.value)

    monkeypatch.setattr(branching, "solved", wrong)


@pytest.mark.parametrize("mutant", [one_side, other_way, closed_early, unpaid, too_tight])
def test_mutants_are_found(monkeypatch: pytest.MonkeyPatch, mutant: Any) -> None:
    usual()
    mutant(monkeypatch)
    with pytest.raises(AssertionError):
        check_milp()


def test_workers_find_the_same_and_lose_nothing_but_what_kills_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passed, _ = usual()
    rows, most, _ = search(passed)
    zonotope, bounds = passed.last.zonotope, passed.last.bounds
    enough = rows.new_full((len(rows),), -torch.inf)
    with threads():
        found = branching.branched_on(zonotope, bounds, rows, enough, 60.0, 2)
        assert torch.allclose(found.most, most, rtol=1e-6)
        check_cover(found.trees)
        honest = branching.branched

        def dies(*given: Any) -> Any:
            if len(given[2]) == 3:
                raise OSError("a worker died")
            return honest(*given)

        monkeypatch.setattr(branching, "branched", dies)
        found = branching.branched_on(zonotope, bounds, rows, enough, 60.0, 2)
    assert found.limited
    assert torch.isinf(found.most[::2]).all()
    assert torch.allclose(found.most[1::2], most[1::2], rtol=1e-6)


def test_budgets_that_cannot_be_listed_are_narrowed() -> None:
    case, _, _ = problem("bce", "features", {"epochs": 8}, budget=8, count=40, radius=0.1)
    result, _ = case.certify(relaxation="zonotope", tree=1.0)
    narrow = result.narrowed(1.5)
    assert narrow.reachable.mean_width < result.reachable.mean_width
    search_of = agt.Search(pool=64, restarts=1, rounds=0)
    attacked = agt.attack(case.model, case.data, case.training, case.threat, search=search_of)
    assert narrow.attacked(attacked.attacker).sandwich is not None


def test_points_are_bounded_where_nothing_can_be_listed() -> None:
    case, _, _ = problem("bce", "features", {"epochs": 8}, budget=9, count=12, radius=0.05, seed=1)
    points = torch.randn(100, 2, generator=torch.Generator().manual_seed(1)).double()
    plain, _ = case.certify(relaxation="zonotope", refute="none")
    searched, _ = case.certify(relaxation="zonotope", refute="none", tree=1.5)
    tree = searched.models.tree
    assert tree is not None
    assert tree.cells is None
    before, after = plain.stable(points), searched.stable(points)
    gain = after.points.score_lower - before.points.score_lower
    assert (gain >= 0.0).all()
    assert gain.max() > 1e-4
    replay, generator = Replay(case), torch.Generator().manual_seed(0)
    sign = torch.sign(plain.models.outputs(points)[:, 0])
    for attacks in replay.all(generator, case.features[:4], case.labels[:4], 64, 3):
        outputs = replay.outputs_at(replay.run(attacks)[-1], points)[..., 0]
        assert ((sign * outputs).amin(0).numpy() >= after.points.score_lower - 1e-12).all()


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("threat", [agt.Insertion(1), agt.FeaturePoisoning(0, 0.1)])
def test_nothing_to_branch_on_is_no_error(threat: Any, hidden: bool) -> None:
    """Sets without samples, of which all is noise, and without flips."""
    torch.manual_seed(0)
    layers = (nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)) if hidden else (nn.Linear(2, 2),)
    x, y = torch.randn(6, 2).double(), torch.arange(6) % 2
    training = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=2, clip=1.0)
    model = nn.Sequential(*layers).double()
    plain = agt.certify(model, (x, y), training, threat, relaxation="zonotope", refute="none")
    result = agt.certify(
        model, (x, y), training, threat, relaxation="zonotope", refute="none", tree=1.0
    )
    assert result.models.tree is not None
    before, after = plain.accuracy(x, y), result.accuracy(x, y)
    assert before.lower <= after.lower <= after.nominal
    assert result.narrowed(0.5).reachable.mean_width <= result.reachable.mean_width
