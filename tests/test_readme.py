"""The pages say what the code says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from milp_agt.cli.common import EXIT_CODES
from milp_agt.formulations.registry import operations
from milp_agt.reports.supported import table
from milp_agt.runfile.reference import markdown

ROOT = Path(__file__).resolve().parent.parent
README = ROOT / "README.md"
TIGHTNESS = ROOT / "formulations" / "README.md"
PROGRAMS = ROOT / "solvers" / "README.md"
EXAMPLES = ROOT / "examples" / "README.md"
RUNFILE = ROOT / "examples" / "RUNFILE.md"
PAGES = [README, TIGHTNESS, PROGRAMS, EXAMPLES, RUNFILE, ROOT / "examples" / "full" / "README.md"]


def section(page: Path, name: str) -> str:
    text = page.read_text(encoding="utf-8")
    found = re.search(rf"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.DOTALL)
    assert found, f"{page} has no section '{name}'"
    return found[1].strip()


def test_the_table_of_what_is_supported_is_the_generated_one() -> None:
    assert section(TIGHTNESS, "support") == table()


def test_the_options_of_a_run_file_are_the_generated_ones() -> None:
    """``python -m milp_agt.runfile.reference`` prints them."""
    assert section(RUNFILE, "options") == markdown()


def test_exit_codes_are_those_of_the_commands() -> None:
    rows = [f"| {code} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    assert "\n".join(["|---|---|", *rows]) in README.read_text(encoding="utf-8")


def test_every_operation_says_how_exact_it_is() -> None:
    assert all(operation.exactness for operation in operations().values())


@pytest.mark.parametrize(
    ("page", "name"),
    [
        (README, "iris"),
        (README, "tightness"),
        (README, "limits"),
        (README, "paper"),
        (TIGHTNESS, "halfmoons"),
        (TIGHTNESS, "reference"),
        (TIGHTNESS, "bench"),
        (PROGRAMS, "programs"),
    ],
)
def test_measured_sections_are_filled(page: Path, name: str) -> None:
    assert len(section(page, name).splitlines()) > 5


@pytest.mark.usefixtures("undrawn")
def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    faster = code.replace("epochs=20", "epochs=2").replace("samples=120", "samples=20")
    exec(compile(faster, "README.md", "exec"), {"__name__": "readme"})
    assert (tmp_path / "runs" / "moons" / "report.html").exists()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_linked_files_and_headings_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^):]+)\)", page.read_text(encoding="utf-8")):
        name, _, heading = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert heading in {re.sub(r"[^\w -]", "", t).lower().replace(" ", "-") for t in titles}


def test_scripts_and_run_files_that_pages_name_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"\bexamples/([a-z]\w*\.(?:py|toml))", page.read_text(encoding="utf-8")
        ):
            assert (ROOT / "examples" / name).exists(), f"{page}: {name}"


@pytest.mark.parametrize("script", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.name)
def test_every_example_has_a_small_size(script: Path) -> None:
    assert '"--small"' in script.read_text(encoding="utf-8")
