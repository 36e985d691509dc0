"""Recorded loops in files, and final models that are another than was recorded."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import run_texts
import torch
from boxes import assert_same
from recorded_script import (
    THREAT,
    Script,
    certified,
)
from torch import nn

import milp_agt as agt
from milp_agt.errors import InvalidInputError, SoundnessError, UnsupportedOperationError
from milp_agt.runfile.run_file import load_config


def test_a_final_model_that_is_another_is_never_certified() -> None:
    run = Script().train().finished()
    name = next(iter(run.final))
    run.final[name][0] += 0.01  # type: ignore[index]
    with pytest.raises(UnsupportedOperationError, match=f"'{name}' is 0.01 off after 6 steps"):
        agt.certify(run, THREAT, relaxation="interval")


def test_saved_and_loaded(tmp_path: Path) -> None:
    run = Script().train()
    run.save(tmp_path / "run")
    fresh = nn.Sequential(nn.Linear(30, 8), nn.ReLU(), nn.Linear(8, 2))
    loaded = agt.load_run(tmp_path / "run", fresh)
    one, other = certified(run), agt.certify(loaded, THREAT, relaxation="interval")
    assert_same(one.reachable, other.reachable)
    assert one.nominal_check == other.nominal_check
    assert one.assumptions == other.assumptions
    np.savez(tmp_path / "other.npz", a=np.zeros(2))
    for name, model, message in (
        ("run.npz", nn.Linear(30, 2), "give the architecture"),
        ("nothing", fresh, "No such file"),
        ("other.npz", fresh, r"give a file that run\.save"),
    ):
        with pytest.raises(InvalidInputError, match=message):
            agt.load_run(tmp_path / name, model)
    with pytest.raises(InvalidInputError, match="no such folder"):
        run.save(tmp_path / "none" / "run")


RUN_FILE = """
[data]
name = "breast_cancer"
test_fraction = 0.8
standardise = true

[model]
layers = [30, 2]

[training]
record = "run.npz"

[threat]
kind = "features"
budget = 1
radius = 0.01

[certify]
relaxation = "interval"

[attack]
pool = 4
restarts = 1
rounds = 0

[[property]]
kind = "accuracy"
at_least = 0.1
"""


def test_a_record_in_a_run_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from milp_agt.cli import main

    run = Script(model=nn.Sequential(nn.Linear(30, 2))).train()
    run.save(tmp_path / "run.npz")
    path = tmp_path / "run.toml"
    path.write_text(RUN_FILE)
    built = load_config(path).build()
    one, other = built.certify(), certified(run)
    assert_same(one.reachable, other.reachable)
    assert one.nominal_check == other.nominal_check
    run_texts.certified(path)
    assert "your model is the nominal run up to" in capsys.readouterr().out
    assert main(["attack", str(path), "--out", str(tmp_path / "attack")]) == 0
    one.save(tmp_path / "result")
    saved = agt.load(tmp_path / "result")
    assert saved.assumptions == one.assumptions == other.assumptions
    assert saved.nominal_check == one.nominal_check


def test_a_record_of_other_data_or_beside_options(tmp_path: Path) -> None:
    Script(model=nn.Sequential(nn.Linear(30, 2))).train().save(tmp_path / "run.npz")
    path = tmp_path / "run.toml"
    for old, new, message in (
        ("standardise = true", "standardise = true\nseed = 1", "in the same order; or certify in"),
        ("[training]", '[training]\nloss = "mse"', "'loss' beside 'record'.*the record holds all"),
        ("run.npz", "none.npz", "No such file"),
        ('record = "run.npz"', "", "without the key 'loss'"),
    ):
        path.write_text(RUN_FILE.replace(old, new))
        with pytest.raises(InvalidInputError, match=message):
            load_config(path).build()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_users_own_model_must_lie_inside(dtype: torch.dtype) -> None:
    """One that is off by less than the nominal check grants, and by more than rounding."""
    run = Script(dtype).train()
    assert certified(run).reachable.contains(run.finished().final)
    off = next(iter(run.finished().final.values()))
    width = 0.4 * run.finished().nominal_check().tolerance
    off[0] += width
    still = agt.FeaturePoisoning(budget=1, radius=1e-30)
    with pytest.raises(SoundnessError, match="must lie in its reachable set"):
        agt.certify(run, still, relaxation="interval")
