"""The certification loop: one training step after the other, every level carrying the looser ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from milp_agt import cost, frozen, inputs
from milp_agt.attacks import Attacker, Search
from milp_agt.attacks.unrolled import Unrolled, check_moves
from milp_agt.checkpoint import Checkpoint, Snapshot, pack, unpack
from milp_agt.core.interval import Interval
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.results import Limits
from milp_agt.engines import inner, interval, linear, program
from milp_agt.engines.cases import Enumerated, enumerate_cases
from milp_agt.engines.exposure import Exposure
from milp_agt.engines.joint import Joint
from milp_agt.engines.recorder import NullRecorder, Recorder
from milp_agt.engines.relaxed import RelaxedStep, relax_step, settle
from milp_agt.engines.step import (
    Schedule,
    State,
    Step,
    initial_state,
    step_at_points,
    union,
    velocity_of,
)
from milp_agt.engines.update import UpdateGraph
from milp_agt.errors import InvalidInputError, SolverUnavailableError, SoundnessError
from milp_agt.identity import identity
from milp_agt.poison import Poison
from milp_agt.properties.models import Reached
from milp_agt.reachable import StepRecord
from milp_agt.result import Result
from milp_agt.solvers import Capability, choose
from milp_agt.solvers.base import Solver
from milp_agt.threats import ThreatModel
from milp_agt.tracing import StepGraph, trace
from milp_agt.training import Batch, Training
from milp_agt.whole_samples import with_exchanges

# Cases share the rounding errors of their largest: beyond this they would spoil each other.
TAME = 1e6
ENUMERATED = "linear, each selection"

# Ranges beyond this are left to the cheaper relaxation.
PROGRAM_RANGE_LIMIT = program.RANGE_LIMIT
OnStep = Callable[[Result, int, int], None]


def certify(
    model: nn.Module,
    data: tuple[inputs.ArrayLike, inputs.ArrayLike],
    training: Training,
    threat: ThreatModel,
    *,
    relaxation: str = "linear",
    window: int | None = None,
    program_window: int | None = None,
    inner_bounds: str | None = None,
    selections: str | None = None,
    solver: str | None = None,
    device: str = "cpu",
    memory: str | int = "4GiB",
    time_limit: float | None = None,
    solve_limits: Limits | None = None,
    workers: int = 1,
    initial: Mapping[str, tuple[inputs.ArrayLike, inputs.ArrayLike]] | None = None,
    on_step: OnStep | None = None,
    restriction: Restriction = UNRESTRICTED,
    recorder: Recorder | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    attack: bool | Search = False,
) -> Result:
    """Bound all parameters that training could reach under a threat model.

    Guarantee: the parameters of every float64 training run on data that the threat model admits lie
    in ``result.reachable``; what is assumed stands in ``result.assumptions``.

    Args:
        model: a torch module of supported layers; copied, never changed.
        data: features (n, *shape) and labels: classes (n,), or targets (n,) or (n, outputs).
        training: the run.
        threat: what the adversary may change.
        relaxation: interval, linear, lp, milp, qcqp, miqp, or auto (the tightest whose predicted cost fits
            ``time_limit`` and ``memory``; what was picked and why stands in ``result.fallbacks``).
        window: past steps that linear forms are walked through; None for all.
        program_window: steps in one program; None for ``window`` if that is given, else 1.
        inner_bounds: how the ranges inside a step are bounded in linear and above: "interval", "linear"
            (through the window, conditional on the sample being poisoned), or None, linear where its
            predicted cost is small.
        selections: "joint" bounds all choices of poisoned samples at once, "enumerated" carries a box for
            each choice beside it and takes the union (linear and above; budgets for the data set),
            None enumerates where that is predicted to be cheap.
        solver: back end of programs; None picks the first that is able to for each level.
        device: "cpu", "cuda" or "auto".
        memory: budget for the tensors of one pass; rows and samples are cut into pieces by it.
        time_limit: seconds for the whole run; when it is over, the remaining steps use the interval
            relaxation, and the result says so.
        solve_limits: limits of each solve of a program.
        workers: processes that solve programs, by joblib; inside ``joblib.parallel_config`` its backend
            (dask, ray) spreads them over machines. What a worker that dies twice leaves open keeps the
            cheaper bound.
        initial: boxes of theta_0 by parameter name, where it is not a point.
        on_step: called with (result so far, finished steps, all steps) after every step.
        restriction: bound only the attacks that a node of branch and bound admits.
        recorder: receives what every bound was made of.
        checkpoint: a folder in which the run is kept after every step. Where it holds a checkpoint of
            this very run, the run goes on from there, to the same numbers bit for bit on the same
            machine with as many threads; of another run, it is refused.
        attack: True, or the settings of a search: when the bounds are done, attack the run as well, so
            that ``result.attack`` and ``result.sandwich`` say what an adversary really reaches.

    Raises:
        InvalidInputError, InvalidThreatModelError, UnsupportedOperationError,
        SolverUnavailableError: see the message.
        SoundnessError, EncodingError: a bug; the run is stopped rather than certified.
    """
    target = inputs.device_of(device)
    inputs.warn_of_float32(model, data[0])
    features = inputs.features_of(data[0])
    step_graph = trace(model, training.loss, tuple(features.shape[1:]), training.clipping)
    labels = inputs.labels_of(data[1], len(features), step_graph.loss, step_graph.outputs)
    raw = threat.bind(features, labels, step_graph.loss)
    step_graph = with_exchanges(step_graph, raw)
    if attack is not False:
        check_moves(raw)
    head, poison, given_away = frozen.split(step_graph, raw)
    batches = training.batch_order(len(features))
    plan = cost.plan(
        head,
        batches,
        poison,
        training,
        relaxation,
        window,
        program_window,
        inner_bounds,
        selections,
        restriction,
        memory,
        time_limit,
    )
    initial_box = inputs.initial_box(step_graph, initial)
    solvers = _solvers(plan, solver)
    run = Run(
        step_graph=step_graph.to(target),
        head=head.to(target),
        notes=given_away,
        training=training,
        poison=poison.to(target),
        plan=plan,
        solvers=solvers,
        initial=initial_box,
        claim=threat.describe(),
        deadline=None if time_limit is None else time.monotonic() + time_limit,
        solve_limits=solve_limits or Limits(),
        workers=_workers(workers),
        restriction=restriction,
        recorder=recorder or NullRecorder(),
    )
    keeper: Checkpoint | None = None
    if checkpoint is not None:
        keeper = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
        stored = keeper.open(
            identity(
                step_graph=step_graph,
                poison=poison,
                threat=threat.describe(),
                training=training,
                batches=batches,
                initial=initial_box,
                plan=plan,
                solver=solvers.get(plan.relaxation),
                limits=run.solve_limits,
                restriction=restriction,
                device=str(target),
            ),
            target,
        )
        if stored is not None:
            if recorder is not None:
                raise InvalidInputError(
                    "A recorder needs every step of a run",
                    f"a checkpoint after step {stored.step}, which keeps no evidence",
                    "leave out the recorder, or begin anew in another folder",
                )
            run.restore(stored, batches)
    result = _finish(run, batches, keeper, on_step)
    if attack is False:
        return result
    unrolled = Unrolled.of(run.step_graph, training, raw.to(target))
    search = Search() if attack is True else attack
    with _threads(plan.single_thread):
        return result.attacked(Attacker(unrolled, search, restriction))


def _finish(
    run: Run, batches: Sequence[Batch], keeper: Checkpoint | None, on_step: OnStep | None
) -> Result:
    """Take all steps that are left, and keep each before the next begins."""
    result = run.result()
    try:
        for index in range(len(run.records), len(batches)):
            with _threads(run.plan.single_thread):
                run.advance(torch.from_numpy(batches[index]).to(run.poison.features.device))
            result = run.result()
            if keeper is not None:
                keeper.step(run.snapshot())
            if on_step is not None:
                on_step(result, index + 1, len(batches))
    finally:
        if keeper is not None:
            keeper.flush()
    return result


@contextmanager
def _threads(single: bool) -> Iterator[None]:
    """Small tensors on one thread; what the caller had set comes back."""
    before = torch.get_num_threads()
    if single:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _solvers(plan: cost.Plan, name: str | None) -> dict[Relaxation, Solver]:
    """A solver for each level of the chain that solves; unasked, the first that is able to."""
    if name is not None and not plan.relaxation.uses_programs and plan.asked != "auto":
        raise InvalidInputError(
            f"Solver '{name}' was asked for",
            f"relaxation '{plan.relaxation.value}', which solves nothing",
            "use relaxation 'lp' or 'milp', or leave the solver out",
        )
    return {
        level: choose(name, _needed(level))
        for level in plan.relaxation.chain()
        if level.uses_programs
    }


def _workers(count: int) -> int:
    if count < 1:
        raise InvalidInputError(
            "Programs are solved by at least one worker", f"workers = {count}", "give workers=1"
        )
    return count


def _needed(level: Relaxation) -> Capability:
    needed = Capability.MIP if level.exact_phases else Capability.LP
    return needed | Capability.QCP if level.exact_products else needed


@dataclass
class _Part:
    """Boxes that one exposure leads to, with the steps that its window keeps."""

    name: str
    exposure: Exposure
    state: State
    window: list[RelaxedStep] = field(default_factory=list)

    def key(self, step: int) -> str:
        """Name of a step of the window in a snapshot."""
        return f"{self.name}-{step + 1:06d}"


@dataclass
class _Chain:
    """The reachable sets of one level: the union of its parts."""

    name: str
    level: Relaxation
    parts: list[_Part]

    @property
    def looser(self) -> tuple[str, ...]:
        """Chains whose boxes hold those of this one."""
        if self.name == ENUMERATED:
            return (Relaxation.LINEAR.value,)
        names = tuple(level.value for level in self.level.looser)
        return (*names, ENUMERATED) if self.level.uses_programs else names

    @property
    def state(self) -> State:
        """One box for all cases of all parts."""
        return union([part.state for part in self.parts])


def _after(
    part: _Part, update: UpdateGraph, step: Step, before: State, looser: Sequence[State]
) -> State:
    """The state of a part at the end of a step: projected, or as it was where all samples are removed."""
    new, empty = update.projected(part.state), part.exposure.emptied(step)
    if empty is None:
        return new
    new = empty.merged(before, new)
    for state in looser:
        new = {n: b.meet(state[n], f"'{n}' by two chains") for n, b in new.items()}
    return new


class Run:
    """A certification in progress: one call of :meth:`advance` for each training step."""

    def __init__(
        self,
        *,
        step_graph: StepGraph,
        head: StepGraph,
        notes: tuple[str, ...],
        training: Training,
        poison: Poison,
        plan: cost.Plan,
        solvers: Mapping[Relaxation, Solver],
        initial: Mapping[str, Interval],
        claim: str,
        deadline: float | None,
        solve_limits: Limits,
        workers: int,
        restriction: Restriction,
        recorder: Recorder,
    ) -> None:
        self.step_graph, self.training, self.poison, self.plan = step_graph, training, poison, plan
        self.schedule = Schedule.of(head)
        self.solvers, self.deadline, self.solve_limits = solvers, deadline, solve_limits
        self.workers = workers
        self.restriction, self.recorder, self.claim = restriction, recorder, claim
        device = poison.features.device
        box = {n: Interval(b.lower.to(device), b.upper.to(device)) for n, b in initial.items()}
        start = initial_state(step_graph, box, training.momentum > 0)
        joint = Joint(poison, restriction)
        self.chains = [
            _Chain(level.value, level, [_Part(level.value, joint, start)])
            for level in plan.relaxation.chain()
        ]
        if plan.case_groups:
            self.chains.insert(2, self._enumerated(start))
        self.nominal: dict[str, Tensor] = {n: v.to(device) for n, v in step_graph.initial.items()}
        if training.momentum > 0:
            for name in step_graph.parameters:
                self.nominal[velocity_of(name)] = torch.zeros_like(self.nominal[name])
        self.updates = training.update_rules(plan.steps)
        self.records: list[StepRecord] = []
        dropped = poison.notes(plan.relaxation.uses_programs)
        self.fallbacks: list[str] = [*notes, *plan.notes, *dropped]
        self.limit_reached = False

    def _enumerated(self, start: State) -> _Chain:
        """A chain with a box for every selection, in groups that fit the memory budget."""
        listed = enumerate_cases(self.poison, self.restriction)
        count = len(listed) - 1
        size = max(1, -(-count // self.plan.case_groups))
        parts: list[_Part] = []
        for first in range(0, count, size):
            exposure = Enumerated(self.poison, listed.part(slice(first, first + size)))
            state = {n: b.expand_states(exposure.cases) for n, b in start.items()}
            parts.append(_Part(f"selections-{len(parts)}", exposure, state))
        return _Chain(ENUMERATED, Relaxation.LINEAR, parts)

    def advance(self, batch: Tensor) -> None:
        """Bound one more step.

        Raises:
            SoundnessError: an empty meet, or the nominal run outside its box.
            EncodingError: an infeasible program.
        """
        started = time.perf_counter()
        index = len(self.records)
        step = self._step(index, batch)
        outer: State | None = None
        used, widths = Relaxation.INTERVAL, {}
        report: program.ProgramReport | None = None
        states: dict[str, State] = {}  # before the projection, if there is one
        update = UpdateGraph.of(self.schedule.gradients, step)
        before = {part.name: part.state for part in self._parts()}
        after: dict[str, State] = {}  # at the end of the step, by chains and by their parts
        settled: State = {}
        for chain in list(self.chains):
            if self._out_of_time(chain.level, index) and outer is not None:
                # The looser chain's box is a valid start for this one, should there be more time.
                self._restart(chain, outer)
                states[chain.name] = outer
                for part in chain.parts:
                    after[part.key(index)] = {
                        n: b.expand_states(part.exposure.cases) for n, b in settled.items()
                    }
                continue
            for part in chain.parts:
                state, solved = self._bound(chain, part, step)
                report = solved or report
                skipping = part.exposure.emptied(step) is not None  # met in _after instead
                for name in chain.looser:
                    if name in states and not skipping:
                        what = f"by {chain.name} and below"
                        state = {
                            n: b.meet(states[name][n], f"'{n}' {what}") for n, b in state.items()
                        }
                part.state = state
            states[chain.name] = outer = chain.state
            used = chain.level if solved or not chain.level.uses_programs else used
            for part in chain.parts:
                looser = [after[name] for name in chain.looser if name in after]
                after[part.key(index)] = _after(part, update, step, before[part.name], looser)
            settled = union([after[part.key(index)] for part in chain.parts])
            after[chain.name] = settled
            self.recorder.state(index, chain.name, settled)
            widths[chain.name] = self._mean_width(settled)
            if chain.name == ENUMERATED and not self._is_tame(outer):
                self.fallbacks.append(
                    f"step {index + 1}: a selection leads to parameters beyond {TAME:.0e}; from here "
                    "on selections are bounded jointly"
                )
                self.chains.remove(chain)
        self._settle(update, step, after)
        self._advance_nominal(step, settled)
        flat = torch.cat([settled[n].width.flatten() for n in self.step_graph.parameters])
        self.records.append(
            StepRecord(
                step=index + 1,
                mean_width=float(flat.mean()),
                max_width=float(flat.max()),
                seconds=time.perf_counter() - started,
                relaxation=used.value,
                adversary=self._adversary(),
                batch=step.size,
                chains=widths,
                program=_counts(report),
            )
        )

    def _settle(self, update: UpdateGraph, step: Step, after: Mapping[str, State]) -> None:
        """End the step, now that all levels have bounded it."""
        for part in self._parts():
            if update.projections and part.window:
                part.window[-1] = settle(part.window[-1], part.state, part.exposure.cases)
            part.state = after[part.key(step.index)]
            if part.exposure.emptied(step) is not None:
                part.window = []
                self._note_skip(step)

    def _note_skip(self, step: Step) -> None:
        note = (
            "batches that may lose all their samples skip their steps then: linear forms and programs "
            f"start anew after each (first at step {step.index + 1})"
        )
        if not any(known.startswith(note[:40]) for known in self.fallbacks):
            self.fallbacks.append(note)

    def _step(self, index: int, batch: Tensor) -> Step:
        return Step(
            index, batch, self.poison.take(batch), self.updates[index], self.training.momentum > 0
        )

    @staticmethod
    def _restart(chain: _Chain, outer: State) -> None:
        for part in chain.parts:
            part.state = {n: b.expand_states(part.exposure.cases) for n, b in outer.items()}
            part.window = []

    @staticmethod
    def _is_tame(state: State) -> bool:
        return all(bool((box.magnitude <= TAME).all()) for box in state.values())

    def _bound(
        self, chain: _Chain, part: _Part, step: Step
    ) -> tuple[State, program.ProgramReport | None]:
        """The box of the next state by one level, before the meet with looser chains."""
        keep = chain.level is not Relaxation.INTERVAL
        ranges = self._ranges(part, step, keep)
        state = interval.update(self.step_graph, part.state, ranges, step)
        if not keep:
            return state, None
        kept = self._relax(part.exposure, part.state, step, ranges)
        part.window = [*part.window, kept][-self.plan.longest_window :]
        self.recorder.step(chain.name, kept)
        walked = linear.bound_state(
            self.step_graph,
            self.schedule,
            part.window[-self.plan.window :],
            part.exposure,
            self.plan.chunk,
        )
        state = {n: b.meet(walked[n], f"'{n}' by interval and linear") for n, b in state.items()}
        if not chain.level.uses_programs:
            return state, None
        return self._solve(chain, part, step, state)

    def _ranges(self, part: _Part, step: Step, keep: bool) -> interval.Ranges:
        enumerated = part.exposure.cases > 1
        if keep and (self.plan.case_inner if enumerated else self.plan.linear_inner):
            past = part.window[max(0, len(part.window) - self.plan.window + 1) :]
            walks = inner.Walks(
                self.step_graph, self.schedule, past, part.exposure, self.plan.inner_chunk
            )
            return inner.propagate(walks, part.state, step)
        fragment = None if keep else self.plan.fragment
        return interval.propagate(
            self.schedule, part.state, step, part.exposure, fragment=fragment, keep=keep
        )

    def _solve(
        self, chain: _Chain, part: _Part, step: Step, state: State
    ) -> tuple[State, program.ProgramReport | None]:
        window = part.window[-self.plan.program_window :]
        largest = max(
            float(box.magnitude.max())
            for relaxed in window
            for box in relaxed.ranges.boxes.values()
        )
        if not largest <= PROGRAM_RANGE_LIMIT:
            self.fallbacks.append(
                f"step {step.index + 1}: ranges up to {largest:.1e} are beyond what a solver can take; "
                f"'{chain.level.value}' was left to the linear bounds"
            )
            return state, None
        encoded = program.encode_window(
            self.step_graph,
            self.schedule,
            window,
            self.poison,
            chain.level.exact_phases,
            self.restriction,
            chain.level.exact_products,
        )
        options = program.SolveOptions(
            self.solvers[chain.level],
            self.solve_limits,
            deadline=self.deadline,
            workers=self.workers,
        )
        try:
            state, report = program.bound_state(encoded, state, options)
        except SolverUnavailableError as error:  # a licence that is too small, say
            self.limit_reached = True
            self.fallbacks.append(
                f"step {step.index + 1}: '{chain.level.value}' was left to the cheaper bounds: {error}"
            )
            return state, None
        self.recorder.program(step.index, chain.name, report)
        if report.lost:
            self.limit_reached = True
            self.fallbacks.append(
                f"step {step.index + 1}: {report.lost} objectives of '{chain.level.value}' were lost with "
                "workers that died twice; they keep the cheaper bound"
            )
        if report.limited:
            self.limit_reached = True
            self.fallbacks.append(
                f"step {step.index + 1}: {report.limited} of {report.solves + report.limited} solves by "
                f"'{chain.level.value}' met a limit; their best dual bound counts, or the linear one"
            )
        return state, report

    def _out_of_time(self, level: Relaxation, index: int) -> bool:
        if self.deadline is None or level is Relaxation.INTERVAL:
            return False
        if time.monotonic() < self.deadline:
            return False
        self.limit_reached = True
        self.fallbacks.append(f"step {index + 1}: time limit, '{level.value}' left out")
        return True

    def _advance_nominal(self, step: Step, box: State) -> None:
        data = step.poison
        self.nominal = step_at_points(
            self.step_graph, self.schedule, self.nominal, data.features, data.labels, step.update
        )
        if not all(bool(torch.isfinite(v).all()) for v in self.nominal.values()):
            raise InvalidInputError(
                "The nominal training run must stay finite",
                f"a parameter that is infinite or not a number after step {step.index + 1}",
                "lower the learning rate or scale the data",
            )
        for name, value in self.nominal.items():
            if self.restriction is UNRESTRICTED and not box[name].contains(value.unsqueeze(0)):
                raise SoundnessError(
                    f"The nominal run must stay inside the reachable set at step {step.index + 1}",
                    f"'{name}' outside its box",
                    "please report this run",
                )

    def _mean_width(self, state: State) -> float:
        parts = [state[n].width.flatten() for n in self.step_graph.parameters]
        return float(torch.cat(parts).mean())

    def _adversary(self) -> str:
        when = "static" if self.poison.static else "adaptive"
        return f"{when}, {'batch' if self.poison.per_batch else 'dataset'}"

    def snapshot(self) -> Snapshot:
        """What :meth:`restore` needs to go on from here; holds references, copies nothing."""
        parts = {
            part.key(relaxed.step.index): {
                "state": pack(relaxed.state),
                "boxes": pack(relaxed.ranges.boxes),
                "sums": dict(relaxed.ranges.sums),
            }
            for part in self._parts()
            for relaxed in part.window
        }
        state = {
            "chains": {
                part.name: {
                    "state": pack(part.state),
                    "window": [relaxed.step.index for relaxed in part.window],
                }
                for part in self._parts()
            },
            "nominal": dict(self.nominal),
            "records": [asdict(record) for record in self.records],
            "fallbacks": list(self.fallbacks),
            "limit_reached": self.limit_reached,
        }
        return Snapshot(len(self.records), state, parts)

    def restore(self, snapshot: Snapshot, batches: Sequence[Batch]) -> None:
        """Go on from a snapshot of this very run: the same boxes, and the same planes made anew."""
        state = snapshot.state
        self.chains = [c for c in self.chains if c.parts[0].name in state["chains"]]
        for part in self._parts():
            kept = state["chains"][part.name]
            part.state = unpack(kept["state"])
            part.window = [
                self._relaxed(snapshot.parts[part.key(index)], part.exposure, index, batches)
                for index in kept["window"]
            ]
        self.nominal = dict(state["nominal"])
        self.records = [StepRecord(**record) for record in state["records"]]
        self.fallbacks = list(state["fallbacks"])
        self.limit_reached = state["limit_reached"]
        if self.deadline is not None:
            self.deadline -= sum(record.seconds for record in self.records)

    def _parts(self) -> Iterator[_Part]:
        for chain in self.chains:
            yield from chain.parts

    def _relaxed(
        self, kept: Mapping[str, Any], exposure: Exposure, index: int, batches: Sequence[Batch]
    ) -> RelaxedStep:
        """A step of a window from its ranges: slopes and offsets follow from them."""
        step = self._step(index, torch.from_numpy(batches[index]).to(self.poison.features.device))
        ranges = interval.Ranges(unpack(kept["boxes"]), dict(kept["sums"]))
        state = unpack(kept["state"])
        return self._relax(exposure, state, step, ranges)

    def _relax(
        self, exposure: Exposure, state: State, step: Step, ranges: interval.Ranges
    ) -> RelaxedStep:
        kept = relax_step(self.schedule, state, step, ranges, exposure, self.plan.walk_fragment)
        return linear.with_cuts(self.step_graph, self.schedule, kept) if self.plan.cuts else kept

    def _reached(self) -> Iterator[Reached]:
        """The boxes of the tightest chain; each selection's own where there are any."""
        last = self.chains[-1]
        outer = last.state
        for chain in self.chains:
            if chain.name == ENUMERATED:
                last = chain
        for part in last.parts:
            window = tuple(part.window[-self.plan.window :])
            state = {n: b.meet(outer[n], f"'{n}' of two chains") for n, b in part.state.items()}
            yield Reached(state, window, part.exposure)

    def _program(self) -> program.WindowProgram | None:
        """The last program of the tightest chain, for questions about the model."""
        chain = self.chains[-1]
        if not chain.level.uses_programs or not self.records:
            return None
        window = chain.parts[0].window[-self.plan.program_window :]
        if not window or self.records[-1].relaxation != chain.level.value:
            return None  # the last step was left to cheaper bounds, and so are questions
        return program.WindowProgram(
            self.step_graph,
            self.schedule,
            window,
            chain.state,
            self.poison,
            self.restriction,
            chain.level.exact_phases,
            chain.level.exact_products,
            program.SolveOptions(
                self.solvers[chain.level], self.solve_limits, workers=self.workers
            ),
        )

    def result(self) -> Result:
        """What is proved so far."""
        return Result.of(
            step_graph=self.step_graph,
            schedule=self.schedule,
            reached=tuple(self._reached()),
            program=self._program(),
            nominal=self.nominal,
            steps=tuple(self.records),
            total_steps=self.plan.steps,
            relaxation=self.plan.asked,
            fallbacks=tuple(self.fallbacks),
            limit_reached=self.limit_reached,
            threat=self.claim,
        )


def _counts(report: program.ProgramReport | None) -> Mapping[str, int] | None:
    if report is None:
        return None
    return {
        **report.size,
        "solves": report.solves,
        "skipped": report.skipped,
        "limited": report.limited,
        "lost": report.lost,
    }
