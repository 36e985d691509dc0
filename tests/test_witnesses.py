"""Witnesses: real runs that violate a property, saved, replayed, and refused where they are forged."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_verdicts_of_points import (
    LABELS,
    RADIUS,
    TEST,
    TRAINING,
    X,
    Y,
    certified,
    margins,
    model,
    trained,
)

import milp_agt as agt
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.properties.witness import Witness, load_witness
from milp_agt.threats import ThreatModel


@functools.cache
def witnessed(threat: ThreatModel) -> tuple[agt.Result, agt.Answer, list[Witness]]:
    """A run with what it says of the test points, and the witnesses of those that are refuted."""
    result = certified(threat)
    answer = result.accuracy(TEST, LABELS)
    assert answer.points.verdict is not None
    refuted = answer.points.index[answer.points.verdict == "REFUTED"]
    return result, answer, [result.witness(answer, int(point)) for point in refuted]


@pytest.mark.parametrize(
    "threat",
    [
        agt.FeaturePoisoning(2, RADIUS),
        agt.FeaturePoisoning(2, RADIUS, norm=2),
        agt.FeaturePoisoning(2, RADIUS, norm=1),
        agt.LabelPoisoning(2),
        agt.Removal(2),
        agt.FeatureLabelPoisoning(2, radius=RADIUS),
    ],
    ids=["box", "norm 2", "norm 1", "labels", "removal", "both"],
)
def test_a_saved_witness_violates_the_property_in_plain_torch(
    threat: ThreatModel, tmp_path: Path
) -> None:
    result, answer, found = witnessed(threat)
    changed = [w for w in found if w.changes]
    assert changed
    first: tuple[str, Witness] | None = None
    for number, witness in enumerate({id(w): w for w in changed}.values()):
        path = witness.save(tmp_path / f"witness-{number}", first)
        first, again = first or (path.name, witness), load_witness(path)
        assert again.changes == witness.changes
        assert again.poisoned == witness.poisoned
        kept = np.flatnonzero(again.there[0]).tolist() if again.there else None
        own = trained(torch.from_numpy(again.features[0]), torch.from_numpy(again.labels[0]), kept)
        at = margins(own)[list(again.points)]
        assert (at < 0).all()
        np.testing.assert_allclose(at.numpy(), again.margins, rtol=0, atol=1e-9)
        replayed = result.replay(again)
        assert result.reachable.contains(replayed)
        for name, value in own.state_dict().items():
            torch.testing.assert_close(value, replayed[name], rtol=0, atol=1e-9)
        moved = torch.from_numpy(again.features[0]) - X
        if kept is None and isinstance(threat, agt.FeaturePoisoning):
            order = {"2": 2.0, "1": 1.0}.get(str(threat.norm), torch.inf)
            exact = torch.linalg.vector_norm(moved, ord=order, dim=1)
            assert (exact > 0).sum() <= 2
            assert (exact <= RADIUS * (1 + 1e-15)).all()
        assert len(again.changes) <= 2
        assert all(words.startswith("sample ") for words in again.changes)
    assert answer.points.reached is not None
    assert (answer.points.score_lower <= answer.points.reached).all()


@pytest.mark.parametrize("scope", ["batch", "dataset"])
def test_an_adaptive_witness_replays(scope: str) -> None:
    result, _, found = witnessed(agt.FeaturePoisoning(1, 1.5, static=False, scope=scope))
    changed = next(w for w in found if w.changes)
    assert len(changed.features) == 6
    assert result.reachable.contains(result.replay(changed))
    assert any("steps" in change for change in changed.changes)
    with pytest.raises(InvalidInputError, match="adaptive"):
        _ = changed.data_set


def forged(witness: Witness, how: str) -> Witness:
    x, y = witness.features[0].copy(), witness.labels[0].copy()
    moved = np.flatnonzero((x != X.numpy()).any(1))
    still = np.flatnonzero((x == X.numpy()).all(1))
    if how == "too far":
        step = x[moved[0]] - X.numpy()[moved[0]]
        x[moved[0]] = X.numpy()[moved[0]] + step * (1 + 1e-9) * RADIUS / np.abs(step).max()
    elif how == "one more sample":
        x[still[0], 0] += 1e-12
    elif how == "a label":
        y[moved[0]] = 1 - y[moved[0]]
    elif how == "a sample that is closed":
        x[moved[0]], x[15] = X.numpy()[moved[0]], x[15] + 0.01
    elif how == "not a number":
        x[moved[0], 0] = np.nan
    elif how == "another shape":
        x = x[:-1]
    else:
        return dataclasses.replace(witness, data="0" * 64)
    return dataclasses.replace(witness, features=(x,), labels=(y,))


@pytest.mark.parametrize(
    ("how", "found"),
    [
        ("too far", "moved farther"),
        ("one more sample", "more than the budget of 2"),
        ("a label", "the label of sample"),
        ("a sample that is closed", "which the threat leaves alone"),
        ("not a number", "not a finite number"),
        ("another shape", "other data"),
        ("other data", "other data"),
    ],
)
def test_a_forged_witness_is_refused(how: str, found: str) -> None:
    result, _, known = witnessed(agt.FeaturePoisoning(2, RADIUS, samples=range(15)))
    witness = next(w for w in known if w.changes)
    result.replay(witness)
    with pytest.raises(InvalidInputError, match=found):
        result.replay(forged(witness, how))


def test_a_run_outside_a_certified_bound_raises() -> None:
    """The mutant of every certifier: a bound that is too tight by a little is found by attacks."""
    result, answer, _ = witnessed(agt.FeaturePoisoning(2, RADIUS))
    assert result.decider is not None
    assert answer.points.reached is not None
    low = answer.points.score_lower.copy()
    low[:] = answer.points.reached + 1e-6
    points = dataclasses.replace(answer.points, score_lower=low, reached=None, witness=None)
    wrong = dataclasses.replace(answer, points=points)
    question = agt_question(result)
    with pytest.raises(SoundnessError, match="within the certificate"):
        result.decider.decide(question, wrong)


def test_float32_witnesses_are_float32_numbers() -> None:
    x, test = X.float(), TEST.float()
    result = agt.certify(
        model().float(), (x, Y), TRAINING, agt.FeaturePoisoning(2, 0.375), precision="float32"
    )
    answer = result.accuracy(test, LABELS)
    assert answer.points.verdict is not None
    found = [w for w in answer.witnesses if w.changes]
    assert found
    for witness in found:
        features = witness.features[0]
        assert (features == features.astype(np.float32)).all()
        assert (np.abs(features - x.double().numpy()) <= 0.375).all()
        assert result.replay(witness)["0.weight"].dtype == torch.float32


def agt_question(result: agt.Result) -> Any:
    from milp_agt.properties.accuracy import AccuracyQuestion
    from milp_agt.training import inputs

    graph = result.models.step_graph
    encoded = inputs.labels_of(LABELS, len(TEST), graph.loss, graph.outputs)
    return AccuracyQuestion.of(result.models, TEST, encoded)
