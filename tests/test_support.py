"""Every threat, question and relaxation can be combined, and is a certificate under attack."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay, network
from pairs import every_pair
from torch import Tensor
from whole import Trainer, subsets

import milp_agt as agt
from milp_agt.core.relaxation import Relaxation
from milp_agt.properties.property_table import PROPERTIES
from milp_agt.threats.threat_model import THREATS as KINDS

THREATS = [table.made_of for table in KINDS.all().values()]
EXAMPLES: dict[str, Any] = {
    "FeaturePoisoning": agt.FeaturePoisoning(budget=1, radius=0.05),
    "LabelPoisoning": agt.LabelPoisoning(budget=1),
    "FeatureLabelPoisoning": agt.FeatureLabelPoisoning(budget=1, radius=0.05),
    "SeparatePoisoning": agt.SeparatePoisoning(
        agt.FeaturePoisoning(budget=1, radius=0.05), agt.LabelPoisoning(budget=1)
    ),
    "Substitution": agt.Substitution(budget=1),
    "Removal": agt.Removal(budget=1),
    "Insertion": agt.Insertion(budget=1),
}
X = torch.tensor([[1.0, 0.2], [-0.8, 0.5], [0.3, -1.0], [-0.4, -0.6], [0.7, 0.9], [-1.0, 0.1]])
X = X.to(torch.float64)
Y = (X[:, 0] > 0).long()
TRAIN, TEST = slice(0, 4), slice(4, 6)


@functools.cache
def certified(threat: str, relaxation: str) -> tuple[Any, dict[str, Tensor], Replay]:
    """Result, and the final states of attacks."""
    clip = 0.3 if threat in ("Substitution", "Insertion") else None
    training = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=1, clip=clip)
    model = network([2, 2, 2], seed=3)
    run = Problem(model, X[TRAIN], Y[TRAIN], training, EXAMPLES[threat])
    result, _ = run.certify(relaxation=relaxation)
    if threat in ("Substitution", "Removal", "Insertion"):
        # No moves to search: real runs on changed data, and a replay that only predicts.
        return result, changed(run), Replay(replace(run, threat=agt.LabelPoisoning(0)))
    replay = Replay(run)
    generator = torch.Generator().manual_seed(0)
    states = [
        replay.run(attack)[-1]
        for attack in replay.all(generator, X[TEST], Y[TEST], attacks=16, iterations=2, largest=4)
    ]
    merged = {name: torch.cat([s[name].detach() for s in states]) for name in states[0]}
    return result, merged, replay


def changed(run: Problem) -> dict[str, Tensor]:
    """Final states without each sample, or with samples far out in its place or beside the others."""
    trainer = Trainer(run)
    pool = torch.tensor([[30.0, -30.0], [-30.0, 30.0], [0.5, 0.5], [30.0, 30.0]]).double()
    labels = torch.tensor([0, 1, 0, 1])
    if isinstance(run.threat, agt.Removal):
        return trainer.removed(list(subsets(4, 1)))[-1]
    if isinstance(run.threat, agt.Insertion):
        return trainer.inserted(1, pool, labels)[-1]
    return trainer.substituted([[i] for i in range(4)], pool, labels)[-1]


def reached(question: str, result: Any, states: dict[str, Tensor], replay: Replay) -> Any:
    """The answer, and the value of every attacked model, (attacks,)."""
    x, y = X[TEST], Y[TEST]
    f = replay.outputs_at(states, x).detach()
    if question == "accuracy":
        return result.accuracy(x, y), (f.argmax(-1) == y).double().mean(-1)
    if question == "collective":
        return result.collective(x, y), (f.argmax(-1) == y).double().mean(-1)
    if question == "loss":
        encoded = torch.nn.functional.one_hot(y, 2).double()
        return result.loss(x, y), replay.loss.value(f, encoded).mean(-1)
    if question == "targeted":
        return result.targeted(x, 0), (f[..., 0] >= f[..., 1]).double().mean(-1)
    if question == "stable":
        same = f.argmax(-1) == result.models.outputs(x).argmax(-1)
        return result.stable(x), same.double().mean(-1)
    if question == "functional":
        rows = {"0.bias": np.array([1.0, -1.0])}
        return result.functional(rows)[0], states["0.bias"] @ torch.tensor([1.0, -1.0]).double()
    assert question == "backdoor"
    hits = torch.zeros(len(f), len(x), dtype=torch.bool)
    for shift in ((-0.3, -0.3), (-0.3, 0.3), (0.3, -0.3), (0.3, 0.3)):
        at = replay.outputs_at(states, x + torch.tensor(shift).double()).detach()
        hits |= at.argmax(-1) != y
    return result.backdoor(x, y, 0.3), hits.double().mean(-1)


LEVELS = [
    pytest.param(level.value, marks=[pytest.mark.slow] if level.value.endswith("qp") else [])
    for level in Relaxation
]


@every_pair(
    threat=[threat.__name__ for threat in THREATS],
    question=list(PROPERTIES.all()),
    relaxation=LEVELS,
)
def test_every_combination_is_a_certificate(threat: str, question: str, relaxation: str) -> None:
    result, states, replay = certified(threat, relaxation)
    assert {step.relaxation for step in result.steps} == {relaxation}
    assert not result.fallbacks
    answer, values = reached(question, result, states, replay)
    # A trigger at four corners need not be as good as the one behind the lower bound.
    assert question == "backdoor" or answer.lower <= float(values.min())
    assert float(values.max()) <= answer.upper
    assert np.isfinite([answer.lower, answer.upper]).all()


def test_every_threat_has_an_example() -> None:
    assert set(EXAMPLES) == {threat.__name__ for threat in THREATS}, "add one to EXAMPLES above"


def test_every_question_is_a_method() -> None:
    for question in PROPERTIES.all():
        assert callable(getattr(agt.Result, question))
