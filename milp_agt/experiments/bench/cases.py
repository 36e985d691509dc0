"""The training runs that are measured: two moons of any size, or a run file.

A source is a few numbers, so that it can be handed to another process, which builds the run.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import nn

from milp_agt.data.dataset import Dataset, load_dataset
from milp_agt.errors import InvalidInputError
from milp_agt.runfile.run_file import load_config
from milp_agt.threats import FeaturePoisoning, ThreatModel
from milp_agt.training.training import Training

LEARNING_RATE = 0.5


class Case(NamedTuple):
    """One training run under one threat, ready to be certified or attacked."""

    model: nn.Module
    data: tuple[npt.NDArray[Any], npt.NDArray[Any]] | Dataset
    training: Training
    threat: ThreatModel


@dataclass(frozen=True)
class Moons:
    """Two moons and a 2-h-1 relu network, full batch, binary cross entropy, rate 0.5.

    Attributes:
        seed: of the moons and of the initial parameters.
        samples, hidden: n and h.
        marks: steps, ascending, after which widths are set beside attacks; the last ends the run.
        budget, radius: so many samples move by so much in each feature (static adversary).

    Raises:
        InvalidInputError: a size that is not positive, or marks that do not ascend from 1.
    """

    seed: int
    samples: int
    hidden: int
    marks: tuple[int, ...]
    budget: int = 1
    radius: float = 0.01

    def __post_init__(self) -> None:
        ascending = all(a < b for a, b in itertools.pairwise((0, *self.marks)))
        if self.samples < 2 or self.hidden < 1 or not self.marks or not ascending:
            raise InvalidInputError(
                "A benchmark needs sizes of at least 1 and steps that ascend",
                f"{self.samples} samples, hidden width {self.hidden}, steps {self.marks}",
                "give at least 2 samples, 1 hidden unit and 1 step",
            )

    @property
    def name(self) -> str:
        return "moons"

    def at(self, steps: int) -> Case:
        """The run, cut off after one of the marks."""
        drawn = load_dataset("moons", samples=self.samples, seed=self.seed, test_fraction=0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = nn.Sequential(nn.Linear(2, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 1))
        return Case(
            model.double(),
            (drawn.x_train, drawn.y_train),
            Training(loss="bce", learning_rate=LEARNING_RATE, epochs=steps),
            FeaturePoisoning(self.budget, self.radius),
        )


@dataclass(frozen=True)
class RunFile:
    """The run of a RUN.toml, measured after its last step; its sizes are its own."""

    path: Path
    marks: tuple[int, ...]

    @staticmethod
    def of(path: Path) -> RunFile:
        """
        Raises:
            ConfigurationError: see :func:`milp_agt.runfile.run_file.load_config`.
        """
        return RunFile(path, (load_config(path).build().steps,))

    @property
    def name(self) -> str:
        return self.path.stem

    def at(self, steps: int) -> Case:
        run = load_config(self.path).build()
        return Case(run.model, run.dataset, run.training, run.threat)


CaseSource = Moons | RunFile
