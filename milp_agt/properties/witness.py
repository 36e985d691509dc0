"""Poisoned data that refute a property: what was changed, and the model that is trained on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError
from milp_agt.io.files import Archive

FILE = Archive("A witness", 3, "give a witness-*.npz of a result folder, or certify the run again")
DATA = ("features", "labels", "there")
PLAIN = ("points", "margins", "poisoned", "changes", "data", "threat")  # lists, then two texts


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
        about = {name: getattr(self, name) for name in PLAIN}
        return FILE.write(Path(path), arrays, about | {"beside": beside and beside[0]})


def load_witness(path: str | Path) -> Witness:
    """Read a witness written by :meth:`Witness.save`; ``result.replay`` checks it.

    Args:
        path: of the .npz file; ``witness-2.npz`` of a result folder and those after it need ``witness-1.npz``
            beside them.

    Raises:
        InvalidInputError: a missing or damaged file, or another version of the format.
    """
    path = Path(path)
    arrays, about = FILE.read(path)

    def leaves(kind: str) -> tuple[npt.NDArray[Any], ...]:
        count = sum(name.startswith(f"{kind}/") for name in arrays)
        found = tuple(whole[f"{kind}/{leaf}"] for leaf in range(count))
        for leaf, array in enumerate(found if whole is not arrays else ()):
            array[arrays[f"rows of {kind}/{leaf}"]] = arrays[f"{kind}/{leaf}"]
        return found

    try:
        beside = about["beside"]
        whole = arrays if beside is None else FILE.read(path.parent / Path(beside).name)[0]
        kept: dict[str, Any] = {name: tuple(about[name]) for name in PLAIN[:4]}
        kept |= {name: about[name] for name in PLAIN[4:]} | {kind: leaves(kind) for kind in DATA}
        state = {n: a for n, a in arrays.items() if n.startswith("state/")}
        return Witness(state_dict={n.removeprefix("state/"): a for n, a in state.items()}, **kept)
    except (KeyError, IndexError, TypeError, ValueError) as error:
        asked = f"Read the witness {path}"
        raise InvalidInputError(asked, f"contents that do not fit: {error}", FILE.again) from None
