"""Which samples carry the bound."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from attacks import Problem, network

import milp_agt as agt


def problem(threat, **run) -> Problem:
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(2, (8,), generator=generator)
    training = agt.Training(loss="bce", **({"learning_rate": 0.3, "epochs": 2} | run))
    return Problem(network((2, 3, 1), seed=1), x, y, training, threat)


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
def test_what_a_sample_is_worth_is_what_it_reaches_alone(selections: str) -> None:
    """With one sample open to poison, it carries about the whole width; the others nothing."""
    case = problem(agt.FeaturePoisoning(1, 1e-4, samples=(5,)))
    result, _ = case.certify(selections=selections)
    (only,) = result.suspects()
    assert only.sample == 5
    assert only.width == pytest.approx(result.reachable.mean_width, rel=0.05)
    assert only.share == pytest.approx(only.width / result.reachable.mean_width)


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
def test_the_order_is_that_of_runs_with_one_sample_open(selections: str) -> None:
    case = problem(agt.FeaturePoisoning(1, 1e-4))
    found = case.certify(selections=selections)[0].suspects(8)
    alone = [
        problem(agt.FeaturePoisoning(1, 1e-4, samples=(s.sample,))).certify()[0] for s in found
    ]
    widths = [r.reachable.mean_width for r in alone]
    assert np.allclose([s.width for s in found], widths, rtol=0.1)
    assert [s.width for s in found] == sorted((s.width for s in found), reverse=True)


@pytest.mark.parametrize(
    "threat",
    [
        agt.LabelPoisoning(2),
        agt.FeatureLabelPoisoning(1, 0.01),
        agt.FeaturePoisoning(1, 0.01, static=False, scope="batch"),
        agt.FeaturePoisoning(1, 0.01, scope="batch"),
        agt.Removal(1),
        agt.SeparatePoisoning(agt.FeaturePoisoning(1, 0.01), agt.LabelPoisoning(1)),
    ],
    ids=str,
)
def test_every_adversary_has_suspects(threat) -> None:
    result, _ = problem(threat, batch_size=4).certify()
    found = result.suspects(3)
    assert len(found) == 3
    assert all(s.width > 0 for s in found)
    assert str(found).splitlines()[2].split()[0] == str(found[0].sample)
    assert len(found[:2]) == 2


def test_without_forms_there_is_no_answer(tmp_path) -> None:
    case = problem(agt.FeaturePoisoning(1, 0.01))
    result, _ = case.certify(relaxation="linear")
    result.save(tmp_path / "r.npz")
    for bare in (case.certify(relaxation="interval")[0], agt.load(tmp_path / "r.npz")):
        with pytest.raises(agt.errors.InvalidInputError) as refusal:
            bare.suspects()
        for part in ("carry the bound", "keeps no linear forms", "relaxation='linear'"):
            assert part in str(refusal.value)
