"""The report in a real browser, on the screen and in print."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pages import document, page, trained, visible

import milp_agt as agt
from milp_agt.io.tables import format_number
from milp_agt.reports import words
from milp_agt.reports.content import read

CHROMIUM = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), ""
)


browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium on this machine")


def printed(path: Path, folder: Path) -> Any:
    """The PDF that a browser prints, opened."""
    pdfium = pytest.importorskip("pypdfium2")
    target = folder / "page.pdf"
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-pdf-header-footer"]
    command += [f"--user-data-dir={folder / 'printing'}", "--virtual-time-budget=2000"]
    command += [f"--print-to-pdf={target}", path.as_uri()]
    subprocess.run(command, capture_output=True, timeout=120, check=True)
    return pdfium.PdfDocument(target)


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
