"""What one certification is about, and the part that all ways to certify it share."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from milp_agt.bounds.step import NodeOrder, State, Step, initial_state, step_at_points, velocity_of
from milp_agt.certification.boxes import reachable_of
from milp_agt.certification.checkpoint import Snapshot
from milp_agt.certification.options import CertifyOptions
from milp_agt.certification.planning import Plan
from milp_agt.certification.result import Result, assumptions_of
from milp_agt.core.interval import Interval
from milp_agt.core.reachable import StepRecord
from milp_agt.core.remarks import Notes, Remarks
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.rounding import Precision
from milp_agt.data.origin import Origin
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.properties.models import ReachableModels
from milp_agt.threats.poison import Poison
from milp_agt.training.run_words import run_in_words
from milp_agt.training.tracing import StepGraph
from milp_agt.training.training import Batch, Training, UpdateRule

# Each question has what is left of a time limit, at least this share of it.
QUESTIONS_SHARE = 0.25


@dataclass(frozen=True)
class Task:
    """All that a certification starts from; tensors are on the device of the run.

    Attributes:
        traced: a step of training as it was traced.
        step_graph: the same with exchanges of samples, in the precision that is certified.
        head: the same without frozen layers in front; ``poison`` is the threat behind them.
        raw: the threat bound to the data as given.
        begun: a time of ``time.monotonic``; preparation counts in a time limit.
    """

    traced: StepGraph
    step_graph: StepGraph
    head: StepGraph
    raw: Poison
    poison: Poison
    training: Training
    options: CertifyOptions
    restriction: Restriction
    initial: Mapping[str, Interval]
    claim: str
    caution: str
    origin: Origin | None
    begun: float
    remarks: Remarks

    @cached_property
    def batches(self) -> Sequence[Batch]:
        return self.training.batch_order(len(self.raw.features))

    @cached_property
    def updates(self) -> Sequence[UpdateRule]:
        return self.training.update_rules(len(self.batches))

    @cached_property
    def words(self) -> str:
        """How the model is trained."""
        return run_in_words(self.training, len(self.batches))

    @property
    def device(self) -> torch.device:
        return self.raw.features.device

    @cached_property
    def start(self) -> State:
        """The box of parameters, and velocities, before the first step."""
        return initial_state(self.step_graph, self.initial, self.training.has_momentum)

    def step(self, graph: StepGraph, poison: Poison, index: int) -> Step:
        """The step of an index, counted from 0."""
        batch = torch.from_numpy(self.batches[index]).to(self.device)
        return Step.of_run(
            graph, poison, index, batch, self.updates[index], self.training.has_momentum
        )


class RunInProgress(ABC):
    """A certification in progress: one call of :meth:`advance` for each training step.

    Attributes:
        graph, order: of the run on the data as given.
        deadline: a time of ``time.monotonic``; None for no limit.
    """

    def __init__(
        self, task: Task, plan: Plan, graph: StepGraph, order: NodeOrder, remarks: Remarks
    ) -> None:
        self.task, self.plan, self.graph, self.order = task, plan, graph, order
        self.nominal = {n: v.to(task.device) for n, v in task.step_graph.initial.items()}
        if task.training.has_momentum:
            for name in graph.parameters:
                self.nominal[velocity_of(name)] = torch.zeros_like(self.nominal[name])
        self.records: list[StepRecord] = []
        self.notes = Notes.of(remarks)
        limit = task.options.time_limit
        self.deadline = None if limit is None else task.begun + limit

    @abstractmethod
    def advance(self) -> None:
        """Bound one more step. Raises SoundnessError: an empty meet, or the nominal run outside its box;
        EncodingError: an infeasible program; InvalidInputError: a nominal run that does not stay
        finite."""

    @abstractmethod
    def result(self) -> Result:
        """The result proved so far."""

    @abstractmethod
    def _kept(self) -> dict[str, Any]:
        """What a snapshot keeps of the sets, as plain values."""

    def snapshot(self) -> Snapshot:
        """All that ``restore`` needs to resume from here; holds references, copies nothing."""
        state = {
            **self._kept(),
            "nominal": dict(self.nominal),
            "records": [asdict(record) for record in self.records],
            **asdict(self.notes),
        }
        return Snapshot(len(self.records), state)

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot of this run: the same bits."""
        state = snapshot.state
        self.nominal = dict(state["nominal"])
        self.records = [StepRecord(**record) for record in state["records"]]
        self.notes.restore(state)
        if self.deadline is not None:
            self.deadline -= sum(record.seconds for record in self.records)

    def _advance_nominal(self, step: Step, box: State, checked: Sequence[str]) -> None:
        """Train on the data as given; parameters and velocities of some names must lie in a box."""
        data = step.poison
        self.nominal = step_at_points(
            self.graph, self.order, self.nominal, data.features, data.labels, step.update
        )
        if not all(bool(torch.isfinite(v).all()) for v in self.nominal.values()):
            raise InvalidInputError(
                "The nominal training run must stay finite",
                f"a parameter that is infinite or not a number after step {step.index + 1}",
                "lower the learning rate or scale the data",
            )
        for name in checked:
            if not box[name].contains(self.nominal[name].unsqueeze(0)):
                raise SoundnessError(
                    f"The nominal run must stay inside the reachable set at step {step.index + 1}",
                    f"'{name}' outside its box",
                    "please report this run",
                )

    def _record(
        self,
        step: Step,
        box: State,
        started: float,
        relaxation: str,
        adversary: str,
        chains: Mapping[str, float] | None = None,
        program: Mapping[str, int] | None = None,
    ) -> None:
        """Record a finished step that began at a time of ``time.perf_counter``."""
        flat = torch.cat([box[name].width.flatten() for name in self.graph.parameters])
        mean, spent = float(flat.mean()), time.perf_counter() - started
        chains = {relaxation: mean} if chains is None else chains
        self.records.append(
            StepRecord(
                step.index + 1,
                mean,
                float(flat.max()),
                spent,
                relaxation,
                adversary,
                step.size,
                chains,
                program,
            )
        )

    def _nominal_parameters(self) -> dict[str, Tensor]:
        return {name: self.nominal[name] for name in self.graph.parameters}

    def _result(self, models: ReachableModels, helps: tuple[str, ...] = ()) -> Result:
        task, graph = self.task, models.step_graph
        if self.deadline is not None:
            limit = task.options.time_limit or 0.0
            left = max(QUESTIONS_SHARE * limit, self.deadline - time.monotonic())
            models = replace(models, seconds=left)
        return Result(
            reachable=reachable_of(graph, models.state, self.nominal),
            steps=tuple(self.records),
            total_steps=self.plan.steps,
            relaxation=self.plan.asked,
            notes=tuple(self.notes.notes),
            fallbacks=tuple(self.notes.fallbacks),
            limit_reached=self.notes.limit_reached,
            threat=task.claim,
            assumptions=assumptions_of(task.caution, graph.precision),
            models=models,
            origin=task.origin,
            caution=task.caution,
            helps=helps,
            settings=settings(task, self.plan, graph.precision),
            run=task.words,
        )


def settings(task: Task, plan: Plan, precision: Precision) -> dict[str, Any]:
    """How a run is trained and bounded, as plain values for files and readers, not for comparing runs.

    Recorded batches are counted, not listed.
    """
    training, part = task.training, task.restriction
    trained = {each.name: getattr(training, each.name) for each in fields(training) if each.repr}
    if training.batches is not None:
        trained["batches"] = f"{plan.steps} recorded"
    chosen = plan.selections
    told = {
        "listed": chosen.data_sets > 0,
        "joint": chosen.data_sets == 0,
        "enumerated": chosen.groups > 0 and chosen.data_sets == 0,
    }
    partly = {
        "initial": "boxes" if any(not box.is_point for box in task.initial.values()) else "",
        "restriction": "" if part == UNRESTRICTED else "a part of the threat",
    }
    return {
        "training": {name: _plain(value) for name, value in trained.items() if value is not None},
        "certify": {
            "relaxation": plan.asked,
            "window": plan.window,
            "program_window": plan.program_window,
            "inner_bounds": "linear" if plan.linear_inner else "interval",
            "selections": ", ".join(name for name, used in told.items() if used),
            "precision": precision.name,
            **{name: said for name, said in partly.items() if said},
        },
    }


def _plain(value: object) -> object:
    """Numbers and texts unchanged, sequences as lists, anything else as text."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Sequence):
        return [_plain(item) for item in value]
    return str(value)
