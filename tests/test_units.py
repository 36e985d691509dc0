"""Radii in units of the file, what claims say of them, and scalers that the adversary can reach."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tables import TRAINING, certified, data, network, raw_features, reason, write_table
from torch import nn

import milp_agt as agt
from milp_agt.data.origin import Scaling
from milp_agt.errors import InvalidThreatModelError
from milp_agt.threats.units import Units, located


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_table(tmp_path)


def test_claims_carry_units(path: Path) -> None:
    scaled, plain = data(path, seed=3, standardise=True), data(path, seed=3)
    sizes = scaled.origin.features.size
    claim = certified(scaled, agt.FeaturePoisoning(1, 0.02)).claim
    beside = f"({0.02 * sizes[0]:.4g} of 'age', {0.02 * sizes[1]:.4g} of 'dose'"
    assert f"moved by at most 0.02 standard deviations in every coordinate {beside}" in claim
    raw = certified(scaled, agt.FeaturePoisoning(1, 0.02, radius_in="raw")).claim
    assert "moved by at most 0.02 in the units of the data in every coordinate" in raw
    assert f"({0.02 / sizes[0]:.4g} standard deviations of 'age'" in raw
    several = certified(scaled, agt.FeaturePoisoning(1, [0.1, 0.2, 0.3], norm=2)).claim
    assert f"(1 standard deviation is {sizes[0]:.4g} of 'age'" in several
    assert "in the units of the data" in certified(plain, agt.FeaturePoisoning(1, 0.02)).claim
    arrays = agt.certify(
        network(), (plain.x_train, plain.y_train), TRAINING, agt.FeaturePoisoning(1, 0.02)
    )
    assert "moved by at most 0.02 in every coordinate, once" in arrays.claim


def test_pixels_are_told_in_both_ranges(tmp_path: Path) -> None:
    file = tmp_path / "m.npz"
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 3, 3), dtype=np.uint8)
    labels = (np.arange(8) % 2)[:, None]
    np.savez(file, train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    found = agt.load_dataset(file)
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 2)).double()
    claims = [
        agt.certify(model, found, TRAINING, agt.FeaturePoisoning(1, radius, radius_in=unit)).claim
        for radius, unit in ((0.02, "model"), (5, "raw"))
    ]
    assert "0.02 of the range 0 to 1 in every coordinate (5.1 of 0 to 255)" in claims[0]
    assert "5 in the units of the data in every coordinate (0.01961 of 0 to 1)" in claims[1]


@pytest.mark.parametrize("order", [np.inf, 1, 2])
@pytest.mark.parametrize("divisor", [1.0, 255.0])
def test_raw_radii_hold_all_that_scaling_makes_of_raw_moves(order: float, divisor: float) -> None:
    """Without a tolerance: the scaled numbers of the run itself, for corners of the raw ball."""
    rng = np.random.default_rng(1)
    raw = rng.normal(size=(40, 3)) * [1e-3, 1.0, 1e5] + [1e3, 0.0, 1e5]
    x = raw / divisor
    scaling = Scaling(x.mean(0), x.std(0), divisor, ("a", "b", "c"))
    nominal = torch.from_numpy(scaling.apply(raw))
    origin = dataclasses.replace(agt.Dataset.of(raw, np.zeros(40, int)).origin, features=scaling)
    radius = torch.tensor([1e-6, 1e-3, 50.0], dtype=torch.float64).expand(40, 3)
    units = Units("FeaturePoisoning", "raw", origin, "features")
    bound = units.to_model(radius, nominal, order)
    exact = radius.numpy()[0] / scaling.size
    assert (bound.numpy() <= exact * (1 + 1e-3) + 1e-8).all()
    for _ in range(50):
        move = rng.choice([-1.0, 1.0], size=(40, 3))
        if order != np.inf:
            move = rng.normal(size=(40, 3))
            size = np.linalg.norm(move, order, axis=1, keepdims=True)
            move = move / size * (1 - 1e-15)
        ends = np.array(raw + move * radius.numpy())
        kept = np.abs(ends - raw) / radius.numpy()
        inside = np.linalg.norm(kept, order, axis=1) <= 1 if order != np.inf else (kept <= 1).all(1)
        moved = np.abs(scaling.apply(ends) - nominal.numpy()) / bound.numpy()
        assert (np.linalg.norm(moved, order, axis=1) <= 1)[inside].all()
        assert inside.any()


def test_raw_threats_hold_real_runs_on_poisoned_files(path: Path) -> None:
    """The file is changed within the raw radius and read again with the scaler of the clean one."""
    found = data(path, seed=3, standardise=True)
    scaling, raw = found.origin.features, raw_features(path)
    assert np.array_equal(scaling.apply(raw[found.rows.train]), found.x_train)
    row, radius = int(found.rows.train[3]), np.array([0.05, 2.0, 0.001])
    threat = agt.FeaturePoisoning(1, radius, samples=[row], radius_in="raw")
    result = certified(found, threat)
    rng = np.random.default_rng(0)
    for _ in range(10):
        poisoned = raw.copy()
        poisoned[row] += radius * rng.choice([-0.999, 0.999], 3)
        x = torch.from_numpy(scaling.apply(poisoned[found.rows.train]))
        model = network()
        optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
        for _ in range(3):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x), torch.from_numpy(found.y_train)).backward()
            optimiser.step()
        assert result.reachable.contains(model.state_dict())


def test_domains_and_missing_values_in_raw_units(path: Path) -> None:
    found = data(path, seed=3, standardise=True)
    scaling = found.origin.features
    assert scaling is not None
    low, high = raw_features(path).min(0), raw_features(path).max(0)
    threat = agt.FeaturePoisoning(1, np.inf, domain=(low, high), missing={1: -1.0}, radius_in="raw")
    features, labels = torch.from_numpy(found.x_train), torch.zeros(len(found.x_train), 2)
    from milp_agt.formulations.loss import get_loss

    poison = located(threat, found.origin).bind(
        features, labels.double(), get_loss("cross_entropy")
    )
    box = poison.feature_box()
    ends = scaling.apply(np.stack([low, high]))
    for column in (0, 2):
        assert (box.lower[1, :, column].numpy() <= ends[0, column]).all()
        assert (box.upper[1, :, column].numpy() >= ends[1, column]).all()
        assert np.allclose(box.lower[1, :, column].numpy(), ends[0, column])
    assert np.allclose(box.lower[1, :, 1].numpy(), scaling.apply([0.0, -1.0, 0.0])[1])


BAD_UNITS = [
    (agt.FeaturePoisoning(1, 1, radius_in="cm"), "radius_in = 'cm'"),
    (agt.FeaturePoisoning(1, 1, rows=([[1, 0, 0]], [1.0]), radius_in="raw"), "conditions on moves"),
]


@pytest.mark.parametrize(("threat", "found"), BAD_UNITS)
def test_units_that_are_refused(path: Path, threat: Any, found: str) -> None:
    assert found in reason(data(path, standardise=True), threat).found


def test_raw_units_need_a_scaler(path: Path) -> None:
    found = data(path, seed=3, standardise=True)
    raw = agt.FeaturePoisoning(1, 0.1, radius_in="raw")
    with pytest.raises(InvalidThreatModelError, match="of which nobody knows how"):
        agt.certify(network(), (found.x_train, found.y_train), TRAINING, raw)
    projected = data(path, seed=3, pca=3, standardise=True)
    assert "principal components" in reason(projected, raw).found


def test_targets_in_raw_units(path: Path) -> None:
    found = agt.load_dataset(
        path, target="dose", id="patient", standardise=True, standardise_targets=True
    )
    scaling = found.origin.targets
    training = agt.Training(loss="mse", learning_rate=0.1, epochs=2)
    model = nn.Sequential(nn.Linear(3, 1)).double()
    raw = agt.certify(model, found, training, agt.LabelPoisoning(1, 5.0, radius_in="raw"))
    radius = 5.0 / float(scaling.deviation)
    scaled = agt.certify(model, found, training, agt.LabelPoisoning(1, radius))
    assert raw.reachable.mean_width == pytest.approx(scaled.reachable.mean_width, rel=1e-9)
    assert raw.reachable.mean_width >= scaled.reachable.mean_width
    assert f"({radius:.4g} standard deviations of 'dose')" in raw.claim
    assert "Mind that the targets were standardised" in raw.caution


# What a scaler that was fitted on poisoned data means for the claim


def test_a_scaler_within_reach_of_the_adversary_comes_first(path: Path) -> None:
    scaled, plain = data(path, standardise=True), data(path)
    within = certified(scaled, agt.FeaturePoisoning(1, 0.02))
    assert within.claim.startswith("Mind that the features were standardised by mean and deviation")
    assert not any("scaling" in each for each in within.assumptions)
    assert any("stay as they are, although" in each for each in within.assumptions)
    for out_of_reach in (
        certified(scaled, agt.LabelPoisoning(1)),
        certified(scaled, agt.FeaturePoisoning(0, 0.02)),
        certified(plain, agt.FeaturePoisoning(1, 0.02)),
    ):
        assert out_of_reach.caution == ""
        assert out_of_reach.claim.startswith("With ")
        assert any("Preprocessing (scaling" in each for each in out_of_reach.assumptions)
    assert certified(scaled, agt.Removal(1)).caution
    flips = agt.SeparatePoisoning(agt.FeaturePoisoning(0, 0.1), agt.LabelPoisoning(1))
    assert not certified(scaled, flips).caution
