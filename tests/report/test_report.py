"""The report: one file that needs no network and shows the numbers of result.json."""

from __future__ import annotations

import html
import re
from pathlib import Path

import numpy as np
import pytest
from pages import LOSS, certify, copied, document, page, run, small, trained, visible
from refusals import refused

import milp_agt as agt
from milp_agt.cli import main
from milp_agt.errors import SoundnessError
from milp_agt.io.tables import format_number
from milp_agt.reports import evidence, words
from milp_agt.reports.content import read

QUICK = "[attack]\npool = 64\nrounds = 1\nrestarts = 1\n"


@pytest.mark.parametrize("name", ["classes", "pixels", "regression"])
def test_the_numbers_of_the_result_are_on_the_page(
    name: str, request: pytest.FixtureRequest
) -> None:
    folder = request.getfixturevalue(name)
    result, shown = document(folder), visible(page(folder))
    for each in result["properties"]:
        for end in ("lower", "nominal", "upper"):
            assert format_number(each[end]) in shown
        assert each["status"] in shown
    for step in result["steps"]:
        assert format_number(step["mean_width"]) in shown
        assert format_number(step["max_width"]) in shown
    for text in (result["claim"], result["threat"], *result["assumptions"]):
        assert text in shown
    for version in (*result["versions"].values(), *result["sha256"].values()):
        assert version in shown


@pytest.mark.parametrize("name", ["classes", "pixels", "regression"])
def test_every_picture_has_a_text_and_a_file(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    text = page(folder)
    drawn = re.findall(r'<figure id="figure-(\w+)">', text)
    points = "predictions" if name == "regression" else "points"
    assert {"bounds", "widths", points} <= set(drawn)
    assert ("map" in drawn) == (name == "classes")
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', text)
    assert len(labels) == len(drawn) == text.count("<svg")
    assert all(len(label) > 20 for label in labels)
    for figure in drawn:
        assert (folder / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (folder / "figures" / f"{figure}.svg").read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    # The page needs nothing else.
    loaded = re.findall(r'<(?:img|script|link|iframe)\b[^>]*?(?:src|href)="([^"]*)"', text)
    assert all(address.startswith("data:") for address in loaded)
    assert "@import" not in text
    assert "url(http" not in text


def test_what_an_auditor_asks_stands_on_the_page(classes: Path) -> None:
    """Network, training, budget as a share, what was resolved, when and by what; a map of cells."""
    text, about = html.unescape(page(classes)), document(classes)
    budget, samples = about["run"]["threat"]["budget"], about["data"]["train"][0]
    layers = about["run"]["model"]["layers"]
    inputs, outputs = layers[:-1], layers[1:]
    count = sum((a + 1) * b for a, b in zip(inputs, outputs, strict=True))
    for said in (
        f"The budget is {budget} of {samples} samples, {100 * budget / samples:.2g} %.",
        f"A network of {' - '.join(map(str, layers))} units with {count} parameters",
        f"Trained by {about['training']}.",
        about["made"]["at"],
        about["made"]["command"],
        f"<dt>inner bounds</dt><dd>{about['resolved']['inner_bounds']}</dd>",
        "cells was bounded as a whole",
        "<dt>commit of the run file</dt>",
    ):
        assert said in text, said


def test_points_of_the_page_follow_from_the_result(classes: Path) -> None:
    content = read(classes)
    points = content.points
    assert points is not None
    (accuracy,) = [p for p in content.properties if p.kind == "accuracy"]
    assert np.mean([s == "surely right" for s in points.status]) == accuracy.lower
    assert np.mean([s != "surely wrong" for s in points.status]) == accuracy.upper
    assert (points.nominal > 0).mean() == accuracy.nominal
    assert ((points.lower <= points.nominal) & (points.nominal <= points.upper)).all()
    assert ((points.label == points.predicted) == (points.nominal > 0)).all()
    rows = content.classes
    assert sum(row.points for row in rows) == len(points)
    mean = sum(row.lower * row.points for row in rows) / len(points)
    assert mean == pytest.approx(accuracy.lower, rel=1e-12)


@pytest.mark.usefixtures("undrawn")
def test_points_of_a_verdict_are_not_bounded_twice(
    classes: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    stored = document(classes)["properties"]
    (accuracy,) = [p for p in stored if p["kind"] == "accuracy"]
    points = read(classes).points
    assert points is not None
    order = np.argsort(points.index)
    for end in ("lower", "nominal", "upper"):
        assert getattr(points, end)[order].tolist() == accuracy["points"][f"score_{end}"]
    monkeypatch.setattr(evidence, "POINTS", 2)
    y = np.arange(12) % 2
    text = run([3, 2]) + LOSS
    folder = certify(tmp_path, np.eye(12)[:, :3] + y[:, None], y, text)
    assert "the first 2 of 3 points" in visible(page(folder))


def test_the_root_of_a_mean_squared_error_is_rounded_up(regression: Path) -> None:
    (worst,) = (p["upper"] for p in document(regression)["properties"])
    found = re.search(r"Its root, here at most ([0-9.]+),", visible(page(regression)))
    assert found
    assert worst**0.5 <= float(found[1]) <= 1.01 * worst**0.5


def test_predictions_of_a_regression(regression: Path) -> None:
    content = read(regression)
    found = content.predictions
    assert found is not None
    assert content.points is None
    assert content.classes == ()
    (loss,) = content.properties
    assert ((found.nominal - found.label) ** 2).mean() == pytest.approx(loss.nominal, rel=1e-12)
    assert ((found.lower <= found.nominal) & (found.nominal <= found.upper)).all()
    assert (np.diff(found.width) <= 0).all()
    farthest = np.maximum(found.upper - found.label, found.label - found.lower)
    np.testing.assert_allclose(found.loss, farthest**2, rtol=1e-9)
    shown = visible(page(regression))
    for number in (*found.lower, *found.nominal, *found.upper, *found.loss, *found.width):
        assert format_number(float(number)) in shown


@pytest.mark.usefixtures("undrawn")
def test_predictions_with_two_outputs_and_attacks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 3))
    text = run([3, 2], 0.05, loss="mse") + QUICK
    folder = certify(tmp_path, x, x[:, :2], text, "--attack")
    found = read(folder).predictions
    assert found is not None
    assert (found.outputs, len(found), len(found.index)) == (2, 2, 4)
    assert found.reached is not None
    low, high = found.reached
    assert ((found.lower <= low) & (low <= high) & (high <= found.upper)).all()
    assert (high - low > 0.3 * found.width).all()
    shown = visible(page(folder))
    for ends in zip(low, high, strict=True):
        assert " to ".join(format_number(float(end)) for end in ends) in shown


@pytest.mark.usefixtures("undrawn")
def test_attacks_stand_beside_every_point(tmp_path: Path) -> None:
    folder = small(tmp_path, run([2, 2]) + QUICK, "--attack", count=12)
    points = read(folder).points
    assert points is not None
    assert points.reached is not None
    low, high = points.reached
    assert ((points.lower <= low) & (low <= high) & (high <= points.upper)).all()
    assert (high - low > 0.1 * (points.upper - points.lower)).all()
    assert "attacks reach" in visible(page(folder))


@pytest.mark.parametrize(("loss", "of"), [("mse", "outputs"), ("cross_entropy", "points")])
def test_an_attack_outside_the_bounds_of_a_point_is_refused(loss: str, of: str) -> None:
    x = np.random.default_rng(0).normal(size=(8, 2))
    y = x.sum(1) if loss == "mse" else (x[:, 0] > 0).astype(np.int64)
    search = agt.Search(pool=32, rounds=0, restarts=1, iterations=2)
    result = trained(loss, x, y, attack=search)
    data = agt.Dataset.of(x, y)
    found = evidence.collect(result, data)
    assert (found[f"{of}/lower"] <= found[f"{of}/reached_lower"]).all()
    tight = {f"{of}/{end}": found[f"{of}/nominal"] for end in ("lower", "upper")}
    with refused(found="outside, the first at (0", kind=SoundnessError):
        evidence._check_inside({**found, **tight}, of)


def test_the_same_files_give_the_same_page(classes: Path) -> None:
    before = page(classes)
    drawn = {p.name: p.read_bytes() for p in (classes / "figures").glob("*.svg")}
    assert main(["report", str(classes)]) == 0
    assert page(classes) == before
    assert {p.name: p.read_bytes() for p in (classes / "figures").glob("*.svg")} == drawn


def test_attacks_stand_beside_the_certificate(classes: Path, tmp_path: Path) -> None:
    properties = document(classes)["properties"]
    properties[-1] |= {"reached": [0.25123, 0.26456], "ratio": 3.0}
    attack = {"mean_width": 0.00123, "ratio": 4.56, "trained": 321, "exhaustive": False}
    attack |= {"max_width": 0.01, "seconds": 1.0, "seed": 7}
    folder = copied(classes, tmp_path / "out", properties=properties, attack=attack)
    assert main(["report", str(folder)]) == 0
    shown = visible(page(folder))
    for piece in ("0.25123 to 0.26456", "0.00123", "4.56", "321 poisonings", "seed 7"):
        assert piece in shown
    assert "reached by attacks" in shown
    assert "attacks" in (folder / "figures" / "widths.svg").read_text()


@pytest.mark.usefixtures("undrawn")
def test_suspects_are_asked_for_printed_kept_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = small(tmp_path, run([2, 2, 2]), "--suspects")
    found = document(folder)["suspects"]
    shown, printed = visible(page(folder)), capsys.readouterr().out
    first = found["samples"][0]
    assert f"{first['sample']} {format_number(first['width'])}" in shown
    assert f"{first['sample']}" in printed
    assert found["total"] == pytest.approx(sum(found["causes"].values()))
    assert set(found["causes"]) == set(words.CAUSES)
    for cause, width in found["causes"].items():
        assert f"{cause} {format_number(width)} {words.CAUSES[cause]}" in shown
        assert cause in printed


def test_suspects_of_bounds_without_forms_are_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--suspects", "--relaxation", "interval", "--no-report")
    folder = small(tmp_path, run([2, 2]), *options)
    assert document(folder)["suspects"] is None
    assert "keeps no linear forms" in capsys.readouterr().err
