"""What a report shows point by point: bounds of test points, and a map of a two-dimensional input."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from milp_agt.attacks import Attack
from milp_agt.certification.result import Result
from milp_agt.certification.verdicts import Verdict
from milp_agt.data.dataset import Dataset
from milp_agt.data.origin import Part
from milp_agt.errors import SoundnessError
from milp_agt.io.files import arrays_of, replace_arrays, writing

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

NAME = "evidence.npz"
MAPS = (31, 21, 15, 11)  # cells of the map in each direction, the first that is cheap enough
MAP_SHARE, MAP_SECONDS = 0.2, 2.0  # of the time of the steps; and what is always granted
POINTS = 1000  # test points that are bounded unasked
ENDS = ("lower", "nominal", "upper")
ATTACKS_AT_ONCE = 32
SHOWN_TRAINING = 1000


def collect(result: Result, dataset: Dataset, verdicts: Sequence[Verdict] = ()) -> dict[str, Array]:
    """Arrays by name, for the test part, or the training part where nothing was held out.

    ``points/index, label, lower, nominal, upper``: of the margin of the true class (classification) or
    of the loss (regression), (n,) each, taken from the verdicts where one has them, else bounded
    for the first points; ``points/total`` counts them all; ``points/predicted`` by the nominal model, (n,) or
    (n, outputs). ``points/on`` names the part, ``points/row`` the rows of the points in the file,
    ``points/id`` who they are; ``points/index`` is their position in the part. A regression has
    ``outputs/lower, nominal, upper``, (n, outputs) each: certified intervals of the predictions.
    ``points/refuted``: which points a real poisoned run gets wrong, (n,). Where the run was attacked,
    ``points/reached_lower, reached_upper`` (or ``outputs/...``) are the ends of the margins (or
    predictions) of the models that attacks trained. With two features and classes ``map/names`` (2,),
    ``map/x, y``, the edges of cells (m + 1,), ``map/scores`` (m, m, classes) of the nominal model at their
    centres and ``map/lower`` (m, m, classes): where it is above 0, every reachable model predicts this class
    everywhere in the cell; and ``train/x, label`` and ``test/x, label``, some of the data.

    Raises:
        InvalidInputError: a nominal loss that is not finite.
        SoundnessError: a model that attacks trained, outside the bounds of a point.
    """
    on: Part = "test" if len(dataset.x_test) else "train"
    x = dataset.x_test if on == "test" else dataset.x_train
    y = dataset.y_test if on == "test" else dataset.y_train
    margins = dataset.task == "classification"
    columns = _judged(verdicts, "accuracy" if margins else "loss", on, len(x))
    if columns is None:
        x, y = x[:POINTS], y[:POINTS]
        answer = result.accuracy(x, y) if margins else result.loss(x, y)
        columns = answer.points.columns()
    prefix = "score_" if margins else ""
    arrays: dict[str, Array] = {
        "points/on": np.array(on),
        "points/total": np.array(len(dataset.x_test) or len(dataset.x_train)),
        "points/index": np.arange(len(x)),
        "points/row": dataset.rows.of(on)[: len(x)],
        "points/label": y,
        "points/predicted": _scores(result, x).argmax(1) if margins else _outputs(result, x),
    }
    if dataset.ids is not None:
        arrays["points/id"] = dataset.ids.of(on)[: len(x)]
    for end in ENDS:
        arrays[f"points/{end}"] = np.asarray(columns[prefix + end], dtype=np.float64)
    if "verdict" in columns:
        arrays["points/refuted"] = np.asarray(columns["verdict"]) == "REFUTED"
    shown = "points" if margins else "outputs"
    if not margins:
        predicted = result.predictions(x)
        arrays |= {f"outputs/{end}": getattr(predicted, end) for end in ENDS}
    if result.attack is not None:
        low, high = _reached(result.attack, x, y if margins else None)
        arrays |= {f"{shown}/reached_lower": low, f"{shown}/reached_upper": high}
        _check_inside(arrays, shown)
    if margins and dataset.x_train.shape[1:] == (2,):
        arrays |= _map(result, dataset)
    return arrays


def _judged(
    verdicts: Sequence[Verdict], kind: str, on: str, count: int
) -> Mapping[str, list[Any]] | None:
    """The table of all points that a verdict has brought along; None without one."""
    tables = (v.points for v in verdicts if (v.kind, v.on) == (kind, on) and v.points is not None)
    found = next((t for t in tables if sorted(t["position"]) == list(range(count))), None)
    if found is None:
        return None
    order = np.argsort(found["position"])
    return {name: [column[k] for k in order] for name, column in found.items()}


def save(folder: Path, arrays: Arrays) -> Path:
    """Write the arrays beside ``result.json``, as a whole.

    Raises:
        InvalidInputError: the folder takes no files.
    """
    with writing(
        f"Write the bounds of the test points to {folder}",
        "make room or give the folder back its rights, then go on with "
        f"milp-agt certify --resume {folder}",
    ):
        return replace_arrays(folder / NAME, arrays)


def load(folder: Path) -> dict[str, Array]:
    """What :func:`save` wrote; nothing where there is no such file."""
    return arrays_of(folder / NAME) if (folder / NAME).exists() else {}


def _outputs(result: Result, x: Array) -> Array:
    """Outputs of the nominal model, (n, outputs)."""
    features = torch.from_numpy(np.asarray(x, dtype=np.float64))
    outputs: Array = (
        result.models.outputs(features.to(result.models.poison.features.device)).cpu().numpy()
    )
    return outputs


def _scores(result: Result, x: Array) -> Array:
    """One score for each class, (n, classes)."""
    return _by_class(_outputs(result, x))


def _by_class(outputs: Array) -> Array:
    """One score for each class, (..., classes): 0 and the logit where there is one output."""
    if outputs.shape[-1] > 1:
        return outputs
    return np.concatenate([np.zeros_like(outputs), outputs], -1)


def _reached(attack: Attack, x: Array, labels: Array | None) -> tuple[Array, Array]:
    """Ends over all models that attacks trained: of the margins (n,), or of the outputs (n, outputs)."""
    features = torch.from_numpy(np.asarray(x, dtype=np.float64))
    features = features.to(attack.runs.unrolled.poison.features.device)
    low, high = [], []
    for models in attack.runs.parts(ATTACKS_AT_ONCE):
        with torch.no_grad():
            values: Array = models.outputs(features).cpu().numpy()
        if labels is not None:
            values = _margins(_by_class(values), labels)
        low.append(values.min(0))
        high.append(values.max(0))
    return np.min(low, 0), np.max(high, 0)


def _margins(scores: Array, labels: Array) -> Array:
    """The score of the label less the best other one, (..., n), from scores (..., n, classes)."""
    own = np.arange(scores.shape[-1]) == labels[:, None]
    best: Array = np.where(own, scores, -np.inf).max(-1) - np.where(own, -np.inf, scores).max(-1)
    return best


def _check_inside(arrays: Arrays, of: str) -> None:
    """See that what attacks reached lies within the certificate of each point.

    Raises:
        SoundnessError: it does not.
    """
    low, high = arrays[f"{of}/reached_lower"], arrays[f"{of}/reached_upper"]
    outside = ~((arrays[f"{of}/lower"] <= low) & (high <= arrays[f"{of}/upper"]))
    if outside.any():
        where = tuple(int(k) for k in np.argwhere(outside)[0])
        raise SoundnessError(
            "Models that attacks trained must predict within the certified intervals",
            f"{int(outside.sum())} values outside, the first at {where}: "
            f"[{float(low[where])!r}, {float(high[where])!r}] in "
            f"[{float(arrays[f'{of}/lower'][where])!r}, {float(arrays[f'{of}/upper'][where])!r}]",
            "do not use this certificate; please report this run",
        )


def _map(result: Result, dataset: Dataset) -> dict[str, Array]:
    """Scores at the centres of cells around the data, and leads of each class over the cells."""
    points = np.concatenate([dataset.x_train, dataset.x_test])
    low, high = points.min(0), points.max(0)
    pad = 0.12 * (high - low) + 1e-9
    cells = _affordable(result, dataset)
    axes = [np.linspace(a - p, b + p, cells + 1) for a, b, p in zip(low, high, pad, strict=True)]

    def grid(ends: Sequence[Array]) -> Array:
        return np.stack(np.meshgrid(*ends), -1).reshape(-1, 2)

    scores = _scores(result, grid([0.5 * (axis[:-1] + axis[1:]) for axis in axes]))
    square = (cells, cells, scores.shape[1])
    leads = result.leads(grid([axis[:-1] for axis in axes]), grid([axis[1:] for axis in axes]))
    return {
        "map/names": np.array(dataset.feature_names),
        "map/x": axes[0],
        "map/y": axes[1],
        "map/scores": scores.reshape(square),
        "map/lower": leads.reshape(square),
        "train/x": dataset.x_train[:SHOWN_TRAINING],
        "train/label": dataset.y_train[:SHOWN_TRAINING],
        "test/x": dataset.x_test[:SHOWN_TRAINING],
        "test/label": dataset.y_test[:SHOWN_TRAINING],
    }


def _affordable(result: Result, dataset: Dataset) -> int:
    """Cells of the map in each direction, by the time that some training points take."""
    x = dataset.x_train[:32]
    begun = time.perf_counter()
    result.leads(x, x)
    each = (time.perf_counter() - begun) / len(x)
    granted = max(MAP_SECONDS, MAP_SHARE * sum(step.seconds for step in result.steps))
    return next((n for n in MAPS if n * n * each <= granted), MAPS[-1])
