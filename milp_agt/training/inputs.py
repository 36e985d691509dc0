"""Checks and conversions of user inputs: data, initial boxes, sizes, devices."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor, nn

from milp_agt.core.arguments import callable_of as callable_of
from milp_agt.core.arguments import columns_of, same_rows
from milp_agt.core.arguments import listed as listed
from milp_agt.core.arguments import of_kind as of_kind
from milp_agt.core.interval import Interval
from milp_agt.core.numbers import all_finite, numbers_of
from milp_agt.data import Dataset
from milp_agt.data.origin import Origin
from milp_agt.data.parts import exact
from milp_agt.errors import InvalidInputError, InvalidThreatModelError
from milp_agt.formulations.loss import LossFunction
from milp_agt.threats.units import located as by_origin
from milp_agt.training.tracing import StepGraph
from milp_agt.training.training import Training

ArrayLike = npt.NDArray[Any] | Tensor


def located(data: Any, threat: Any) -> tuple[Any, Any, Origin | None]:
    """Arrays, threat and origin of a run: of a data set its training part, and the threat by its rows."""
    if not isinstance(data, Dataset):
        return data, threat, None
    return (data.x_train, data.y_train), by_origin(threat, data.origin), data.origin


def check_run(model: object, data: object, training: object, threat: object) -> None:
    """Check that the inputs of a run are a model, a pair of arrays, a training and a threat. Raises
    InvalidInputError, InvalidThreatModelError: any other object."""
    of_kind(model, nn.Module, "The model", "give a torch.nn.Module")
    of_kind(training, Training, "The training", "give agt.Training(loss=...)")
    remedy = "give a pair (features, labels), or a data set of agt.load_dataset(...)"
    if isinstance(data, torch.utils.data.TensorDataset):
        remedy = "give a pair (features, labels): dataset.tensors"
    if isinstance(data, torch.utils.data.DataLoader):
        remedy = (
            "give a pair (features, labels) of all samples, and the order of the loader as "
            "Training(batches=...)"
        )
    of_kind(data, (tuple, list), "The data", remedy)
    assert isinstance(data, (tuple, list))
    if len(data) != 2:
        raise InvalidInputError(
            "The data are a pair (features, labels)", f"{len(data)} entries", "give these two"
        )
    same_rows(data[0], data[1], "The data are a pair (features, labels)")
    if not callable(getattr(threat, "bind", None)):
        raise InvalidThreatModelError(
            "A threat model says what an adversary may do",
            f"{type(threat).__name__} {threat!r:.60}",
            "give agt.FeaturePoisoning(budget, radius), for instance",
        )


def features_of(values: ArrayLike, what: str = "Features") -> Tensor:
    """Features as (n, *shape) float64. Raises InvalidInputError: fewer than two axes, no samples, NaN or
    infinity."""
    tensor = _tensor(values, what)
    if tensor.dim() < 2 or len(tensor) == 0:
        raise InvalidInputError(
            f"{what} must have a sample axis and at least one more",
            f"shape {tuple(tensor.shape)}",
            "give an array of shape (samples, features)",
        )
    with torch.inference_mode(False):
        if not tensor.is_floating_point():  # whole numbers beyond 2^53 would be rounded
            exact(f"{what} must be float64", what.lower(), tensor.numpy())
        tensor = tensor.to(torch.float64)
    _finite(tensor, what, columns_of(values))
    return tensor


def warn_of_float32(model: nn.Module, features: ArrayLike) -> None:
    """Warn once that single precision is converted: the claim is about the float64 run."""
    single = [n for n, p in model.named_parameters() if p.dtype != torch.float64]
    data = str(getattr(features, "dtype", "")).endswith("float32")
    if not single and not data:
        return
    what = [f"{len(single)} parameter tensors of the model"] * bool(single)
    warnings.warn(
        f"{' and '.join(what + ['the features'] * data)} are not float64 (float32, say); they are "
        "converted, and the claim is about the float64 run that starts from these values.",
        UserWarning,
        stacklevel=4,
    )


def labels_of(
    values: ArrayLike, count: int, loss: LossFunction, outputs: int, what: str = "Labels"
) -> Tensor:
    """Encoded labels, (n, width) float64. Raises InvalidInputError: a number of labels other than that of
    the features, classes out of range, NaN or infinity, targets that do not fit the outputs."""
    tensor = _tensor(values, what)
    if len(tensor) != count:
        raise InvalidInputError(
            f"{what} must match the features",
            f"{len(tensor)} labels for {count} samples",
            "give one label for each sample",
        )
    _finite(tensor.to(torch.float64), what)
    if not loss.is_classification:
        encoded = loss.encode(tensor, outputs)
        if encoded.shape[1] != outputs:
            raise InvalidInputError(
                f"{what} for loss '{loss.key}' need one target for each of {outputs} outputs",
                f"shape {tuple(tensor.shape)}",
                "match the last layer of the model",
            )
        return encoded
    flat = tensor.reshape(count, -1)
    classes = loss.classes(outputs)
    if flat.shape[1] != 1 or not bool((flat == flat.round()).all()):
        raise InvalidInputError(
            f"{what} for loss '{loss.key}' are whole class numbers",
            f"shape {tuple(tensor.shape)}, for example {flat[0].tolist()}",
            f"give an array ({count},) of classes 0..{classes - 1}"
            + (", such as labels.argmax(1) of one-hot rows" if flat.shape[1] > 1 else ""),
        )
    flat = flat[:, 0].to(torch.int64)
    if bool(((flat < 0) | (flat >= classes)).any()):
        raise InvalidInputError(
            f"{what} must be classes 0..{classes - 1}",
            f"values from {int(flat.min())} to {int(flat.max())}",
            _renumbering(flat, classes),
        )
    return loss.encode(flat, outputs)


def _renumbering(labels: Tensor, classes: int) -> str:
    """How to get from these whole numbers to 0..classes-1."""
    found = torch.unique(labels)
    if found.tolist() == [-1, 1]:
        return "renumber the classes: give (labels + 1) // 2, where class 0 stands for -1"
    if int(found[-1] - found[0]) < classes:
        return f"renumber the classes: give labels - {int(found[0])}"
    if len(found) <= classes:
        return "renumber the classes: np.unique(labels, return_inverse=True)[1]"
    return f"renumber the classes, or give the model {len(found)} outputs"


def initial_box(
    step_graph: StepGraph, given: Mapping[str, tuple[ArrayLike, ArrayLike]] | None
) -> dict[str, Interval]:
    """The box of theta_0: the model's parameters, or the boxes given for some of them by name. Raises
    InvalidInputError: an unknown name, a wrong shape, lower > upper, a box that does not contain the
    model's own value."""
    boxes = {n: Interval.point(v.unsqueeze(0)) for n, v in step_graph.initial.items()}
    remedy = "give {name: (lower, upper)}"
    of_kind({} if given is None else given, Mapping, "Boxes of initial parameters", remedy)
    for name, box in (given or {}).items():
        if name not in boxes:
            raise InvalidInputError(
                f"A box for parameter '{name}' was given",
                f"trainable parameters {sorted(boxes)}",
                "use the names of model.state_dict()",
            )
        what = f"The box of '{name}'"
        of_kind(box, (tuple, list), what, remedy)
        if len(box) != 2:
            raise InvalidInputError(f"{what} has two ends", f"{len(box)} of them", remedy)
        lower, upper = (_tensor(end, what).to(torch.float64) for end in box)
        value = step_graph.initial[name]
        if lower.shape != value.shape or upper.shape != value.shape:
            raise InvalidInputError(
                f"{what} needs shape {tuple(value.shape)}",
                f"{tuple(lower.shape)} and {tuple(upper.shape)}",
                "match the shape of the parameter",
            )
        if not bool(((lower <= value) & (value <= upper)).all()):
            raise InvalidInputError(
                f"{what} must hold the model's own value",
                f"distance {float(torch.maximum(lower - value, value - upper).max()):.3g} outside",
                "widen the box or load other weights",
            )
        boxes[name] = Interval(lower.unsqueeze(0), upper.unsqueeze(0))
    return boxes


def bytes_of(memory: str | int) -> int:
    """Bytes of ``"4GiB"``, ``"500 MB"`` or a number of bytes. Raises InvalidInputError: anything else."""
    if isinstance(memory, int) and not isinstance(memory, bool) and memory > 0:
        return memory
    units = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}
    units |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([A-Za-z]+)\s*", str(memory))
    if match is None or match[2].upper() not in units or float(match[1]) <= 0:
        raise InvalidInputError(
            "A memory budget is a count of bytes or a text like '4GiB'",
            f"{memory!r}",
            "use B, KB, MB, GB, KiB, MiB or GiB",
        )
    return int(float(match[1]) * units[match[2].upper()])


def device_of(name: str) -> torch.device:
    """``"cpu"``, ``"cuda"`` (or another torch device), or ``"auto"``: the GPU if there is one. Raises
    InvalidInputError: an unknown device, or a GPU that torch cannot see."""
    of_kind(name, str, "A device", "use 'cpu' or 'auto'")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type == "meta":
            raise RuntimeError("a device without values")
        torch.empty(1, dtype=torch.float64, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InvalidInputError(
            f"Device {name!r} was asked for", reason, "use 'cpu' or 'auto'"
        ) from None
    return device


def _tensor(values: ArrayLike, what: str) -> Tensor:
    """Real numbers with at least one axis, on the CPU, recorded by no mode of the caller."""
    with torch.inference_mode(False):
        tensor = torch.as_tensor(numbers_of(values, what))
    if tensor.dim() == 0:
        raise InvalidInputError(
            f"{what} must be an array of real numbers",
            f"{tensor.dtype}, shape ()",
            "give one entry for each sample",
        )
    # Small whole numbers and truth values lack most of torch's operations; the largest do not fit.
    if tensor.dtype == torch.uint64:
        return tensor.to(torch.float64)
    return tensor if tensor.is_floating_point() else tensor.to(torch.int64)


def _finite(tensor: Tensor, what: str, names: tuple[str, ...] = ()) -> None:
    numbers = tensor.numpy()
    names = names if numbers.ndim == 2 and numbers.shape[1] == len(names) else ()
    all_finite(f"{what} must be finite", f"the {what.lower()}", numbers, names)
