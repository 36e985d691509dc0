"""Certificates of finite threats: the run on every data set that the adversary can make."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import overload

import torch
from torch import Tensor

from milp_agt.bounds.listed import (
    ListedChoices,
    ListedData,
    ListedRuns,
    begin,
    count_choices,
    hull,
    list_choices,
    net_of,
    refitted,
)
from milp_agt.bounds.step import NodeOrder, Step, initial_state, step_at_points
from milp_agt.certification.checkpoint import Snapshot
from milp_agt.certification.fingerprint import settings
from milp_agt.certification.options import CertifyOptions
from milp_agt.certification.planning import Plan
from milp_agt.certification.result import Result
from milp_agt.certification.sizes import DEARER_BOXES, LIVE_STATES, TRAINED_PER_SECOND
from milp_agt.core.interval import Interval
from milp_agt.core.reachable import StepRecord
from milp_agt.core.remarks import Notes, Remarks
from milp_agt.core.restriction import Restriction
from milp_agt.core.rounding import FLOAT64
from milp_agt.data.origin import Origin
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.properties.models import Reached
from milp_agt.threats.poison import Poison
from milp_agt.training.inputs import bytes_of
from milp_agt.training.run_words import run_in_words
from milp_agt.training.tracing import StepGraph
from milp_agt.training.training import Batch, Training

LISTED = "listed"
# Without a time limit listing is a default where it is predicted to take at most this many seconds.
LISTING_TIME = 60.0
# Most data sets, whatever they cost: their list is made in one go.
MOST_CHOICES = 2e7
# Runs whose rounding gets larger than CAREFUL are bounded again with more care. The list is given up if the
# box of one stays wider than LOST, beside its largest parameter or 1.
CAREFUL, LOST = 1e-6, 1e-3


@dataclass(frozen=True)
class Listing:
    """All that a run over listed data sets starts from."""

    choices: ListedChoices
    plain: StepGraph
    exchanged: StepGraph
    initial: Mapping[str, Interval]


def chosen(
    plain: StepGraph,
    exchanged: StepGraph,
    poison: Poison,
    training: Training,
    batches: Sequence[Batch],
    options: CertifyOptions,
    plan: Plan,
    restriction: Restriction,
    initial: Mapping[str, Interval],
) -> tuple[Listing | None, Remarks]:
    """The list of a finite threat, where the options leave it open or ask for it, and it fits.

    Below programs ``selections="enumerated"`` asks for it. By default it is taken at ``linear`` and
    ``auto`` where it is predicted to take at most a minute, or half of the time limit if that is more.
    """
    asked = options.selections == "enumerated"
    programs = plan.relaxation.uses_programs and plan.asked != "auto"
    default = options.selections is None and plan.asked in ("linear", "auto")
    points = all(box.is_point for box in initial.values())
    if programs or not (asked or default) or not points or exchanged.precision != FLOAT64:
        return None, Remarks()
    if asked and not plan.relaxation.walks:
        return None, Remarks()
    count = count_choices(poison, restriction)
    if math.isinf(count):
        return None, Remarks()
    states = plain.parameter_count * (2 if training.has_momentum else 1)
    needed = 8 * LIVE_STATES * states * count
    nodes = sum(n.signature.size for n in plain.graph if n.batched) * sum(map(len, batches))
    seconds = count * nodes / TRAINED_PER_SECOND
    if net_of(plain, training.update_rules(len(batches))) is None:
        seconds *= DEARER_BOXES
    limit = LISTING_TIME if options.time_limit is None else options.time_limit / 2
    if asked and options.time_limit is None:
        limit = math.inf
    room = bytes_of(options.memory) // 2
    if count > MOST_CHOICES or needed > room or seconds > limit:
        line = (
            f"the {count:.4g} data sets that the adversary can make are not listed: about {seconds:.3g} s "
            f"and {needed / 2**20:.3g} MiB, more than {limit:.3g} s or {room / 2**20:.3g} MiB; "
            "selections='enumerated' or a longer time_limit, and memory, have them listed"
        )
        return None, Remarks(fallbacks=(line,)) if asked else Remarks(notes=(line,))
    return Listing(list_choices(poison, restriction), plain, exchanged, initial), Remarks()


class ListedReached(Sequence[Reached]):
    """The boxes of all runs, made anew whenever they are read."""

    def __init__(self, runs: ListedRuns, parameters: tuple[str, ...]) -> None:
        self.runs, self._parameters = runs, parameters

    def __len__(self) -> int:
        return len(self.runs.parts)

    @overload
    def __getitem__(self, index: int) -> Reached: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Reached]: ...
    def __getitem__(self, index: int | slice) -> Reached | Sequence[Reached]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        part = self.runs.parts[index]
        boxes = self.runs.boxes(part)
        state = {name: boxes[name] for name in self._parameters}
        return Reached(state, (), ListedData(self.runs.choices, part), single_runs=True)

    def __iter__(self) -> Iterator[Reached]:
        return (self[k] for k in range(len(self)))


class ListedRun:
    """A certification in progress that trains on every data set: a call of :meth:`advance` per step.

    Attributes:
        gave_up: why listing ends before the run does; None as long as it goes on.
        out_of_time: whether a time limit is the reason.
    """

    def __init__(
        self,
        *,
        listing: Listing,
        training: Training,
        batches: Sequence[Batch],
        plan: Plan,
        claim: str,
        options: CertifyOptions,
        begun: float,
        remarks: Remarks,
        origin: Origin | None = None,
        caution: str = "",
    ) -> None:
        self.listing, self.training, self.plan = listing, training, plan
        self.poison = listing.choices.poison
        self.claim, self.origin, self.caution = claim, origin, caution
        device = self.poison.features.device
        updates = training.update_rules(plan.steps)
        order = (torch.from_numpy(batch).to(device) for batch in batches)
        self.steps = [
            Step.of_run(listing.plain, self.poison, t, batch, updates[t], training.has_momentum)
            for t, batch in enumerate(order)
        ]
        start = initial_state(listing.exchanged, listing.initial, training.has_momentum)
        self.runs = begin(listing.plain, listing.exchanged, listing.choices, start, self.steps)
        self.nominal = {name: box.lower[0] for name, box in start.items()}
        self.schedule = NodeOrder.of(listing.exchanged)
        self.plain_order = NodeOrder.of(listing.plain)
        self.records: list[StepRecord] = []
        self.notes = Notes.of(remarks)
        self.gave_up: str | None = None
        self.out_of_time = False
        limit = options.time_limit
        self.deadline = None if limit is None else begun + limit
        self.box = start

    def advance(self, batch: Tensor) -> None:
        """Train all runs for one more step.

        Raises:
            SoundnessError: the nominal run outside the boxes.
            InvalidInputError: a nominal run that does not stay finite.
        """
        started = time.perf_counter()
        step = self.steps[len(self.records)]
        self.runs = self.runs.advanced(step)
        last = step.index + 1 == self.plan.steps
        if last:
            self.runs = refitted(self.runs, self.steps, CAREFUL)
        self.box = hull(self.runs)
        self._advance_nominal(step)
        widths = [self.box[n].width.flatten() for n in self.listing.plain.parameters]
        flat = torch.cat(widths)
        self.records.append(
            StepRecord(
                step=step.index + 1,
                mean_width=float(flat.mean()),
                max_width=float(flat.max()),
                seconds=time.perf_counter() - started,
                relaxation=LISTED,
                adversary="static, dataset",
                batch=len(batch),
                chains={LISTED: float(flat.mean())},
            )
        )
        self._judge(last)

    def _judge(self, last: bool) -> None:
        """Give up where rounding has got too large, or time too short; say what was done at the end."""
        rounding = max(_widest(reached.state) for reached in self._reached) if last else 0.0
        if last and not rounding <= LOST:
            self.gave_up = (
                f"the data sets were listed, but rounding makes the box of one run {rounding:.2g} wide: "
                "the threat is bounded without its list"
            )
            return
        if last:
            self.notes.note(
                f"every choice of the adversary was trained on: {len(self.runs.choices):,} data sets, "
                f"each run with its rounding, in boxes at most {rounding:.2g} wide"
            )
        if self.deadline is None or last:
            return
        spent = sum(record.seconds for record in self.records)
        needed = spent / len(self.records) * (self.plan.steps - len(self.records))
        if needed > self.deadline - time.monotonic():
            self.out_of_time = True
            self.gave_up = (
                f"step {len(self.records)}: time limit, the list of data sets is left out: about "
                f"{needed:.3g} s for the steps to come"
            )

    @property
    def _reached(self) -> ListedReached:
        return ListedReached(self.runs, self.listing.plain.parameters)

    def _advance_nominal(self, step: Step) -> None:
        data, graph = step.poison, self.listing.plain
        self.nominal = step_at_points(
            graph, self.plain_order, self.nominal, data.features, data.labels, step.update
        )
        if not all(bool(torch.isfinite(v).all()) for v in self.nominal.values()):
            raise InvalidInputError(
                "The nominal training run must stay finite",
                f"a parameter that is infinite or not a number after step {step.index + 1}",
                "lower the learning rate or scale the data",
            )
        for name in graph.parameters:
            if not self.box[name].contains(self.nominal[name].unsqueeze(0)):
                raise SoundnessError(
                    f"The nominal run must stay inside the reachable set at step {step.index + 1}",
                    f"'{name}' outside its box",
                    "please report this run",
                )

    def snapshot(self) -> Snapshot:
        """All that :meth:`restore` needs to resume from here."""
        state = {
            LISTED: self.runs.tensors(),
            "nominal": dict(self.nominal),
            "records": [asdict(record) for record in self.records],
            **asdict(self.notes),
        }
        return Snapshot(len(self.records), state)

    @staticmethod
    def holds(snapshot: Snapshot) -> bool:
        """Whether a snapshot is one of such a run."""
        return LISTED in snapshot.state

    def restore(self, snapshot: Snapshot, batches: Sequence[Batch]) -> None:
        """Resume from a snapshot of this run."""
        state = snapshot.state
        self.runs = self.runs.restored(state[LISTED])
        self.box, self.nominal = hull(self.runs), dict(state["nominal"])
        self.records = [StepRecord(**record) for record in state["records"]]
        self.notes.restore(state)
        if self.deadline is not None:
            self.deadline -= sum(record.seconds for record in self.records)

    def result(self) -> Result:
        """The result proved so far."""
        graph = self.listing.exchanged
        return Result.of(
            step_graph=graph,
            schedule=self.schedule,
            reached=self._reached,
            box={name: self.box[name] for name in graph.parameters},
            rows=self.plan.pieces.rows,
            nominal=self.nominal,
            steps=tuple(self.records),
            total_steps=self.plan.steps,
            relaxation=self.plan.asked,
            remarks=self.notes.remarks,
            limit_reached=self.notes.limit_reached,
            threat=self.claim,
            origin=self.origin,
            caution=self.caution,
            settings=settings(self.training, self.plan, graph.precision),
            run=run_in_words(self.training, self.plan.steps),
        )


def with_listing(plan: Plan, listing: Listing) -> Plan:
    """The plan of a run over the data sets of a list."""
    return replace(plan, selections=replace(plan.selections, data_sets=len(listing.choices)))


def _widest(boxes: Mapping[str, Interval]) -> float:
    """The largest width of a box beside the largest number in it, or 1; infinite for NaN."""
    widest = max(float(box.width.max()) for box in boxes.values())
    largest = max(float(box.magnitude.max()) for box in boxes.values())
    share = widest / max(1.0, largest)
    return share if share == share else math.inf
