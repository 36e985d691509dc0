"""The report's words, the auditor's part, the map, and reports from Python."""

from __future__ import annotations

import dataclasses
import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pages import ACCURACY, copied, document, page, run, small, trained, visible
from refusals import refused
from run_texts import document as run_text_of

import milp_agt as agt
from milp_agt import reports
from milp_agt.certification.chains import ENUMERATED
from milp_agt.certification.listing import LISTED
from milp_agt.cli import main
from milp_agt.core.relaxation import Relaxation
from milp_agt.errors import InvalidInputError
from milp_agt.formulations.loss import losses
from milp_agt.io.drawing import COLOURS
from milp_agt.io.versioned import author_of, commit_of
from milp_agt.reports import audit, evidence, words
from milp_agt.reports.content import Property


@given(
    st.just(0.0) | st.floats(1e-300, 1) | st.integers(0, 60).map(lambda k: k / 60), st.booleans()
)
def test_words_never_promise_more_than_the_numbers(value: float, share: bool) -> None:
    kind = "accuracy" if share else "loss"
    each = Property(kind, "test", value, value, value, None, None, "REPORTED")
    scale = 100.0 if share else 1.0
    low = float(words.at_least(each).removesuffix(" %"))
    high = float(words.at_most(each).removesuffix(" %"))
    assert low <= scale * value * (1 + 1e-12)
    assert high >= scale * value * (1 - 1e-12)
    assert high - low <= 1.1e-3 * scale * value + 1e-12


def test_every_chain_and_every_loss_has_words() -> None:
    levels = {level.value for level in Relaxation}
    assert set(words.RELAXATIONS) == levels | {ENUMERATED, LISTED}
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
        ("functional", "functional (class 1) on test is at least 0.25"),
    ],
)
def test_the_headline_names_the_side_that_is_asked_for(kind: str, said: str) -> None:
    ends = 0.25, 0.5, 0.75
    each = Property(kind, "test", *ends, None, None, "REPORTED", detail="class 1")
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
    first = sorted(luminance(color) for color in COLOURS[:2])
    assert (first[1] + 0.05) / (first[0] + 0.05) > 2


def test_words_in_colour_can_be_read_on_their_ground() -> None:
    """Contrast of at least 4.5, which WCAG 2.1 asks for small text; in grey as well."""
    style = (Path(reports.__file__).parent / "templates" / "style.css").read_text()
    named = dict(re.findall(r"--([a-z]+): (#[0-9A-Fa-f]{6});", style))
    for text in ("ink", "soft", "proved", "open", "reported"):
        for ground in ("ground", "panel"):
            light, dark = luminance(named[ground]), luminance(named[text])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)


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
    for said in json.loads((copy / "certificate" / "claim.json").read_bytes())["words"]:
        assert said in text


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


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("damaged", ["claim.json", "claim.sha256", "lower_0.npy"])
def test_a_rejected_certificate_is_shown_as_such(copy: Path, damaged: str) -> None:
    file = copy / "certificate" / damaged
    file.write_bytes(file.read_bytes() + b" ")
    assert main(["check", str(copy)]) == 3
    assert json.loads((copy / audit.NAME).read_bytes())["outcome"] == "REJECTED"
    assert main(["report", str(copy)]) == 0
    assert "<strong>REJECTED</strong>" in page(copy)


@pytest.mark.parametrize("classes", [2, 3])
def test_leads_hold_everywhere_in_a_box(classes: int) -> None:
    """For models that attacks train, at random points of each box; bounds of centres alone do not."""
    rng = np.random.default_rng(0)
    y = np.arange(12) % classes
    x = rng.normal(size=(12, 2)) + 2.0 * y[:, None]
    torch.manual_seed(0)
    layers = torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, classes)
    model = torch.nn.Sequential(*layers).double()
    training = agt.Training(loss="cross_entropy", learning_rate=0.2, epochs=3)
    search = agt.Search(pool=16, corners=0, restarts=1, rounds=0)
    result = agt.certify(
        model, (x, y), training, agt.FeaturePoisoning(1, 0.05), attack=search, tree=0.0
    )
    centre, radius = rng.uniform(-2.0, 6.0, size=(40, 2)), 0.2
    leads, bare = result.leads(centre - radius, centre + radius), result.leads(centre, centre)
    assert (leads <= bare).all()
    assert (leads > 0).any()
    assert result.attack is not None
    inside = centre + rng.uniform(-radius, radius, size=(50, 40, 2))
    least = np.full_like(leads, np.inf)
    for models in result.attack.runs.parts(32):
        with torch.no_grad():
            scores = models.outputs(torch.from_numpy(inside.reshape(-1, 2))).numpy()
        others = np.stack([np.delete(scores, k, -1).max(-1) for k in range(classes)], -1)
        reached = (scores - others).reshape(len(scores), *inside.shape[:2], classes)
        least = np.minimum(least, reached.min((0, 1)))
    assert (leads <= least).all()
    assert (bare > least).any()
    with refused("Boxes of inputs", said="crossed"):
        result.leads(centre + radius, centre)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_commit_and_author_of_a_run(tmp_path: Path, undrawn: None) -> None:
    """Of the run file as git keeps it: none, this one, or another since."""

    def git(*arguments: str) -> str:
        who = "-c", "user.name=Ada", "-c", "user.email=ada@example.org"
        command = ["git", "-C", str(tmp_path), *who, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout.strip()

    text = run([2, 2]) + ACCURACY
    out = small(tmp_path, text)
    made = run_text_of(out)["made"]
    assert made["run_commit"] is None
    assert made["by"]
    assert html.escape(made["by"]) in page(out)
    assert "none: git does not know it" in page(out)
    path = tmp_path / "run.toml"
    git("init", "--quiet")
    git("config", "user.name", "Ada")
    git("config", "user.email", "ada@example.org")
    assert commit_of(path) is None
    git("add", "run.toml")
    git("commit", "--quiet", "-m", "run")
    head = git("rev-parse", "HEAD")
    assert commit_of(path) == head
    out = small(tmp_path, text, "--force")
    made = run_text_of(out)["made"]
    assert (made["run_commit"], made["by"]) == (head, "Ada <ada@example.org>")
    assert head in page(out)
    assert "Ada &lt;ada@example.org&gt;" in page(out)
    path.write_text(path.read_text() + "\n", encoding="utf-8")
    assert commit_of(path) == f"{head}, changed since"
    git("config", "user.name", os.fsdecode(b"J\xf6rg"))  # not UTF-8
    assert author_of(tmp_path) == "J\ufffdrg <ada@example.org>"


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
