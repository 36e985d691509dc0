"""Multilayer perceptrons of scikit-learn, trained by their own SGD, as models and runs."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

from milp_agt.errors import InvalidInputError, SoundnessError, UnsupportedOperationError
from milp_agt.training.training import Batch, ParameterGroup, Training

Array = npt.NDArray[Any]
_ACTIVATIONS = {"logistic": nn.Sigmoid, "tanh": nn.Tanh, "relu": nn.ReLU, "identity": None}
# Two float64 runs of one model: what rounding leaves between them, relative to the largest entry.
TOLERANCE = 1e-7


@dataclass(frozen=True)
class SklearnRun:
    """What ``fit`` of an estimator does, in the terms of :func:`milp_agt.certify`.

    Attributes:
        model: the network with its initial parameters, float64.
        training: loss, batches in scikit-learn's order, rates, momentum and penalty.
        features, labels: as ``certify`` takes them; classes are numbered as in ``classes_``.
        difference: the largest distance, relative to the largest entry, between the parameters that
            this run ends in and ``coefs_`` and ``intercepts_`` of the estimator.
    """

    model: nn.Sequential
    training: Training
    features: Array
    labels: Array
    difference: float

    @property
    def data(self) -> tuple[Array, Array]:
        return self.features, self.labels

    def __iter__(self) -> Iterator[Any]:
        """``model, training, data = agt.from_sklearn(...)``."""
        return iter((self.model, self.training, self.data))


def from_sklearn(estimator: Any, x: Any, y: Any) -> SklearnRun:
    """The model and the training run of an ``MLPClassifier`` or ``MLPRegressor`` with ``solver="sgd"``.

    A clone of the estimator is fitted on the data, and the run is done once more in torch; both end
    in the same parameters up to rounding, and in those of the estimator itself if it is fitted.
    The penalty is ``alpha / (2 n) |W|^2`` with n the size of the batch, on weights and not on intercepts.

    Args:
        estimator: fitted or not; it is not changed. ``random_state`` is a whole number, and
            ``n_iter_no_change >= max_iter``, so that the number of epochs does not depend on the data.
        x: (n, features), float64.
        y: classes, or targets (n,) or (n, outputs).

    Raises:
        UnsupportedOperationError: options whose run cannot be certified, all of them by name.
        InvalidInputError: another kind of estimator, or one that was fitted on other data.
        SoundnessError: the runs differ; a bug, or another version of scikit-learn.
    """
    try:
        from sklearn.base import clone
        from sklearn.neural_network import MLPClassifier, MLPRegressor
    except ImportError as error:
        raise InvalidInputError(
            "A model of scikit-learn was given", str(error), 'pip install "milp_agt[data]"'
        ) from None
    if type(estimator) not in (MLPClassifier, MLPRegressor):
        raise InvalidInputError(
            "A model source is an MLPClassifier or MLPRegressor",
            type(estimator).__name__,
            "give such an estimator with solver='sgd', without a pipeline around it",
        )
    features = np.asarray(x)
    if features.ndim != 2 or features.dtype != np.float64:
        raise InvalidInputError(
            "Features of an estimator are an array (n, features) of float64",
            f"{features.dtype}, shape {features.shape}",
            "convert them by astype('float64'): scikit-learn trains float32 data in float32",
        )
    _refuse(estimator, len(features))
    fitted = clone(estimator)
    with warnings.catch_warnings(action="ignore"):  # of every run that ends by max_iter, as all do
        fitted.fit(features, y)
    classifies = isinstance(estimator, MLPClassifier)
    labels = _labels(fitted, y, classifies)
    model, batches = _start(fitted, features.shape)
    outputs = int(model[-1].out_features)  # type: ignore[arg-type]
    # The gradient of squared errors in scikit-learn is (f - y), that of 'mse' 2 (f - y) / outputs.
    scale = 1.0 if classifies else outputs / 2.0
    rates = _rates(fitted, len(features), len(batches))
    decay = float(fitted.alpha) / len(batches[0]) / scale
    training = Training(
        loss=("bce" if outputs == 1 else "cross_entropy") if classifies else "mse",
        learning_rate=scale * rates[0],
        batches=[b.tolist() for b in batches],
        momentum=float(fitted.momentum),
        nesterov=bool(fitted.nesterovs_momentum and fitted.momentum > 0),
        weight_decay=decay,
        groups=[ParameterGroup(("*.bias",), weight_decay=0.0)] if decay else [],
        schedule=None if len(set(rates)) == 1 else [scale * rate for rate in rates],
    )
    ends = _trained(model, training, torch.from_numpy(features), labels)
    difference = _apart(ends, fitted)
    if not difference <= TOLERANCE:
        raise SoundnessError(
            "The run of an estimator must end in its own parameters",
            f"they differ by {difference:.3g} of their size",
            "please report this, with the version of scikit-learn",
        )
    if hasattr(estimator, "coefs_") and not _apart(ends, estimator) <= TOLERANCE:
        raise InvalidInputError(
            "A fitted estimator is that which fit() makes of these data",
            f"parameters that differ by {_apart(ends, estimator):.3g} of their size",
            "give the data that it was fitted on, in the same order, or fit it anew",
        )
    return SklearnRun(model, training, features, labels, difference)


def _size(estimator: Any, samples: int) -> int:
    size = estimator.batch_size
    return min(200 if size == "auto" else int(size), samples)


def _refuse(estimator: Any, samples: int) -> None:
    """Say all options at once whose run has no certificate."""
    e, size, seed = estimator, _size(estimator, samples), estimator.random_state
    scaled = e.learning_rate == "invscaling" and e.momentum > 0
    loss = getattr(e, "loss", "squared_error")
    whole = isinstance(seed, (int, np.integer)) and not isinstance(seed, bool)
    checks = (
        (e.solver != "sgd", f"solver='{e.solver}'", "use solver='sgd'"),
        (e.early_stopping, "early_stopping=True", "set it to False: it looks at poisoned data"),
        (
            e.learning_rate == "adaptive",
            "learning_rate='adaptive'",
            "use 'constant': its rates follow from the data",
        ),
        (scaled, "learning_rate='invscaling' with momentum", "use 'constant', or momentum=0"),
        (e.warm_start, "warm_start=True", "set it to False"),
        (
            e.activation not in _ACTIVATIONS,
            f"activation='{e.activation}'",
            f"use one of {list(_ACTIVATIONS)}",
        ),
        (loss not in ("squared_error", "log_loss"), f"loss='{loss}'", "use loss='squared_error'"),
        (not whole, f"random_state={seed!r:.40}", "give a whole number"),
        (
            e.n_iter_no_change < e.max_iter,
            f"n_iter_no_change={e.n_iter_no_change} below max_iter={e.max_iter}",
            "set n_iter_no_change=max_iter: poison could stop the run earlier",
        ),
        (
            e.alpha > 0 and samples % size,
            f"alpha={e.alpha:g} with {samples} samples in batches of {size}",
            "use a batch size that divides the samples, or alpha=0: the penalty is divided by the size of "
            "each batch, and the last one is smaller",
        ),
    )
    found = [(text, f"{text}: {remedy}") for wrong, text, remedy in checks if wrong]
    if found:
        raise UnsupportedOperationError(
            f"The run of an {type(estimator).__name__} was to be certified",
            ", ".join(text for text, _ in found),
            "; ".join(remedy for _, remedy in found),
        )


def _labels(fitted: Any, y: Any, classifies: bool) -> Array:
    targets = np.asarray(y)
    if not classifies:
        return np.asarray(targets, dtype=np.float64).reshape(len(targets), -1)
    if targets.ndim > 1 and targets.shape[1] > 1:
        raise UnsupportedOperationError(
            "Labels of an MLPClassifier are one class for each sample",
            f"shape {targets.shape}, several labels at once",
            "train one estimator for each label",
        )
    return np.searchsorted(fitted.classes_, targets.reshape(-1)).astype(np.int64)


def _start(fitted: Any, shape: tuple[int, ...]) -> tuple[nn.Sequential, list[Batch]]:
    """Initial parameters and the order of samples, drawn as ``fit`` draws them."""
    from sklearn.utils import shuffle

    random = np.random.RandomState(fitted.random_state)
    sizes = [shape[1], *(coefs.shape[1] for coefs in fitted.coefs_)]
    factor = 2.0 if fitted.activation == "logistic" else 6.0
    activation = _ACTIVATIONS[fitted.activation]
    modules: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        bound = np.sqrt(factor / (inputs + outputs))
        weight = random.uniform(-bound, bound, (inputs, outputs))
        bias = random.uniform(-bound, bound, outputs)
        layer = nn.Linear(inputs, outputs, dtype=torch.float64)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(weight.T.copy()))
            layer.bias.copy_(torch.from_numpy(bias))
        modules += [layer] if activation is None else [layer, activation()]
    model = nn.Sequential(*(modules if activation is None else modules[:-1]))
    samples, size = shape[0], _size(fitted, shape[0])
    order, batches = np.arange(samples), []
    for _ in range(fitted.max_iter):
        if fitted.shuffle:
            order = shuffle(order, random_state=random)
        batches += [order[i : i + size].astype(np.int64) for i in range(0, samples, size)]
    return model, batches


def _rates(fitted: Any, samples: int, steps: int) -> list[float]:
    """``learning_rate_init / (t + 1)^power_t`` where the rate is scaled; t counts samples by epochs."""
    base, epochs = float(fitted.learning_rate_init), range(fitted.max_iter)
    power = 0.0 if fitted.learning_rate == "constant" else float(fitted.power_t)
    rates = [base / (samples * epoch + 1) ** power if epoch else base for epoch in epochs]
    return [rate for rate in rates for _ in range(steps // fitted.max_iter)]


def _trained(
    model: nn.Sequential, training: Training, features: Tensor, labels: Array
) -> list[Tensor]:
    """The parameters that torch.optim.SGD ends in."""
    trained, targets = copy.deepcopy(model), torch.from_numpy(labels)
    groups = [
        {"params": [p], "weight_decay": 0.0 if n.endswith("bias") else training.weight_decay}
        for n, p in trained.named_parameters()
    ]
    options: dict[str, Any] = {"momentum": training.momentum, "nesterov": training.nesterov}
    optimiser = torch.optim.SGD(groups, lr=training.learning_rate, **options)
    order = training.batch_order(len(features))
    with torch.enable_grad():
        for batch, rule in zip(order, training.update_rules(len(order)), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = rule.rate
            optimiser.zero_grad()
            out, y = trained(features[batch]), targets[batch]
            if training.loss == "mse":
                loss = functional.mse_loss(out, y)
            elif training.loss == "bce":
                loss = functional.binary_cross_entropy_with_logits(out[:, 0], y.double())
            else:
                loss = functional.cross_entropy(out, y)
            loss.backward()
            optimiser.step()
    return [p.detach() for p in trained.parameters()]


def _apart(ends: list[Tensor], fitted: Any) -> float:
    """The largest distance of weights and biases, layer by layer, relative to the largest entry of each."""
    pairs = zip(fitted.coefs_, fitted.intercepts_, strict=True)
    arrays = [array for coefs, bias in pairs for array in (coefs.T, bias)]
    worst = 0.0
    for tensor, array in zip(ends, arrays, strict=True):
        if tuple(tensor.shape) != array.shape:
            return float("inf")
        size = 1.0 + float(np.abs(array).max())
        worst = max(worst, float(np.abs(tensor.numpy() - array).max()) / size)
    return worst
