"""Ranges inside a step by linear forms: conditional on who is poisoned, and under attack."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import problems
import pytest
import torch
from attacks import Attacks, Problem, Replay, assert_inside, assert_sound, network
from pairs import every_pair, every_value
from test_inner_owed import MUTANTS
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.attacks.unrolled import Poisoning
from milp_agt.bounds.adversary import worst_case
from milp_agt.bounds.linear import intermediate
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.listed import list_choices
from milp_agt.certification import planning
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.graph import evaluate
from milp_agt.core.interval import CLEAN, POISONED
from milp_agt.core.reachable import ReachableSet
from milp_agt.core.restriction import Restriction
from milp_agt.errors import SoundnessError
from milp_agt.training.inputs import bytes_of
from milp_agt.training.tracing import FEATURES, LABELS
from milp_agt.training.training import Training

# ------------------------------------------------------------ what is owed, against enumeration


# ----------------------------------------------------------------- ranges, against real runs


def problem(
    loss: str = "bce",
    kind: str = "labels",
    hidden: tuple[int, ...] = (),
    training: Any = None,
    **own: Any,
) -> tuple[Problem, Tensor, Tensor]:
    """A problem of few samples with test points and their labels."""
    run = {"learning_rate": 0.5} | (training or {})
    return problems.problem(loss, kind, run, hidden, **({"count": 4} | own))


def certified(case: Problem, **options: Any) -> tuple[list[LinearizedStep], list[ReachableSet]]:
    recorder = MemoryRecorder()
    _, boxes = case.certify(relaxation="linear", recorder=recorder, **options)
    return recorder.steps["linear"], boxes


def recorded(case: Problem, **options: Any) -> list[LinearizedStep]:
    return certified(case, **options)[0]


def poisoned_samples(replay: Replay, attack: Attacks) -> list[Tensor]:
    """Who is moved, (attacks, batch) in each step: at any time, unless every batch has its own."""
    poison, masks = replay.poison, []
    for x, y, batch in zip(attack.features, attack.labels, replay.batches, strict=True):
        moved = (x != poison.features[batch]).flatten(2).any(-1)
        masks.append(moved | (y != poison.labels[batch]).any(-1))
    if not replay.static and poison.per_batch:
        return masks
    ever = torch.zeros(len(masks[0]), len(poison.features), dtype=torch.bool)
    for mask, batch in zip(masks, replay.batches, strict=True):
        ever[:, batch] |= mask
    return [ever[:, batch] for batch in replay.batches]


def escapes(replay: Replay, steps: list[LinearizedStep], attacks: Iterable[Attacks]) -> list[str]:
    """Nodes and states of which some value of an attack lies outside its range; no tolerance."""
    found = []
    for attack in attacks:
        states = [attack.start, *replay.run(attack)]
        masks = poisoned_samples(replay, attack)
        for t, (kept, mask) in enumerate(zip(steps, masks, strict=True)):
            leaves = states[t] | {FEATURES: attack.features[t], LABELS: attack.labels[t]}
            values = evaluate(replay.schedule.before, leaves)
            for node in replay.schedule.before:
                if not node.inputs or node.name not in replay.schedule.supports:
                    continue
                box = kept.ranges.boxes[node.name]
                value = values[node.name].detach()
                for state in (CLEAN, POISONED):
                    low, high = (e[min(state, len(e) - 1)] for e in (box.lower, box.upper))
                    inside = ((low <= value) & (value <= high)).flatten(2).all(-1)
                    if not inside[mask if state == POISONED else ~mask].all():
                        found.append(f"step {t + 1}, {node.name}, state {state}")
    return found


def attacks_on(case: Problem, test: Tensor, labels: Tensor) -> tuple[Replay, Iterable[Attacks]]:
    replay = Replay(case)
    generator = torch.Generator().manual_seed(1)
    return replay, replay.all(generator, test, labels, attacks=64, iterations=3)


@every_pair(
    loss=["mse", "bce", "cross_entropy", "hinge"],
    kind=["features", "labels", "both"],
    static={"static": True, "adaptive": False},
    scope=["dataset", "batch"],
)
def test_ranges_hold_the_values_of_attacked_runs(loss, kind, static, scope) -> None:
    run = {"batch_size": 3, "epochs": 2, "shuffle_seed": 1, "momentum": 0.5}
    case, test, labels = problem(
        loss, kind, (2,), training=run, static=static, scope=scope, radius=0.05
    )
    steps, boxes = certified(case, inner_bounds="linear")
    replay, attacks = attacks_on(case, test, labels)
    for attack in attacks:
        assert escapes(replay, steps, [attack]) == []
        assert_inside(boxes, replay.run(attack))


@every_pair(window=[1, 2, None], activation=[nn.LeakyReLU, nn.Sigmoid, nn.Tanh])
def test_ranges_of_deeper_networks_and_windows(activation, window) -> None:
    case, test, labels = problem(
        "cross_entropy", "both", (3, 2), budget=1, radius=0.02, activation=activation
    )
    replay, attacks = attacks_on(case, test, labels)
    steps = recorded(case, inner_bounds="linear", window=window)
    assert escapes(replay, steps, attacks) == []


@every_pair(
    restriction=[Restriction(inside=frozenset({1})), Restriction(frozenset({0}), frozenset({2}))],
    scope=["dataset", "batch"],
    static={"static": True, "adaptive": False},
)
def test_ranges_under_a_restriction(restriction, scope, static) -> None:
    run = {"batch_size": 3, "epochs": 2}
    case, _, _ = problem("bce", "both", (2,), training=run, static=static, scope=scope)
    case = replace(case, restriction=restriction)
    replay = Replay(case)
    generator = torch.Generator().manual_seed(2)
    attacks = [replay.random(256, generator, corners=True)]
    assert escapes(replay, recorded(case, inner_bounds="linear"), attacks) == []


OPTIONS = {
    "momentum": {"momentum": 0.9, "epochs": 3},
    "nesterov and decay": {"momentum": 0.5, "nesterov": True, "weight_decay": 0.5, "epochs": 3},
    "mini-batches": {"batch_size": 3, "epochs": 2, "shuffle_seed": 1, "momentum": 0.5},
    "recorded batches": {"batches": [[0, 2], [3], [1, 2, 0]], "epochs": 1},
}


@every_value(kind=["labels", "features"], scope=["dataset", "batch"])
def test_programs_on_linear_inner_bounds(kind, scope) -> None:
    case, test, labels = problem(
        "bce", kind, (2,), count=3, budget=1, training={"batch_size": 2, "epochs": 1}, scope=scope
    )
    for relaxation in ("lp", "milp"):
        assert_sound(
            case,
            test,
            labels,
            attacks=24,
            iterations=2,
            in_torch=False,
            relaxation=relaxation,
            inner_bounds="linear",
        )


# ------------------------------------------------------------------------------------- mutants


def every_flip(case: Problem, budget: int) -> Attacks:
    """All choices of up to ``budget`` flipped labels, the same in every step."""
    replay = Replay(replace(case, threat=replace(case.threat, budget=budget)))
    choices, everyone = list_choices(replay.poison), torch.arange(len(replay.poison.features))
    labels = choices.labels(slice(None), everyone)
    features = choices.features(slice(None), everyone).expand(len(labels), -1, -1)
    data = Poisoning(features, labels)
    return Attacks(replay.unrolled, data, replay.start(len(data), torch.Generator()))


@pytest.mark.parametrize(("method", "mutant"), list(MUTANTS.values()), ids=list(MUTANTS))
def test_flipped_labels_catch_mutants(method, mutant, monkeypatch) -> None:
    """The second logit is affine in the labels of the first step, so that its range is reached."""
    case, _, _ = problem(training={"epochs": 2})
    replay, flips = Replay(case), every_flip(case, 2)
    assert escapes(replay, recorded(case, inner_bounds="linear"), [flips]) == []
    perturbation = worst_case.PerSampleWorstCase
    monkeypatch.setattr(perturbation, method, mutant(getattr(perturbation, method)))
    try:
        steps = recorded(case, inner_bounds="linear")
    except SoundnessError:
        return
    assert escapes(replay, steps, [flips]) != []


# --------------------------------------------------------------- walks in pieces, by the memory


@every_pair(
    kind=["features", "labels"], pairs=[1, 5, 30], static={"static": True, "adaptive": False}
)
def test_walks_in_pieces_give_the_same_ranges(
    kind: str, pairs: int, static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Forms of few elements and samples at once, and no more coefficients than there may be."""
    case, *_ = problem(
        kind=kind,
        hidden=(5,),
        count=6,
        radius=0.05,
        static=static,
        scope="batch",
        training={"batch_size": 4, "epochs": 2},
    )
    whole, boxes = certified(case, inner_bounds="linear")
    taken: list[int] = []
    walk_back = intermediate.sample_forms

    def spy(nodes: Any, sample_chunk: Any, target: str, coefficients: Tensor) -> Any:
        forms = walk_back(nodes, sample_chunk, target, coefficients)
        taken.append(coefficients.shape[0] * coefficients.shape[1])
        assert all(on.shape[:2] == coefficients.shape[:2] for on in forms.coefficients.values())
        return forms

    monkeypatch.setattr(intermediate, "sample_forms", spy)
    settled = planning.make_plan

    def in_pieces(*given: Any, **named: Any) -> planning.Plan:
        plan = settled(*given, **named)
        return replace(plan, pieces=replace(plan.pieces, inner_pairs=pairs, inner_chunk=7))

    monkeypatch.setattr(planning, "make_plan", in_pieces)
    cut, cut_boxes = certified(case, inner_bounds="linear")
    assert taken
    assert max(taken) <= pairs
    for one, other in zip(whole, cut, strict=True):
        for node in intermediate.targets(Replay(case).schedule):
            first, second = one.ranges.boxes[node.name], other.ranges.boxes[node.name]
            assert torch.allclose(first.lower, second.lower, rtol=1e-12, atol=1e-14)
            assert torch.allclose(first.upper, second.upper, rtol=1e-12, atol=1e-14)
    for one, other in zip(boxes, cut_boxes, strict=True):
        assert one.mean_width == pytest.approx(other.mean_width, rel=1e-10)


@pytest.mark.parametrize("batch", [500, 10_000])
@pytest.mark.parametrize("memory", ["64MiB", "1GiB"])
def test_the_plan_holds_inner_walks_to_the_memory(
    memory: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes of the coefficients: 64 units from both sides, 10,000 samples, 705 parameters each."""
    plans: list[planning.Plan] = []

    class Planned(Exception):
        pass

    settled = planning.make_plan

    def stop(*options: Any, **named: Any) -> planning.Plan:
        plans.append(settled(*options, **named))
        raise Planned

    monkeypatch.setattr(planning, "make_plan", stop)
    model = network((9, 64, 1), seed=0)
    data = torch.zeros(batch, 9, dtype=torch.float64), torch.zeros(batch, 1, dtype=torch.float64)
    threat = agt.FeaturePoisoning(10, 0.01, static=False, scope="batch")
    training = Training(loss="mse", learning_rate=0.1, epochs=3)
    with pytest.raises(Planned):
        agt.certify(model, data, training, threat, inner_bounds="linear", memory=memory)
    (plan,) = plans
    allowed = bytes_of(memory)
    assert plan.linear_inner
    pieces = plan.pieces
    assert pieces.inner_pairs * 8 * (705 + 9 + 1) <= allowed
    assert pieces.inner_pairs < 128 * batch or allowed >= 8 * 705 * 128 * batch
    # Rows of a walk: dense coefficients of a fragment on 64 units, and moves of every sample.
    for rows in (pieces.chunk, pieces.inner_chunk):
        assert rows == 1 or rows * 8 * (pieces.walked_samples * 64 + batch * 10) <= allowed
