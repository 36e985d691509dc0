"""The report says what a reader could overlook, and refuses folders that it cannot read."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pages import LOSS, certify, copied, document, page, run, visible
from refusals import refused

from milp_agt import reports
from milp_agt.cli import main
from milp_agt.errors import InvalidInputError
from milp_agt.reports import evidence


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
    properties[-1] |= {"upper": "inf", "status": "OPEN", "at_most": 1.0}
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
    properties[0] |= {"lower": 0.2, "nominal": 0.4, "upper": 0.6, "status": "OPEN"}
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


@pytest.mark.usefixtures("undrawn")
def test_bounds_that_exclude_nothing_say_so(classes: Path, tmp_path: Path) -> None:
    properties = document(classes)["properties"]
    properties[0] |= {"lower": 0.0, "nominal": 0.9, "upper": 1.0, "status": "OPEN"}
    folder = copied(classes, tmp_path / "out", properties=properties)
    assert main(["report", str(folder)]) == 0
    assert "exclude nothing any more" in visible(page(folder))


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
    with refused(found="cannot be read"):
        reports.write_page(folder)


def test_without_the_extra_the_result_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    y = np.arange(8) % 2
    text = run([2, 2]) + LOSS
    folder = certify(tmp_path, np.eye(8)[:, :2] + y[:, None], y, text)
    err = capsys.readouterr().err
    assert "no module jinja2 or matplotlib" in err
    assert "pip install 'milp_agt[report]'" in err
    assert document(folder)["complete"] is True
    assert {p.name for p in folder.iterdir()} == {
        "result.json",
        "reachable.npz",
        "certificate",
        evidence.NAME,
    }
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
    text = run([2, 2]) + LOSS
    folder = certify(tmp_path, np.eye(8)[:, :2] + y[:, None], y, text)
    assert note in capsys.readouterr().err
    assert document(folder)["complete"] is True
    assert len(document(folder)["properties"]) == 1


def test_no_report_is_no_report(tmp_path: Path) -> None:
    y = np.arange(8) % 2
    text = run([2, 2])
    folder = certify(tmp_path, np.eye(8)[:, :2] + y[:, None], y, text, "--no-report")
    assert {p.name for p in folder.iterdir()} == {"result.json", "reachable.npz", "certificate"}
