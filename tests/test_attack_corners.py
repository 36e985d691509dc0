"""Attacks that flip a sample's own units: admissible, within bounds, and where gradients see nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_inside
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attack_search import MOVES, data
from test_proposed import THREATS, assert_admissible, small
from torch import Tensor, nn

import milp_agt as agt
from milp_agt import attacks
from milp_agt.attacks import Search
from milp_agt.attacks.corners import corners_of
from milp_agt.attacks.moves import shrunk, turned
from milp_agt.attacks.packed import Aim, Best
from milp_agt.attacks.search import Hunt
from milp_agt.attacks.unrolled import Poisoning, Unrolled
from milp_agt.core.restriction import UNRESTRICTED, Restriction

FEW = Search(pool=8, corners=32, restarts=1, rounds=1, iterations=2, aims=6, enumerate=0)
SIZE = 16
# Threats to whole samples have no corners: nothing of them is tried here that was not tried without.
WHOLE = ("left out", "removal", "substitution", "insertion")
MOVING = [name for name in THREATS if name not in WHOLE]


def assert_room(replay: Replay, restriction: Restriction, poisoning: Poisoning) -> None:
    """Samples that must be poisoned use the budget up, whether they move or not."""
    run, poison = replay.unrolled, replay.poison
    if poison.label_quota is not None:
        return
    surely = torch.zeros_like(poison.open)
    surely[sorted(restriction.inside)] = poison.open[sorted(restriction.inside)]
    touched = surely.expand(len(poisoning), -1).clone()
    x, y = run.changed(poisoning)
    used = []
    for span in run.spans:
        moved, cover = (x | y)[:, span], run.cover[span]
        touched[:, cover] |= moved
        used.append((moved | surely[cover]).sum(1))
    if not poison.per_batch:
        used = [touched.sum(1)]
    elif poison.static:
        used = [touched[:, batch].sum(1) for batch in run.batches]
    assert int(torch.stack(used).max()) <= poison.budget


@pytest.mark.parametrize("restriction", [UNRESTRICTED, Restriction(frozenset({2}), frozenset({0}))])
@pytest.mark.parametrize("name", MOVING)
@settings(max_examples=1, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_whatever_is_tried_is_admissible(name: str, restriction: Restriction, seed: int) -> None:
    replay = Replay(replace(small(name), restriction=restriction))
    goal = attacks.Envelope().bind(replay.unrolled)
    count = len(goal.names)
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat_interleave(count)
    aim = Aim(torch.arange(count).repeat(2), signs)
    hunt = Hunt(replay.unrolled, goal, aim, replace(FEW, seed=seed), restriction)
    kept = Best.offer

    def checked(self: Best, values: Tensor, poisoning: Poisoning, unrolled: Unrolled) -> None:
        if len(poisoning) > 1 or bool(self.runs):  # the first is the data as given
            assert_admissible(replay, restriction, poisoning)
            assert_room(replay, restriction, poisoning)
        kept(self, values, poisoning, unrolled)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Best, "offer", checked)
        best = hunt.run()
    assert best.runs > 8


def dense() -> nn.Sequential:
    return nn.Sequential(nn.Linear(SIZE, 2), nn.ReLU(), nn.Linear(2, 1)).double()


def convolution() -> nn.Sequential:
    layers = nn.Conv2d(1, 2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(2, 1)
    return nn.Sequential(*layers).double()


def frozen() -> nn.Sequential:
    front = nn.Linear(SIZE, SIZE, bias=False).double()
    with torch.no_grad():
        front.weight.copy_(-torch.eye(SIZE))
    front.requires_grad_(False)
    return nn.Sequential(front, *dense())


NETWORKS: dict[str, Callable[[], nn.Sequential]] = {
    "dense": dense,
    "convolution": convolution,
    "frozen": frozen,
}


def asleep(kind: str, norm: float) -> tuple[nn.Sequential, Tensor, Tensor, float]:
    """A run in which unit 1 is off for everyone; sample 0 alone can turn it on, by the best move only."""
    torch.manual_seed(1)
    model = NETWORKS[kind]()
    first = next(
        m for m in model if isinstance(m, nn.Conv2d) or m.__dict__.get("out_features") == 2
    )
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(SIZE // 2)
    radius = 0.1
    reach = radius * (SIZE if norm == np.inf else SIZE**0.5)
    x = 0.1 * torch.randn(6, SIZE, dtype=torch.float64)
    with torch.no_grad():
        first.weight[1] = signs.reshape(first.weight[1].shape)
        own = x @ (-signs if kind == "frozen" else signs)
        x -= own[:, None] * (-signs if kind == "frozen" else signs) / SIZE  # now every sum is 0
        first.bias[1] = -0.95 * reach
        x[1:] -= 0.2 * reach / SIZE * (-signs if kind == "frozen" else signs)
        model[-1].weight[:, 1] = 0.5
    shape = (6, 1, 4, 4) if kind == "convolution" else (6, SIZE)
    return model, x.reshape(shape), torch.arange(6) % 2, radius


def widths_of_unit(found: agt.Attack) -> float:
    name = next(n for n in found.lower if n.endswith("weight") and len(found.lower[n]) == 2)
    return float((found.upper[name][1] - found.lower[name][1]).max())


@pytest.mark.parametrize("norm", [np.inf, 2])
@pytest.mark.parametrize("kind", NETWORKS)
def test_a_unit_that_sleeps_is_woken_where_gradients_and_chance_are_blind(
    kind: str, norm: float
) -> None:
    model, x, y, radius = asleep(kind, norm)
    run = agt.Training(loss="bce", learning_rate=0.5, epochs=3)
    threat = agt.FeaturePoisoning(2, radius, norm=norm)
    blind = agt.attack(model, (x, y), run, threat, search=Search(corners=0, rounds=1, aims=8))
    assert widths_of_unit(blind) == 0.0
    found = agt.attack(model, (x, y), run, threat, search=FEW)
    assert widths_of_unit(found) > 1e-4
    assert found.trained < blind.trained


def test_corners_of_the_first_layer_are_signs_of_its_weights() -> None:
    model, (x, y) = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double(), data(8)
    replay = Replay(Problem(model, x, y, agt.Training("bce"), agt.FeaturePoisoning(1, 0.1)))
    corners = corners_of(replay.selector, 1000, 2**30, torch.Generator())
    moves = corners.data.features[:, 0] - x[corners.sample]
    signs = torch.sign(model[0].weight.detach())
    wanted = {tuple(0.1 * s.numpy()) for s in torch.cat([signs, -signs])}
    for i in range(8):
        own = {tuple(move.numpy().round(12)) for move in moves[corners.sample == i]}
        assert own == {tuple(np.round(w, 12)) for w in wanted}
    few = corners_of(replay.selector, 5, 2**30, torch.Generator())
    assert few is not None
    assert len(few) == 5


@pytest.mark.parametrize("name", MOVES)
def test_flips_lie_inside_every_bound(name: str) -> None:
    for static, relaxation in ((True, "linear"), (False, "interval")):
        threat = replace(MOVES[name], static=static)
        case = replace(small(name), threat=threat)
        _, boxes = case.certify(relaxation=relaxation)
        generator = torch.Generator().manual_seed(3)
        found = list(Replay(case).by_units(64, generator, 12))
        assert len(found) == 2
        for attack in found:
            assert_inside(boxes, Replay(case).run(attack))


def test_local_moves_shrink_and_flip_signs() -> None:
    case = small("norm 2")
    replay, generator = Replay(case), torch.Generator().manual_seed(0)
    drawn = replay.random(64, generator, corners=True).poisoning
    given_ = replay.poison.features
    move = drawn.features - given_
    smaller = shrunk(replay.unrolled, drawn, generator).features - given_
    assert (smaller.norm(dim=-1) <= move.norm(dim=-1) + 1e-12).all()
    torch.testing.assert_close((smaller * move).sum(-1), smaller.norm(dim=-1) * move.norm(dim=-1))
    flipped = turned(replay.unrolled, drawn, generator).features - given_
    torch.testing.assert_close(flipped[::2].abs(), move[::2].abs())
    moves = (move != 0).any(-1)
    assert (flipped != move).any(-1)[moves].all()


def test_the_same_seed_finds_the_same_attack() -> None:
    model, x, y, radius = asleep("dense", 2)
    run, threat = agt.Training(loss="bce", epochs=2), agt.FeaturePoisoning(2, radius, norm=2)
    found = [agt.attack(model, (x, y), run, threat, search=replace(FEW, seed=s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(found[0].widths, found[1].widths)
    assert found[0].trained == found[1].trained
    assert (found[0].widths != found[2].widths).any()
