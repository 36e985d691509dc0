"""Poisoned data that refute a property: what was changed, and the model that is trained on them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError
from milp_agt.io.files import DAMAGE, arrays_of, replace_arrays, writing

Array = npt.NDArray[np.float64]
FORMAT = 2
DATA = ("features", "labels", "there")


@dataclass(frozen=True, eq=False)
class Witness:
    """Admissible poisoned data, and the test points that the model trained on them gets wrong.

    The data were checked in exact arithmetic against the threat, and the model was trained in plain torch,
    batch by batch in the order of the run.

    Attributes:
        points: positions, among the test points that were asked about, of those that are refuted.
        margins: their safety margins under the trained model, all below zero.
        poisoned: rows of the file of the samples that were changed, removed or inserted; positions in
            plain arrays. Inserted samples are counted on from the size of either.
        changes: what was changed, in words, an entry for each of these samples.
        features, labels: the data: one entry, the whole data set (N, *shape) and (N,) classes or (N,
            outputs) targets, of a threat that is made once; one for each step, its batch, of an adaptive one.
        there: which of these samples are there, (N,) bool each; empty where none come or go.
        state_dict: the parameters after training, float64 (or float32, as the run).
        data: a hash of the data as given and of the batches, by which a foreign witness is refused.
        threat: what the adversary may do, in words.
    """

    points: tuple[int, ...]
    margins: tuple[float, ...]
    poisoned: tuple[int, ...]
    changes: tuple[str, ...]
    features: tuple[npt.NDArray[Any], ...]
    labels: tuple[npt.NDArray[Any], ...]
    there: tuple[npt.NDArray[np.bool_], ...]
    state_dict: Mapping[str, npt.NDArray[Any]]
    data: str
    threat: str

    @property
    def data_set(self) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        """Features and labels to train on, without samples that are absent.

        Raises:
            InvalidInputError: an adaptive threat, whose data differ from step to step.
        """
        if len(self.features) != 1:
            raise InvalidInputError(
                "The poisoned data set of a witness was asked for",
                f"an adaptive adversary with data of its own for each of {len(self.features)} steps",
                "read witness.features and witness.labels, one entry for each step",
            )
        kept = self.there[0] if self.there else slice(None)
        return self.features[0][kept], self.labels[0][kept]

    def describe(self) -> str:
        """What was changed, in words."""
        if not self.changes:
            return "nothing was changed: the data as given"
        return "; ".join(self.changes)

    def save(self, path: str | Path, beside: tuple[str, Witness] | None = None) -> Path:
        """Write everything to one .npz file, as a whole; :func:`load_witness` reads it.

        Args:
            path: of the file.
            beside: the name of another file in the same folder, and the witness of the same run that is saved
                there whole: samples in which both agree are then kept in that file alone.

        Raises:
            InvalidInputError: no such folder, or one that cannot be written.
        """
        arrays: dict[str, Any] = {}
        for kind in DATA:
            for leaf, own in enumerate(getattr(self, kind)):
                if beside is None:
                    arrays[f"{kind}/{leaf}"] = own
                    continue
                other = getattr(beside[1], kind)[leaf]
                rows = np.flatnonzero((own != other).reshape(len(own), -1).any(1))
                arrays |= {f"{kind}/{leaf}": own[rows], f"rows of {kind}/{leaf}": rows}
        arrays |= {f"state/{name}": array for name, array in self.state_dict.items()}
        arrays["points"] = np.asarray(self.points, dtype=np.int64)
        arrays["margins"] = np.asarray(self.margins, dtype=np.float64)
        arrays["poisoned"] = np.asarray(self.poisoned, dtype=np.int64)
        about = {
            "format": FORMAT,
            "changes": self.changes,
            "data": self.data,
            "threat": self.threat,
            "beside": None if beside is None else beside[0],
        }
        arrays["about"] = np.array(json.dumps(about))
        with writing(
            f"Save a witness to {path}",
            "give the path of a file in a folder that can be written to",
        ):
            return replace_arrays(Path(path), arrays)


def load_witness(path: str | Path) -> Witness:
    """Read a witness written by :meth:`Witness.save`; ``result.replay`` checks it.

    Args:
        path: of the .npz file; ``witness-2.npz`` of a result folder and those after it need ``witness-1.npz``
            beside them.

    Raises:
        InvalidInputError: a missing or damaged file, or another version of the format.
    """
    asked, path = f"Read the witness {path}", Path(path)
    try:
        arrays = arrays_of(path)
        about = json.loads(str(arrays["about"]))
        if about["format"] != FORMAT:
            raise InvalidInputError(
                asked, f"format {about['format']}, not {FORMAT}", "certify the run again"
            )

        beside = about["beside"]
        whole = arrays if beside is None else arrays_of(path.parent / Path(beside).name)

        def leaves(kind: str) -> tuple[npt.NDArray[Any], ...]:
            count = sum(name.startswith(f"{kind}/") for name in arrays)
            found = tuple(whole[f"{kind}/{leaf}"] for leaf in range(count))
            if beside is not None:
                for leaf, array in enumerate(found):
                    array[arrays[f"rows of {kind}/{leaf}"]] = arrays[f"{kind}/{leaf}"]
            return found

        return Witness(
            points=tuple(arrays["points"].tolist()),
            margins=tuple(arrays["margins"].tolist()),
            poisoned=tuple(arrays["poisoned"].tolist()),
            changes=tuple(about["changes"]),
            features=leaves("features"),
            labels=leaves("labels"),
            there=leaves("there"),
            state_dict={
                name.removeprefix("state/"): array
                for name, array in arrays.items()
                if name.startswith("state/")
            },
            data=about["data"],
            threat=about["threat"],
        )
    except (*DAMAGE, IndexError) as error:
        raise InvalidInputError(
            asked, f"a file that is no witness ({error})", "give a witness-*.npz of a result folder"
        ) from None
