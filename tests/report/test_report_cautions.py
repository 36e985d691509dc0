"""The report says what a reader could overlook, and refuses folders that it cannot read."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import LOSS, copied, document, page, run, small, visible
from refusals import refused

from milp_agt import reports
from milp_agt.cli import main
from milp_agt.errors import InvalidInputError
from milp_agt.reports import evidence
from milp_agt.reports.content import read


def property_of(number: int, **values: Any) -> Callable[[dict[str, Any]], None]:
    return lambda found: found["properties"][number].update(values)


def endless(found: dict[str, Any]) -> None:
    found["properties"][-1] |= {"upper": "inf", "status": "OPEN", "at_most": 1.0}
    inf = {"mean_width": "inf", "max_width": "inf", "chains": {"linear": "inf"}}
    found["steps"][-1] |= inf


CAUTIONS: dict[str, tuple[Callable[[dict[str, Any]], object], tuple[str, ...]]] = {
    "unfinished": (
        lambda found: found.update(complete=False, steps=found["steps"][:1], properties=[]),
        ("Unfinished: bounds after 1 of 3 training steps",),
    ),
    "numbers that are none": (endless, ("at most inf", "Not proved does not mean broken")),
    "misses the mark unpoisoned": (
        property_of(0, lower=0.2, nominal=0.4, upper=0.6, status="OPEN"),
        ("Even without an adversary the model misses",),
    ),
    "bounds that exclude nothing": (
        property_of(0, lower=0.0, nominal=0.9, upper=1.0, status="OPEN"),
        ("exclude nothing any more",),
    ),
    "text of a result is text": (
        lambda found: found["data"].update(description="<script>alert(1)</script> & more"),
        ("<script>alert(1)</script> & more",),
    ),
}


@pytest.mark.parametrize("name", CAUTIONS)
@pytest.mark.usefixtures("undrawn")
def test_what_a_reader_could_overlook_is_said(name: str, classes: Path, tmp_path: Path) -> None:
    change, said = CAUTIONS[name]
    found = document(classes)
    change(found)
    folder = copied(classes, tmp_path / "out", **found)
    if name == "unfinished":
        (folder / "evidence.npz").unlink()
    assert main(["report", str(folder)]) == 0
    assert all(words in visible(page(folder)) for words in said)
    assert "<script>alert" not in page(folder)
    assert ("figure-points" in page(folder)) == (name != "unfinished")


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


TORN = '{"steps": [], "parameters": {}, "properties": [{"kind": "loss", "lower": "high"}]}'


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"steps": [', TORN])
def test_a_folder_without_a_result(
    tmp_path: Path, content: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    assert main(["report", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    for piece in ("Make a report of", "Found: ", "What to do: ", "certify"):
        assert piece in err
    assert err.count("\n") == 1


def test_damaged_evidence_is_said(classes: Path, tmp_path: Path) -> None:
    folder = copied(classes, tmp_path / "out")
    raw = (folder / evidence.NAME).read_bytes()
    (folder / evidence.NAME).write_bytes(raw[: len(raw) // 2])
    with refused(found="cannot be read"):
        reports.write_page(folder)


def test_maps_of_points_alone_are_left_out(classes: Path, tmp_path: Path) -> None:
    """Earlier versions bounded points, which says nothing about the cells between them."""
    folder = copied(classes, tmp_path / "out")
    assert read(folder).map is not None
    with np.load(folder / evidence.NAME) as stored:
        arrays = dict(stored)
    ends = {axis: arrays[axis][:-1] for axis in ("map/x", "map/y")}
    np.savez(folder / evidence.NAME, **(arrays | ends))
    assert read(folder).map is None


def test_without_the_extra_the_result_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(reports, "find_spec", lambda name: None)
    folder = small(tmp_path, run([2, 2]) + LOSS)
    (line,) = capsys.readouterr().err.splitlines()
    for said in ("note", "no module jinja2 or matplotlib", "pip install 'milp_agt[report]'"):
        assert said in line
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
    folder = small(tmp_path, run([2, 2]) + LOSS)
    assert note in capsys.readouterr().err
    assert document(folder)["complete"] is True
    assert len(document(folder)["properties"]) == 1


def test_no_report_is_no_report(tmp_path: Path) -> None:
    folder = small(tmp_path, run([2, 2]), "--no-report")
    assert {p.name for p in folder.iterdir()} == {"result.json", "reachable.npz", "certificate"}
