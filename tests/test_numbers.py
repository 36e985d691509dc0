"""Arrays of users: what is read as numbers, bit for bit, and what is refused with what to do."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from refusals import refused
from torch import nn

import milp_agt as agt
from milp_agt.core.numbers import numbers_of

X = np.random.default_rng(0).normal(size=(6, 3))
Y = np.array([0, 1, 0, 1, 1, 0])
X[:, 1] = [0, 1, 1, 0, 1, 0]
pd = pytest.importorskip("pandas")
sparse = pytest.importorskip("scipy.sparse")
FRAME = pd.DataFrame({"a": X[:, 0], "smoker": X[:, 1] > 0, "c": X[:, 2]})


def certify(x: Any = X, y: Any = Y, loss: str = "cross_entropy", model: Any = None) -> agt.Result:
    run = agt.Training(loss=loss, learning_rate=0.5, epochs=2)
    net = network((3, 2, 2)) if model is None else model
    return agt.certify(net, (x, y), run, agt.FeaturePoisoning(1, 0.01), relaxation="interval")


PLAIN = certify()


def read_only(array: np.ndarray) -> np.ndarray:
    copy = array.copy()
    copy.flags.writeable = False
    return copy


SAME: dict[str, dict[str, Any]] = {
    "reversed columns": {"x": X[:, ::-1].copy()[:, ::-1]},
    "reversed rows": {"x": X[::-1].copy()[::-1], "y": Y[::-1].copy()[::-1]},
    "Fortran order": {"x": np.asfortranarray(X)},
    "another byte order": {"x": X.astype(">f8"), "y": Y.astype(">i2")},
    "read-only": {"x": read_only(X), "y": read_only(Y)},
    "objects": {"x": X.astype(object), "y": Y.astype(object)},
    "a frame with truth values": {"x": FRAME},
    "a frame with nullable types": {
        "x": FRAME.astype({"smoker": "boolean", "a": "Float64"}),
        "y": pd.Series(Y, dtype="Int64"),
    },
    "a masked array without a mask": {"x": np.ma.array(X)},
    "lists": {"x": X.tolist(), "y": Y.tolist()},
    "rows as tensors": {"x": list(torch.from_numpy(X)), "y": list(torch.from_numpy(Y))},
    "rows as tensors and lists": {"x": [*torch.from_numpy(X[:3]), *X[3:].tolist()]},
    "truth values": {"y": Y > 0},
    "truth values of torch": {"y": torch.from_numpy(Y > 0)},
    "a column of labels": {"y": Y[:, None] > 0},
    "small labels": {"y": Y.astype(np.uint8)},
    "labels of 16 bits": {"y": Y.astype(np.uint16)},
    "labels of torch's 8 bits": {"y": torch.from_numpy(Y).to(torch.uint8)},
    "labels as real numbers": {"y": Y.astype(np.float16)},
    "labels beyond int64": {"y": Y.astype(np.uint64)},
    "a tensor that is trained elsewhere": {"x": torch.from_numpy(X).requires_grad_()},
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_numbers_give_the_same_bits(name: str) -> None:
    found = certify(**SAME[name])
    for end in ("lower", "nominal", "upper"):
        for key, value in getattr(PLAIN.reachable, end).items():
            assert np.array_equal(value, getattr(found.reachable, end)[key])


def test_truth_values_are_labels_of_every_loss() -> None:
    for loss, outputs in (("bce", 1), ("hinge", 1), ("mse", 1)):
        truth = certify(y=Y > 0, loss=loss, model=network((3, 2, outputs)))
        numbers = certify(y=Y, loss=loss, model=network((3, 2, outputs)))
        assert np.array_equal(
            truth.reachable.upper["0.weight"], numbers.reachable.upper["0.weight"]
        )


def with_gap() -> np.ndarray:
    gap = X.astype(object)
    gap[1, 2] = None
    return gap


def nested() -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nested tensors are a prototype
        return torch.nested.nested_tensor([torch.ones(3).double(), torch.ones(2).double()])


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "sparse": ({"x": torch.from_numpy(X).to_sparse()}, "a sparse tensor", ".to_dense()"),
    "sparse of scipy": ({"x": sparse.csr_matrix(X)}, "a sparse csr_matrix", ".toarray()"),
    "a sparse frame": ({"x": FRAME.astype(pd.SparseDtype("float"))}, "a sparse DataFrame",
        ".toarray()"),
    "nested": ({"x": nested()}, "a nested tensor", "rows of one length"),
    "without values": ({"x": torch.ones(6, 3, dtype=torch.float64, device="meta")},
        "without values", "the data"),
    "masked": ({"x": np.ma.masked_less(X, 0.0)}, "masked values", "drop or impute"),
    "text": ({"x": X.astype(str)}, "text", "leave text columns out"),
    "a column of text": ({"x": FRAME.assign(c=list("abcdef"))}, "column 'c'", "leave text columns"),
    "categories": ({"x": FRAME.assign(c=pd.Categorical(list("ababab")))},
        "column 'c' of categories", "a code for each category"),
    "dates": ({"x": FRAME.assign(a=pd.date_range("2020", periods=6))}, "column 'a': dates",
              "give real numbers"),
    "a gap": ({"x": with_gap()}, "in column 2, the first None at (1, 2)", "drop or impute"),
    "named columns": ({"x": np.zeros(6, dtype=[("a", float), ("b", float)])},
        "the named columns a, b", "stack them"),
    "more than double": ({"x": X.astype(np.longdouble)}, "more precise", "astype(np.float64)"),
    "rows of several lengths": ({"x": [[1.0, 2.0], [1.0]]}, "list", "rows of one length"),
    "nothing": ({"x": None}, "NoneType None", "give an array"),
    "a table": ({"x": {"a": X}}, "dict", "give an array"),
    "one-hot labels": ({"y": np.eye(2)[Y]}, "shape (6, 2)", "labels.argmax(1)"),
    "labels from 1": ({"y": Y + 1}, "values from 1 to 2", "give labels - 1"),
    "signs": ({"y": 2 * Y - 1}, "values from -1 to 1", "give (labels + 1) // 2"),
    "gaps in the classes": ({"y": 7 * Y}, "values from 0 to 7",
        "np.unique(labels, return_inverse=True)[1]"),
    "more classes": ({"y": np.arange(6)}, "values from 0 to 5", "give the model 6 outputs"),
    "names of classes": ({"y": np.array(["cat", "dog"])[Y]}, "text", "a code for each category"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_array_of_numbers_is_refused(name: str) -> None:
    data, found, remedy = REFUSED[name]
    with refused(found=found, remedy=remedy):
        certify(**data)


def test_pairs_that_are_handed_in_as_something_else() -> None:
    pair = torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y))
    run = agt.Training(loss="cross_entropy")
    for data, remedy in (
        (pair, "dataset.tensors"),
        (torch.utils.data.DataLoader(pair), "Training(batches=...)"),
        ({"x": X}, "a pair (features, labels)"),
    ):
        with refused(remedy=remedy):
            agt.certify(nn.Sequential(), data, run, agt.FeaturePoisoning(1, 0.1))  # type: ignore[arg-type]


def test_numbers_share_memory_where_they_can() -> None:
    assert np.shares_memory(numbers_of(X, "x"), X)
    assert not np.shares_memory(numbers_of(X[::-1], "x"), X)
