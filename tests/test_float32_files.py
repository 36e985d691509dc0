"""float32 runs from run files: data and model are rounded once, and the result says so."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from run_texts import run_text

import milp_agt as agt
from milp_agt.cli import main
from milp_agt.errors import InvalidInputError
from milp_agt.runfile.run_file import load_config

pytestmark = pytest.mark.usefixtures("undrawn")

RUN = run_text(
    [{"kind": "accuracy", "on": "test"}],
    data={"name": "iris", "test_fraction": 0.5, "standardise": True},
    model={"layers": [4, 3, 3], "seed": 7},
    threat={"kind": "features", "budget": 1, "radius": 0.01},
    training={"learning_rate": 0.1},
    certify={"precision": "float32"},
)


def test_a_run_file_trains_in_float32(tmp_path: Path) -> None:
    path = tmp_path / "RUN.toml"
    path.write_text(RUN)
    run = load_config(path).build()
    x = run.dataset.x_train
    assert np.array_equal(x, x.astype(np.float32))
    assert "rounded to float32" in run.dataset.notes[-1]
    for value in run.model.state_dict().values():
        assert torch.equal(value.float().double(), value)
    plain = tmp_path / "plain.toml"
    plain.write_text(RUN.replace('precision = "float32"', ""))
    exact = load_config(plain).build().dataset.x_train
    assert 0.0 < np.abs(exact - x).max() < 1e-6
    out = tmp_path / "out"
    assert main(["certify", str(path), "--out", str(out), "--quiet", "--no-report"]) in (0, 1)
    told = json.loads((out / "result.json").read_text())
    text = json.dumps(told)
    assert "training in float32" in text
    assert "rounded to float32 before" in text
    assert "no TF32" in text


def test_precision_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same run as with the key in the file; compare takes the flag, too."""
    path, plain = tmp_path / "RUN.toml", tmp_path / "plain.toml"
    path.write_text(RUN)
    plain.write_text(RUN.replace('precision = "float32"', ""))
    boxes = []
    for number, (file, flags) in enumerate(((path, []), (plain, ["--precision", "float32"]))):
        out = tmp_path / str(number)
        asked = ["certify", str(file), "--out", str(out), "--quiet", "--no-report", *flags]
        assert main(asked) in (0, 1)
        assert "training in float32" in (out / "result.json").read_text()
        boxes.append(dict(np.load(out / "reachable.npz")))
    assert boxes[0].keys() == boxes[1].keys()
    for name, array in boxes[0].items():
        assert np.array_equal(array, boxes[1][name]), name
    compared = ["compare", str(plain), "--relaxations", "interval", "--precision", "float32"]
    assert main(compared) == 0
    capsys.readouterr()


def test_a_run_file_refuses_other_precisions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "RUN.toml"
    path.write_text(RUN.replace('"float32"', '"bfloat16"'))
    assert main(["certify", str(path), "--out", str(tmp_path / "out")]) not in (0, 1)
    assert "bfloat16, which keeps 8 bits" in capsys.readouterr().err


def test_a_data_set_in_float32() -> None:
    data = agt.load_dataset("iris", test_fraction=0.5, standardise=True)
    single = data.in_float32()
    assert (data.task, single.task) == ("classification", "classification")
    assert np.array_equal(single.y_train, data.y_train)
    assert np.array_equal(single.x_test, data.x_test.astype(np.float32).astype(np.float64))
    assert single.origin is data.origin
    training, threat = agt.Training("cross_entropy"), agt.FeaturePoisoning(1, 0.01)
    model = torch.nn.Linear(4, 3)
    result = agt.certify(model, single, training, threat, precision="float32")
    assert "float32" in result.claim
    with pytest.raises(InvalidInputError, match=r"in_float32\(\)"):
        agt.certify(model, data, training, threat, precision="float32")
    large = agt.Dataset.of(np.array([[1e39], [1.0]]), np.array([0.5, 0.1]))
    with pytest.raises(InvalidInputError, match=r"x_train has numbers up to 1e\+39.*What to do"):
        large.in_float32()
