"""The report: one file that needs no network and shows the numbers of result.json, in a real browser."""

from __future__ import annotations

import dataclasses
import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import milp_agt as agt
from milp_agt import evidence, reports
from milp_agt.chains import CHARGED, ENUMERATED, OPTIMISED
from milp_agt.cli import main
from milp_agt.core.relaxation import Relaxation
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.formulations.loss import losses
from milp_agt.reports import figures, words
from milp_agt.reports.colours import CLASSES
from milp_agt.reports.content import Property, read
from milp_agt.tables import format_number

RUN = """
[data]
path = "d.npz"
test_fraction = 0.25
seed = 1
[model]
layers = {layers}
[training]
loss = "{loss}"
learning_rate = {rate}
epochs = 3
[threat]
kind = "features"
budget = 1
radius = 0.001
[certify]
relaxation = "linear"
window = 2
"""
ACCURACY = "[[property]]\nkind = 'accuracy'\nat_least = 0.5\n[[property]]\nkind = 'stable'\n"
QUICK = "[attack]\npool = 64\nrounds = 1\nrestarts = 1\n"
LOSS = "[[property]]\nkind = 'loss'\n"


def certify(folder: Path, x: Any, y: Any, text: str, *options: str) -> Path:
    np.savez(folder / "d.npz", X=x, y=y)
    (folder / "run.toml").write_text(text, encoding="utf-8")
    out = folder / "out"
    assert main(["certify", str(folder / "run.toml"), "--out", str(out), "--quiet", *options]) == 0
    return out


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(20) % 2
    x = rng.normal(size=(20, 2)) + 3 * y[:, None]
    text = RUN.format(layers=[2, 3, 2], loss="cross_entropy", rate=0.5) + ACCURACY + LOSS
    return certify(tmp_path_factory.mktemp("classes"), x, y, text)


@pytest.fixture(scope="module")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(12) % 3
    x = rng.uniform(size=(12, 1, 3, 3)) + y[:, None, None, None]
    text = RUN.format(layers=[9, 3], loss="cross_entropy", rate=0.1) + LOSS
    return certify(tmp_path_factory.mktemp("pixels"), x, y, text)


@pytest.fixture(scope="module")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 3))
    text = RUN.format(layers=[3, 3, 1], loss="mse", rate=0.05) + LOSS
    return certify(tmp_path_factory.mktemp("regression"), x, x.sum(1), text)


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures as empty pictures, where a test is about words and tables: drawing takes seconds."""

    def empty(name: str, _figure: Any, alt: str) -> figures.Picture:
        return figures.Picture(name, "<svg></svg>", b"", alt)

    monkeypatch.setattr(figures, "_picture", empty)


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def document(folder: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return loaded


def visible(text: str) -> str:
    """The words of a page, without its tags, scripts and styles."""
    text = re.sub(r"<(script|style|title)\b.*?</\1>", " ", text, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


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
def test_the_page_needs_nothing_else(name: str, request: pytest.FixtureRequest) -> None:
    text = page(request.getfixturevalue(name))
    loaded = re.findall(r'<(?:img|script|link|iframe)\b[^>]*?(?:src|href)="([^"]*)"', text)
    assert all(address.startswith("data:") for address in loaded)
    assert "@import" not in text
    assert "url(http" not in text


@pytest.mark.parametrize("name", ["classes", "pixels", "regression"])
def test_every_picture_has_a_text_and_a_file(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(name)
    text = page(folder)
    drawn = re.findall(r'<figure id="figure-(\w+)">', text)
    points = "predictions" if name == "regression" else "points"
    assert {"bounds", "widths", points, "time"} <= set(drawn)
    assert ("map" in drawn) == (name == "classes")
    labels = re.findall(r'<svg role="img" aria-label="([^"]+)"', text)
    assert len(labels) == len(drawn) == text.count("<svg")
    assert all(len(label) > 20 for label in labels)
    assert all(re.search(r'\balt="[^"]+"', tag) for tag in re.findall(r"<img\b[^>]*>", text))
    for figure in drawn:
        assert (folder / "figures" / f"{figure}.png").read_bytes().startswith(b"\x89PNG")
        assert "</svg>" in (folder / "figures" / f"{figure}.svg").read_text()
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))


def test_thumbnails_are_there_for_pictures_only(
    classes: Path, pixels: Path, regression: Path
) -> None:
    tested = document(pixels)["data"]["test"][0]
    assert page(pixels).count("<img ") == tested == 3
    assert "<img " not in page(classes)
    assert "<img " not in page(regression)


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
    assert sum(row.count for row in rows) == len(points)
    mean = sum(row.lower * row.count for row in rows) / len(points)
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
    text = RUN.format(layers=[3, 2], loss="cross_entropy", rate=0.5) + LOSS
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
    assert ((found.nominal - found.target) ** 2).mean() == pytest.approx(loss.nominal, rel=1e-12)
    assert ((found.lower <= found.nominal) & (found.nominal <= found.upper)).all()
    assert (np.diff(found.width) <= 0).all()
    farthest = np.maximum(found.upper - found.target, found.target - found.lower)
    np.testing.assert_allclose(found.loss, farthest**2, rtol=1e-9)
    shown = visible(page(regression))
    for number in (*found.lower, *found.nominal, *found.upper, *found.loss, *found.width):
        assert format_number(float(number)) in shown


@pytest.mark.usefixtures("undrawn")
def test_predictions_with_two_outputs_and_attacks(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(10, 3))
    text = RUN.format(layers=[3, 2], loss="mse", rate=0.05) + QUICK
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


def test_attacks_stand_beside_every_point(tmp_path: Path) -> None:
    y = np.arange(12) % 2
    text = RUN.format(layers=[2, 2], loss="cross_entropy", rate=0.5) + QUICK
    folder = certify(tmp_path, np.eye(12)[:, :2] + y[:, None], y, text, "--attack")
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
    with pytest.raises(SoundnessError) as caught:
        evidence._check_inside({**found, **tight}, of)
    assert "outside, the first at (0" in caught.value.found
    assert caught.value.asked
    assert caught.value.remedy


def test_the_same_files_give_the_same_page(classes: Path) -> None:
    before = page(classes)
    drawn = {p.name: p.read_bytes() for p in (classes / "figures").glob("*.svg")}
    assert main(["report", str(classes)]) == 0
    assert page(classes) == before
    assert {p.name: p.read_bytes() for p in (classes / "figures").glob("*.svg")} == drawn


def copied(folder: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    (target / "result.json").write_text(json.dumps(document(folder) | changes))
    return target


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_run_says_so(classes: Path, tmp_path: Path) -> None:
    steps = document(classes)["steps"][:1]
    folder = copied(classes, tmp_path / "out", complete=False, steps=steps, properties=[])
    (folder / "evidence.npz").unlink()
    assert main(["report", str(folder)]) == 0
    assert "Unfinished: bounds after 1 of 3 training steps" in visible(page(folder))
    assert "figure-points" not in page(folder)


@pytest.mark.usefixtures("undrawn")
def test_numbers_that_are_none(classes: Path, tmp_path: Path) -> None:
    properties = document(classes)["properties"]
    properties[-1] |= {"upper": "inf", "status": "NOT PROVED", "at_most": 1.0}
    steps = document(classes)["steps"]
    steps[-1] |= {"mean_width": "inf", "max_width": "inf", "chains": {"linear": "inf"}}
    folder = copied(classes, tmp_path / "out", properties=properties, steps=steps)
    assert main(["report", str(folder)]) == 0
    shown = visible(page(folder))
    assert "at most inf" in shown
    assert "Not proved does not mean broken" in shown


@pytest.mark.usefixtures("undrawn")
def test_a_model_that_misses_the_mark_unpoisoned(classes: Path, tmp_path: Path) -> None:
    properties = document(classes)["properties"]
    properties[0] |= {"lower": 0.2, "nominal": 0.4, "upper": 0.6, "status": "NOT PROVED"}
    folder = copied(classes, tmp_path / "out", properties=properties)
    assert main(["report", str(folder)]) == 0
    assert "Even without an adversary the model misses" in visible(page(folder))


@pytest.mark.usefixtures("undrawn")
def test_notes_and_fallbacks_are_told_apart(classes: Path, tmp_path: Path) -> None:
    kept = document(classes)["relaxation"]
    both = kept | {"notes": ["auto picked 'lp'"], "fallbacks": ["step 2: time limit"]}
    folder = copied(classes, tmp_path / "both", relaxation=both)
    assert main(["report", str(folder)]) == 0
    shown = visible(page(folder))
    assert "may be looser for it: step 2: time limit" in shown
    assert "left it open: auto picked 'lp'" in shown
    old = {name: value for name, value in both.items() if name != "notes"}
    folder = copied(classes, tmp_path / "old", relaxation=old)
    assert main(["report", str(folder)]) == 0
    assert "step 2: time limit" in visible(page(folder))
    assert "left it open" not in visible(page(folder))


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
    y = np.arange(8) % 2
    text = RUN.format(layers=[2, 2, 2], loss="cross_entropy", rate=0.5)
    folder = certify(tmp_path, np.eye(8)[:, :2] + y[:, None], y, text, "--suspects")
    found = document(folder)["suspects"]
    assert found["total"] == pytest.approx(sum(found["causes"].values()))
    assert set(found["causes"]) == set(words.CAUSES)
    shown, printed = visible(page(folder)), capsys.readouterr().out
    assert "What the width is made of" in shown
    for cause, width in found["causes"].items():
        assert f"{cause} {format_number(width)} {words.CAUSES[cause]}" in shown
        assert cause in printed
    first = found["samples"][0]
    assert f"{first['sample']} {format_number(first['width'])}" in shown


def test_suspects_of_bounds_without_forms_are_a_note(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    y = np.arange(8) % 2
    text = RUN.format(layers=[2, 2], loss="cross_entropy", rate=0.5)
    options = ("--suspects", "--relaxation", "interval", "--no-report")
    folder = certify(tmp_path, np.eye(8)[:, :2] + y[:, None], y, text, *options)
    assert document(folder)["suspects"] is None
    assert "keeps no linear forms" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_bounds_that_exclude_nothing_say_so(classes: Path, tmp_path: Path) -> None:
    properties = document(classes)["properties"]
    properties[0] |= {"lower": 0.0, "nominal": 0.9, "upper": 1.0, "status": "NOT PROVED"}
    folder = copied(classes, tmp_path / "out", properties=properties)
    assert main(["report", str(folder)]) == 0
    assert "exclude nothing any more" in visible(page(folder))


@pytest.mark.parametrize("radii", [(None,), (0.01, 0.1)])
@pytest.mark.usefixtures("undrawn")
def test_a_sweep_in_the_folder_is_shown(
    classes: Path, tmp_path: Path, radii: tuple[float | None, ...]
) -> None:
    folder = copied(classes, tmp_path / "out")
    rows = [
        {"question": question, "budget": budget, "radius": radius, "seconds": None}
        | {"lower": 0.5 - budget / 100, "nominal": 0.75, "upper": "inf"}
        for question in ("accuracy on test", "loss on test")
        for radius in radii
        for budget in (4, 1, 2)
    ]
    (folder / "sweep.json").write_text(json.dumps({"schema_version": 1, "rows": rows}))
    assert main(["report", str(folder)]) == 0
    text = page(folder)
    assert '<figure id="figure-sweep">' in text
    shown = visible(text)
    for piece in ("accuracy on test", "0.46", "0.48", "0.49", "inf"):
        assert piece in shown
    curves = read(folder).curves
    assert [c.budget for c in curves if c.question == "loss on test"] == (
        [None] if radii == (None,) else [4, 1, 2]
    )
    assert all((np.diff(c.size) > 0).all() for c in curves)


@pytest.mark.parametrize("part", [None, "config", "data"])
def test_a_sweep_of_another_run_is_refused(classes: Path, tmp_path: Path, part: str | None) -> None:
    folder = copied(classes, tmp_path / "out")
    hashes = dict(document(folder)["sha256"])
    if part is not None:
        hashes[part] = "0" * 64
    text = json.dumps({"schema_version": 1, "rows": [], "sha256": hashes})
    (folder / "sweep.json").write_text(text)
    if part is None:
        assert read(folder).curves == ()
        return
    with pytest.raises(InvalidInputError) as caught:
        read(folder)
    assert "report" in caught.value.asked
    assert f"the hash of its {part} differs" in caught.value.found
    assert "sweep the same run file" in caught.value.remedy


@pytest.mark.usefixtures("undrawn")
def test_text_of_a_result_is_text(classes: Path, tmp_path: Path) -> None:
    data = document(classes)["data"] | {"description": "<script>alert(1)</script> & more"}
    folder = copied(classes, tmp_path / "out", data=data)
    assert main(["report", str(folder)]) == 0
    assert "<script>alert" not in page(folder)
    assert "<script>alert(1)</script> & more" in visible(page(folder))


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"steps": ['])
def test_a_folder_without_a_result(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    for piece in ("Make a report of", "Found: ", "What to do: ", "certify"):
        assert piece in err


def test_damaged_evidence_is_said(classes: Path, tmp_path: Path) -> None:
    folder = copied(classes, tmp_path / "out")
    raw = (folder / evidence.NAME).read_bytes()
    (folder / evidence.NAME).write_bytes(raw[: len(raw) // 2])
    with pytest.raises(InvalidInputError) as caught:
        reports.write_page(folder)
    assert "cannot be read" in caught.value.found
    assert caught.value.asked
    assert caught.value.remedy


def test_without_the_extra_the_result_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    y = np.arange(8) % 2
    text = RUN.format(layers=[2, 2], loss="cross_entropy", rate=0.5) + LOSS
    folder = certify(tmp_path, np.eye(8)[:, :2] + y[:, None], y, text)
    err = capsys.readouterr().err
    assert "no module jinja2 or matplotlib" in err
    assert "pip install 'milp_agt[report]'" in err
    assert document(folder)["complete"] is True
    assert {p.name for p in folder.iterdir()} == {"result.json", "reachable.npz", evidence.NAME}
    with pytest.raises(reports.ReportUnavailableError):
        reports.write_page(folder)
    monkeypatch.undo()
    assert main(["report", str(folder)]) == 0


@pytest.mark.parametrize(
    ("error", "note"),
    [
        (KeyboardInterrupt(), "the report was interrupted; the result is complete"),
        (InvalidInputError("The loss must be finite", "inf", "train less"), "Found: inf."),
    ],
)
def test_a_report_that_fails_leaves_the_result_complete(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    note: str,
) -> None:
    def collect(*_: object) -> None:
        raise error

    monkeypatch.setattr(evidence, "collect", collect)
    y = np.arange(8) % 2
    text = RUN.format(layers=[2, 2], loss="cross_entropy", rate=0.5) + LOSS
    folder = certify(tmp_path, np.eye(8)[:, :2] + y[:, None], y, text)
    assert note in capsys.readouterr().err
    assert document(folder)["complete"] is True
    assert len(document(folder)["properties"]) == 1


def test_no_report_is_no_report(tmp_path: Path) -> None:
    y = np.arange(8) % 2
    text = RUN.format(layers=[2, 2], loss="cross_entropy", rate=0.5)
    folder = certify(tmp_path, np.eye(8)[:, :2] + y[:, None], y, text, "--no-report")
    assert {p.name for p in folder.iterdir()} == {"result.json", "reachable.npz"}


def trained(loss: str, x: Any, y: Any, **options: Any) -> agt.Result:
    torch.manual_seed(0)
    outputs = 1 if loss == "mse" else 2
    model = torch.nn.Sequential(torch.nn.Linear(x.shape[1], outputs)).double()
    training = agt.Training(loss=loss, learning_rate=0.1, epochs=2)
    return agt.certify(model, (x, y), training, agt.FeaturePoisoning(1, 0.001), **options)


@pytest.fixture(scope="module")
def arrays() -> agt.Dataset:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(16, 2))
    y = (x[:, 0] > 0).astype(np.int64)
    return agt.Dataset.of(x[:12], y[:12], x[12:], y[12:], name="clouds")


def test_one_call_writes_what_the_command_line_writes(
    arrays: agt.Dataset, classes: Path, tmp_path: Path
) -> None:
    result = trained("cross_entropy", arrays.x_train, arrays.y_train)
    asked = [{"kind": "accuracy", "at_least": 0.25}, {"kind": "stable"}]
    path = agt.report(result, arrays, tmp_path / "out", properties=asked, suspects=True)
    assert path == tmp_path / "out" / "report.html"
    kept = {p.name for p in (tmp_path / "out").iterdir()}
    assert kept == {p.name for p in classes.iterdir()}
    found = document(tmp_path / "out")
    assert set(found) == set(document(classes))
    assert found["complete"] is True
    assert [p["status"] for p in found["properties"]] == ["PROVED", "REPORTED"]
    accuracy = result.accuracy(arrays.x_test, arrays.y_test)
    assert found["properties"][0]["lower"] == accuracy.lower
    assert found["run"]["property"] == asked
    assert found["run"]["training"]["learning_rate"] == 0.1
    assert found["run"]["certify"]["relaxation"] == "linear"
    assert found["sha256"] == {"data": arrays.sha256}
    assert found["suspects"]["total"] > 0
    shown = visible(page(tmp_path / "out"))
    assert result.claim in shown
    assert "clouds: 16 samples, 2 features" in shown


@pytest.mark.usefixtures("undrawn")
def test_one_call_on_a_saved_result_and_without_properties(
    arrays: agt.Dataset, tmp_path: Path
) -> None:
    result = trained("cross_entropy", arrays.x_train, arrays.y_train)
    result.save(tmp_path / "kept.npz")
    loaded = agt.load(tmp_path / "kept.npz")
    assert loaded.settings == result.settings
    agt.report(loaded, arrays, tmp_path)
    (only,) = document(tmp_path)["properties"]
    assert (only["kind"], only["on"], only["status"]) == ("accuracy", "test", "REPORTED")
    trained_on = agt.Dataset.of(arrays.x_train, arrays.x_train.sum(1))
    regressed = trained("mse", trained_on.x_train, trained_on.y_train)
    agt.report(regressed, trained_on, tmp_path / "regression")
    (only,) = document(tmp_path / "regression")["properties"]
    assert (only["kind"], only["on"]) == ("loss", "train")


@pytest.mark.parametrize(
    ("change", "found", "remedy"),
    [
        ("count", "11 samples, not 12", "whose training part"),
        ("features", "other features", "whose training part"),
        ("task", "data for regression (targets of type float64)", "task='classification'"),
        ("property", "unknown key 'at_last'", "use 'at_least'"),
    ],
)
def test_one_call_refuses_what_does_not_fit(
    arrays: agt.Dataset, tmp_path: Path, change: str, found: str, remedy: str
) -> None:
    result = trained("cross_entropy", arrays.x_train, arrays.y_train)
    x, y = arrays.x_train, arrays.y_train
    asked = [{"kind": "accuracy"}]
    if change == "count":
        x, y = x[1:], y[1:]
    elif change == "features":
        x = x + 1e-9
    elif change == "task":
        y = y.astype(np.float64)
    else:
        asked = [{"kind": "accuracy", "at_last": 0.5}]  # type: ignore[dict-item]
    with pytest.raises(InvalidInputError) as caught:
        agt.report(result, agt.Dataset.of(x, y), tmp_path / "out", properties=asked)
    assert found in caught.value.found
    assert remedy in caught.value.remedy
    assert caught.value.asked
    assert not (tmp_path / "out").exists()


def test_one_call_without_the_extra_keeps_the_numbers(
    arrays: agt.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    result = trained("cross_entropy", arrays.x_train, arrays.y_train)
    with pytest.raises(reports.ReportUnavailableError) as caught:
        agt.report(result, arrays, tmp_path)
    assert "milp-agt report DIR" in caught.value.remedy
    assert {p.name for p in tmp_path.iterdir()} == {
        "result.json",
        "reachable.npz",
        evidence.NAME,
    }


def test_importing_the_report_costs_no_torch() -> None:
    code = "import sys, milp_agt.reports.page; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@given(
    st.just(0.0) | st.floats(1e-300, 1) | st.integers(0, 60).map(lambda k: k / 60), st.booleans()
)
def test_words_never_promise_more_than_the_numbers(value: float, share: bool) -> None:
    kind = "accuracy" if share else "loss"
    each = Property(kind, kind, "test", None, value, value, value, None, None, "REPORTED")
    scale = 100.0 if share else 1.0
    low = float(words.at_least(each).removesuffix(" %"))
    high = float(words.at_most(each).removesuffix(" %"))
    assert low <= scale * value * (1 + 1e-12)
    assert high >= scale * value * (1 - 1e-12)
    assert high - low <= 1.1e-3 * scale * value + 1e-12


def test_every_chain_and_every_loss_has_words() -> None:
    levels = {level.value for level in Relaxation}
    assert set(words.RELAXATIONS) == levels | {CHARGED, ENUMERATED, OPTIMISED}
    assert set(words.LOSSES) == set(losses())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("accuracy", "right for at least 25 % of the test points"),
        ("collective", "right for at least 25 % of the test points"),
        ("stable", "at least 25 % of the test points cannot be changed"),
        ("loss", "the mean loss on the test data is at most 0.75"),
        ("targeted", "at most 75 % of the test points can be pushed into unsafe outputs (class 1)"),
        ("backdoor", "a trigger (class 1) succeeds on at most 75 % of the test points"),
        ("functional", "0.weight is at least 0.25"),
    ],
)
def test_the_headline_names_the_side_that_is_asked_for(kind: str, said: str) -> None:
    name = "0.weight" if kind == "functional" else kind
    ends = 0.25, 0.5, 0.75
    each = Property(kind, name, "test", None, *ends, None, None, "REPORTED", detail="class 1")
    assert said in words.short(each)
    turned = dataclasses.replace(each, at_least=0.1) if "most" in said else None
    if turned is not None:
        assert "at least" in words.short(turned)


@pytest.mark.usefixtures("undrawn")
def test_a_trigger_is_one_of_the_things_that_the_adversary_may_do(
    classes: Path, tmp_path: Path
) -> None:
    assert "not the network, its training or the inputs" in visible(page(classes))
    properties = document(classes)["properties"]
    properties[0] |= {"kind": "backdoor", "at_least": None, "at_most": 1.0}
    folder = copied(classes, tmp_path / "out", properties=properties)
    assert main(["report", str(folder)]) == 0
    shown = visible(page(folder))
    assert "put a trigger into its inputs as well" in shown
    assert "not the network, its training or the inputs" not in shown


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_the_first_colours_differ_in_grey() -> None:
    first = sorted(luminance(color) for color in CLASSES[:2])
    assert (first[1] + 0.05) / (first[0] + 0.05) > 2


def test_words_in_colour_can_be_read_on_their_ground() -> None:
    """Contrast of at least 4.5, which WCAG 2.1 asks for small text; in grey as well."""
    style = (Path(reports.__file__).parent / "templates" / "style.css").read_text()
    named = dict(re.findall(r"--([a-z]+): (#[0-9A-Fa-f]{6});", style))
    for text in ("ink", "soft", "proved", "open", "reported"):
        for ground in ("ground", "panel"):
            light, dark = luminance(named[ground]), luminance(named[text])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), ""
)
browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")


def browse(path: Path, profile: Path) -> tuple[str, list[str]]:
    """The page as a browser has made it, and what it wrote to its console."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr"]
    command += [f"--user-data-dir={profile}", "--virtual-time-budget=2000", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@browser
def test_a_real_browser_shows_the_numbers_without_errors(classes: Path, tmp_path: Path) -> None:
    dom, console = browse(classes / "report.html", tmp_path)
    assert console == []
    shown = visible(dom)
    for each in document(classes)["properties"]:
        for end in ("lower", "nominal", "upper"):
            assert format_number(each[end]) in shown


@browser
@pytest.mark.parametrize("loss", ["cross_entropy", "mse"])
def test_a_report_from_python_opens_in_a_real_browser(loss: str, tmp_path: Path) -> None:
    """With attacks, suspects and groups: every part of the page that one call can make."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(14, 2))
    y: Any = (x[:, 0] > 0).astype(np.int64) if loss == "cross_entropy" else x.sum(1)
    result = trained(loss, x[:10], y[:10], attack=agt.attacks.Search(pool=16, rounds=1, restarts=1))
    asked = [{"kind": "loss", "at_most": 9.0}, {"kind": "loss", "groups": ["a", "b", "a", "b"]}]
    data = agt.Dataset.of(x[:10], y[:10], x[10:], y[10:], name="clouds")
    path = agt.report(result, data, tmp_path / "out", properties=asked, suspects=True)
    dom, console = browse(path, tmp_path / "profile")
    assert console == []
    shown, found = visible(dom), document(tmp_path / "out")
    assert [p["status"] for p in found["properties"]] == ["PROVED", *["REPORTED"] * 3]
    for each in found["properties"]:
        assert each["name"] in shown
        for end in ("lower", "nominal", "upper"):
            assert format_number(each[end]) in shown
    assert "Which samples carry the bound" in shown
    assert f"{found['attack']['trained']} poisoned runs" in shown


def printed(path: Path, folder: Path) -> Any:
    """The PDF that a browser prints, opened."""
    pdfium = pytest.importorskip("pypdfium2")
    target = folder / "page.pdf"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    command += [f"--user-data-dir={folder / 'printing'}", "--virtual-time-budget=2000"]
    command += [f"--print-to-pdf={target}", path.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    return pdfium.PdfDocument(target)


@browser
@pytest.mark.parametrize("name", ["classes", "pixels", "regression"])
def test_a_print_has_everything_and_cuts_nothing_off(
    name: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(name)
    pdf = printed(folder / "report.html", tmp_path)
    pages = [(sheet, sheet.get_textpage()) for sheet in pdf]
    shown = "".join("".join(text.get_text_bounded().split()) for _, text in pages)
    result = document(folder)
    wanted = [result["claim"], *result["assumptions"], *words.GLOSSARY.values()]
    wanted += [each["name"] for each in result["properties"]]
    for step in result["steps"]:  # folded away on the screen
        wanted.append(format_number(step["max_width"]))
    wanted.append(f'"learning_rate": {result["run"]["training"]["learning_rate"]}')
    for piece in wanted:
        assert "".join(piece.split()) in shown
    assert "Files:" not in shown
    for sheet, text in pages:
        width, height = sheet.get_size()
        boxes = np.array([text.get_charbox(i) for i in range(text.count_chars())])
        assert len(boxes) > 20  # no page that is next to empty
        assert (boxes[:, [0, 1]] >= 20).all()
        assert (boxes[:, 2] <= width - 20).all()
        assert (boxes[:, 3] <= height - 20).all()


@browser
def test_a_heading_is_printed_above_what_it_is_about(classes: Path, tmp_path: Path) -> None:
    """None of them is the last line of its sheet."""
    headings = {
        "".join(visible(text).split()) for text in re.findall(r"<h[23]>.*?</h[23]>", page(classes))
    }
    assert len(headings) > 8
    for sheet in printed(classes / "report.html", tmp_path):
        lines = sheet.get_textpage().get_text_bounded().strip().splitlines()
        assert "".join(lines[-1].split()) not in headings


@browser
def test_a_real_browser_sorts_the_tables(classes: Path, tmp_path: Path) -> None:
    click = "document.querySelectorAll('#points th button')[{}].click();"
    script = "<script>" + click.format(3) + click.format(3) + "</script></body>"
    (tmp_path / "page.html").write_text(page(classes).replace("</body>", script))
    dom, console = browse(tmp_path / "page.html", tmp_path / "profile")
    assert console == []
    table = dom[dom.index('<table class="sortable" id="points">') :]
    table = table[table.index("<tbody>") : table.index("</tbody>")]
    shown = [
        float(row.split("<td")[4].partition('data-value="')[2].partition('"')[0])
        for row in table.split("<tr>")[1:]
    ]
    points = read(classes).points
    assert points is not None
    assert shown == sorted(points.lower.tolist(), reverse=True)
    assert len(set(shown)) > 2


@browser
def test_an_error_in_a_page_would_be_seen(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<body><script>nowhere();</script></body>")
    assert len(browse(tmp_path / "page.html", tmp_path / "profile")[1]) == 1
