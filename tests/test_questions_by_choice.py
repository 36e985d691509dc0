"""Questions by programs of single choices: brute force stays inside, tighter than one program of all."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network, torch_loss
from test_collective import RING, RING_LABELS
from test_leaves import OPTIONS
from test_questions_brute import LABELS, TEST, THREATS, TRAINING, X, Y, logits, poisons, trained

import milp_agt as agt
from milp_agt.bounds.program import OneByOne, Together, by_choice
from milp_agt.bounds.program.final_window import FinalWindow
from milp_agt.errors import SoundnessError


def certify(threat: Any, **options: Any) -> agt.Result:
    run = (network([2, 2, 1], seed=5), (X, Y), TRAINING, threat)
    return agt.certify(*run, **({"relaxation": "lp", **OPTIONS} | options))


@functools.cache
def certified(threat: str, selections: str = "enumerated") -> agt.Result:
    return certify(THREATS[threat], selections=selections)


def program_of(result: agt.Result) -> FinalWindow:
    found = result.models.program
    assert found is not None
    return found


@functools.cache
def functionals() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {
        name: torch.randn(4, *value.shape, generator=generator, dtype=torch.float64)
        for name, value in network([2, 2, 1], seed=5).state_dict().items()
    }


def reached(threat: str) -> tuple[np.ndarray, np.ndarray]:
    """Margins of the test points and functionals of every enumerated poisoning."""
    rows, values = functionals(), []
    margins = (2.0 * LABELS - 1.0) * logits(threat, TEST)
    with torch.no_grad():
        for model in trained(threat):
            terms = [p.flatten() @ rows[n].flatten(1).T for n, p in model.state_dict().items()]
            values.append(torch.stack(terms).sum(0))
    return margins.numpy(), torch.stack(values).numpy()


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("one flip", "both")]


@pytest.mark.parametrize("threat", ["two flips", "features", *SLOW])
def test_brute_force_stays_inside_every_answer(threat: str) -> None:
    result = certified(threat)
    assert isinstance(program_of(result).choices, OneByOne)
    margins, values = reached(threat)
    low, high = result.margins(TEST, LABELS)
    assert (low <= margins).all()
    assert (margins <= high).all()
    for row, answer in enumerate(result.functional(functionals())):
        assert answer.lower <= values[:, row].min()
        assert values[:, row].max() <= answer.upper
    right = (margins > 0).mean(1).min()
    assert result.accuracy(TEST, LABELS).lower <= right
    assert result.collective(TEST, LABELS).lower <= right
    losses = np.logaddexp(0.0, -margins).mean(1)
    loss = result.loss(TEST, LABELS)
    assert loss.lower <= losses.min()
    assert losses.max() <= loss.upper
    assert result.targeted(TEST, 1 - LABELS).upper >= (margins < 0).mean(1).max()
    assert result.backdoor(TEST, LABELS, radius=0.0).upper >= (margins <= 0).mean(1).max()
    assert not program_of(result).notes


@pytest.mark.parametrize("threat", ["features", SLOW[1]])
def test_choices_are_tighter_than_all_at_once(threat: str) -> None:
    apart, joint = certified(threat), certified(threat, "joint")
    assert isinstance(program_of(joint).choices, Together)
    widths = []
    for result in (apart, joint):
        low, high = result.margins(TEST, LABELS)
        answers = result.functional(functionals())
        widths.append([(high - low).sum(), sum(a.upper - a.lower for a in answers)])
    assert (np.array(widths[0]) < 0.99 * np.array(widths[1])).all()


def test_linear_bounds_of_each_choice_are_where_programs_begin() -> None:
    result = certified("features")
    bare = replace(result, models=replace(result.models, program=None))
    ends = [np.stack(r.margins(TEST, LABELS)) for r in (result, bare)]
    assert (ends[0][0] >= ends[1][0]).all()
    assert (ends[0][1] <= ends[1][1]).all()
    assert (np.abs(ends[0] - ends[1]) > 1e-6).any()
    report = program_of(result).reports[-1]
    assert {e.choice for e in report.evidence} <= set(range(len(program_of(result).choices)))
    assert report.solves == sum(len(e.multipliers) for e in report.evidence)


@pytest.mark.parametrize("threat", ["features", "two flips"])
def test_the_worst_choice_counts(threat: str) -> None:
    """What is counted by choice is no worse than point by point, nor than by one program of all."""
    result, joint = certified(threat), certified(threat, "joint")
    alone, together = result.accuracy(RING, RING_LABELS), result.collective(RING, RING_LABELS)
    right = (logits(threat, RING) > 0) == (RING_LABELS == 1)
    assert alone.lower <= together.lower <= float(right.double().mean(-1).min())
    assert together.lower >= joint.collective(RING, RING_LABELS).lower


def test_choices_that_move_one_percent_less_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step and a small radius: the programs are almost exact."""
    threat, training = agt.FeaturePoisoning(1, 1e-4), replace(TRAINING, epochs=1)
    sign, margins = 2.0 * LABELS - 1.0, []
    for x, y in poisons(threat):
        model = network([2, 2, 1], seed=5)
        torch_loss("bce", model(x), y[:, None].double()).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= training.learning_rate * parameter.grad
            margins.append((sign * model(TEST)[:, 0]).numpy())
    values = np.stack(margins)

    def bounds() -> tuple[np.ndarray, np.ndarray]:
        run = (network([2, 2, 1], seed=5), (X, Y), training, threat)
        return agt.certify(*run, relaxation="lp", **OPTIONS).margins(TEST, LABELS)

    low, high = bounds()
    assert ((low <= values) & (values <= high)).all()
    original = by_choice._poison_of

    def timid(own: Any) -> Any:
        poison = original(own)
        moves = poison.feature_moves
        return replace(
            poison, feature_moves=replace(moves, low=0.99 * moves.low, high=0.99 * moves.high)
        )

    monkeypatch.setattr(by_choice, "_poison_of", timid)
    try:
        low, high = bounds()
    except SoundnessError:  # a run that is held against the bounds lies outside
        return
    assert not ((low <= values) & (values <= high)).all()
