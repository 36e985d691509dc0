"""Multilayer perceptrons of scikit-learn: the same run, certified; what has no certificate is refused."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, assert_sound
from pairs import every_value
from refusals import refused
from sklearn.neural_network import MLPClassifier, MLPRegressor

import milp_agt as agt
from milp_agt.errors import InvalidInputError, UnsupportedOperationError

OPTIONS: dict[str, Any] = {
    "hidden_layer_sizes": (3,),
    "solver": "sgd",
    "max_iter": 3,
    "n_iter_no_change": 3,
    "random_state": 0,
    "batch_size": 4,
    "learning_rate_init": 0.1,
}


def data(outputs: int = 1, classes: int = 0, count: int = 12) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(count, 2))
    if classes:
        return x, np.array(["c", "a", "b"][:classes])[np.arange(count) % classes]
    return x, rng.normal(size=(count, outputs)) if outputs > 1 else rng.normal(size=count)


def fitted(estimator: Any, x: Any, y: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return estimator.fit(x, y)


RUNS: dict[str, dict[str, Any]] = {
    "plain": {"momentum": 0.0},
    "default": {},
    "momentum": {"nesterovs_momentum": False},
    "penalty": {"alpha": 0.5},
    "no shuffle": {"shuffle": False, "activation": "tanh"},
    "logistic": {"activation": "logistic", "hidden_layer_sizes": (3, 2)},
    "identity": {"activation": "identity"},
    "falling rate": {"learning_rate": "invscaling", "momentum": 0.0, "power_t": 0.3},
    "last batch": {"batch_size": 5, "alpha": 0.0},
    "auto": {"batch_size": "auto"},
}


@every_value(name=list(RUNS), kind=["two", "three", "one target", "two targets"])
def test_the_run_ends_in_the_parameters_of_the_estimator(kind: str, name: str) -> None:
    options = {**OPTIONS, **RUNS[name]}
    if kind in ("two", "three"):
        x, y = data(classes=2 if kind == "two" else 3)
        estimator: Any = MLPClassifier(**options)
    else:
        x, y = data(outputs=1 if kind == "one target" else 2)
        estimator = MLPRegressor(**options)
    run = agt.from_sklearn(fitted(estimator, x, y), x, y)
    assert run.difference < 1e-12
    model, training, arrays = run
    result = agt.certify(
        model, arrays, training, agt.FeaturePoisoning(0, 0.0), relaxation="interval"
    )
    for layer, (coefs, bias) in enumerate(
        zip(estimator.coefs_, estimator.intercepts_, strict=True)
    ):
        key = str(layer * (1 if options.get("activation") == "identity" else 2))
        for name_of, array in ((f"{key}.weight", coefs.T), (f"{key}.bias", bias)):
            nominal = result.reachable.nominal[name_of]
            assert np.abs(nominal - array).max() < 1e-12 * (1 + np.abs(array).max())


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
@pytest.mark.parametrize("classes", [0, 2, 3])
def test_runs_of_estimators_are_sound(classes: int, relaxation: str) -> None:
    x, y = data(classes=classes, count=8)
    kind = MLPClassifier if classes else MLPRegressor
    run = agt.from_sklearn(kind(**{**OPTIONS, "alpha": 0.3}), x, y)
    assert [(g.names, g.weight_decay) for g in run.training.groups] == [(("*.bias",), 0.0)]
    arrays = torch.from_numpy(run.features), torch.from_numpy(run.labels)
    case = Problem(run.model, *arrays, run.training, agt.FeaturePoisoning(2, 0.05))
    assert_sound(case, *arrays, relaxation=relaxation)


def test_a_poisoned_fit_of_the_estimator_itself_stays_inside() -> None:
    x, y = data(classes=2, count=8)
    estimator = MLPClassifier(**{**OPTIONS, "alpha": 0.1})
    run = agt.from_sklearn(estimator, x, y)
    threat = agt.FeaturePoisoning(2, 0.1)
    result = agt.certify(run.model, run.data, run.training, threat, relaxation="linear")
    rng = np.random.default_rng(1)
    for _ in range(20):
        moved = x.copy()
        who = rng.choice(len(x), 2, replace=False)
        moved[who] += rng.choice([-0.1, 0.1], size=(2, 2))
        poisoned = fitted(MLPClassifier(**{**OPTIONS, "alpha": 0.1}), moved, y)
        state = {
            f"{2 * layer}.{name}": torch.from_numpy(np.ascontiguousarray(array))
            for layer in (0, 1)
            for name, array in (
                ("weight", poisoned.coefs_[layer].T),
                ("bias", poisoned.intercepts_[layer]),
            )
        }
        assert result.reachable.contains(state)


REFUSED: dict[str, dict[str, Any]] = {
    "solver='adam'": {"solver": "adam"},
    "early_stopping=True": {"early_stopping": True},
    "adaptive": {"learning_rate": "adaptive"},
    "invscaling": {"learning_rate": "invscaling"},
    "warm_start": {"warm_start": True},
    "random_state": {"random_state": None},
    "n_iter_no_change": {"n_iter_no_change": 2},
    "alpha": {"batch_size": 5},
}


@pytest.mark.parametrize("word", REFUSED)
def test_what_has_no_certificate_is_refused_by_name(word: str) -> None:
    x, y = data(classes=2)
    with refused(found=word, remedy=word, kind=UnsupportedOperationError):
        agt.from_sklearn(MLPClassifier(**{**OPTIONS, **REFUSED[word]}), x, y)


def test_all_such_options_are_said_at_once() -> None:
    x, y = data(classes=2)
    with pytest.raises(UnsupportedOperationError) as error:
        agt.from_sklearn(MLPClassifier(early_stopping=True), x, y)
    for word in ("adam", "early_stopping", "random_state", "n_iter_no_change"):
        assert word in error.value.found


def test_other_estimators_and_other_data_are_refused() -> None:
    from sklearn.linear_model import SGDClassifier

    x, y = data(classes=2)
    with pytest.raises(InvalidInputError, match="SGDClassifier"):
        agt.from_sklearn(SGDClassifier(), x, y)
    with pytest.raises(InvalidInputError, match="float32"):
        agt.from_sklearn(MLPClassifier(**OPTIONS), x.astype(np.float32), y)
    with pytest.raises(InvalidInputError, match="fitted"):
        agt.from_sklearn(fitted(MLPClassifier(**OPTIONS), x + 0.1, y), x, y)


def test_names_without_decay_are_names_of_parameters() -> None:
    x, y = data(classes=2)
    run = agt.from_sklearn(MLPClassifier(**OPTIONS), x, y)
    training = agt.Training(loss="bce", groups=[agt.ParameterGroup(["nothing"], weight_decay=0.1)])
    with pytest.raises(InvalidInputError, match="nothing"):
        agt.certify(run.model, run.data, training, agt.FeaturePoisoning(1, 0.1))
