"""Certificates of finite threats: the run on every data set that the adversary can make."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, overload

from milp_agt.bounds import listed
from milp_agt.bounds.step import NodeOrder
from milp_agt.certification.checkpoint import Snapshot
from milp_agt.certification.planning import Plan
from milp_agt.certification.result import Result
from milp_agt.certification.sizes import DEARER_BOXES, LIVE_STATES, TRAINED_PER_SECOND
from milp_agt.certification.task import RunInProgress, Task
from milp_agt.certification.worth import LISTED
from milp_agt.core.interval import Interval
from milp_agt.core.remarks import Remarks
from milp_agt.core.rounding import FLOAT64
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.reached import Reached
from milp_agt.training.inputs import bytes_of

# Without a time limit listing is a default where it is predicted to take at most this many seconds.
LISTING_TIME = 60.0
# Most data sets, whatever they cost: their list is made in one go.
MOST_CHOICES = 2e7
# Runs whose rounding gets larger than CAREFUL are bounded again with more care. The list is given up if the
# box of one stays wider than LOST, beside its largest parameter or 1.
CAREFUL, LOST = 1e-6, 1e-3


def chosen(task: Task, plan: Plan) -> tuple[listed.ListedChoices | None, Remarks]:
    """The list of a finite threat, where the options leave it open or ask for it, and it fits.

    Below programs ``selections="enumerated"`` asks for it. By default it is taken at ``linear`` and
    ``auto`` where it is predicted to take at most a minute, or the time limit if there is one; its first
    step tells whether that holds.
    """
    options, graph = task.options, task.traced
    asked = options.selections == "enumerated"
    programs = plan.relaxation.uses_programs and plan.asked != "auto"
    default = options.selections is None and plan.asked in ("linear", "auto")
    points = all(box.is_point for box in task.initial.values())
    if programs or not points or task.step_graph.precision != FLOAT64:
        return None, Remarks()
    if not (default or (asked and plan.relaxation.walks)):
        return None, Remarks()
    count = listed.count_choices(task.raw, task.restriction)
    if math.isinf(count):
        return None, Remarks()
    states = graph.parameter_count * (2 if task.training.has_momentum else 1)
    needed = 8 * LIVE_STATES * states * count
    nodes = sum(n.signature.size for n in graph.graph if n.batched) * sum(map(len, task.batches))
    seconds = count * nodes / TRAINED_PER_SECOND
    if listed.net_of(graph, task.updates) is None:
        seconds *= DEARER_BOXES
    limit = LISTING_TIME if options.time_limit is None else options.time_limit
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
    return listed.list_choices(task.raw, task.restriction), Remarks()


class ListedReached(Sequence[Reached]):
    """The boxes of all runs, made anew whenever they are read."""

    def __init__(self, runs: listed.ListedRuns, parameters: tuple[str, ...]) -> None:
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
        return Reached(state, (), listed.ListedData(self.runs.choices, part), single_runs=True)

    def __iter__(self) -> Iterator[Reached]:
        return (self[k] for k in range(len(self)))


class ListedRun(RunInProgress):
    """A certification that trains on every data set.

    Attributes:
        gave_up: why listing ends before the run does; None as long as it goes on.
        out_of_time: whether a time limit is the reason.
    """

    def __init__(
        self, task: Task, plan: Plan, choices: listed.ListedChoices, remarks: Remarks
    ) -> None:
        plan = replace(plan, selections=replace(plan.selections, data_sets=len(choices)))
        super().__init__(task, plan, task.traced, NodeOrder.of(task.traced), remarks)
        self.poison = choices.poison
        self.steps = [task.step(self.graph, self.poison, t) for t in range(plan.steps)]
        self.box = task.start
        self.runs = listed.begin(self.graph, task.step_graph, choices, self.box, self.steps)
        self.gave_up: str | None = None
        self.out_of_time = False

    def advance(self) -> None:
        """Train all runs for one more step."""
        started = time.perf_counter()
        step = self.steps[len(self.records)]
        self.runs = self.runs.advanced(step)
        last = step.index + 1 == self.plan.steps
        if last:
            self.runs = listed.refitted(self.runs, self.steps, CAREFUL)
        self.box = listed.hull(self.runs)
        self._advance_nominal(step, self.box, self.graph.parameters)
        self._record(step, self.box, started, LISTED, "static, dataset")
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
        return ListedReached(self.runs, self.graph.parameters)

    def _kept(self) -> dict[str, Any]:
        return {LISTED: self.runs.tensors()}

    @staticmethod
    def holds(snapshot: Snapshot) -> bool:
        """Whether a snapshot is one of such a run."""
        return LISTED in snapshot.state

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot of this run."""
        super().restore(snapshot)
        self.runs = self.runs.restored(snapshot.state[LISTED])
        self.box = listed.hull(self.runs)

    def result(self) -> Result:
        graph, nominal = self.task.step_graph, self._nominal_parameters()
        models = ReachableModels(
            graph,
            NodeOrder.of(graph),
            nominal,
            self._reached,
            rows=self.plan.pieces.rows,
            box={name: self.box[name] for name in graph.parameters},
        )
        return self._result(models)


def _widest(boxes: Mapping[str, Interval]) -> float:
    """The largest width of a box beside the largest number in it, or 1; infinite for NaN."""
    widest = max(float(box.width.max()) for box in boxes.values())
    largest = max(float(box.magnitude.max()) for box in boxes.values())
    share = widest / max(1.0, largest)
    return share if share == share else math.inf
