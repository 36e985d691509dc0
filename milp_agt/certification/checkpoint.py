"""Checkpoints of a run in progress: written after a step, atomically, and checked by hash."""

from __future__ import annotations

import hashlib
import json
import pickle
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from milp_agt.core.interval import Interval
from milp_agt.errors import InvalidInputError
from milp_agt.io.files import replace, replace_text, writing

VERSION = 3
MANIFEST = "checkpoint.json"
# At most this share of the time goes into checkpoints; a step that takes longer than a few writes
# (milliseconds for small runs) always gets one.
WRITING_SHARE = 0.05


@dataclass(frozen=True)
class Snapshot:
    """All that a run needs to resume after ``step`` steps, as plain values.

    Plain values are numbers, text, None, tensors, and lists and mappings (with text keys) of plain values.
    ``state`` is written again each time. A part never changes under its name: each is written
    once, and deleted with the first snapshot that does not name it.
    """

    step: int
    state: Mapping[str, Any]
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


def pack(boxes: Mapping[str, Interval]) -> dict[str, list[torch.Tensor]]:
    """Boxes by name as plain values."""
    return {name: [box.lower, box.upper] for name, box in boxes.items()}


def unpack(plain: Mapping[str, list[torch.Tensor]]) -> dict[str, Interval]:
    """The inverse of :func:`pack`, with the same strides, so that the same kernels run."""
    return {name: Interval(lower, upper) for name, (lower, upper) in plain.items()}


class Checkpoint:
    """A folder that holds the last snapshot of one run.

    Files are written beside each other and flushed to disk. They count only once the manifest
    ``checkpoint.json``, replaced last and atomically, names them with their hashes. After a crash at
    any point the folder holds either the previous or the new snapshot.

    Attributes:
        folder: its path; created when the first snapshot is written.
        note: plain JSON values of the caller, kept in the manifest.
    """

    def __init__(self, folder: str | Path, note: Mapping[str, Any] | None = None) -> None:
        self.folder, self.note = Path(folder), dict(note or {})
        self._identity: Mapping[str, str] = {}
        self._files: dict[str, str] = {}
        self._pending: Snapshot | None = None
        self._written = time.monotonic()
        self._cost = 0.0

    @property
    def manifest(self) -> dict[str, Any] | None:
        """The manifest of the snapshot in the folder; None if there is no checkpoint. Raises
        InvalidInputError: an unreadable manifest, or one of another version."""
        path = self.folder / MANIFEST
        try:
            found = json.loads(path.read_bytes())
            if not isinstance(found, dict) or not {"version", "files"} <= set(found):
                raise ValueError("a manifest without its entries")
        except (FileNotFoundError, NotADirectoryError):
            return None
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error)) from None
        if found["version"] != VERSION:
            raise InvalidInputError(
                f"Go on from a checkpoint of version {VERSION}",
                f"version {found['version']} in {path}",
                "go on with the version of milp_agt that wrote it, or begin anew in another folder",
            )
        return found

    def open(self, identity: Mapping[str, str], device: torch.device) -> Snapshot | None:
        """The snapshot of the run with this identity; None if the folder holds none yet. Raises
        InvalidInputError: the checkpoint of another run, or a damaged one."""
        self._identity = identity
        manifest = self.manifest
        if manifest is None:
            return None
        _same_run(self.folder, manifest.get("identity", {}), identity)
        self._files = dict(manifest["files"])
        state = self._read(manifest["state"], device)
        parts = {name: self._read(f"{name}.pt", device) for name in manifest["parts"]}
        return Snapshot(manifest["step"], state, parts)

    def step(self, snapshot: Snapshot) -> None:
        """Write a snapshot, or defer it if writing would take too large a share of the time."""
        self._pending = snapshot
        if self._cost <= WRITING_SHARE * (time.monotonic() - self._written):
            self.flush()

    def flush(self) -> None:
        """Write the last snapshot now, if it is not written yet. Raises InvalidInputError: the snapshot
        cannot be written; the previous checkpoint stays intact."""
        if self._pending is None:
            return
        begun = time.monotonic()
        with writing(
            f"Write the checkpoint of step {self._pending.step} to {self.folder}",
            "make room or give the folder back its rights, then resume: the checkpoint before is as "
            "it was",
        ):
            self._write(self._pending)
        self._pending = None
        self._written = time.monotonic()
        self._cost = self._written - begun

    def clear(self) -> None:
        """Delete the checkpoint: its run is finished and its result is saved elsewhere."""
        self._pending = None
        if self.manifest is None:
            return
        (self.folder / MANIFEST).unlink()
        for path in [*self.folder.glob("*.pt"), *self.folder.glob(".*.partial")]:
            path.unlink()
        if not any(self.folder.iterdir()):
            self.folder.rmdir()

    def _write(self, snapshot: Snapshot) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        state = f"state-{snapshot.step:06d}.pt"
        parts = {f"{name}.pt": part for name, part in snapshot.parts.items()}
        files = {name: digest for name, digest in self._files.items() if name in parts}
        for name, content in {**parts, state: snapshot.state}.items():
            if name not in files:
                replace(self.folder / name, partial(torch.save, dict(content)))
                files[name] = _digest(self.folder / name)
        manifest = {
            "version": VERSION,
            "step": snapshot.step,
            "identity": self._identity,
            "note": self.note,
            "state": state,
            "parts": list(snapshot.parts),
            "files": files,
        }
        replace_text(self.folder / MANIFEST, json.dumps(manifest, indent=2))
        for name in self._files.keys() - files.keys():
            (self.folder / name).unlink(missing_ok=True)
        self._files = files

    def _read(self, name: str, device: torch.device) -> dict[str, Any]:
        path = self.folder / name
        try:
            if _digest(path) != self._files[name]:
                raise ValueError("contents that do not match their hash")
            plain: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError) as error:
            raise _damaged(path, str(error)) from None
        return plain


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _damaged(path: Path, found: str) -> InvalidInputError:
    return InvalidInputError(
        f"Read the checkpoint file {path}",
        found,
        f"restore {path.parent} from a copy, or delete it and begin anew; result.json beside it still "
        "holds the finished steps",
    )


def _same_run(folder: Path, stored: Mapping[str, str], here: Mapping[str, str]) -> None:
    different = [
        f"{name} was {stored.get(name, 'absent')} and is {here.get(name, 'absent')}"
        for name in dict.fromkeys([*stored, *here])
        if stored.get(name) != here.get(name)
    ]
    if different:
        raise InvalidInputError(
            f"Go on from the checkpoint in {folder}, which is of one certain run",
            "; ".join(different),
            "go on with the same data, options and versions, or begin anew in another folder",
        )
