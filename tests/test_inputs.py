"""Bad input: one clear error of the right class, in three parts; never a raw exception."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from boxes import assert_same
from refusals import refused
from torch import nn

import milp_agt as agt
from milp_agt.errors import (
    InvalidInputError,
    InvalidThreatModelError,
    SolverUnavailableError,
    UnsupportedOperationError,
)
from milp_agt.training.training import Training

X = np.random.default_rng(0).normal(size=(4, 2))
Y = np.array([0, 1, 0, 1])
INF, NAN = float("inf"), float("nan")


def certify(
    *,
    x: Any = X,
    y: Any = Y,
    model: Any = None,
    loss: str = "cross_entropy",
    training: dict[str, Any] | None = None,
    threat: Any = None,
    **options: Any,
) -> Any:
    return agt.certify(
        network((2, 2, 2)) if model is None else model,
        (x, y),
        Training(loss, **(training or {})),
        agt.FeaturePoisoning(1, 0.1) if threat is None else threat,
        **options,
    )


def spoiled(value: float) -> Any:
    x = X.copy()
    x[1, 0] = value
    return x


def weights(value: float) -> Any:
    model = network((2, 2, 2))
    with torch.no_grad():
        model[0].weight[0, 0] = value
    return model


def initial(low: Any, high: Any, name: str = "0.weight") -> dict[str, Any]:
    return {"initial": {name: (np.asarray(low), np.asarray(high))}}


INPUTS: dict[str, dict[str, Any]] = {
    "NaN in the features": {"x": spoiled(NAN)},
    "infinity in the features": {"x": spoiled(INF)},
    "features without a sample axis": {"x": X[0]},
    "no samples": {"x": X[:0], "y": Y[:0]},
    "features of text": {"x": np.array([["a", "b"]] * 4)},
    "complex features": {"x": X + 1j},
    "features of objects": {"x": np.array([[None, 1]] * 4, dtype=object)},
    "ragged features": {"x": [[1.0, 2.0], [1.0]]},
    "features of another width": {"x": X[:, :1]},
    "NaN in the labels": {"y": np.array([0, 1, NAN, 1])},
    "too few labels": {"y": Y[:3]},
    "labels out of range": {"y": np.array([0, 1, 2, 1])},
    "negative labels": {"y": np.array([0, 1, -1, 1])},
    "labels that are no whole numbers": {"y": np.array([0.5, 1, 0, 1])},
    "labels of text": {"y": np.array(list("abcd"))},
    "one label without an axis": {"y": np.array(0)},
    "one-hot labels": {"y": np.eye(2)[Y]},
    "targets of another width": {"loss": "mse", "y": np.zeros((4, 3))},
    "NaN in the weights": {"model": weights(NAN)},
    "infinity in the weights": {"model": weights(INF)},
    "two outputs for bce": {"loss": "bce"},
    "one output for cross entropy": {"model": network((2, 2, 1))},
    "an unknown relaxation": {"relaxation": "crown"},
    "window 0": {"window": 0},
    "window -1": {"window": -1},
    "window 1.5": {"window": 1.5},
    "window of text": {"window": "two"},
    "program window -1": {"program_window": -1},
    "memory of two dots": {"memory": "1.2.3GiB"},
    "memory of a dot": {"memory": ".GiB"},
    "memory True": {"memory": True},
    "memory 0": {"memory": 0},
    "negative memory": {"memory": -5},
    "memory of an unknown unit": {"memory": "4 parsec"},
    "a negative time limit": {"time_limit": -1.0},
    "a time limit that is no number": {"time_limit": NAN},
    "a device that is a number": {"device": 3},
    "an unknown device": {"device": "abacus"},
    "a device without memory": {"device": "meta"},
    "a solver that nothing asks": {"solver": "highs"},
    "an initial box of an unknown name": initial(0.0, 1.0, "9.weight"),
    "an initial box of a wrong shape": initial(np.zeros(2), np.ones(2)),
    "an initial box without the model": initial(np.full((2, 2), 5.0), np.full((2, 2), 6.0)),
    "an initial box upside down": initial(np.full((2, 2), 9.0), np.full((2, 2), -9.0)),
    "an initial box of NaN": initial(np.full((2, 2), NAN), np.full((2, 2), NAN)),
    "an initial box of one end": {"initial": {"0.weight": np.zeros((2, 2))}},
    "an initial box of three ends": {"initial": {"0.weight": (np.zeros((2, 2)),) * 3}},
    "initial boxes in a list": {"initial": [1]},
    "a function for a model": {"model": torch.relu},
    "a time limit of text": {"time_limit": "soon"},
    "no device": {"device": None},
    "workers of text": {"workers": "two"},
    "half a worker": {"workers": 0.5},
    "a word for a search": {"attack": "all"},
    "a word for a restriction": {"restriction": "first"},
    "one number for batches": {"training": {"batches": 3}},
    "batches of text": {"training": {"batches": ["ab"]}},
    "rates of text": {"training": {"schedule": "slow"}},
    "a number for a schedule": {"training": {"schedule": 0.1}},
    "a seed of text": {"training": {"shuffle_seed": "one"}},
    "a negative seed": {"training": {"shuffle_seed": -1}},
    "no batches": {"training": {"batches": []}},
    "an empty batch": {"training": {"batches": [[0, 1], []]}},
    "batches of fractions": {"training": {"batches": [[0.5, 1]]}},
    "a batch outside the data": {"training": {"batches": [[0, 9]]}},
    "a batch that repeats": {"training": {"batches": [[1, 1]]}},
    "batches and epochs": {"training": {"batches": [[0]], "epochs": 2}},
    "rate 0": {"training": {"learning_rate": 0.0}},
    "a rate of NaN": {"training": {"learning_rate": NAN}},
    "an infinite rate": {"training": {"learning_rate": INF}},
    "a rate of text": {"training": {"learning_rate": "fast"}},
    "epochs 0": {"training": {"epochs": 0}},
    "epochs 1.5": {"training": {"epochs": 1.5}},
    "batch size 0": {"training": {"batch_size": 0}},
    "batch size 1.5": {"training": {"batch_size": 1.5}},
    "negative momentum": {"training": {"momentum": -0.1}},
    "negative decay": {"training": {"weight_decay": -0.1}},
    "nesterov without momentum": {"training": {"nesterov": True}},
    "too few rates": {"training": {"epochs": 3, "schedule": [0.1]}},
    "a rate of zero in the list": {"training": {"schedule": [0.0]}},
    "a diverging nominal run": {"training": {"learning_rate": 1e300, "epochs": 6}},
}


@pytest.mark.parametrize("data", [(X, Y, Y), (X,), None])
def test_data_that_are_no_pair(data) -> None:
    """A third array would have been ignored."""
    for run in (agt.certify, agt.attack):
        with refused():
            run(network((2, 2, 2)), data, Training("cross_entropy"), agt.FeaturePoisoning(1, 0.1))


@pytest.mark.parametrize("options", list(INPUTS.values()), ids=list(INPUTS))
def test_bad_input(options) -> None:
    with refused() as caught:
        certify(**options)
    assert not isinstance(caught.value, InvalidThreatModelError)


@pytest.mark.parametrize("relaxation", ["interval", "linear", "lp"])
def test_an_infinite_initial_box_proves_nothing(relaxation) -> None:
    box = initial(np.full((2, 2), -INF), np.full((2, 2), INF))
    try:
        result = certify(relaxation=relaxation, **box)
    except InvalidInputError:
        return
    assert result.reachable.max_width == INF
    for end in (result.reachable.lower, result.reachable.upper):
        assert not any(np.isnan(v).any() for v in end.values())
    assert result.accuracy(X, Y).lower == 0.0


THREATS: dict[str, Callable[[], Any]] = {
    **{
        f"budget {b!r}": (lambda b=b: agt.FeaturePoisoning(b, 0.1))
        for b in ("two", None, NAN, INF, 1.5, -1, 5, True)
    },
    **{
        f"radius {r!r}": (lambda r=r: agt.FeaturePoisoning(1, r))
        for r in ("x", None, NAN, INF, -1.0, [0.1] * 3, [[0.1, 0.1]], [0.1, -0.1])
    },
    "a label radius for classes": lambda: agt.LabelPoisoning(1, 0.1),
    "a label radius for classes with features": lambda: agt.FeatureLabelPoisoning(1, 0.1, 0.1),
    "an unknown scope": lambda: agt.FeaturePoisoning(1, 0.1, scope="epoch"),
    "a fraction of a sample": lambda: agt.FeaturePoisoning(1, 0.1, samples=[0.5]),
    "a sample outside the data": lambda: agt.FeaturePoisoning(1, 0.1, samples=[4]),
    "a sample twice": lambda: agt.FeaturePoisoning(1, 0.1, samples=[1, 1]),
    "one group of categories for all": lambda: agt.FeaturePoisoning(1, 0.1, categorical=[0, 1]),
    "static in words": lambda: agt.FeaturePoisoning(1, 0.1, static="False"),
    "a word for a threat": lambda: "features",
    "labels beyond the budget": lambda: agt.LabelPoisoning(9),
}


@pytest.mark.parametrize("make", list(THREATS.values()), ids=list(THREATS))
def test_bad_threats(make) -> None:
    with refused(kind=InvalidThreatModelError):
        certify(threat=make())


UNSUPPORTED: dict[str, dict[str, Any]] = {
    "a layer": {"model": nn.Sequential(nn.Linear(2, 2), nn.Mish()).double()},
    "a convolution": {"model": nn.Sequential(nn.Conv1d(1, 1, 1)).double()},
    "a loss": {"loss": "focal"},
}


@pytest.mark.parametrize("options", list(UNSUPPORTED.values()), ids=list(UNSUPPORTED))
def test_unsupported(options) -> None:
    with refused(kind=UnsupportedOperationError) as caught:
        certify(**options)
    assert isinstance(caught.value, NotImplementedError)


@pytest.mark.parametrize("name", ["cplex", "highs:x", "cvxpy:none"])
def test_an_unknown_solver(name) -> None:
    with refused(kind=SolverUnavailableError):
        certify(relaxation="lp", solver=name)


def test_nothing_to_train() -> None:
    model = network((2, 2, 2))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with refused():
        certify(model=model)


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_float32_is_converted_and_said_once(relaxation) -> None:
    model = network((2, 2, 2)).float()
    with pytest.warns(UserWarning, match="float32") as seen:
        result = certify(model=model, x=X.astype(np.float32), relaxation=relaxation)
    assert len([w for w in seen if "float32" in str(w.message)]) == 1
    assert all(value.dtype == np.float64 for value in result.reachable.nominal.values())
    assert next(model.parameters()).dtype == torch.float32
    same = certify(
        model=model.double(), x=X.astype(np.float32).astype(np.float64), relaxation=relaxation
    )
    assert_same(result.reachable, same.reachable)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.float16, np.bool_])
def test_other_kinds_of_numbers_are_converted(dtype) -> None:
    values = (X > 0).astype(dtype)
    result = certify(x=values)
    assert result.models.poison.features.dtype == torch.float64


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("saved") / "result.npz"
    certify().save(path)
    return path


def assert_refused(path: Path) -> None:
    with refused():
        agt.load(path)


def test_missing_and_foreign_files(tmp_path) -> None:
    assert_refused(tmp_path / "missing.npz")
    for name, content in (("text.npz", b"hello"), ("empty.npz", b"")):
        (tmp_path / name).write_bytes(content)
        assert_refused(tmp_path / name)
    np.save(tmp_path / "array.npy", X)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    assert_refused(tmp_path / "array.npz")
    np.savez(tmp_path / "other.npz", a=X)
    assert_refused(tmp_path / "other.npz")
    for about in ({"version": 1}, {"version": 99}, [], {"version": 1, "layers": {"type": "Conv"}}):
        np.savez(tmp_path / "keys.npz", about=np.array(json.dumps(about)))
        assert_refused(tmp_path / "keys.npz")
    np.savez(tmp_path / "pickle.npz", about=np.array([{}], dtype=object))
    assert_refused(tmp_path / "pickle.npz")


def test_cut_files_are_refused(saved, tmp_path) -> None:
    raw = saved.read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        cut = tmp_path / "cut.npz"
        cut.write_bytes(raw[: int(share * len(raw))])
        assert_refused(cut)


def test_flipped_bits_are_refused_or_harmless(saved, tmp_path) -> None:
    raw, honest = saved.read_bytes(), agt.load(saved)
    generator = np.random.default_rng(0)
    for _ in range(150):
        broken = bytearray(raw)
        broken[generator.integers(len(broken))] ^= 1 << int(generator.integers(8))
        path = tmp_path / "flipped.npz"
        path.write_bytes(bytes(broken))
        try:
            loaded = agt.load(path)
        except InvalidInputError:
            continue
        assert_same(loaded.reachable, honest.reachable)


def test_a_folder_that_does_not_exist(tmp_path) -> None:
    with refused():
        certify().save(tmp_path / "nowhere" / "result.npz")


def test_bad_questions_to_a_result() -> None:
    result = certify()
    regression = certify(loss="mse", y=X, threat=agt.FeaturePoisoning(1, 0.1))
    for ask in (
        lambda: result.accuracy(X[:, :1], Y),
        lambda: result.accuracy(X, Y[:2]),
        lambda: result.accuracy(spoiled(NAN), Y),
        lambda: result.loss(X, np.array([0, 1, 5, 0])),
        lambda: result.stable(X[0]),
        lambda: regression.accuracy(X, Y),
        lambda: regression.stable(X),
        lambda: regression.margins(X, Y),
        lambda: result.reachable.contains({}),
        lambda: result.reachable.contains({n: v[:1] for n, v in result.reachable.nominal.items()}),
    ):
        with refused():
            ask()


def test_a_disk_that_is_full_leaves_the_saved_result_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.npz"
    result = certify()
    result.save(path)
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("milp_agt.io.files.os.fsync", full)
    with pytest.raises(InvalidInputError) as caught:
        result.save(path)
    assert "run.npz" in caught.value.asked
    assert caught.value.found == "No space left on device"
    assert "make room" in caught.value.remedy
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
