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

from milp_agt.certification.planning import Plan
from milp_agt.certification.task import Task
from milp_agt.solvers.solver import Solver

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


def fingerprint(task: Task, plan: Plan, solver: Solver | None) -> dict[str, str]:
    """Everything that determines the result of a run, by name; data and weights as hashes."""
    graph, poison, training = task.step_graph, task.poison, task.training
    plain = (Tensor, int, float, str, tuple)
    nodes = []
    for n in graph.graph:  # with the constants of operations: weights, scalars, shapes
        constants = {name: value for name, value in vars(n.op).items() if isinstance(value, plain)}
        nodes.append((n.name, n.op.key, n.inputs, n.shape, constants))
    planned = {field.name: getattr(plan, field.name) for field in fields(plan)}
    # Words about other fields, and predictions.
    for name in ("remarks", "first_walk", "seconds", "whole", "zonotope"):
        del planned[name]
    return {
        "model": digest(nodes, graph.initial, graph.frozen),
        "data": digest(poison.features, poison.labels),
        "threat": f"{task.claim} ({digest(poison)})",
        "training": digest(training.objective, task.batches, task.updates),
        "initial box": digest(task.initial),
        "precision": graph.precision.name,
        **{name: str(value) for name, value in planned.items()},
        "solver": "none" if solver is None else f"{solver.name} {solver.version()}".strip(),
        "limits": repr(task.options.solve_limits),
        "restriction": digest(task.restriction),
        "device": str(task.device),
        **versions(),
    }


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
