"""Data sets: the same arrays every time, and one clear error for each kind of bad input."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

from milp_agt.data.dataset import Dataset, DatasetUnavailableError, dataset_names, load_dataset
from milp_agt.data.sources import read
from milp_agt.data.sources.bundled import MEDMNIST
from milp_agt.data.sources.source import Reading

BUILTIN = {
    "moons": ((80, 2), (20, 2), "classification"),
    "iris": ((120, 4), (30, 4), "classification"),
    "breast_cancer": ((455, 30), (114, 30), "classification"),
    "diabetes": ((354, 10), (88, 10), "regression"),
    "digits": ((1438, 64), (359, 64), "classification"),
}


def test_every_builtin_name_is_listed_here() -> None:
    assert set(BUILTIN) | {"mnist_5k"} | set(MEDMNIST) == set(dataset_names())


@pytest.mark.parametrize("name", BUILTIN)
def test_builtin_shapes_types_and_determinism(name: str) -> None:
    pytest.importorskip("sklearn")
    train, test, task = BUILTIN[name]
    data = load_dataset(name, seed=3)
    assert (data.x_train.shape, data.x_test.shape, data.task) == (train, test, task)
    assert data.x_train.dtype == np.float64
    assert data.y_train.dtype == (np.int64 if task == "classification" else np.float64)
    assert len(data.feature_names) == train[1]
    again = load_dataset(name, seed=3)
    assert data.sha256 == again.sha256
    assert np.array_equal(data.x_test, again.x_test)
    assert data.sha256 != load_dataset(name, seed=4).sha256


def test_split_is_a_partition_of_the_samples() -> None:
    pytest.importorskip("sklearn")
    whole = load_dataset("diabetes", test_fraction=0)
    split = load_dataset("diabetes", test_fraction=0.25, seed=1)
    assert len(whole.x_test) == 0
    assert len(split.x_test) == round(0.25 * 442)
    both = np.vstack([split.x_train, split.x_test])
    assert np.array_equal(np.unique(both, axis=0), np.unique(whole.x_train, axis=0))


def test_standardising_uses_the_training_part_only(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = np.column_stack([rng.normal(3, 5, 40), np.full(40, 0.1)])
    x_test = rng.normal(100, 1, (7, 2))
    arrays = {"x_train": x, "y_train": x[:, 0] * 2 + 1, "x_test": x_test, "y_test": x_test[:, 0]}
    data = npz(tmp_path, arrays, standardise=True, standardise_targets=True)
    assert np.allclose(data.x_train.mean(axis=0), 0)
    assert np.allclose(data.x_train.std(axis=0), [1, 0])
    assert np.allclose(data.y_train.std(), 1)
    mean, deviation = x.mean(axis=0), np.array([x[:, 0].std(), 1.0])
    assert np.allclose(data.x_test, (x_test - mean) / deviation)
    assert sum("training part" in note for note in data.notes) == 2


def npz(tmp_path: Path, arrays: dict[str, Any], **options: Any) -> Dataset:
    np.savez(tmp_path / "d.npz", **arrays)
    return load_dataset(tmp_path / "d.npz", **options)


def test_order_kinds_and_parts_of_arrays_in_a_file(tmp_path: Path) -> None:
    """Order is kept where nothing is held out; a subset is drawn from the whole; float32 is converted."""
    ten = {"X": np.arange(20.0).reshape(10, 2), "y": np.arange(10) % 2}
    data = npz(tmp_path, ten, test_fraction=0)
    assert np.array_equal(data.x_train[:, 0], np.arange(0, 20, 2))
    assert data.task == "classification"
    data = npz(tmp_path, ten, samples=6, test_fraction=0, seed=5)
    assert len(data.x_train) == 6
    assert set(data.x_train[:, 0]) < set(np.arange(0.0, 20, 2))
    x = np.linspace(0, 1, 8, dtype=np.float32).reshape(4, 2)
    data = npz(tmp_path, {"X": x, "y": np.array([0, 1, 0, 1])}, test_fraction=0)
    assert data.x_train.dtype == np.float64
    assert np.array_equal(data.x_train, x.astype(np.float64))
    assert "float32 values were converted to float64" in data.notes
    whole = {"X": np.eye(4), "y": np.array([-3, 1, 7, 2])}
    data = npz(tmp_path, whole, test_fraction=0, task="regression")
    assert data.task == "regression"
    assert data.y_train.tolist() == [-3.0, 1.0, 7.0, 2.0]


def csv(tmp_path: Path, text: str, **options: Any) -> Dataset:
    path = tmp_path / "d.csv"
    path.write_text(text, encoding="utf-8")
    return load_dataset(path, test_fraction=0, **options)


def test_csv_labels_and_targets(tmp_path: Path) -> None:
    data = csv(tmp_path, "a,y,b\n1,0,2.5\n3,1,-4e-1\n", target="y")
    assert data.feature_names == ("a", "b")
    assert data.x_train.tolist() == [[1.0, 2.5], [3.0, -0.4]]
    assert data.y_train.tolist() == [0, 1]
    assert data.task == "classification"
    assert csv(tmp_path, "a,y\n1,0.5\n2,1\n", target="y").task == "regression"


@pytest.mark.parametrize(
    ("text", "target", "found", "remedy"),
    [
        ("a,y\n1,\n2,1\n", "y", "1 missing values, all in column 'y', the first in row 0 (line 2)", "impute"),
        ("a,y\nnan,0\nNA,1\n", "y", "2 missing values, all in column 'a'", "drop column 'a'"),
        ("a,c,y\n1,red,0\n2,blue,1\n", "y", "text in the columns c, for instance 'red'", "encode"),
        ("a,y\n1,0\n2\n", "y", "1 cells in row 1 (line 3), 2 columns", "every line"),
        ("a,label\n1,0\n", "lable", "no column 'lable' among a, label", "did you mean 'label'?"),
        ("a,label\n1,0\n", None, "no target column named among a, label", "target="),
        ("a,a,y\n1,2,0\n", "y", "the column 'a' more than once", "own name"),
        ("a,y\n", "y", "1 rows", "at least one sample"),
        ("y\n1\n", "y", "features of shape (1, 0)", "give features"),
        ("a,y\n1,-1\n2,1\n", "y", "class labels with values from -1 to 1", "0 and 1"),
        ("a,y\ninf,0\n", "y", "1 infinite values, all in column 'a'", "drop"),
    ],
)  # fmt: skip
def test_bad_csv(tmp_path: Path, text: str, target: str | None, found: str, remedy: str) -> None:
    with refused("d.csv", found, remedy):
        csv(tmp_path, text, target=target)


XY = {"X": np.eye(2), "y": np.zeros(2)}
PARTS = {"x_train": np.eye(2), "y_train": np.zeros(2), "x_test": np.eye(2), "y_test": np.ones(2)}


@pytest.mark.parametrize(
    ("arrays", "options", "found", "remedy"),
    [
        ({"a": np.eye(2)}, {}, "the keys a", "x_train, y_train"),
        (XY | {"X": np.eye(3)}, {}, "shape (3, 3) and targets of shape (2,)", "same n"),
        ({"X": np.ones(3), "y": np.zeros(3)}, {}, "features of shape (3,)", "(n, features)"),
        (XY | {"y": np.array(["a", "b"])}, {}, "targets of type <U1", "plain numbers"),
        (XY | {"X": np.full((2, 1), np.nan)}, {}, "2 NaN values among the features", "impute"),
        (XY | {"y": np.array([0.0, np.inf])}, {}, "among the targets", "impute"),
        (XY | {"y": np.array([0, -1])}, {}, "values from -1 to 0", "0, 1, 2"),
        (XY | {"y": np.array([0.5, 1])}, {"task": "classification"}, "0.5 to 1", "0, 1"),
        ({k: v for k, v in PARTS.items() if k != "y_test"}, {}, "only one", "both"),
        (XY, {"samples": 3}, "but the set has 2", "at most 2"),
        (XY, {"samples": 1}, "samples = 1", "change samples"),
        (XY, {"test_fraction": 1.0}, "test_fraction = 1.0", "change test_fraction"),
        (XY, {"test_fraction": 0.9}, "none for training", "less"),
        (XY, {"noise": 0.1}, "only the generated set", "drop"),
        (XY, {"target": "y"}, "only a .csv file has", "drop"),
        (XY, {"seed": -1}, "seed = -1", "change seed"),
        (XY, {"crop": (-1, 2)}, "crop = (-1, 2)", "change crop"),
        (
            XY | {"y": np.zeros(2, dtype=int)},
            {"standardise_targets": True, "test_fraction": 0},
            "class labels",
            "regression only",
        ),
        (PARTS | {"x_test": np.eye(3), "y_test": np.ones(3)}, {}, "test shapes (3, 3)", "same"),
        (PARTS, {"test_fraction": 0.5}, "a test part in the file already", "drop test_fraction"),
    ],
)
def test_bad_npz(
    tmp_path: Path, arrays: dict[str, Any], options: dict[str, Any], found: str, remedy: str
) -> None:
    with refused("d.npz", found, remedy):
        npz(tmp_path, arrays, **options)


def test_moons_have_seeds_of_32_bits() -> None:
    load_dataset("moons", samples=4, seed=2**32 - 1)
    with refused("moons", "seed = 4294967296", "below 4294967296"):
        load_dataset("moons", samples=4, seed=2**32)


def test_moons_are_as_many_as_fit_into_memory() -> None:
    with refused("moons", "more than fit into memory", "give fewer samples"):
        load_dataset("moons", samples=10**30)


def test_unreadable_files(tmp_path: Path) -> None:
    broken = tmp_path / "d.npz"
    broken.write_bytes(b"not an archive")
    pickled = tmp_path / "p.npz"
    np.savez(pickled, X=np.array([{}], dtype=object), y=np.zeros(1))
    for path, found in (
        (broken, "numpy cannot read"),
        (pickled, "numpy cannot read"),
        (tmp_path / "absent.npz", "no file at"),
        (tmp_path / "absent.csv", "no file at"),
    ):
        with refused(path.name, found):
            load_dataset(path)


def test_unknown_name_lists_the_names_and_the_nearest() -> None:
    with refused("irsi", "neither a built-in name", "did you mean 'iris'?") as error:
        load_dataset("irsi")
    assert "breast_cancer" in error.value.remedy


def test_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    for name in ("iris", "digits"):
        with refused(
            name, "not installed", "pip install milp_agt[data]", kind=DatasetUnavailableError
        ):
            load_dataset(name)


def test_iris_is_that_of_scikit_learn() -> None:
    theirs = pytest.importorskip("sklearn.datasets").load_iris()
    own = read("Load", "iris", Reading())
    np.testing.assert_array_equal(own.x, theirs.data)
    np.testing.assert_array_equal(own.y, theirs.target)
    assert own.feature_names == tuple(theirs.feature_names)


def test_arrays_and_tensors_of_ones_own() -> None:
    x, y = np.arange(12.0).reshape(6, 2), np.array([0, 1, 0, 1, 0, 1])
    found = Dataset.of(torch.from_numpy(x[:4]), torch.from_numpy(y[:4]), x[4:], y[4:], name="mine")
    assert (found.task, found.feature_names) == ("classification", ("x0", "x1"))
    assert found.description == "mine: 6 samples, 2 features"
    np.testing.assert_array_equal(np.concatenate([found.x_train, found.x_test]), x)
    np.testing.assert_array_equal(np.concatenate([found.y_train, found.y_test]), y)
    alone = Dataset.of(x, y, task="regression")
    assert (alone.task, alone.x_test.shape, alone.y_test.shape) == ("regression", (0, 2), (0,))


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"x_test": np.ones((1, 2))}, "x_test without y_test"),
        ({"y_test": np.ones(1)}, "y_test without x_test"),
        ({"x_test": np.ones((1, 3)), "y_test": np.ones(1, dtype=int)}, "test shapes (1, 3)"),
        ({"feature_names": ("a",)}, "1 names for 2 features"),
        (
            {"x_test": np.full((1, 2), np.nan), "y_test": np.ones(1)},
            "2 NaN values among the features of the test part, in columns 0, 1",
        ),
    ],
)
def test_arrays_that_do_not_fit(options: dict[str, Any], found: str) -> None:
    with refused("Make a data set of arrays", found):
        Dataset.of(np.ones((3, 2)), np.array([0, 1, 0]), **options)
