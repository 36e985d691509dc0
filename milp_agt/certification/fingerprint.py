"""The identity of a run as short texts: equal for two runs only if both give the same result."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from importlib import metadata
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from milp_agt.certification.options import CertifyOptions
from milp_agt.certification.planning import Plan
from milp_agt.core.graph import Operation
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import Restriction
from milp_agt.core.rounding import Precision
from milp_agt.solvers.solver import Solver
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import StepGraph
from milp_agt.training.training import Batch, Training

BLOCK = 2**20  # bytes that are hashed at once
PACKAGES = ("milp_agt", "torch", "numpy", "scipy", "highspy")


def versions() -> dict[str, str]:
    """Versions of all software that numbers in the result can depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def fingerprint(
    *,
    step_graph: StepGraph,
    poison: Poison,
    threat: str,
    training: Training,
    batches: Sequence[Batch],
    initial: Mapping[str, Interval],
    plan: Plan,
    solver: Solver | None,
    options: CertifyOptions,
    restriction: Restriction,
    device: str,
) -> dict[str, str]:
    """Everything that determines the result of a run, by name; data and weights as hashes."""
    nodes = [(n.name, n.op.key, n.inputs, n.shape, _constants(n.op)) for n in step_graph.graph]
    planned = {field.name: getattr(plan, field.name) for field in fields(plan)}
    for name in ("remarks", "first_walk", "seconds"):  # words about other fields, and predictions
        del planned[name]
    return {
        "model": digest(nodes, step_graph.initial, step_graph.frozen),
        "data": digest(poison.features, poison.labels),
        "threat": f"{threat} ({digest(poison)})",
        "training": digest(training.objective, batches, training.update_rules(len(batches))),
        "initial box": digest(initial),
        "precision": step_graph.precision.name,
        **{name: str(value) for name, value in planned.items()},
        "solver": "none" if solver is None else f"{solver.name} {solver.version()}".strip(),
        "limits": repr(options.solve_limits),
        "restriction": digest(restriction),
        "device": device,
        **versions(),
    }


def settings(training: Training, plan: Plan, precision: Precision) -> dict[str, Any]:
    """How a run is trained and bounded, as plain values for files and readers, not for comparing runs.

    Recorded batches are counted, not listed.
    """
    trained = {each.name: getattr(training, each.name) for each in fields(training) if each.repr}
    if training.batches is not None:
        trained["batches"] = f"{plan.steps} recorded"
    chosen = plan.selections
    told = {
        "listed": chosen.data_sets > 0,
        "joint": chosen.data_sets == 0,
        "enumerated": chosen.groups > 0 and chosen.data_sets == 0,
    }
    return {
        "training": {name: _plain(value) for name, value in trained.items() if value is not None},
        "certify": {
            "relaxation": plan.asked,
            "window": plan.window,
            "program_window": plan.program_window,
            "inner_bounds": "linear" if plan.linear_inner else "interval",
            "selections": ", ".join(name for name, used in told.items() if used),
            "precision": precision.name,
        },
    }


def _plain(value: object) -> object:
    """Numbers and texts unchanged, sequences as lists, anything else as text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)


def _constants(op: Operation) -> dict[str, object]:
    """The constants of an operation: weights, scalars, shapes."""
    plain = (Tensor, int, float, str, tuple)
    return {name: value for name, value in vars(op).items() if isinstance(value, plain)}


def digest(*values: object) -> str:
    """SHA-256 of values and everything inside them: dataclasses, mappings, sequences, arrays."""
    collected = hashlib.sha256()
    for value in values:
        _feed(collected, value)
    return collected.hexdigest()[:16]


def _blocks(array: npt.NDArray[Any]) -> Iterator[npt.NDArray[Any]]:
    """An array in pieces of rows, because a copy of a large one as bytes would double its memory."""
    if array.ndim == 0 or array.size == 0:
        yield array
        return
    rows = max(1, BLOCK // array[0].nbytes)
    yield from (array[first : first + rows] for first in range(0, len(array), rows))


def _feed(collected: Any, value: object) -> None:
    if isinstance(value, Tensor):
        value = value.detach().cpu().numpy()
    collected.update(type(value).__name__.encode())
    if isinstance(value, np.ndarray):
        collected.update(f"{value.dtype.str}{value.shape}".encode())
        for part in _blocks(value):
            collected.update(np.ascontiguousarray(part).reshape(-1))
    elif is_dataclass(value):
        for each in fields(value):
            collected.update(each.name.encode())
            _feed(collected, getattr(value, each.name))
    elif isinstance(value, Mapping):
        for key in sorted(value):
            _feed(collected, key)
            _feed(collected, value[key])
    elif isinstance(value, Set):
        _feed(collected, sorted(value))
    elif isinstance(value, Sequence) and not isinstance(value, (str, bytes)):
        collected.update(str(len(value)).encode())
        for item in value:
            _feed(collected, item)
    else:
        collected.update(repr(value).encode() + b";")
