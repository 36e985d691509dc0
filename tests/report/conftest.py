"""One result folder for each kind of data, certified once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pages import ACCURACY, LOSS, certify, run


@pytest.fixture(scope="session")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(20) % 2
    x = rng.normal(size=(20, 2)) + 3 * y[:, None]
    text = run([2, 3, 2]) + ACCURACY + LOSS
    return certify(tmp_path_factory.mktemp("classes"), x, y, text)


@pytest.fixture(scope="session")
def pixels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(12) % 3
    x = rng.uniform(size=(12, 1, 3, 3)) + y[:, None, None, None]
    text = run([9, 3], 0.1) + LOSS
    return certify(tmp_path_factory.mktemp("pixels"), x, y, text)


@pytest.fixture(scope="session")
def regression(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 3))
    text = run([3, 3, 1], 0.05, loss="mse") + LOSS
    return certify(tmp_path_factory.mktemp("regression"), x, x.sum(1), text)
