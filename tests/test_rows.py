"""Rows, ids and units of the user's file in threats, questions, results, files and the claim."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import milp_agt as agt
from milp_agt.attacks import Search
from milp_agt.cli import main
from milp_agt.data.origin import Scaling
from milp_agt.errors import ConfigurationError, InvalidInputError, InvalidThreatModelError
from milp_agt.runfile.run_file import load_config
from milp_agt.threats.units import Units, located

TRAINING = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=3)
COUNT = 20


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A table with ids and features of very different sizes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, 3)) * [1.0, 50.0, 0.01] + [0.0, 400.0, 7.0]
    lines = [
        f"p{i},{float(a)!r},{float(b)!r},{float(c)!r},{i % 2}" for i, (a, b, c) in enumerate(x)
    ]
    file = tmp_path / "d.csv"
    file.write_text("patient,age,dose,ph,y\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return file


def data(path: Path, **options: Any) -> agt.Dataset:
    return agt.load_dataset(path, target="y", id="patient", **options)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def raw_features(path: Path) -> np.ndarray:
    rows = [line.split(",")[1:4] for line in path.read_text().splitlines()[1:]]
    return np.array(rows, dtype=np.float64)


@pytest.mark.parametrize("options", [{}, {"samples": 12}, {"test_fraction": 0}, {"pca": 2}])
def test_rows_and_ids_lead_back_to_the_file(path: Path, options: dict[str, Any]) -> None:
    found = data(path, seed=3, **options)
    raw = raw_features(path)
    assert found.ids is not None
    for part, x, y in (
        ("train", found.x_train, found.y_train),
        ("test", found.x_test, found.y_test),
    ):
        rows = found.rows.of(part)
        assert found.ids.of(part).tolist() == [f"p{row}" for row in rows]
        assert y.tolist() == [row % 2 for row in rows]
        if "pca" not in options:
            assert np.array_equal(x, raw[rows])
    assert not set(found.rows.train) & set(found.rows.test)
    assert "patient" not in found.feature_names


def test_rows_of_files_with_a_test_part(tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    np.savez(
        file,
        x_train=np.arange(12.0).reshape(6, 2),
        y_train=np.arange(6) % 2,
        x_test=np.ones((3, 2)),
        y_test=np.zeros(3, int),
    )
    found = agt.load_dataset(file, samples=4, seed=1)
    assert (found.x_train[:, 0] / 2).tolist() == found.rows.train.tolist()
    assert found.rows.test.tolist() == [0, 1, 2]
    plain = agt.Dataset.of(np.eye(3), [0, 1, 0], ids=["a", "b", "c"])
    assert plain.rows.train.tolist() == [0, 1, 2]
    assert plain.ids is not None
    assert plain.ids.train.tolist() == ["a", "b", "c"]
    with pytest.raises(InvalidInputError, match="2 ids for 3 training samples"):
        agt.Dataset.of(np.eye(3), [0, 1, 0], ids=["a", "b"])


def certified(found: agt.Dataset, threat: Any, **options: Any) -> agt.Result:
    return agt.certify(network(), found, TRAINING, threat, **options)


def test_all_ways_to_name_samples_are_one_threat(path: Path) -> None:
    found = data(path, seed=3, standardise=True)
    positions = [2, 5]
    rows = found.rows.train[positions].tolist()
    assert rows != positions
    plain = agt.certify(
        network(),
        (found.x_train, found.y_train),
        TRAINING,
        agt.FeaturePoisoning(1, 0.01, samples=positions),
    )
    ways: list[dict[str, Any]] = [
        {"samples": rows},
        {"positions": positions},
        {"ids": [f"p{row}" for row in rows]},
    ]
    for way in ways:
        result = certified(found, agt.FeaturePoisoning(1, 0.01, **way))
        for end in ("lower", "upper"):
            for name, values in getattr(result.reachable, end).items():
                assert np.array_equal(values, getattr(plain.reachable, end)[name])
        assert f"rows of d.csv: {rows[0]} ('p{rows[0]}'), {rows[1]}" in result.claim
        assert {s.sample for s in result.suspects()} == set(rows)
        assert {s.position for s in result.suspects()} == set(positions)
        assert {s.id for s in result.suspects()} == {f"p{row}" for row in rows}
        assert f"{rows[0]} (p{rows[0]})" in str(result.suspects())
    assert {s.sample for s in plain.suspects()} == set(positions)


def test_attacks_name_rows(path: Path) -> None:
    found = data(path, seed=3, standardise=True)
    row = int(found.rows.train[4])
    threat = agt.FeaturePoisoning(1, 0.3, samples=[row])
    attack = agt.attack(network(), found, TRAINING, threat, search=Search(pool=4, rounds=1))
    assert attack.poisoned == (row,)
    assert attack.best.positions == (4,)
    moved = np.flatnonzero((attack.features != found.x_train).any(1))
    assert moved.tolist() == [4]
    beside = certified(found, threat, attack=Search(pool=4, rounds=1))
    assert beside.attack is not None
    assert beside.attack.poisoned == (row,)


def refused(found: agt.Dataset, threat: Any) -> InvalidInputError:
    with pytest.raises(InvalidThreatModelError) as error:
        certified(found, threat)
    assert error.value.remedy
    return error.value


def test_rows_that_are_not_trained_on(path: Path) -> None:
    found = data(path, seed=3)
    held = int(found.rows.test[0])
    error = refused(found, agt.LabelPoisoning(1, samples=[held]))
    assert f"row {held}, which is in the test part (rows of d.csv)" in error.found
    assert "Dataset.rows.train" in error.remedy
    assert "0..19" in refused(found, agt.Removal(1, samples=[20])).asked
    error = refused(found, agt.LabelPoisoning(1, ids=[f"p{held}"]))
    assert f"'p{held}', which no sample of the training part is called" in error.found
    assert "one of the test part is" in error.found
    few = data(path, seed=3, samples=10)
    gone = min(set(range(COUNT)) - set(few.rows.train) - set(few.rows.test))
    error = refused(few, agt.LabelPoisoning(1, samples=[gone]))
    assert "in neither part: left out, or not drawn" in error.found
    both = agt.LabelPoisoning(1, samples=[1], positions=[1])
    assert "samples= and positions=" in refused(found, both).found
    nameless = agt.load_dataset(path.with_name("d.csv"), target="y", id="patient")
    without = dataclasses.replace(nameless, origin=dataclasses.replace(nameless.origin, ids=None))
    assert "no column that says who" in refused(without, agt.LabelPoisoning(1, ids=["p1"])).found
    with pytest.raises(InvalidThreatModelError, match="plain arrays, whose samples have none"):
        agt.certify(
            network(), (found.x_train, found.y_train), TRAINING, agt.LabelPoisoning(1, ids=["a"])
        )
    assert "touches none" in refused(found, agt.Insertion(1, positions=[1])).asked


def test_errors_about_samples_name_rows(path: Path) -> None:
    found = data(path, seed=3)
    inside = found.x_train[:, 1] < found.x_train[:, 1].max()
    row = int(found.rows.train[~inside][0])
    top = float(np.sort(found.x_train[:, 1])[-2])
    domain = ([-1e9] * 3, [1e9, top, 1e9])
    error = refused(found, agt.FeaturePoisoning(1, 0.1, domain=domain))
    assert f"1 samples outside it before any poisoning: rows {row} ('p{row}')" in error.found


def test_a_radius_for_each_sample_follows_the_file(path: Path) -> None:
    found = data(path, seed=3, standardise=True)
    by_row = np.linspace(0.0, 0.1, COUNT)
    of_file = certified(found, agt.FeaturePoisoning(1, by_row))
    plain = agt.certify(
        network(),
        (found.x_train, found.y_train),
        TRAINING,
        agt.FeaturePoisoning(1, by_row[found.rows.train]),
    )
    assert np.array_equal(of_file.reachable.upper["0.weight"], plain.reachable.upper["0.weight"])
    error = refused(found, agt.FeaturePoisoning(1, by_row[found.rows.train]))
    assert "16 values" in error.found
    assert "each of the 20 rows" in error.remedy
    order = data(path, test_fraction=0)
    assert certified(order, agt.FeaturePoisoning(1, by_row)).reachable.mean_width > 0


# Units


def test_claims_carry_units(path: Path) -> None:
    scaled, plain = data(path, seed=3, standardise=True), data(path, seed=3)
    assert scaled.origin.features is not None
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
    assert scaling is not None
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
        for name, value in model.state_dict().items():
            assert (result.reachable.lower[name] <= value.numpy()).all()
            assert (value.numpy() <= result.reachable.upper[name]).all()


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
    (
        agt.FeaturePoisoning(1, 1, rows=([[1, 0, 0]], [1.0]), radius_in="raw"),
        "conditions on moves",
    ),
]


@pytest.mark.parametrize(("threat", "found"), BAD_UNITS)
def test_units_that_are_refused(path: Path, threat: Any, found: str) -> None:
    assert found in refused(data(path, standardise=True), threat).found


def test_raw_units_need_a_scaler(path: Path) -> None:
    found = data(path, seed=3, standardise=True)
    raw = agt.FeaturePoisoning(1, 0.1, radius_in="raw")
    with pytest.raises(InvalidThreatModelError, match="of which nobody knows how"):
        agt.certify(network(), (found.x_train, found.y_train), TRAINING, raw)
    projected = data(path, seed=3, pca=3, standardise=True)
    assert "principal components" in refused(projected, raw).found


def test_targets_in_raw_units(path: Path) -> None:
    found = agt.load_dataset(
        path, target="dose", id="patient", standardise=True, standardise_targets=True
    )
    scaling = found.origin.targets
    assert scaling is not None
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


def test_a_saved_result_keeps_its_caution(path: Path, tmp_path: Path) -> None:
    result = certified(data(path, standardise=True), agt.FeaturePoisoning(1, 0.02))
    result.save(tmp_path / "r.npz")
    again = agt.load(tmp_path / "r.npz")
    assert again.claim == result.claim
    assert again.assumptions == result.assumptions


# Files

RUN = """
[data]
path = "d.csv"
target = "y"
id = "patient"
standardise = true
test_fraction = 0.3
seed = 3
[model]
layers = [3, 4, 2]
[training]
loss = "cross_entropy"
learning_rate = 0.5
epochs = 2
[threat]
kind = "features"
budget = 1
radius = 0.5
radius_in = "raw"
{who}
[[property]]
kind = "accuracy"
{points}
[[property]]
kind = "stable"
"""


def test_rows_from_the_run_file_to_the_report(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2")
    found = data(path, standardise=True, test_fraction=0.3, seed=3)
    rows, points = found.rows.train[[1, 4]].tolist(), found.rows.test[[2, 0]].tolist()
    run = tmp_path / "run.toml"
    run.write_text(RUN.format(who=f"samples = {rows}", points=f"points = {points}"))
    out = tmp_path / "out"
    assert main(["certify", str(run), "--out", str(out), "--suspects", "--points"]) == 0
    printed = capsys.readouterr().out
    assert f"{rows[0]} (p{rows[0]})" in printed or f"{rows[1]} (p{rows[1]})" in printed
    document = json.loads((out / "result.json").read_text())
    table = document["properties"][0]["points"]
    assert table["row"] == points
    assert table["id"] == [f"p{row}" for row in points]
    assert table["position"] == [2, 0]
    assert {s["sample"] for s in document["suspects"]["samples"]} <= set(rows)
    assert document["data"]["rows"]["train"] == found.rows.train.tolist()
    assert document["data"]["rows"]["ids"]["test"] == [f"p{r}" for r in found.rows.test]
    assert document["claim"].startswith("Mind that the features")
    page = (out / "report.html").read_text()
    assert f"{points[0]} (p{points[0]})" in page
    caution = document["caution"]
    assert caution
    assert page.index(caution) < page.index("The claim")
    with np.load(out / "evidence.npz") as arrays:
        assert arrays["points/row"].tolist() == found.rows.test.tolist()
    for way in (f"ids = ['p{rows[0]}', 'p{rows[1]}']", "positions = [1, 4]"):
        run.write_text(RUN.format(who=way, points=f"ids = ['p{points[0]}']"))
        built = load_config(run).build()
        again = built.certify()
        assert again.reachable.mean_width == document["parameters"]["mean_width"]


BAD_FILES = [
    ("samples = [1]\nids = ['p1']", "", "'samples' and 'ids'"),
    ("", "points = [0]\npositions = [1]", "'points' and 'positions'"),
    ("", "points = [99]", "row 99, beside rows 0..19"),
    ("", "ids = ['p99']", "'p99', which no sample of the test part is called"),
    ("radius_in = 'cm'", "", "radius_in"),
]


@pytest.mark.parametrize(("who", "points", "found"), BAD_FILES)
def test_run_files_that_name_what_is_not_there(
    path: Path, tmp_path: Path, who: str, points: str, found: str
) -> None:
    text = RUN.format(who=who, points=points)
    if "radius_in" in who:
        text = text.replace('radius_in = "raw"\n', "")
    run = tmp_path / "run.toml"
    run.write_text(text)
    with pytest.raises(ConfigurationError) as error:
        load_config(run).build()
    assert found in error.value.found
    assert error.value.remedy


def test_a_target_for_each_point_follows_the_rows(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    held = np.sort(data(path, test_fraction=0.3, seed=3).rows.test)
    names = [f"row {row}" for row in held]
    run.write_text(RUN.format(who="", points=f"groups = {names}"))
    out = tmp_path / "out"
    assert main(["certify", str(run), "--out", str(out), "--quiet", "--no-report"]) == 0
    table = json.loads((out / "result.json").read_text())["properties"][0]["points"]
    assert table["group"] == [f"row {row}" for row in table["row"]]
