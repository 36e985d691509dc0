"""RUN.toml: one training run, one threat and what is to be proved, checked before any work.

Every table refuses unknown keys, and every option that is accepted is used. All problems of a file
are reported at once. Paths inside the file are relative to it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
from pydantic import BaseModel, Discriminator, Field, PrivateAttr, Tag, ValidationError

from milp_agt.attacks import Search
from milp_agt.certification.certify import OnStep, certify
from milp_agt.certification.checkpoint import Checkpoint
from milp_agt.certification.options import FURTHER, with_further
from milp_agt.certification.result import Result, untrained
from milp_agt.certification.verdicts import judge
from milp_agt.core.option_table import OneOf, Table
from milp_agt.core.rounding import FLOAT32
from milp_agt.data.dataset import Dataset, Task, load_dataset
from milp_agt.errors import ConfigurationError, MilpAgtError, Problem
from milp_agt.formulations.loss import losses
from milp_agt.properties.property_table import PROPERTIES, PropertyTable
from milp_agt.recording import RecordedRun
from milp_agt.runfile.networks import dense_network, factory_network, load_state
from milp_agt.runfile.problems import explain, out_of_range
from milp_agt.runfile.reading import read_tables
from milp_agt.runfile.tables import (
    GROUP,
    AttackTable,
    CertifyTable,
    DataTable,
    Further,
    ModelTable,
    RecordTable,
    TrainingTable,
    which,
)
from milp_agt.threats import ThreatModel
from milp_agt.threats.threat_model import THREATS, ThreatTable
from milp_agt.threats.units import located
from milp_agt.training.inputs import labels_of
from milp_agt.training.schedules import SCHEDULES
from milp_agt.training.training import Training

Built = TypeVar("Built")


_Properties = Annotated[
    tuple[Annotated[PropertyTable, OneOf(PROPERTIES)], ...], Field(strict=False)
]


class _PropertiesTable(Table):
    properties: _Properties = Field(alias="property")


class LoadedRun(NamedTuple):
    """Everything that one certification needs, built and checked."""

    model: torch.nn.Module
    dataset: Dataset
    training: Training
    threat: ThreatModel
    options: CertifyTable
    properties: tuple[PropertyTable, ...]
    search: Search
    recorded: RecordedRun | None = None

    @property
    def steps(self) -> int:
        """Training steps."""
        return len(self.training.batch_order(len(self.dataset.x_train)))

    def certify(
        self,
        threat: ThreatModel | None = None,
        *,
        on_step: OnStep | None = None,
        checkpoint: Checkpoint | None = None,
        attack: bool | Search = False,
        begun: float | None = None,
    ) -> Result:
        """Certify the run with its options, under another threat if there is one.

        A time limit counts from ``begun``, a time of ``time.monotonic``; from now on unless given.
        """
        threat = self.threat if threat is None else threat
        run: tuple[Any, ...] = (self.model, self.dataset, self.training, threat)
        return certify(
            *(run if self.recorded is None else (self.recorded, threat)),
            options=self.options,
            on_step=on_step,
            checkpoint=checkpoint,
            attack=attack,
            begun=begun,
        )


class _Errors:
    """What is wrong with a run, collected while as much of it as possible is built."""

    def __init__(self) -> None:
        self.found: list[MilpAgtError] = []

    def of(self, make: Callable[[], Built]) -> Built | None:
        """What is made, or None and one more error."""
        try:
            return make()
        except MilpAgtError as error:
            self.found.append(error)
            return None

    def all(self, path: Path) -> MilpAgtError:
        """The one error, or one that holds them all."""
        if len(self.found) == 1:
            return self.found[0]
        problems = [
            (f"{error.asked.rstrip('.')}: {found}", remedy)
            for error in self.found
            for found, remedy in error.problems
        ]
        return ConfigurationError.of(f"Build the run of {path}", problems)


class RunConfig(Table):
    """The whole file; ``load_config`` makes it, ``build`` turns it into objects."""

    data: DataTable
    model: ModelTable
    training: Annotated[
        Annotated[TrainingTable, Tag("options")] | Annotated[RecordTable, Tag("record")],
        Discriminator(which),
    ] = Field(
        description="Gradient descent on the mean loss, as `torch.optim.SGD` runs it; or a recorded run, "
        "with the key `record` alone."
    )
    threat: Annotated[ThreatTable, OneOf(THREATS)] = Field(
        description="What the adversary may change, and how often; `kind` says what."
    )
    certify: Annotated[CertifyTable, Further()] = Field(
        default_factory=lambda: with_further(CertifyTable)()
    )
    attack: AttackTable = AttackTable()
    properties: _Properties = Field(
        default=(),
        alias="property",
        description="What is asked of the trained models: as many of these tables as you like, each "
        "about one quantity that `kind` names.",
    )
    _path: Path = PrivateAttr()
    _sha256: str = PrivateAttr()

    @property
    def path(self) -> Path:
        """The file that this was read from."""
        return self._path

    @property
    def sha256(self) -> str:
        """Hash of the bytes of the file."""
        return self._sha256

    def build(self, changes: Mapping[str, Any] | None = None) -> LoadedRun:
        """Load the data, build model, training and threat; of a float32 run data and model are rounded once.

        Args:
            changes: options of [certify] that replace those of the file, by name.

        Raises:
            InvalidInputError: data, weights or options that do not fit each other.
            UnsupportedOperationError: an unknown loss.
            ConfigurationError: a state file or factory that cannot be used; or several of these at once.
        """
        errors = _Errors()
        table = self.training
        options = table if isinstance(table, TrainingTable) else None
        training = None if options is None else errors.of(options.build)
        dataset = errors.of(self._dataset)
        if dataset is None:
            given = {"model": self.model.model_dump(exclude_none=True)}
            for found, remedy in _absent_files(given, self.path.parent, ()):
                errors.found.append(ConfigurationError("Build the model", found, remedy))
            raise errors.all(self.path)
        certify = self.certify.changed(changes or {})
        single = options is not None and certify.precision == FLOAT32.name
        if single:
            dataset = errors.of(dataset.in_float32) or dataset
        data = dataset
        model = errors.of(lambda: self._model(data))
        if single and model is not None:
            model = model.float().double()  # the numbers that the float32 run starts from
        threat = errors.of(lambda: located(self.threat.resolved(data.y_train).build(), data.origin))
        recorded = None
        if isinstance(table, RecordTable) and model is not None:
            started, folder = model, self.path.parent
            recorded = errors.of(lambda: table.load(folder, started, data))
            if recorded is not None:
                model, training = recorded.initial, recorded.training
        if model is not None and training is not None:
            self._check_properties(model, dataset, errors)
        if errors.found or model is None or training is None or threat is None:
            raise errors.all(self.path)
        search = self.attack.build()
        return LoadedRun(
            model, dataset, training, threat, certify, self.properties, search, recorded
        )

    def _dataset(self) -> Dataset:
        folder = self.path.parent
        loss = losses().get(self._loss())
        task: Task | None = None  # an unknown loss is another problem
        if loss is not None:
            task = "classification" if loss.is_classification else "regression"
        source = self.data.name
        if source is None:
            assert self.data.path is not None
            source = str(folder / self.data.path)
        given = {name: value for name, value in self.data if name not in ("name", "path")}
        pairs = {name: given[name] and tuple(given[name]) for name in ("image_size", "crop")}
        return load_dataset(source, **given | pairs, task=task)

    def _loss(self) -> str:
        table = self.training
        return table.loss(self.path.parent) if isinstance(table, RecordTable) else table.loss

    def _check_properties(self, model: torch.nn.Module, dataset: Dataset, errors: _Errors) -> None:
        """Ask everything without bounding it: what cannot be answered is refused before any work."""
        before = errors.of(lambda: untrained(model, self._loss(), dataset.x_train.shape[1:]))
        if before is None:
            return
        for number, table in enumerate(self.properties, 1):
            try:
                judge(before, dataset, table)
            except MilpAgtError as error:
                asked = f"Prove property {number} ({table.kind}): {error.asked}"
                about = ConfigurationError(asked, error.found, error.remedy, error.problems)
                about.__cause__ = error
                errors.found.append(about)
        if len(dataset.x_test) and not errors.found:
            graph, count = before.models.step_graph, len(dataset.x_test)
            outputs = graph.outputs
            errors.of(lambda: labels_of(dataset.y_test, count, graph.loss, outputs, "Test labels"))

    def _model(self, dataset: Dataset) -> torch.nn.Module:
        table, folder = self.model, self.path.parent
        model: torch.nn.Module
        if table.factory is not None:
            model = factory_network(table.factory, folder, table.seed)
        else:
            assert table.layers is not None
            shape = dataset.x_train.shape[1:]
            model = dense_network(table.layers, table.activation, table.bias, table.seed, shape)
        if table.state is not None:
            load_state(model, folder / table.state)
        return model


def load_config(path: str | Path) -> RunConfig:
    """Read and check a RUN.toml.

    Raises:
        ConfigurationError: a file that is absent or not TOML; or all that is wrong inside it: for
            an unknown key the table, the key and the nearest known one.
    """
    path = Path(path)
    asked = f"Read the run file {path}"
    raw, tables = read_tables(path)
    if problems := [*out_of_range(tables)]:
        raise ConfigurationError.of(asked, problems)
    try:
        config = up_to_date(RunConfig).model_validate(tables)
    except ValidationError as error:
        problems = explain(error, tables, table_types())
        problems += _absent_files(tables, path.parent, problems)
        raise ConfigurationError.of(asked, problems) from None
    config._path = path.absolute()
    config._sha256 = hashlib.sha256(raw).hexdigest()
    return config


def parse_properties(tables: Sequence[Mapping[str, Any]]) -> tuple[PropertyTable, ...]:
    """Tables with the keys of [[property]], checked.

    Raises:
        ConfigurationError: all that is wrong inside them, as in a run file.
    """
    raw = {"property": [dict(table) for table in tables]}
    try:
        return up_to_date(_PropertiesTable).model_validate(raw).properties
    except ValidationError as error:
        problems = explain(error, raw, table_types())
        raise ConfigurationError.of("Read properties", problems) from None


Model = TypeVar("Model", bound=BaseModel)


def _kinds() -> list[type[Table]]:
    return [*PROPERTIES.all().values(), *THREATS.all().values(), *FURTHER]


# The kinds that each table was built with.
_KNOWN: dict[type[BaseModel], list[type[Table]]] = {
    t: _kinds() for t in (RunConfig, _PropertiesTable)
}


def up_to_date(table: type[Model]) -> type[Model]:
    """A table of the file with all kinds that are registered by now."""
    if _KNOWN[table] != _kinds():
        table.model_rebuild(force=True)
        _KNOWN[table] = _kinds()
    return table


def _absent_files(
    raw: Mapping[str, Any], folder: Path, known: Sequence[Problem]
) -> Iterator[Problem]:
    """Files that a run file names and that are not there: said at once with its other problems.

    Of a table with a problem of its own, files are left for later.
    """
    for table, key in (("data", "path"), ("model", "state"), ("model", "factory")):
        inside = raw.get(table)
        name = inside.get(key) if isinstance(inside, dict) else None
        if not isinstance(name, str) or any(found.startswith(f"[{table}]") for found, _ in known):
            continue
        path = folder / (name.rpartition(":")[0] if key == "factory" else name)
        if not path.exists():
            yield (
                f"[{table}] {key} = '{name}': no such file",
                "give a path relative to the run file",
            )


def _with_parts(
    name: str, tables: Mapping[str, type[BaseModel]]
) -> Iterator[tuple[str, type[BaseModel]]]:
    """The tables of some kinds by name, and those that are keys of them."""
    for kind, table in tables.items():
        yield f"{name}.{kind}", table
        for key, field in table.model_fields.items():
            if isinstance(field.annotation, type) and issubclass(field.annotation, Table):
                yield f"{name}.{kind}.{key}", field.annotation


def table_types() -> dict[str, type[BaseModel]]:
    """Every table by its name, the kinds of threats apart as ``threat.KIND``."""
    return {
        "data": DataTable,
        "model": ModelTable,
        "training": TrainingTable,
        "training.group": GROUP,
        **{f"training.schedule.{kind}": table for kind, table in SCHEDULES.all().items()},
        **dict(_with_parts("threat", THREATS.all())),
        "certify": with_further(CertifyTable),
        "attack": AttackTable,
        **{f"property.{kind}": table for kind, table in PROPERTIES.all().items()},
    }
