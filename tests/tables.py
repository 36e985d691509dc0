"""A small table with ids and features of different sizes, and runs on it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import milp_agt as agt
from milp_agt.errors import InvalidInputError, InvalidThreatModelError

TRAINING = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=3)
COUNT = 20


def write_table(tmp_path: Path) -> Path:
    """A table with ids and features of very different sizes."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(COUNT, 3)) * [1.0, 50.0, 0.01] + [0.0, 400.0, 7.0]
    lines = [
        f"p{i},{float(a)!r},{float(b)!r},{float(c)!r},{i % 2}" for i, (a, b, c) in enumerate(x)
    ]
    file = tmp_path / "d.csv"
    file.write_text("patient,age,dose,ph,y\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return file


def data(path: Path, **options: Any) -> agt.Dataset:
    return agt.load_dataset(path, target="y", id="patient", **options)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).double()


def raw_features(path: Path) -> np.ndarray:
    rows = [line.split(",")[1:4] for line in path.read_text().splitlines()[1:]]
    return np.array(rows, dtype=np.float64)


def certified(found: agt.Dataset, threat: Any, **options: Any) -> agt.Result:
    return agt.certify(network(), found, TRAINING, threat, **options)


def reason(found: agt.Dataset, threat: Any) -> InvalidInputError:
    with pytest.raises(InvalidThreatModelError) as error:
        certified(found, threat)
    assert error.value.remedy
    return error.value
