"""Attacks that remove, replace and insert whole samples: against brute force, by hand, with mutants."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, assert_inside, network
from pairs import every_pair
from refusals import refused
from run_texts import run_text
from torch import Tensor, nn
from torch.func import functional_call, vmap
from whole import Trainer, subsets

import milp_agt as agt
from milp_agt.attacks import Accuracy, Loss, Search
from milp_agt.attacks.moves import Selector, random_poisoning
from milp_agt.attacks.packed import Packed
from milp_agt.attacks.replay import confirm, replay
from milp_agt.attacks.unrolled import Unrolled
from milp_agt.cli import main
from milp_agt.errors import InvalidThreatModelError
from milp_agt.formulations.loss import get_loss
from milp_agt.training.tracing import trace
from milp_agt.training.training import Training

QUICK = Search(pool=128, restarts=2, rounds=1, iterations=3)
RUN = {"learning_rate": 0.4, "epochs": 3}
MINI = {"batches": [[0, 1, 2], [3], [4, 5], [2, 0]] * 2, "epochs": 1, "momentum": 0.5}


def problem(threat: Any, loss: str = "bce", seed: int = 0, count: int = 6, **run: Any) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    outputs = {"mse": 2, "bce": 1, "cross_entropy": 3}[loss]
    y: Tensor = torch.randint(max(outputs, 2), (count,), generator=generator)
    if loss == "mse":
        y = torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    training = Training(loss=loss, **(RUN | run))
    return Problem(network((2, 2, outputs), seed=seed), x, y, training, threat)


def attacked(case: Problem, search: Search = QUICK, **options: Any) -> Any:
    return agt.attack(case.model, case.data, case.training, case.threat, search=search, **options)


def by_hand(case: Problem, run: Any) -> dict[str, Tensor]:
    """The model that plain torch trains on the batches of a run; empty ones are left out."""
    trainer = Trainer(case)
    batches = [
        (torch.as_tensor(x)[None], trainer.encoded(torch.as_tensor(y))[None], torch.ones(1, len(x)))
        for x, y in run.batches
        if len(x)
    ]
    return {name: value[0] for name, value in trainer.run(batches)[-1].items()}


THREATS: dict[str, Any] = {
    "removal": agt.Removal(2),
    "removal in batches": agt.Removal(1, scope="batch"),
    "removal of some": agt.Removal(1, samples=[1, 3, 5]),
    "substitution": agt.Substitution(1),
    "substitution, adaptive": agt.Substitution(1, static=False, scope="batch"),
    "insertion": agt.Insertion(2),
}


# One loss has every threat, the others two kinds of them.
CERTIFIED = [
    pytest.param(
        *(name, loss, MINI if loss == "bce" else {}),
        marks=[] if loss == "bce" or name in ("removal", few) else pytest.mark.slow,
        id=f"{name}-{loss}",
    )
    for loss, few in (("bce", ""), ("cross_entropy", "substitution"), ("mse", "insertion"))
    for name in THREATS
]


@pytest.mark.parametrize(("name", "loss", "run"), CERTIFIED)
def test_attacks_are_runs_of_the_threat_inside_the_certificate(
    name: str, loss: str, run: dict[str, Any]
) -> None:
    clip = None if name == "removal" else 0.3
    case = problem(THREATS[name], loss, clip=clip, **run)
    result, _ = case.certify(attack=Search(pool=16, restarts=1, rounds=1, iterations=2))
    found = result.attack
    assert 0 < result.sandwich.reached <= result.sandwich.certified
    winner = found.winner
    for index in {winner, 0, len(found.runs) - 1}:
        one = found.runs.describe(index)
        check_budget(case, one)
        state = by_hand(case, one)
        for parameter, value in one.state_dict.items():
            torch.testing.assert_close(state[parameter], value, rtol=1e-9, atol=1e-11)
        assert result.reachable.contains(state)


def check_budget(case: Problem, run: Any) -> None:
    """The run keeps to the budget of the threat, batch by batch and over the data set."""
    threat, order = case.threat, case.training.batch_order(len(case.features))
    for batch, (x, _) in zip(order, run.batches, strict=True):
        given = case.features[batch].numpy()
        kept = sum(bool((row == given).all(1).any()) for row in x)
        if isinstance(threat, agt.Insertion):
            assert kept == len(batch)
            assert len(x) - kept <= threat.budget
        elif isinstance(threat, agt.Substitution):
            assert len(x) == len(batch)
            assert len(x) - kept <= threat.budget
        else:
            assert len(x) == kept >= len(batch) - threat.budget
    if getattr(threat, "scope", "") == "dataset":
        assert len(run.poisoned) <= threat.budget
    if getattr(threat, "samples", None) is not None:
        assert set(run.poisoned) <= set(threat.samples)


@every_pair(budget=[1, 2], run={"full": {}, "mini": MINI}, clip=[None, 0.3])
def test_few_removals_are_tried_one_and_all(budget: int, run: dict[str, Any], clip: Any) -> None:
    case = problem(agt.Removal(budget), clip=clip, **run)
    found = attacked(case)
    assert found.exhaustive
    every = Trainer(case).removed(list(subsets(6, budget)))[-1]
    for name, value in every.items():
        np.testing.assert_allclose(found.lower[name], value.amin(0), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.upper[name], value.amax(0), rtol=1e-9, atol=1e-12)


def test_the_search_finds_what_enumeration_does() -> None:
    case = problem(agt.Removal(2), count=10)
    every, searched = attacked(case), attacked(case, replace(QUICK, enumerate=0, rounds=3))
    assert every.exhaustive
    assert not searched.exhaustive
    assert searched.mean_width == pytest.approx(every.mean_width, rel=1e-9)


@pytest.mark.parametrize("objective", ["accuracy", "loss"])
def test_objectives_reach_the_worst_removal(objective: str) -> None:
    case = problem(agt.Removal(1))
    test, labels = torch.randn(9, 2).double(), torch.arange(9) % 2
    every = Trainer(case).removed(list(subsets(6, 1)))[-1]
    out = vmap(lambda state: functional_call(case.model, state, (test,)))(every)
    if objective == "accuracy":
        worst = ((out[..., 0] > 0) == labels.bool()).double().mean(1).min()
        aim: Any = Accuracy(test, labels)
    else:
        loss = get_loss("bce").plain
        worst = torch.stack([loss(f, labels[:, None].double()) for f in out]).max()
        aim = Loss(test, labels)
    assert attacked(case, objective=aim).value == pytest.approx(float(worst), rel=1e-12)


def test_unlearning_is_certified_to_what_it_reaches() -> None:
    result, _ = problem(agt.Removal(1)).certify(selections="enumerated", attack=True)
    assert result.attack.exhaustive
    assert 1.0 <= result.sandwich.ratio < 1.0 + 1e-6


def grid(step: float = 1.5) -> tuple[Tensor, Tensor]:
    """New samples on a grid, with both labels."""
    ends = np.arange(-6.0, 6.1, step)
    points = torch.tensor(list(itertools.product(ends, ends)), dtype=torch.float64)
    return torch.cat([points, points]), torch.arange(2).repeat_interleave(len(points))


@pytest.mark.parametrize("name", ["substitution", "insertion"])
def test_new_samples_reach_what_a_grid_of_them_does(name: str) -> None:
    pool, labels = grid()
    kind = agt.Substitution(1) if name == "substitution" else agt.Insertion(1)
    case = problem(kind, count=4, clip=0.3)
    trainer = Trainer(case)
    if name == "substitution":
        every = trainer.substituted([[i] for i in range(4)], pool, labels)
    else:
        every = trainer.inserted(1, pool, labels)
    _, boxes = case.certify()
    assert_inside(boxes, every)
    found = attacked(case, Search(pool=512, restarts=4, rounds=3, iterations=6))
    widths = [(v.amax(0) - v.amin(0)).flatten() for v in every[-1].values()]
    assert found.mean_width >= 0.97 * float(torch.cat(widths).mean())


@pytest.mark.parametrize("name", ["substitution", "insertion"])
def test_one_step_of_clamped_gradients_reaches_the_closed_form(name: str) -> None:
    """A sample in n moves the mean gradient of a parameter to either end of the clamp."""
    kind = agt.Substitution(1) if name == "substitution" else agt.Insertion(1)
    case = problem(kind, epochs=1, clip=0.2, clip_mode="clamp")
    case = replace(case, model=nn.Sequential(nn.Linear(2, 1)).double())
    found = attacked(case)
    trainer = Trainer(case)
    start = {n: p.detach()[None] for n, p in case.model.named_parameters()}
    encoded = trainer.encoded(case.labels)
    rate, clip = case.training.learning_rate, 0.2
    for parameter, each in trainer.gradients(start, case.features[None], encoded[None]).items():
        own = each[0]
        if name == "substitution":
            high = rate * (own + clip).amax(0) / 6
            low = rate * (own - clip).amin(0) / 6
        else:
            mean = own.mean(0)
            high, low = rate * (mean + clip) / 7, rate * (mean - clip) / 7
        value = start[parameter][0] - rate * own.mean(0)
        np.testing.assert_allclose(found.upper[parameter], value + high, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.lower[parameter], value + low, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", THREATS)
def test_random_runs_agree_with_plain_torch_at_every_step(name: str) -> None:
    case = problem(THREATS[name], clip=0.3, **MINI, weight_decay=0.1)
    unrolled = unroll(case)
    generator = torch.Generator().manual_seed(0)
    for corners in (True, False):
        data = random_poisoning(Selector(unrolled), 32, generator, corners)
        again = Packed.of(data, unrolled).unpacked(unrolled)
        path = unrolled.path(data)
        for expected, state in zip(path, replay(unrolled, data), strict=True):
            confirm(state, expected)
        for expected, state in zip(path, unrolled.path(again), strict=True):
            confirm(state, expected)


def unroll(case: Problem) -> Unrolled:
    training = case.training
    graph = trace(case.model, training.loss, (2,), training.clipping)
    encoded = Trainer(case).encoded(case.labels)
    return Unrolled.of(graph, training, case.threat.bind(case.features, encoded, graph.loss))


def test_gradients_say_what_a_removal_does() -> None:
    unrolled = unroll(problem(agt.Removal(1), momentum=0.5))
    nominal = unrolled.nominal(1)

    def score(state: dict[str, Tensor]) -> Tensor:
        return state["0.weight"].flatten(1).sum(1)

    _, gradient = unrolled.gradient(nominal, score)
    for sample in range(6):
        ends = []
        for share in (1.0 + 1e-6, 1.0 - 1e-6):
            there = nominal.there.clone()
            there[0, sample] = share
            ends.append(float(score(unrolled.run(replace(nominal, there=there)))))
        slope = (ends[0] - ends[1]) / 2e-6
        assert float(gradient.there[0, sample]) == pytest.approx(slope, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("threat", [agt.Substitution(1), agt.Insertion(1)], ids=["sub", "ins"])
def test_without_clipping_there_is_nothing_to_attack(threat: Any) -> None:
    words = "without limit on what they are", "without gradient clipping", "set clip="
    with refused(*words, kind=InvalidThreatModelError):
        attacked(problem(threat))


def test_the_poisoned_data_set_leaves_out_who_was_removed() -> None:
    case = problem(agt.Removal(1))
    found = attacked(case)
    (gone,) = found.poisoned
    left = [i for i in range(6) if i != gone]
    np.testing.assert_array_equal(found.features, case.features[left].numpy())
    np.testing.assert_array_equal(found.labels, case.labels[left].numpy())
    assert attacked(problem(agt.Removal(0))).mean_width == 0.0


def test_the_command_line_attacks_whole_samples(tmp_path: Path) -> None:
    path = tmp_path / "run.toml"
    path.write_text(COMMAND, encoding="utf-8")
    assert main(["attack", str(path), "--out", str(tmp_path / "out")]) == 0
    document = json.loads((tmp_path / "out" / "attack.json").read_text(encoding="utf-8"))
    (accuracy,) = document["objectives"][1:]
    assert accuracy["exhaustive"]
    assert accuracy["value"] <= accuracy["nominal"]
    with np.load(tmp_path / "out" / "attack.npz") as stored:
        assert len(stored["1/features/0"]) == 12 - len(stored["1/poisoned"])


COMMAND = run_text(
    [{"kind": "accuracy"}],
    data={"name": "moons", "samples": 16, "test_fraction": 0.25},
    model={"layers": [2, 2, 1], "seed": 1},
    threat={"kind": "removal", "budget": 1},
    training={"loss": "bce", "epochs": 3},
)
