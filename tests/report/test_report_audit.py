"""The auditor's part of the page: what the certificate states, and what its check came to."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from pages import page

from milp_agt.cli import main
from milp_agt.errors import InvalidInputError
from milp_agt.reports import audit


@pytest.fixture
def copy(classes: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(classes, tmp_path / "copy"))


@pytest.mark.usefixtures("undrawn")
def test_a_check_is_on_the_page(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "was not checked yet" in page(copy)
    code = main(["check", str(copy)])
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert (code, verdict) == (0, "PROVED")
    assert main(["report", str(copy)]) == 0
    text = page(copy)
    assert "<strong>PROVED</strong>" in text
    assert "PROVED: the box of the parameters" in text
    assert "OWASP" in text
    for words in json.loads((copy / "certificate" / "claim.json").read_bytes())["words"]:
        assert words in text


@pytest.mark.usefixtures("undrawn")
def test_the_check_of_another_claim_is_not_shown(copy: Path) -> None:
    assert main(["check", str(copy)]) == 0
    kept = json.loads((copy / audit.NAME).read_bytes())
    (copy / audit.NAME).write_text(json.dumps({**kept, "claim": "0" * 64}), encoding="utf-8")
    assert main(["report", str(copy)]) == 0
    assert "was not checked yet" in page(copy)


@pytest.mark.usefixtures("undrawn")
def test_folders_without_a_certificate_have_no_such_part(copy: Path) -> None:
    shutil.rmtree(copy / "certificate")
    assert main(["report", str(copy)]) == 0
    assert "For an auditor" not in page(copy)


@pytest.mark.parametrize("text", ["{", "[]", "{}", "\0"])
def test_a_damaged_check_is_one_error(copy: Path, text: str) -> None:
    (copy / audit.NAME).write_text(text, encoding="utf-8")
    with pytest.raises(InvalidInputError, match="certify the run again"):
        audit.read(copy)


def test_a_rejected_certificate_is_kept_as_such(copy: Path) -> None:
    claim = copy / "certificate" / "claim.json"
    claim.write_bytes(claim.read_bytes() + b" ")
    assert main(["check", str(copy)]) == 3
    assert json.loads((copy / audit.NAME).read_bytes())["outcome"] == "REJECTED"
