"""The map of two features: cells bounded as a whole; and who made a report, from which commit."""

from __future__ import annotations

import html
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from pages import ACCURACY, page, run, small
from refusals import refused
from run_texts import document

import milp_agt as agt
from milp_agt.io.versioned import author_of, commit_of


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
    made = document(out)["made"]
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
    made = document(out)["made"]
    assert (made["run_commit"], made["by"]) == (head, "Ada <ada@example.org>")
    assert head in page(out)
    assert "Ada &lt;ada@example.org&gt;" in page(out)
    path.write_text(path.read_text() + "\n", encoding="utf-8")
    assert commit_of(path) == f"{head}, changed since"
    git("config", "user.name", os.fsdecode(b"J\xf6rg"))  # not UTF-8
    assert author_of(tmp_path) == "J\ufffdrg <ada@example.org>"
