"""A recorded run in place of the arguments model, data and training."""

from __future__ import annotations

from typing import Any

from torch import nn

from milp_agt.data import Dataset
from milp_agt.errors import InvalidInputError
from milp_agt.recording.recording import Recording
from milp_agt.recording.run import RecordedRun
from milp_agt.threats import ThreatModel
from milp_agt.training.training import Training

Data = tuple[Any, Any] | Dataset
Runnable = nn.Module | Recording | RecordedRun


def of_recording(
    model: Runnable, data: Data | ThreatModel, training: Training | None, threat: ThreatModel | None
) -> tuple[nn.Module, Data, Training, ThreatModel, RecordedRun | None]:
    """Model, data, training and threat of a call, and the recorded run that they came from, if any.

    Raises:
        InvalidInputError: ``(run, threat)`` with more arguments, or ``(model, data, ...)`` with fewer.
        UnsupportedOperationError: a recorded run that cannot be certified.
    """
    if isinstance(model, (Recording, RecordedRun)):
        given = [each for each in (data, training, threat) if each is not None]
        if len(given) != 1:
            raise InvalidInputError(
                "A recorded run comes with a threat alone",
                f"{len(given)} further arguments",
                "call it as certify(run, threat)",
            )
        run = model.finished() if isinstance(model, Recording) else model
        return run.initial, run.data, run.training, given[0], run  # type: ignore[return-value]
    return model, data, training, threat, None  # type: ignore[return-value]
