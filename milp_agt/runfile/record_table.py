"""[training] of a RUN.toml with a recorded run in place of options."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from milp_agt.core.option_table import Table, problem
from milp_agt.data.dataset import Dataset
from milp_agt.errors import ConfigurationError

if TYPE_CHECKING:
    import torch

    from milp_agt.recording import RecordedRun


class RecordTable(Table):
    """A recorded run: its loss, batches, initial parameters, and the options of its every step."""

    record: str = Field(
        description="File that `run.save(path)` wrote after `agt.record`, relative to the run file, in "
        "place of all other keys. [model] gives the architecture, [data] the data that it was trained on.",
        examples=["run.npz"],
    )

    @model_validator(mode="before")
    @classmethod
    def _alone(cls, given: Any) -> Any:
        others = sorted(set(given) - {"record"}) if isinstance(given, dict) else []
        if others:
            names = ", ".join(f"'{name}'" for name in others)
            raise problem(f"{names} beside 'record'", f"drop {names}: the record holds all options")
        return given

    def loss(self, folder: Path) -> str:
        """Name of the recorded loss.

        Raises:
            InvalidInputError: no recorded run there.
        """
        from milp_agt.recording import loss_in

        return loss_in(folder / self.record)

    def load(self, folder: Path, model: torch.nn.Module, dataset: Dataset) -> RecordedRun:
        """The recorded run, whose data must be those of the run file.

        Raises:
            InvalidInputError: no recorded run there, or one of another architecture.
            ConfigurationError: it was trained on other data than [data] gives.
        """
        import numpy as np

        from milp_agt.recording import load_run

        path = folder / self.record
        run = load_run(path, model)
        own = run.features.numpy().astype(np.float64), run.labels.numpy()
        given = dataset.x_train, dataset.y_train
        asked = f"Certify the run recorded in {self.record} on the data of [data]"
        remedy = (
            "let [data] read what the loop was trained on, split and scaled alike and in the same order; "
            "or certify in Python"
        )
        if own[0].shape != given[0].shape or len(own[1]) != len(given[1]):
            found = f"features of shape {own[0].shape} in the record and {given[0].shape} in [data]"
            raise ConfigurationError(asked, found, remedy)
        digits = 1e-5 if run.dtype == "float32" else 1e-12
        apart = np.abs(own[0] - given[0]) > digits * (1.0 + np.abs(given[0]))
        wrong = apart.reshape(len(apart), -1).any(1)
        labels = np.abs(
            own[1].astype(np.float64) - given[1].astype(np.float64).reshape(own[1].shape)
        )
        wrong |= (labels > digits * (1.0 + np.abs(own[1]))).reshape(len(apart), -1).any(1)
        if wrong.any():
            first = int(wrong.argmax())
            found = f"{int(wrong.sum())} of {len(wrong)} samples differ, the first in row {first}"
            raise ConfigurationError(asked, found, remedy)
        return run


def which(given: Any) -> str:
    """The tag of the table that [training] is: a record, or options."""
    has_record = "record" in given if isinstance(given, dict) else isinstance(given, RecordTable)
    return "record" if has_record else "options"
