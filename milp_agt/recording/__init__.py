"""Recording: a training loop in plain torch, written down while it runs and handed to ``certify``."""

from milp_agt.recording.recording import Recording, of_recording, record
from milp_agt.recording.run import NominalCheck, RecordedRun, RecordedTraining, load_run, loss_in

__all__ = [
    "NominalCheck",
    "RecordedRun",
    "RecordedTraining",
    "Recording",
    "load_run",
    "loss_in",
    "of_recording",
    "record",
]
