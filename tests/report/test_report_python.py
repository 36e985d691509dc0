"""The report made by one call from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pages import document, page, trained, visible
from refusals import refused

import milp_agt as agt
from milp_agt import reports
from milp_agt.reports import evidence


@pytest.fixture(scope="module")
def arrays() -> agt.Dataset:
    rng = np.random.default_rng(3)
    x = rng.normal(size=(16, 2))
    y = (x[:, 0] > 0).astype(np.int64)
    return agt.Dataset.of(x[:12], y[:12], x[12:], y[12:], name="clouds")


@pytest.mark.usefixtures("undrawn")
def test_one_call_writes_what_the_command_line_writes(
    arrays: agt.Dataset, classes: Path, tmp_path: Path
) -> None:
    result = trained("cross_entropy", arrays.x_train, arrays.y_train)
    asked = [{"kind": "accuracy", "at_least": 0.25}, {"kind": "stable"}]
    path = agt.report(result, arrays, tmp_path / "out", properties=asked, suspects=True)
    assert path == tmp_path / "out" / "report.html"
    kept = {p.name for p in (tmp_path / "out").iterdir()}
    # A certificate states the run file.
    assert kept | {"certificate"} == {p.name for p in classes.iterdir()}
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
    with refused(found=found, remedy=remedy):
        agt.report(result, agt.Dataset.of(x, y), tmp_path / "out", properties=asked)
    assert not (tmp_path / "out").exists()


def test_one_call_without_the_extra_keeps_the_numbers(
    arrays: agt.Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    result = trained("cross_entropy", arrays.x_train, arrays.y_train)
    with refused(remedy="milp-agt report DIR", kind=reports.ReportUnavailableError):
        agt.report(result, arrays, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"result.json", "reachable.npz", evidence.NAME}
