"""Rows and ids of the user's file in threats, questions, results, files and the claim."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused
from tables import COUNT, TRAINING, certified, data, network, raw_features, reason, write_table

import milp_agt as agt
from milp_agt.attacks import Search
from milp_agt.cli import main
from milp_agt.errors import ConfigurationError, InvalidInputError, InvalidThreatModelError
from milp_agt.runfile.run_file import load_config
from milp_agt.threats.units import located

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return write_table(tmp_path)


@pytest.mark.parametrize("options", [{}, {"samples": 12}, {"test_fraction": 0}, {"pca": 2}])
def test_rows_and_ids_lead_back_to_the_file(path: Path, options: dict[str, Any]) -> None:
    found = data(path, seed=3, **options)
    raw = raw_features(path)
    assert found.ids is not None
    for part in ("train", "test"):
        x, y = getattr(found, f"x_{part}"), getattr(found, f"y_{part}")
        rows = found.rows.of(part)
        assert found.ids.of(part).tolist() == [f"p{row}" for row in rows]
        assert y.tolist() == [row % 2 for row in rows]
        if "pca" not in options:
            assert np.array_equal(x, raw[rows])
    assert not set(found.rows.train) & set(found.rows.test)
    assert "patient" not in found.feature_names


def test_rows_of_files_with_a_test_part(tmp_path: Path) -> None:
    file = tmp_path / "d.npz"
    train = {"x_train": np.arange(12.0).reshape(6, 2), "y_train": np.arange(6) % 2}
    np.savez(file, **train, x_test=np.ones((3, 2)), y_test=np.zeros(3, int))
    found = agt.load_dataset(file, samples=4, seed=1)
    assert (found.x_train[:, 0] / 2).tolist() == found.rows.train.tolist()
    assert found.rows.test.tolist() == [0, 1, 2]
    plain = agt.Dataset.of(np.eye(3), [0, 1, 0], ids=["a", "b", "c"])
    assert plain.rows.train.tolist() == [0, 1, 2]
    assert plain.ids.train.tolist() == ["a", "b", "c"]
    with pytest.raises(InvalidInputError, match="2 ids for 3 training samples"):
        agt.Dataset.of(np.eye(3), [0, 1, 0], ids=["a", "b"])


def test_all_ways_to_name_samples_are_one_threat(path: Path) -> None:
    found = data(path, seed=3, standardise=True)
    positions = [2, 5]
    rows = found.rows.train[positions].tolist()
    assert rows != positions
    threat = agt.FeaturePoisoning(1, 0.01, samples=positions)
    plain = agt.certify(network(), (found.x_train, found.y_train), TRAINING, threat)
    ways = {"samples": rows, "positions": positions, "ids": [f"p{row}" for row in rows]}
    for way in ({key: value} for key, value in ways.items()):
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
    assert beside.attack.poisoned == (row,)


def test_rows_that_are_not_trained_on(path: Path) -> None:
    found = data(path, seed=3)
    held = int(found.rows.test[0])
    error = reason(found, agt.LabelPoisoning(1, samples=[held]))
    assert f"row {held}, which is in the test part (rows of d.csv)" in error.found
    assert "Dataset.rows.train" in error.remedy
    assert "0..19" in reason(found, agt.Removal(1, samples=[20])).asked
    error = reason(found, agt.LabelPoisoning(1, ids=[f"p{held}"]))
    assert f"'p{held}', which no sample of the training part is called" in error.found
    assert "one of the test part is" in error.found
    few = data(path, seed=3, samples=10)
    gone = min(set(range(COUNT)) - set(few.rows.train) - set(few.rows.test))
    error = reason(few, agt.LabelPoisoning(1, samples=[gone]))
    assert "in neither part: left out, or not drawn" in error.found
    both = agt.LabelPoisoning(1, samples=[1], positions=[1])
    assert "samples= and positions=" in reason(found, both).found
    nameless = agt.load_dataset(path.with_name("d.csv"), target="y", id="patient")
    without = dataclasses.replace(nameless, origin=dataclasses.replace(nameless.origin, ids=None))
    assert "no column that says who" in reason(without, agt.LabelPoisoning(1, ids=["p1"])).found
    with pytest.raises(InvalidThreatModelError, match="plain arrays, whose samples have none"):
        agt.certify(
            network(), (found.x_train, found.y_train), TRAINING, agt.LabelPoisoning(1, ids=["a"])
        )


def test_errors_about_samples_name_rows(path: Path) -> None:
    found = data(path, seed=3)
    inside = found.x_train[:, 1] < found.x_train[:, 1].max()
    row = int(found.rows.train[~inside][0])
    top = float(np.sort(found.x_train[:, 1])[-2])
    domain = ([-1e9] * 3, [1e9, top, 1e9])
    error = reason(found, agt.FeaturePoisoning(1, 0.1, domain=domain))
    assert f"1 samples outside it before any poisoning: rows {row} ('p{row}')" in error.found


def test_a_radius_for_each_sample_follows_the_file(path: Path) -> None:
    found = data(path, seed=3, standardise=True)
    by_row = np.linspace(0.0, 0.1, COUNT)
    of_file = certified(found, agt.FeaturePoisoning(1, by_row))
    threat = agt.FeaturePoisoning(1, by_row[found.rows.train])
    plain = agt.certify(network(), (found.x_train, found.y_train), TRAINING, threat)
    assert np.array_equal(of_file.reachable.upper["0.weight"], plain.reachable.upper["0.weight"])
    error = reason(found, threat)
    assert "16 values" in error.found
    assert "each of the 20 rows" in error.remedy
    order = data(path, test_fraction=0)
    assert certified(order, agt.FeaturePoisoning(1, by_row)).reachable.mean_width > 0


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
    with refused(found=found, kind=ConfigurationError):
        load_config(run).build()


def test_a_target_for_each_point_follows_the_rows(path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    held = np.sort(data(path, test_fraction=0.3, seed=3).rows.test)
    names = [f"row {row}" for row in held]
    run.write_text(RUN.format(who="", points=f"groups = {names}"))
    out = tmp_path / "out"
    assert main(["certify", str(run), "--out", str(out), "--quiet", "--no-report"]) == 0
    table = json.loads((out / "result.json").read_text())["properties"][0]["points"]
    assert table["group"] == [f"row {row}" for row in table["row"]]


def test_rows_of_other_samples_are_refused(path: Path) -> None:
    found = data(path, seed=3)
    with pytest.raises(InvalidInputError, match=r"\(8, 4\) samples, and rows of \(16, 4\)"):
        dataclasses.replace(found, x_train=found.x_train[:8], y_train=found.y_train[:8])
    threat = located(agt.LabelPoisoning(1, samples=[int(found.rows.train[0])]), found.origin)
    with pytest.raises(InvalidThreatModelError, match="16 training samples there, 8 samples here"):
        agt.certify(network(), (found.x_train[:8], found.y_train[:8]), TRAINING, threat)


def test_tables_of_pandas_are_joined_by_nothing_but_their_order(path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(data(path, test_fraction=0).x_train, columns=["a", "b", "c"])
    labels = pandas.Series(np.arange(COUNT) % 2)
    mixed = frame.sample(frac=1, random_state=0)
    for refuse in (
        lambda: agt.Dataset.of(mixed, labels),
        lambda: agt.certify(network(), (mixed, labels), TRAINING, agt.LabelPoisoning(1)),
    ):
        with pytest.raises(InvalidInputError, match="indices differ") as error:
            refuse()
        assert "y.loc[X.index]" in error.value.remedy
    assert agt.Dataset.of(mixed, labels[mixed.index]).y_train.tolist() == (mixed.index % 2).tolist()
