"""Recorded runs as files: arrays with a versioned description beside them."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from milp_agt.errors import InvalidInputError
from milp_agt.io.files import DAMAGE, replace
from milp_agt.recording.run import RecordedRun, recorded_run
from milp_agt.training.training import UpdateRule

VERSION = 1
_ABOUT = "about"


def save_run(run: RecordedRun, path: Path) -> None:
    """Write a run at once: a half-written file never takes the place of a good one.

    Raises:
        InvalidInputError: no such folder, or one that takes no files.
    """
    path = path if path.suffix == ".npz" else path.with_name(path.name + ".npz")
    asked = f"A recorded run was to be saved as {path}"
    if not path.parent.is_dir():
        raise InvalidInputError(asked, "no such folder", "make the folder first")
    about = {
        "version": VERSION,
        "kind": "recorded run",
        "loss": run.training.loss,
        "rules": [asdict(rule) for rule in run.training.rules],
        "dtype": run.dtype,
        "assumed": run.assumed,
        "trained": [n for n, p in run.model.named_parameters() if p.requires_grad],
    }
    batches = run.batches
    arrays: dict[str, npt.NDArray[Any]] = {
        _ABOUT: np.array(json.dumps(about)),
        "features": run.features.numpy(),
        "labels": run.labels.numpy(),
        "batches": np.concatenate(batches),
        "sizes": np.array([len(batch) for batch in batches]),
        **{f"initial:{n}": v.numpy() for n, v in _cpu(run.model.state_dict())},
        **{f"final:{n}": v.numpy() for n, v in _cpu(run.final)},
    }
    try:
        replace(path, lambda stream: np.savez_compressed(stream, allow_pickle=False, **arrays))
    except OSError as error:
        raise InvalidInputError(
            asked,
            error.strerror or str(error),
            "make room, or save it elsewhere; a file that was there is as it was",
        ) from error


def load_run(path: str | Path, model: nn.Module) -> RecordedRun:
    """Read a run that :meth:`RecordedRun.save` wrote.

    Args:
        path: of the .npz file; the suffix may be left out.
        model: a module of the same architecture; it is copied, and its values do not matter.

    Raises:
        InvalidInputError: a missing or damaged file, another version of the format, or a model whose
            parameters have other names or shapes.
    """
    path = Path(path)
    path = path if path.exists() or path.suffix == ".npz" else path.with_name(path.name + ".npz")
    asked = f"A recorded run was to be read from {path}"
    try:
        with open(path, "rb") as stream:
            stored = np.load(stream, allow_pickle=False)
            if not isinstance(stored, np.lib.npyio.NpzFile):
                raise ValueError("a single array")
            arrays = {name: stored[name] for name in stored.files}
        about = json.loads(str(arrays.pop(_ABOUT)))
        if about["kind"] != "recorded run":
            raise ValueError("something else than a recorded run")
    except (*DAMAGE, TypeError) as error:
        raise InvalidInputError(asked, str(error), "save the run again") from None
    if about.get("version") != VERSION:
        raise InvalidInputError(
            asked, f"version {about.get('version')}", "record again with this version of milp_agt"
        )
    initial, final = _states(arrays, "initial:"), _states(arrays, "final:")
    started = _with_values(model, initial, set(about["trained"]), asked)
    ends = np.cumsum(arrays["sizes"])[:-1]
    return recorded_run(
        model=started,
        features=torch.from_numpy(arrays["features"]),
        labels=torch.from_numpy(arrays["labels"]),
        loss=about["loss"],
        batches=tuple(tuple(b.tolist()) for b in np.split(arrays["batches"], ends)),
        rules=tuple(UpdateRule(**rule) for rule in about["rules"]),
        final=final,
        dtype=about["dtype"],
        assumed=tuple(about["assumed"]),
    )


def _cpu(state: Any) -> list[tuple[str, Tensor]]:
    return [(name, value.detach().cpu()) for name, value in state.items()]


def _states(arrays: dict[str, npt.NDArray[Any]], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith(prefix)
    }


def _with_values(
    model: nn.Module, initial: dict[str, Tensor], trained: set[str], asked: str
) -> nn.Module:
    """A copy of a model with the recorded parameters, those that were trained trainable."""
    own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    found = {name: tuple(value.shape) for name, value in initial.items()}
    if own != found:
        raise InvalidInputError(
            asked,
            f"parameters {found}, where the model has {own}",
            "give the architecture that was recorded",
        )
    started = copy.deepcopy(model)
    started.load_state_dict(initial)
    for name, parameter in started.named_parameters():
        parameter.requires_grad_(name in trained)
    return started
