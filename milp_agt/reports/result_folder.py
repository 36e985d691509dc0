"""The folders of one certification and of one attack: JSON and arrays, never half written."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

import milp_agt
from milp_agt.attacks import Attack, Search
from milp_agt.certificates.folder import clear
from milp_agt.certification.fingerprint import versions
from milp_agt.certification.result import Result
from milp_agt.certification.verdicts import Verdict
from milp_agt.checker.__main__ import FOLDER
from milp_agt.data.dataset import Dataset
from milp_agt.errors import InvalidInputError
from milp_agt.io.files import replace_arrays, replace_text, writing
from milp_agt.io.tables import json_text, plain
from milp_agt.io.versioned import author_of, commit_of
from milp_agt.properties.suspects import Suspects
from milp_agt.properties.witness import Witness
from milp_agt.runfile.run_file import RunConfig

SCHEMA_VERSION = 1
LISTED_ROWS = 10_000  # rows of larger files follow from the seed and are not written down
WITNESSES = ("witnesses", "shown")  # of a verdict: poisoned data, which get files of their own
WRITING_SHARE = 0.05  # at most this share of the run goes into saving finished steps


class ResultFolder:
    """Saves the finished steps while a certification runs, and everything at its end.

    Both files are replaced as a whole, so a reader or an interrupt never meets half a file. What an
    earlier run left there, its certificate among it, stays until the first step of this one is finished.
    Numbers that JSON cannot hold are written as the strings "inf", "-inf" and "nan".

    ``header`` says what run this is, ``notes`` what its data went through before; ``steps_before``
    counts the steps that were taken before now.

    Raises:
        InvalidInputError: the folder cannot be made or written to.
    """

    def __init__(
        self,
        folder: Path,
        header: Mapping[str, Any],
        notes: Sequence[str] = (),
        steps_before: int = 0,
    ) -> None:
        self.folder = folder
        self.json_path, self.npz_path = folder / "result.json", folder / "reachable.npz"
        self._header, self._notes, self._steps_before = dict(header), notes, steps_before
        self._started = self._written = time.perf_counter()
        self._cost = 0.0
        make_folder(folder)

    def save_step(self, result: Result) -> None:
        """Save what is finished so far; put off where saving would take a share of the run."""
        since = time.perf_counter() - self._written
        if self._cost <= WRITING_SHARE * since:
            self.save(result, (), complete=False)

    def save(
        self,
        result: Result,
        verdicts: Sequence[Verdict],
        *,
        complete: bool,
        suspects: Suspects | None = None,
        smaller: Mapping[str, Any] | None = None,
    ) -> None:
        """Write both files now; ``smaller`` is what smaller threats prove."""
        begun = time.perf_counter()
        reachable = result.reachable
        arrays: dict[str, Any] = {}
        parameters: dict[str, Any] = {}
        for name in reachable.lower:
            lower, upper = np.asarray(reachable.lower[name]), np.asarray(reachable.upper[name])
            arrays |= {f"lower/{name}": lower, f"nominal/{name}": reachable.nominal[name]}
            arrays[f"upper/{name}"], width = upper, upper - lower
            parameters[name] = {
                "shape": list(width.shape),
                "mean_width": float(width.mean()) if width.size else 0.0,
                "max_width": float(width.max(initial=0.0)),
            }
        properties = [
            {
                **{f.name: getattr(v, f.name) for f in fields(v) if f.name not in WITNESSES},
                "name": v.name,
                "vacuous": v.is_vacuous,
                "counts": v.counts,
            }
            for v in verdicts
        ]
        document = {
            **self._header,
            "complete": complete,
            "total_steps": result.total_steps,
            "claim": result.claim,
            "caution": result.caution,
            "threat": result.threat,
            "assumptions": [*result.assumptions, *self._notes],
            "relaxation": {
                "asked": result.relaxation,
                "used": list(dict.fromkeys(step.relaxation for step in result.steps)),
                "notes": list(result.notes),
                "fallbacks": list(result.fallbacks),
                "limit_reached": result.limit_reached,
            },
            "resolved": result.settings.get("certify", {}),
            "training": result.run,
            "parameters": {
                "mean_width": float(reachable.mean_width),
                "max_width": float(reachable.max_width),
                "mean_size": reachable.mean_size,
                "by_name": parameters,
            },
            "worth": _worth(result),
            "still_proved": smaller,
            "attack": _attack(result),
            "suspects": None if suspects is None else suspects.to_dict(),
            "steps": [asdict(step) for step in result.steps],
            "properties": properties,
            "seconds": begun
            - self._started
            + sum(step.seconds for step in result.steps[: self._steps_before]),
        }
        with writing(
            f"Write the result of {len(result.steps)} steps to {self.folder}",
            "make room or give the folder back its rights, then go on with "
            f"milp-agt certify --resume {self.folder}",
        ):
            clear(self.folder / FOLDER)
            self._save_witnesses(verdicts, properties)
            replace_arrays(self.npz_path, arrays)
            write_json(self.json_path, document)
        self._written = time.perf_counter()
        self._cost = self._written - begun

    def _save_witnesses(
        self, verdicts: Sequence[Verdict], properties: Sequence[dict[str, Any]]
    ) -> None:
        """``witness-1.npz`` and so on, each named with its words beside its property.

        The first one holds the whole data set, the others what they change of it.
        """
        for old in self.folder.glob("witness-*.npz"):
            old.unlink()
        names: dict[Witness, str] = {}  # of those that are written, each once
        for verdict, entry in zip(verdicts, properties, strict=True):
            refuted = verdict.status == "REFUTED"
            worst = [verdict.shown] if refuted and verdict.shown is not None else []
            found: list[dict[str, Any]] = []
            for witness in (*verdict.witnesses, *(w for w in worst if w not in verdict.witnesses)):
                if witness.changes and witness not in names:
                    path = self.folder / f"witness-{len(names) + 1}.npz"
                    first = next(iter(names), None)
                    beside = None if first is None else (names[first], first)
                    names[witness] = witness.save(path, beside).name
                name = names.get(witness)  # the data as given need no file
                found.append(
                    {
                        "file": name,
                        "points": witness.points,
                        "margins": witness.margins,
                        "poisoned": witness.poisoned,
                        "changes": witness.changes,
                        "shows": verdict.worst if witness is verdict.shown else None,
                    }
                )
            entry["witnesses"] = found


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON file, replaced as a whole; numbers that JSON cannot hold are written as text."""
    replace_text(path, json_text(document))


def run_header(config: RunConfig, dataset: Dataset) -> dict[str, Any]:
    """What a file says of the run file that it is about."""
    run = config.model_dump(by_alias=True, exclude_none=True, mode="json")
    return header(run, {"config": config.sha256}, dataset, config.path)


def header(
    run: Mapping[str, Any],
    sha256: Mapping[str, str],
    dataset: Dataset,
    run_file: Path | None = None,
) -> dict[str, Any]:
    """What a file says of the run that it is about: as it was asked for, on what, by whom and with what.

    Commits are those of the run file and of this package, as far as git knows them.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "run": dict(run),
        "sha256": {**sha256, "data": dataset.sha256},
        "data": {
            "name": Path(dataset.name).name,
            "description": dataset.description,
            "train": list(dataset.x_train.shape),
            "test": list(dataset.x_test.shape),
            "rows": _rows(dataset),
        },
        "versions": versions(),
        "platform": platform.platform(),
        "hardware": hardware(),
        "made": {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "by": author_of(Path.cwd() if run_file is None else run_file.parent),
            "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
            "run_commit": None if run_file is None else commit_of(run_file),
            "package_commit": commit_of(Path(milp_agt.__file__).parent),
        },
    }


def _rows(dataset: Dataset) -> dict[str, Any]:
    """Where the samples stand in the user's file, and who they are; of large data sets only in what."""
    found: dict[str, Any] = {"where": dataset.origin.where, "total": dataset.origin.total}
    if dataset.origin.total > LISTED_ROWS:
        return found
    found |= {"train": dataset.rows.train, "test": dataset.rows.test}
    if dataset.ids is not None:
        found["ids"] = {"train": dataset.ids.train, "test": dataset.ids.test}
    return found


def _worth(result: Result) -> dict[str, Any]:
    """What the boxes are worth: a word for programs, the steps, and the same in words."""
    found = result.worth
    told = {name: getattr(found, name) for name in ("useful_until", "bounded_until", "words")}
    return {"boxes": found.worth.value, "helps": list(found.helps), **told}


def _attack(result: Result) -> dict[str, Any] | None:
    """Both sides of the parameters' widths; None where nothing was attacked."""
    attack, sandwich = result.attack, result.sandwich
    if attack is None or sandwich is None:
        return None
    names = ("max_width", "trained", "proposed", "exhaustive", "seed", "seconds")
    told = {name: getattr(attack, name) for name in names}
    return {"mean_width": sandwich.reached, "ratio": sandwich.ratio, **told}


def check_same_run(path: Path, header: Mapping[str, Any], *, force: bool) -> bool:
    """Whether a folder is free for a run: its file ``path`` is absent or of this very run.

    False where it is of another run and ``force`` says to write over it. A run is the same if run file,
    data and options are.

    Raises:
        InvalidInputError: a file of another run, or one that cannot be read, without ``force``.
    """
    try:
        found = json.loads(path.read_bytes())
        other = {} if not isinstance(found, dict) else found
    except (FileNotFoundError, NotADirectoryError):
        return True
    except (OSError, ValueError):
        other = {}
    keys = ("sha256", "options", "search")
    if all(other.get(key) == plain(header.get(key)) for key in keys):
        return True
    if force:
        return False
    what = [key for key in keys if other.get(key) != plain(header.get(key))]
    said = {"sha256": "another run file or other data", "options": "other options"}
    different = " and ".join(said.get(key, "other settings of the search") for key in what)
    unfinished = ""
    if other.get("complete") is False and path.name == "result.json":
        unfinished = f"go on with it by milp-agt certify --resume {path.parent}, "
    raise InvalidInputError(
        f"Write the result to the folder {path.parent}",
        f"{path.name} of {different} there",
        f"{unfinished}give another folder, or add --force to write over it",
    )


def make_folder(folder: Path) -> Path:
    """Make the folder with its parents, and see that files can be written there.

    Raises:
        InvalidInputError: it cannot be made or written to.
    """
    asked = f"Write the result to the folder {folder}"
    with writing(asked, "give a folder that can be written to"):
        if any(place.is_file() for place in (folder, *folder.parents)):
            raise InvalidInputError(asked, "a file there", "give another name")
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".partial"
        probe.touch()
        probe.unlink()
    return folder


def hardware() -> dict[str, Any]:
    """What the seconds in a result depend on."""
    found: dict[str, Any] = {"machine": platform.machine(), "cores": os.cpu_count()}
    with contextlib.suppress(OSError, StopIteration):  # no /proc outside Linux
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        found["processor"] = next(
            line.partition(":")[2].strip() for line in lines if line.startswith("model name")
        )
    return found


class AttackFolder:
    """Writes what attacks reached, with the data that reach it.

    ``attack.npz`` holds for objective number i the arrays ``i/features/t`` and ``i/labels/t`` of each
    leaf t (one data set, or one batch for each step of an adaptive adversary), ``i/poisoned`` (rows of
    the file), ``i/positions`` (where these samples stand in ``i/features``), and the trained model under
    ``i/state/NAME``; and the envelope under ``lower/NAME`` and ``upper/NAME``.

    Raises:
        InvalidInputError: the folder cannot be made or written to, or holds another attack and ``force``
            is not set.
    """

    def __init__(
        self,
        folder: Path,
        config: RunConfig,
        dataset: Dataset,
        search: Search,
        *,
        force: bool = False,
    ) -> None:
        self.json_path, self.npz_path = folder / "attack.json", folder / "attack.npz"
        self._header = run_header(config, dataset) | {"search": asdict(search)}
        check_same_run(self.json_path, self._header, force=force)
        make_folder(folder)
        self._written, self._cost = time.monotonic(), 0.0

    def save(self, found: Mapping[str, Attack], *, complete: bool = True) -> None:
        """Write both files; the first attack is the one on all parameters.

        What is not complete is put off where writing would take a share of the time.
        """
        begun = time.monotonic()
        if not complete and self._cost > WRITING_SHARE * (begun - self._written):
            return
        arrays: dict[str, Any] = {}
        objectives: list[dict[str, Any]] = []
        for number, (name, attack) in enumerate(found.items()):
            best = attack.best
            leaves = [(attack.features, attack.labels)] if attack.is_static else best.batches
            for leaf, (features, labels) in enumerate(leaves):
                arrays[f"{number}/features/{leaf}"] = features
                arrays[f"{number}/labels/{leaf}"] = labels
            arrays[f"{number}/poisoned"] = np.asarray(best.poisoned, dtype=np.int64)
            arrays[f"{number}/positions"] = np.asarray(best.positions, dtype=np.int64)
            for parameter, value in best.state_dict.items():
                arrays[f"{number}/state/{parameter}"] = value.numpy()
            told = ("objective", "value", "nominal", "reached", "trained", "exhaustive")
            objectives.append(
                {"name": name, "poisoned": best.poisoned, "positions": best.positions}
                | {each: getattr(attack, each) for each in (*told, "limit_reached", "seconds")}
            )
        envelope = next(iter(found.values()))
        for parameter in envelope.lower:
            arrays[f"lower/{parameter}"] = envelope.lower[parameter]
            arrays[f"upper/{parameter}"] = envelope.upper[parameter]
        document = {
            **self._header,
            "complete": complete,
            "parameters": {"mean_width": envelope.mean_width, "max_width": envelope.max_width},
            "objectives": objectives,
        }
        replace_arrays(self.npz_path, arrays)
        write_json(self.json_path, document)
        self._written = time.monotonic()
        self._cost = self._written - begun
