"""The folder of one attack: ``attack.json`` and the poisoned data in ``attack.npz``."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from milp_agt.attacks import Attack, Search
from milp_agt.data.dataset import Dataset
from milp_agt.io.files import replace_arrays
from milp_agt.reports.result_folder import (
    WRITING_SHARE,
    check_same_run,
    make_folder,
    run_header,
    write_json,
)
from milp_agt.runfile.run_file import RunConfig


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
