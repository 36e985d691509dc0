"""Attacks that programs propose: admissible whatever a program says, and exact where it is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, assert_inside
from beyond import excess
from hypothesis import given, settings
from hypothesis import strategies as st
from test_attack_search import MOVES
from test_cases import problem
from test_witness import RUNS, lying

import milp_agt as agt
from milp_agt.attacks import Search
from milp_agt.attacks.packed import Packed
from milp_agt.attacks.proposed import packed_of, poisoning_of
from milp_agt.bounds.program import Incumbents
from milp_agt.bounds.program.incumbents import incumbents_of
from milp_agt.bounds.program.move_columns import MoveColumns
from milp_agt.certification import bound_step, witnesses
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.encoder import Encoder
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.errors import SoundnessError

NOTHING_ELSE = Search(pool=0, corners=0, restarts=0, rounds=0, enumerate=0)
THREATS: dict[str, Any] = {
    **{name: threat for name, (_, threat, _) in RUNS.items()},
    **MOVES,
    "two of a batch": agt.FeaturePoisoning(2, 0.3, scope="batch", samples=(0, 1, 3)),
    "anew in each batch": agt.FeaturePoisoning(1, 0.3, static=False, scope="batch"),
}


def small(name: str) -> Problem:
    loss, _, options = RUNS.get(name, ("bce", None, {"batch_size": 2}))
    return problem(THREATS[name], loss, (2,), samples=4, **({"epochs": 2} | options))


def made_up(replay: Replay, seed: int, points: int = 5) -> list[Incumbents]:
    """What no program would say: shares and data from anywhere, of every step but the first."""
    rng = np.random.default_rng(seed)
    own, window = replay.poison, []
    for step, batch in list(enumerate(replay.batches))[1:]:
        places = np.flatnonzero(batch.numpy() < len(own.features))
        count = places.size
        gates = rng.random((points, count, len(own.quotas)))
        gates[rng.random(gates.shape) < 0.4] = 0.0
        shapes = own.features.shape[1:], own.labels.shape[1:]
        data = [rng.normal(0.0, 2.0, (points, count, *shape)) for shape in shapes]
        window.append(Incumbents(step, places, batch.numpy()[places], gates, *data))
    return window


def assert_admissible(replay: Replay, restriction: Restriction, data: Any) -> None:
    """Nobody but open samples, within all budgets, by moves of the set; who must be gone is gone."""
    run, poison, own = replay.unrolled, replay.unrolled.poison, replay.unrolled.moves
    changed = run.changed(data)
    hidden = torch.isin(run.cover, torch.tensor(sorted(restriction.outside)))
    surely = torch.isin(run.cover, torch.tensor(sorted(restriction.inside)))
    touched = torch.zeros(len(data), len(poison.features), 2, dtype=torch.bool)
    for kind, (moves, moved, nominal) in enumerate(
        (
            (own.feature_moves, data.features, own.features),
            (own.label_moves, data.labels, own.labels),
        )
    ):
        if moves is None:
            assert torch.equal(moved, nominal.expand(moved.shape))
        else:
            assert float(excess(moves, (moved - nominal).flatten(2)).max()) <= 1e-11
        quota = own.quotas[-1 if kind else 0]
        assert not changed[kind][:, ~quota.open | hidden].any()
        if data.there is not None and run.middle is None:  # removals
            assert changed[kind][:, surely].all()
        for span in run.spans:
            one = changed[kind][:, span]
            if poison.per_batch and not poison.static:
                assert int(one.sum(1).max()) <= quota.budget
            touched[:, run.cover[span], kind] |= one
    if poison.label_quota is None:
        touched = touched.any(-1, keepdim=True)
    for kind, quota in enumerate(poison.quotas):
        if not poison.per_batch:
            assert int(touched[..., kind].sum(1).max()) <= quota.budget
        elif poison.static:
            for batch in run.batches:
                assert int(touched[:, batch, kind].sum(1).max()) <= quota.budget


@pytest.mark.parametrize("restriction", [UNRESTRICTED, Restriction(frozenset({2}), frozenset({0}))])
@pytest.mark.parametrize("name", THREATS)
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_whatever_a_program_says_the_data_are_admissible(
    name: str, restriction: Restriction, seed: int
) -> None:
    replay = Replay(replace(small(name), restriction=restriction))
    data = poisoning_of(replay.selector, made_up(replay, seed))
    assert len(data) == 5
    assert_admissible(replay, restriction, data)


# No sample of the data set is poisoned by insertions; where a step may be skipped programs begin anew.
PROPOSED = [name for name in RUNS if name not in ("insertion", "left out", "batches")]


@pytest.mark.parametrize("name", [*PROPOSED, "norm 2"])
def test_what_programs_propose_changes_something_and_stays_in_the_set(name: str) -> None:
    case = small(name)
    case = replace(case, training=replace(case.training, epochs=1))
    options = {"program_window": 2, "selections": "joint", "carried": "none"}
    result, boxes = case.certify(relaxation="lp", **options)
    found = result.models.program.incumbents
    replay = Replay(case)
    packed = packed_of(replay.selector, found, 3)
    assert len(packed) == sum(len(window[0].gates) for window in found)
    data = packed.unpacked(replay.unrolled)
    assert_admissible(replay, UNRESTRICTED, data)
    assert any(bool(kind.any()) for kind in replay.unrolled.changed(data))
    final = replay.unrolled.path(data)[-1]
    assert_inside(boxes[-1:], [final])


def test_nothing_is_proposed_for_insertions() -> None:
    result, _ = small("insertion").certify(relaxation="lp")
    assert result.models.program.incumbents == ()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.125])
@pytest.mark.parametrize("name", ["features", "norm 2", "targets"])
def test_a_part_of_a_sample_stands_for_the_whole_move(name: str, share: float) -> None:
    """``x + s e`` with the share s is taken for ``x + e``."""
    replay = Replay(small(name))
    own, generator = replay.poison, torch.Generator().manual_seed(3)
    masks = torch.zeros(1, 4, 1, dtype=torch.bool)
    masks[0, 1] = True
    x, y = own.sample_moves(generator, masks, True)
    gates = share * masks.double().numpy()
    mixed = [
        share * moved + (1.0 - share) * kept for moved, kept in ((x, own.features), (y, own.labels))
    ]
    every = np.arange(4)
    window = [Incumbents(0, every, every, gates, *(m.numpy() for m in mixed))]
    found = poisoning_of(replay.selector, window)
    assert torch.equal(found.features != own.features, x != own.features)
    torch.testing.assert_close(found.features, x, rtol=0.0, atol=1e-12)
    torch.testing.assert_close(found.labels, y, rtol=0.0, atol=1e-12)
    assert bool((x != own.features).any() | (y != own.labels).any())


def test_the_samples_that_are_poisoned_most_are_taken() -> None:
    replay = Replay(small("features"))
    window = made_up(replay, 0, points=1)
    every = np.arange(4)
    gates = np.array([0.1, 0.3, 0.2, 0.4])[None, :, None]
    moved = replay.poison.features.numpy()[None] + 0.05 * gates
    window = [Incumbents(0, every, every, gates, moved, replay.poison.labels.numpy()[None])]
    changed = replay.unrolled.changed(poisoning_of(replay.selector, window))
    assert changed[0][0].tolist() == [False, False, False, True]


def test_columns_say_what_the_data_are() -> None:
    """Points of a program that are known to be a poisoning come back as that poisoning."""
    replay = Replay(small("features"))
    result, _ = replay.problem.certify(relaxation="lp", selections="joint")
    models = result.models
    encoder = Encoder(True)
    moves = MoveColumns(encoder, models.poison, UNRESTRICTED)
    (step, *_) = (
        relaxed.step for reached in models.reached for relaxed in getattr(reached, "window", ())
    )
    selection = moves.select(step)
    x, y = moves.features(step, selection), moves.labels(step, selection)
    batch = moves.batch(step, selection, x, y)
    program = encoder.finish()
    rng = np.random.default_rng(0)
    points = rng.uniform(program.lower, program.upper, (7, program.lower.size))
    (found,) = incumbents_of([batch], list(points))
    assert found.step == step.index
    np.testing.assert_array_equal(found.samples, step.samples.numpy()[found.places])
    direct = (x.matrix @ points.T).T + x.constant
    np.testing.assert_allclose(found.features, direct.reshape(7, 4, 2)[:, found.places])
    kept = rng.permutation(program.lower.size)[: program.lower.size // 2]
    kept.sort()
    (part,) = incumbents_of([batch.over(kept, points[0])], [points[0][kept]])
    place = np.searchsorted(found.places, part.places)
    np.testing.assert_allclose(part.gates[0], found.gates[0][place])
    np.testing.assert_allclose(part.features[0], found.features[0][place])


@pytest.mark.parametrize("level", ["lp", "milp"])
@pytest.mark.parametrize("selections", ["joint", "enumerated"])
def test_incumbents_alone_reach_an_exact_certificate(level: str, selections: str) -> None:
    """One step of a linear model is linear in its targets: the program is exact, and its points attack."""
    case = problem(agt.LabelPoisoning(2, 0.1), "mse", (), samples=5, epochs=1)
    result, _ = case.certify(relaxation=level, selections=selections, attack=NOTHING_ELSE)
    assert 0 < result.attack.proposed < result.attack.trained
    assert result.sandwich.ratio <= 1.0 + 1e-9


@pytest.mark.usefixtures("linear_alone")
def test_attacks_on_a_question_start_from_its_own_programs() -> None:
    case = problem(agt.FeaturePoisoning(1, 0.3), "bce", (2,), samples=5, epochs=2)
    result, _ = case.certify(
        relaxation="lp", program_window=2, selections="joint", attack=NOTHING_ELSE
    )
    objective = agt.attacks.Loss(*case.data)
    without = result.attack.towards(objective)
    assert without.proposed == 0
    bounds = result.loss(*case.data)
    both = result.against(objective, bounds)
    assert both.reached[0] <= without.reached[0]
    assert both.reached[1] >= without.reached[1]
    asked = result.models.program.reports
    assert sum(len(window[0].gates) for report in asked for window in report.incumbents) > 0
    more = result.attack.towards(objective, result.models.program.incumbents)
    assert more.proposed > result.attack.proposed > 0


def test_runs_of_incumbents_find_out_what_others_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the run on clean data for a witness alone, a bound too tight is seen by its own proposal."""
    lies = lying(monkeypatch)
    monkeypatch.setattr(
        witnesses, "random_poisoning", lambda selector, *_: selector.unrolled.nominal(1)
    )
    monkeypatch.setattr(witnesses.Witnesses, "_aimed", lambda self, steps: self.unrolled.nominal(1))
    case = problem(agt.LabelPoisoning(2, 0.1), "mse", (), samples=5, epochs=2)
    options: dict[str, Any] = {
        "relaxation": "lp",
        "selections": "joint",
        "inner_bounds": "interval",
    }
    case.certify(**options)
    lies[0] = 0.01
    with pytest.raises(SoundnessError, match="solver 'liar' must hold"):
        case.certify(**options)
    monkeypatch.setattr(bound_step.Bounder, "_confirm", lambda *_: None)
    case.certify(**options)


def test_proposals_stay_with_the_witnesses_of_later_steps() -> None:
    case = problem(agt.FeaturePoisoning(1, 0.3), "bce", (2,), samples=5, epochs=4)
    recorder = MemoryRecorder()
    case.certify(relaxation="lp", selections="joint", recorder=recorder)
    found = witnesses.Witnesses(Replay(case).unrolled, UNRESTRICTED, {})
    before = len(next(iter(found.after(1).states.values())))
    proposed = found.propose(1, recorder.programs["lp"][1].incumbents).states
    count = len(next(iter(proposed.values())))
    assert before < count <= before + found.ends
    for step in (2, 3):  # carried along, then trained anew with the rest
        states = found.after(step).states
        whole = found.unrolled.path(found._data, found._start(len(found._data)))
        assert all(torch.equal(values, whole[step][name]) for name, values in states.items())
        assert len(next(iter(states.values()))) == count


def test_packed_attacks_are_put_together() -> None:
    case = problem(agt.FeaturePoisoning(2, 0.3), "bce", (2,), samples=5)
    replay = Replay(case)
    parts = [
        poisoning_of(replay.selector, made_up(replay, seed, points=seed + 1)) for seed in range(3)
    ]
    packed = Packed.cat([Packed.of(part, replay.unrolled) for part in parts])
    whole = packed.unpacked(replay.unrolled)
    assert torch.equal(whole.features, torch.cat([part.features for part in parts]))
    assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))
