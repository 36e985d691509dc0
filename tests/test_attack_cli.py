"""``milp-agt attack`` and ``milp-agt certify --attack``: tables, files and settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from run_texts import certified, run_text, write_run

import milp_agt as agt
from milp_agt.cli import main
from milp_agt.errors import ConfigurationError
from milp_agt.runfile.run_file import load_config

ASKED = [
    {"kind": "accuracy"},
    {"kind": "loss"},
    {"kind": "backdoor", "radius": 0.05},
    {"kind": "targeted", "unsafe": 1},
]


def run_file(folder: Path, kind: str = "features", more: str = "radius = 0.05") -> Path:
    text = run_text(
        ASKED,
        data={"name": "moons", "samples": 24, "test_fraction": 0.25, "seed": 0},
        model={"layers": [2, 3, 1]},
        training={"loss": "bce", "epochs": 3},
        attack={"pool": 32, "restarts": 1, "rounds": 1, "iterations": 2, "seed": 5},
        threat={"kind": kind, "budget": 2},
    )
    text = text.replace("budget = 2\n", f"budget = 2\n{more}\n")
    functional = "[[property]]\nkind = 'functional'\ncoefficients = { '2.bias' = [1.0] }\n"
    return write_run(folder, text + functional)


def test_attack_writes_the_data_that_reach_its_numbers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["attack", str(run_file(tmp_path)), "--out", str(out), "--seed", "7"]) == 0
    printed = capsys.readouterr().out
    assert "Envelope: mean width" in printed
    assert "seed 7" in printed
    assert "backdoor (radius 0.05) on test" in printed
    document = json.loads((out / "attack.json").read_text())
    assert document["search"]["seed"] == 7
    assert document["search"]["pool"] == 32
    assert document["parameters"]["mean_width"] > 0
    names = [o["name"] for o in document["objectives"]]
    assert names[1:3] == ["accuracy on test", "loss on test"]
    run = load_config(tmp_path / "run.toml").build()
    with np.load(out / "attack.npz") as arrays:
        bias = document["objectives"][5]
        assert bias["objective"] == "max c . theta"
        assert float(arrays["5/state/2.bias"][0]) == bias["value"]
        x, y = torch.tensor(arrays["5/features/0"]), torch.tensor(arrays["5/labels/0"])
        moved = (x.numpy() != run.dataset.x_train).any(1).nonzero()[0]
        assert moved.tolist() == bias["positions"] == arrays["5/positions"].tolist()
        rows = run.dataset.rows.train[moved].tolist()
        assert sorted(rows) == bias["poisoned"] == arrays["5/poisoned"].tolist()
        assert len(moved) <= 2
        optimiser = torch.optim.SGD(run.model.parameters(), lr=0.5)
        for _ in range(3):
            optimiser.zero_grad()
            out_ = run.model(x)[:, 0]
            torch.nn.functional.binary_cross_entropy_with_logits(out_, y.double()).backward()
            optimiser.step()
        assert float(run.model[2].bias.detach()[0]) == pytest.approx(bias["value"], rel=1e-9)
        assert (arrays["lower/2.bias"] <= arrays["upper/2.bias"]).all()


def test_attack_writes_every_step_of_an_adaptive_adversary(tmp_path: Path) -> None:
    path = run_file(tmp_path, "labels", "static = false")
    assert main(["attack", str(path), "--out", str(tmp_path / "out"), "--quiet"]) == 0
    with np.load(tmp_path / "out" / "attack.npz") as arrays:
        assert {f"0/labels/{t}" for t in range(3)} <= set(arrays)


def test_certify_shows_both_sides(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = run_file(tmp_path, "labels", "")
    document = certified(path, "--attack")
    printed = capsys.readouterr().out
    assert "Attacks: mean width" in printed
    assert "attacks reach" in printed
    both = document["attack"]
    assert both["mean_width"] <= document["parameters"]["mean_width"]
    assert both["ratio"] == document["parameters"]["mean_width"] / both["mean_width"]
    assert both["exhaustive"] is True
    assert both["seed"] == 5
    for row in document["properties"]:
        assert row["lower"] <= row["reached"][0] <= row["reached"][1] <= row["upper"]
        assert row["ratio"] == "inf" or row["ratio"] >= 1.0
    assert certified(path)["attack"] is None
    assert "Attacks" not in capsys.readouterr().out


def test_the_run_file_can_ask_for_attacks(tmp_path: Path) -> None:
    path = run_file(tmp_path, "labels", "")
    path.write_text(path.read_text() + "\n[certify]\nattack = true\n")
    run = load_config(path).build()
    assert run.options.attack
    assert run.search == agt.Search(pool=32, restarts=1, rounds=1, iterations=2, seed=5)


@pytest.mark.parametrize(
    ("line", "found"),
    [("poool = 3", r"unknown key 'poool'"), ("pool = -3", r"pool"), ('memory = "much"', r"much")],
)
def test_bad_settings_are_refused(tmp_path: Path, line: str, found: str) -> None:
    path = run_file(tmp_path)
    text = path.read_text().replace("pool = 32", line)
    path.write_text(text)
    with pytest.raises((ConfigurationError, agt.MilpAgtError), match=f"{found}.*What to do"):
        load_config(path).build()
