"""The tables of a RUN.toml but threats and properties: [data], [model], [training], [certify], [attack]."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from pydantic import Field, GetCoreSchemaHandler, create_model, field_validator, model_validator
from pydantic_core import CoreSchema

from milp_agt.attacks.search_settings import Search
from milp_agt.certification.options import CertifyOptions, with_further
from milp_agt.core.option_table import (
    WRONG,
    Count,
    Index,
    Key,
    OneOf,
    Positive,
    Table,
    described,
    problem,
    table_of,
)
from milp_agt.data.dataset import OPTIONS, Dataset, dataset_names, defaults_of_options, load_dataset
from milp_agt.errors import ConfigurationError, MilpAgtError, Problem
from milp_agt.recording import RecordedRun, load_run, loss_in
from milp_agt.training.groups import ParameterGroup
from milp_agt.training.layers.builder import activations
from milp_agt.training.schedules import SCHEDULES
from milp_agt.training.training import Training


class DataKeys(Table):
    """A built-in `name` or the `path` of a file, and how the samples are split and scaled."""

    name: str | None = Field(
        default=None,
        description="A built-in data set; either this or `path`.",
        json_schema_extra={"enum": list(dataset_names())},
    )
    path: str | None = Field(
        default=None,
        description="A file, relative to the run file: `.npz` (arrays x_train, y_train and perhaps x_test, "
        "y_test; or X, y; or those of MedMNIST), `.csv` or `.tsv` with a header (commas, semicolons, tabs "
        "or bars), household power data, or the folder of a driving simulator.",
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        if ("name" in given) == ("path" in given):
            found = "both 'name' and 'path'" if "name" in given else "neither 'name' nor 'path'"
            yield found, "give a built-in name, or the path of a file"


if TYPE_CHECKING:
    DataTable = DataKeys
else:
    told = described(load_dataset.__doc__ or "", "Args")
    of_data: Any = {
        name: Key(OPTIONS[name], told[name]).field(default)
        for name, default in defaults_of_options().items()
    }
    DataTable = create_model("DataTable", __base__=DataKeys, __doc__=DataKeys.__doc__, **of_data)


def _with_activations(schema: dict[str, Any]) -> None:
    schema["enum"] = list(activations())


class ModelTable(Table):
    """The network and its initial parameters: `layers`, or a `factory` in a Python file."""

    layers: Annotated[list[Count], Field(min_length=2)] | None = Field(
        default=None,
        description="Sizes of dense layers, from the features to the outputs; either this or `factory`.",
    )
    activation: str = Field(
        default="relu",
        description="Activation between the `layers`.",
        json_schema_extra=_with_activations,
    )
    bias: bool = Field(default=True, description="Whether the `layers` have biases.")
    seed: Index = Field(
        default=0, description="Seed of torch for the initial parameters and for the `factory`."
    )
    state: str | None = Field(
        default=None,
        description="File with the initial parameters, as `torch.save(model.state_dict(), path)` writes "
        "it, relative to the run file; unless given, they are drawn.",
    )
    factory: str | None = Field(
        default=None,
        description="A function without arguments that returns a torch module, in a file relative to "
        "the run file; either this or `layers`.",
        examples=["file.py:function"],
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        if ("layers" in given) == ("factory" in given):
            found = (
                "'layers' and 'factory'" if "layers" in given else "neither 'layers' nor 'factory'"
            )
            yield found, "give one of layers = [4, 8, 3] and factory = 'file.py:function'"
        idle = " and ".join(sorted(given.keys() & {"activation", "bias"}))
        if "factory" in given and idle:
            yield f"{idle} beside 'factory', which builds the whole module", f"drop {idle}"

    @field_validator("activation")
    @classmethod
    def _known_activation(cls, name: str) -> str:
        if name not in activations():
            known = ", ".join(f"'{each}'" for each in activations())
            raise problem(f"activation = '{name}'", f"activation should be one of {known}")
        return name


# Options that are judged beside each other.
_TOGETHER = (
    {"nesterov", "momentum"},
    {"clip", "clip_mode", "class_weights"},
    {"clip_total", "l1"},
    {"loss", "label_smoothing", "class_weights", "positive_weight"},
    {"batches", "epochs", "batch_size", "shuffle_seed", "schedule"},
)
GROUP: Any = table_of(
    ParameterGroup,
    Table,
    "Parameters with options of their own; what is left out is as for all others.",
)


class TrainingKeys(Table):
    """The keys of which others are tables."""

    schedule: list[Positive] | Annotated[Table, OneOf(SCHEDULES)] | None = Field(
        default=None,
        description="Learning rates: one for each step, or a rule whose `kind` says how the rate "
        "falls; constant unless given.",
    )
    group: list[GROUP] = Field(
        default=[],
        description="`[[training.group]]`: parameters with a rate, momentum or decay of their own.",
    )

    @classmethod
    def refusals(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        dropped = {
            key for key, value in given.items() if value is WRONG or key in ("schedule", "group")
        }
        for together in _TOGETHER:
            if together & dropped:
                dropped |= together
        plain = {key: value for key, value in given.items() if key not in dropped}
        # Whether these are there is another question.
        options: dict[str, Any] = {"loss": "mse", "learning_rate": 1.0} | plain
        try:
            Training(**options)
        except MilpAgtError as error:
            yield from error.problems

    def build(self) -> Training:
        """The run.

        Raises:
            InvalidInputError: options that contradict each other.
            UnsupportedOperationError: an optimiser that has no rule.
        """
        given, groups = self.arguments(), tuple(group.build() for group in self.group)
        if isinstance(self.schedule, Table):
            given["schedule"] = self.schedule.build()
        if given.get("projection") is not None:
            given["projection"] = tuple(given["projection"])
        return Training(**given, groups=groups)


if TYPE_CHECKING:

    class TrainingTable(TrainingKeys):
        """As below, for checkers of types."""

        loss: str
else:
    TrainingTable = table_of(
        Training, TrainingKeys, "Gradient descent on the mean loss, as `torch.optim.SGD` runs it."
    )


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
        return loss_in(folder / self.record)

    def load(self, folder: Path, model: torch.nn.Module, dataset: Dataset) -> RecordedRun:
        """The recorded run, whose data must be those of the run file.

        Raises:
            InvalidInputError: no recorded run there, or one of another architecture.
            ConfigurationError: it was trained on other data than [data] gives.
        """
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


class CertifyTable(CertifyOptions):
    """Which relaxation, over which window, with which means."""

    attack: bool = Field(
        default=False,
        description="Attack the run as well when the bounds are done, as [attack] says, so that every "
        "number has both sides.",
    )


class Further:
    """Annotation of [certify]: with all options that are registered."""

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return handler.generate_schema(with_further(source))


if TYPE_CHECKING:
    AttackTable = Table
else:
    AttackTable = table_of(
        Search,
        Table,
        "How much an attack tries, for `milp-agt attack` and for certificates with attacks.",
    )
