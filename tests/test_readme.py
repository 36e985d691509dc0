"""README says what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from milp_agt.formulations.base import operations
from milp_agt.support import table

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", README, re.DOTALL)
    assert found, f"README has no section '{name}'"
    return found[1].strip()


def test_the_table_of_what_is_supported_is_the_generated_one() -> None:
    assert section("support") == table()


def test_every_operation_says_how_exact_it_is() -> None:
    assert all(operation.exactness for operation in operations().values())


@pytest.mark.parametrize("name", ["iris", "tightness", "bench", "programs"])
def test_measured_sections_are_filled(name: str) -> None:
    assert len(section(name).splitlines()) > 5


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    faster = code.replace("epochs=20", "epochs=2").replace("samples=120", "samples=20")
    exec(compile(faster, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "runs" / "moons" / "report.html").exists()


def test_linked_files_exist() -> None:
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target
