"""The loop of a certification: one training step after the other, bounded by each chain in turn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import Tensor

from milp_agt.bounds import program
from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.cells.plan import TreePlan
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.linear.linearized_step import LinearizedStep, settle
from milp_agt.bounds.step import NodeOrder, State, Step, initial_state, step_at_points, velocity_of
from milp_agt.bounds.zonotope import WILD, pack_forward, unpack_forward
from milp_agt.certification import carried, choosing, planning
from milp_agt.certification.bound_step import Bounder
from milp_agt.certification.chain_list import Chains
from milp_agt.certification.chains import Chain, pack_past, unpack_past
from milp_agt.certification.checkpoint import Snapshot, pack, unpack
from milp_agt.certification.fingerprint import settings
from milp_agt.certification.options import CertifyOptions
from milp_agt.certification.recorder import Recorder
from milp_agt.certification.result import Result
from milp_agt.certification.step_sets import StepSets
from milp_agt.certification.time_limit import TimeLimit
from milp_agt.certification.witnesses import Witnesses
from milp_agt.core.interval import Interval
from milp_agt.core.reachable import StepRecord
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Notes, Remarks
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.data.origin import Origin
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.properties.models import Reached
from milp_agt.solvers.solver import Solver
from milp_agt.threats.poison import Poison
from milp_agt.training.run_words import run_in_words
from milp_agt.training.tracing import StepGraph
from milp_agt.training.training import Batch, Training

# Rounding is charged to the largest case, so one diverged case would loosen all. Stop above this magnitude.
LARGEST_PARAMETER = 1e6


class BoundedRun:
    """A certification in progress: one call of :meth:`advance` for each training step."""

    def __init__(
        self,
        *,
        step_graph: StepGraph,
        head: StepGraph,
        remarks: Remarks,
        training: Training,
        poison: Poison,
        plan: planning.Plan,
        solvers: Mapping[Relaxation, Solver],
        initial: Mapping[str, Interval],
        claim: str,
        options: CertifyOptions,
        begun: float | None = None,
        origin: Origin | None = None,
        caution: str = "",
        restriction: Restriction,
        recorder: Recorder,
        witnesses: Witnesses | None = None,
    ) -> None:
        self.step_graph, self.training, self.poison, self.plan = step_graph, training, poison, plan
        self.schedule = NodeOrder.of(head)
        self.restriction, self.recorder, self.claim = restriction, recorder, claim
        self.origin, self.caution = origin, caution
        device = poison.features.device
        start = initial_state(step_graph, initial, training.has_momentum)
        self.updates = training.update_rules(plan.steps)
        self.chains = Chains(plan, poison, restriction, start)
        batches = training.batch_order(len(poison.features))
        names = step_graph.parameters
        begun_with = (self.schedule, start, names, poison, batches, restriction, plan)
        carried.begin(self.chains, *begun_with, self.updates)
        is_carried = any(part.forward is not None for part in self.chains.parts)
        run = (step_graph, self.schedule, start, poison, training)
        self.tree = choosing.tree_of(
            options, lambda t: TreePlan.of(*run, restriction, t, is_carried, options.workers)
        )
        self.nominal: dict[str, Tensor] = {n: v.to(device) for n, v in step_graph.initial.items()}
        if training.has_momentum:
            for name in step_graph.parameters:
                self.nominal[velocity_of(name)] = torch.zeros_like(self.nominal[name])
        self.records: list[StepRecord] = []
        dropped = Remarks(fallbacks=poison.left_out(plan.relaxation.uses_programs))
        self.notes = Notes.of(remarks + plan.remarks + dropped)
        limit = options.time_limit
        begun = time.monotonic() if begun is None else begun
        deadline = None if limit is None else begun + limit
        flat = [chain.name for chain in self.chains if not chain.level.walks]
        forecast = {c.name: plan.first_walk for c in self.chains if c.level.walks}
        self.time_limit = TimeLimit(
            deadline, plan.steps, plan.longest_window, flat, forecast, limit=limit or 0.0
        )
        self.bounder = Bounder(
            *(step_graph, self.schedule, plan, poison, restriction, solvers, options, recorder),
            self.notes,
            witnesses,
        )

    def advance(self, batch: Tensor) -> None:
        """Bound one more step.

        Raises:
            SoundnessError: an empty meet, or the nominal run outside its box.
            EncodingError: an infeasible program.
        """
        started = time.perf_counter()
        index = len(self.records)
        self._end_in_time(index)
        step = self._step(index, batch)
        update = UpdateGraph.of(self.schedule.gradients, step, self.schedule.precision)
        sets = StepSets(step, update, {part.name: part.state for part in self.chains.parts})
        used, widths, alone = Relaxation.INTERVAL.value, {}, {}
        report: program.ProgramReport | None = None
        for chain in list(self.chains):
            if chain not in self.chains or self._is_out_of_time(chain, index):
                continue
            solved, alone[chain.name] = self._bound(chain, sets)
            report = solved or report
            used = chain.used if solved or not chain.level.uses_programs else used
            self.recorder.state(index, chain.name, sets.newest)
            widths[chain.name] = self._mean_width(sets.newest)
            self._end_if_diverged(chain, sets)
        if report is not None and not self.plan.program_window:
            used = self.plan.relaxation.value
        carried.end_hopeless(self.chains, widths, index, self.notes)
        self._settle(sets)
        self._advance_nominal(step, sets.newest)
        flat = torch.cat([sets.newest[n].width.flatten() for n in self.step_graph.parameters])
        self.records.append(
            StepRecord(
                step=index + 1,
                mean_width=float(flat.mean()),
                max_width=float(flat.max()),
                seconds=time.perf_counter() - started,
                relaxation=used,
                adversary=self._adversary(),
                batch=step.size,
                chains=widths,
                program=None if report is None else report.counts,
            )
        )
        if len(self.records) < self.plan.steps:
            carried.end_idle(self.chains, alone, self.records, self.notes)

    def _bound(self, chain: Chain, sets: StepSets) -> tuple[program.ProgramReport | None, float]:
        """Bound a step by one chain; returns the report on its programs, if it has any, and the mean width
        before the meet with looser chains."""
        begun, step = time.perf_counter(), sets.step
        until = self.time_limit.spend_until(self.chains.cheaper(chain), step.index)
        report: program.ProgramReport | None = None
        width = 0.0
        for part in chain.parts:
            state, solved = self.bounder.bound(chain, part, step, until)
            report, width = solved or report, max(width, self._mean_width(state))
            part.state = sets.within(chain, part, state)
        self.time_limit.note(chain.name, step.index, time.perf_counter() - begun)
        sets.add(chain)
        return report, width

    def _end_if_diverged(self, chain: Chain, sets: StepSets) -> None:
        if any(part.forward is not None and not part.forward.is_bounded for part in chain.parts):
            others = "intervals" if chain is self.chains.tightest else "the other levels"
            self.notes.fall_back(
                f"step {sets.step.index + 1}: the zonotope reaches beyond {WILD:.0e}; from "
                f"here on the run is bounded by {others}"
            )
            self.chains.end(chain)
            return
        if not chain.tells_apart or self._is_bounded(sets.updated[chain.name]):
            return
        self.notes.fall_back(
            f"step {sets.step.index + 1}: a selection leads to parameters beyond "
            f"{LARGEST_PARAMETER:.0e}; from here on selections are bounded jointly"
        )
        self.chains.end(chain)

    def _settle(self, sets: StepSets) -> None:
        """Finish the step after all levels have bounded it."""
        step = sets.step
        for part in self.chains.parts:
            if sets.update.projections and part.window:
                part.window[-1] = settle(part.window[-1], part.state, part.adversary.cases)
            part.state = sets.end_of(part)
            if part.adversary.emptied(step) is not None:
                part.end_past()
                self._note_skip(step)

    def _note_skip(self, step: Step) -> None:
        line = (
            "batches that may lose all their samples skip their steps then: linear forms and programs "
            f"start anew after each (first at step {step.index + 1})"
        )
        self.notes.fall_back_once(line)

    def _step(self, index: int, batch: Tensor) -> Step:
        update, has_velocity = self.updates[index], self.training.has_momentum
        return Step.of_run(self.step_graph, self.poison, index, batch, update, has_velocity)

    @staticmethod
    def _is_bounded(state: State) -> bool:
        return all(bool((box.magnitude <= LARGEST_PARAMETER).all()) for box in state.values())

    def _end_in_time(self, index: int) -> None:
        """End what does not fit before the step begins: cheaper chains then go on from its tighter boxes."""
        tightest = self.chains.tightest
        for chain in list(self.chains):
            if chain in self.chains and self._is_out_of_time(chain, index, index - 1):
                self.chains.inherit(tightest)
        boxes = self.chains.tightest.state.values()
        known = torch.cat([e.isfinite().flatten() for b in boxes for e in (b.lower, b.upper)])
        why = ""
        if self.time_limit.is_over() and not known.all():
            why = "some parameters have no bound"
        elif self.time_limit.is_lost(next(iter(self.chains)).name, index):
            why = "intervals do not reach the last step in time"
        if known.any() and why:
            self.chains.forget()
            line = f"step {index + 1}: time limit, and {why}: no parameter has a bound from here on"
            self.notes.fall_back(line, limit=True)

    def _is_out_of_time(self, chain: Chain, index: int, done: int | None = None) -> bool:
        """Whether a chain ends before this step for lack of time; chains within it end with it.

        ``done`` is the last step that cheaper chains have bounded: this one, unless given.
        """
        if chain.level is Relaxation.INTERVAL:
            return False
        cheaper = self.chains.cheaper(chain)
        why = self.time_limit.refusal(chain.name, cheaper, index, index if done is None else done)
        if why is None:
            return False
        others = ", ".join(f"'{c.name}'" for c in self.chains.end(chain)[1:])
        self.notes.fall_back(why + (f"; with it {others}" if others else ""), limit=True)
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
        """All that :meth:`restore` needs to resume from here; holds references, copies nothing."""
        parts = {
            part.key(relaxed.step.index): {
                "state": pack(relaxed.state),
                "boxes": pack(relaxed.ranges.boxes),
                "sums": dict(relaxed.ranges.sums),
            }
            for part in self.chains.parts
            for relaxed in part.window
        }
        for part in self.chains.parts:
            parts |= {part.key(past.index, "past"): pack_past(past) for past in part.past}
        state = {
            "chains": {
                part.name: {
                    "state": pack(part.state),
                    "window": [relaxed.step.index for relaxed in part.window],
                    "past": [past.index for past in part.past],
                    "forward": None if part.forward is None else pack_forward(part.forward),
                }
                for part in self.chains.parts
            },
            "nominal": dict(self.nominal),
            "records": [asdict(record) for record in self.records],
            **asdict(self.notes),
            "measured": {name: list(last) for name, last in self.time_limit.measured.items()},
        }
        return Snapshot(len(self.records), state, parts)

    def restore(self, snapshot: Snapshot, batches: Sequence[Batch]) -> None:
        """Resume from a snapshot of this run: the same boxes, and the same planes recomputed."""
        state = snapshot.state
        self.chains.keep(list(state["chains"]))
        for part in self.chains.parts:
            kept = state["chains"][part.name]
            part.state = unpack(kept["state"])
            part.window = [
                self._relaxed(snapshot.parts[part.key(index)], part.adversary, index, batches)
                for index in kept["window"]
            ]
            part.past = [
                unpack_past(index, snapshot.parts[part.key(index, "past")])
                for index in kept["past"]
            ]
            if part.forward is not None:
                part.forward = unpack_forward(part.forward, kept["forward"])
        self.nominal = dict(state["nominal"])
        self.records = [StepRecord(**record) for record in state["records"]]
        self.notes.restore(state)
        self.time_limit.measured = {
            n: (at, spent) for n, (at, spent) in state.get("measured", {}).items()
        }
        if self.time_limit.deadline is not None:
            self.time_limit.deadline -= sum(record.seconds for record in self.records)

    def _relaxed(
        self,
        kept: Mapping[str, Any],
        adversary: AdversaryModel,
        index: int,
        batches: Sequence[Batch],
    ) -> LinearizedStep:
        """A linearised step of a window from its ranges; slopes and intercepts follow from them."""
        step = self._step(index, torch.from_numpy(batches[index]).to(self.poison.features.device))
        ranges = bound_propagation.Ranges(unpack(kept["boxes"]), dict(kept["sums"]))
        state = unpack(kept["state"])
        return self.bounder.relax(adversary, state, step, ranges)

    def _program(self) -> program.FinalWindow | None:
        """The last program of the tightest chain, for questions about the model."""
        chain = self.chains.tightest
        if not self.records or self.records[-1].relaxation != chain.level.value:
            return None  # the last step has only cheaper bounds, and so have questions
        return self.bounder.last_program(chain)

    def _with_rows(self, reached: Reached) -> Reached:
        """The same with programs on the rows of its zonotope, for questions about the model."""
        if reached.forward is None or not self.records:
            return reached
        final = self.bounder.final_zonotope(reached.forward, len(self.records) - 1)
        return replace(reached, rows=final)

    def result(self) -> Result:
        """The result proved so far."""
        return Result.of(
            step_graph=self.step_graph,
            schedule=self.schedule,
            reached=tuple(map(self._with_rows, self.chains.reached(self.plan.window))),
            beside=self.chains.beside and self._with_rows(self.chains.beside),
            program=self._program(),
            rows=self.plan.pieces.rows,
            tree=self.tree if len(self.records) == self.plan.steps else None,
            nominal=self.nominal,
            steps=tuple(self.records),
            total_steps=self.plan.steps,
            relaxation=self.plan.asked,
            remarks=self.notes.remarks,
            limit_reached=self.notes.limit_reached,
            threat=self.claim,
            origin=self.origin,
            caution=self.caution,
            helps=self.plan.helps(self.time_limit.limit) if self.notes.limit_reached else (),
            settings=settings(self.training, self.plan, self.step_graph.precision),
            run=run_in_words(self.training, self.plan.steps),
        )
