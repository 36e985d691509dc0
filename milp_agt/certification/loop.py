"""The loop of a certification: one training step after the other, bounded by each chain in turn."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from milp_agt.bounds import program
from milp_agt.bounds.cells.plan import TreePlan
from milp_agt.bounds.gathered import GatheredPass
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.interval.update import UpdateGraph
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.step import NodeOrder, State
from milp_agt.bounds.zonotope import WILD, ZonotopePass, check_supported
from milp_agt.certification.bound_step import Bounder
from milp_agt.certification.chains import ZONOTOPE, Chain, ChainPart, Chains, StepSets
from milp_agt.certification.checkpoint import Snapshot, unpack
from milp_agt.certification.level_plan import tree_of
from milp_agt.certification.planning import Plan
from milp_agt.certification.recorder import Recorder
from milp_agt.certification.result import Result
from milp_agt.certification.task import RunInProgress, Task
from milp_agt.certification.time_limit import TimeLimit
from milp_agt.certification.witnesses import Witnesses
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Remarks
from milp_agt.core.restriction import UNRESTRICTED
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.reached import Reached
from milp_agt.solvers.solver import Solver

# Rounding is charged to the largest case, so one diverged case would loosen all. Stop above this magnitude.
LARGEST_PARAMETER = 1e6
# A zonotope ends where other chains reach less than this share of its width: its noise only grows.
HOPELESS = 0.5
# Linear forms end beside a zonotope that is narrower than they are by themselves by this share, after some
# steps in which they took less than another share off its width.
WIDER, GAIN, IDLE_STEPS = 0.05, 1e-4, 3
# Programs that `auto` picked end where they took less than this share off in so many steps.
LITTLE = 0.01
# A zonotope that grows with every step ends where it takes less than this share off linear forms.
SMALL = 0.005


class BoundedRun(RunInProgress):
    """A certification that bounds one step by every level before it begins the next."""

    def __init__(
        self,
        task: Task,
        plan: Plan,
        solvers: Mapping[Relaxation, Solver],
        recorder: Recorder,
        witnesses: Witnesses | None = None,
    ) -> None:
        dropped = Remarks(fallbacks=task.poison.left_out(plan.relaxation.uses_programs))
        remarks = task.remarks + plan.remarks + dropped
        order = NodeOrder.of(task.head)
        super().__init__(task, plan, task.step_graph, order, remarks)
        self.recorder, self.poison = recorder, task.poison
        self.chains = Chains(plan, self.poison, task.restriction, task.start)
        self._begin_zonotope()
        self.tree = tree_of(
            task.options,
            lambda seconds: TreePlan.of(
                self.graph,
                order,
                task.start,
                self.poison,
                task.training,
                task.restriction,
                seconds,
                any(part.forward is not None for part in self.chains.parts),
                task.options.workers,
            ),
            late=task.options.time_limit is not None and plan.zonotope > 0.0,
        )
        if task.options.tree and self.tree is None:
            line = "no tree: the zonotope that it would be over does not fit in the time limit"
            self.notes.fall_back(line, limit=True)
        self.time_limit = TimeLimit(
            self.deadline,
            plan.steps,
            plan.longest_window,
            flat=[chain.name for chain in self.chains if not chain.level.walks],
            forecast={c.name: plan.first_walk for c in self.chains if c.level.walks},
            limit=task.options.time_limit or 0.0,
        )
        self.bounder = Bounder(
            self.graph,
            order,
            plan,
            self.poison,
            task.restriction,
            solvers,
            task.options,
            recorder,
            self.notes,
            witnesses,
        )

    def _begin_zonotope(self) -> None:
        """The set before the first step, for the chain of a zonotope, if there is one. Raises
        UnsupportedOperationError: it was asked for, and has no rule for the run."""
        task, order = self.task, self.order
        for chain in self.chains:
            if chain.level is Relaxation.ZONOTOPE:
                if self.plan.gathered is not None:
                    chain.parts[0].gathered = GatheredPass.begin(
                        self.plan.gathered, task.start, self.poison
                    )
                    continue
                if self.plan.relaxation is Relaxation.ZONOTOPE:
                    check_supported(order, self.poison, task.restriction, task.updates)
                chain.parts[0].forward = ZonotopePass.begin(
                    order,
                    task.start,
                    self.graph.parameters,
                    self.poison,
                    batches=task.batches,
                    restriction=task.restriction,
                    memory=self.plan.memory,
                )

    def advance(self) -> None:
        """Bound one more step by every chain that is left and has the time."""
        started = time.perf_counter()
        index = len(self.records)
        self._end_in_time(index)
        step = self.task.step(self.graph, self.poison, index)
        sets = StepSets(step, UpdateGraph.of(self.order.gradients, step, self.order.precision))
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
        self._end_if_hopeless(widths, index)
        for part in self.chains.parts:
            if not sets.settle(part):
                self.notes.fall_back_once(
                    "batches that may lose all their samples skip their steps then: linear forms and "
                    f"programs start anew after each (first at step {index + 1})"
                )
        checked = list(self.nominal) if self.task.restriction is UNRESTRICTED else []
        self._advance_nominal(step, sets.newest, checked)
        kind = "static" if self.poison.static else "adaptive"
        kind += ", batch" if self.poison.per_batch else ", dataset"
        counts = None if report is None else report.counts
        self._record(step, sets.newest, started, used, kind, widths, counts)
        if index + 1 < self.plan.steps:
            self._end_if_idle(alone)

    def _bound(self, chain: Chain, sets: StepSets) -> tuple[program.ProgramReport | None, float]:
        """Bound a step by one chain; returns the report on its programs, if it has any, and the mean width
        before the meet with looser chains."""
        begun, step = time.perf_counter(), sets.step
        until = self.time_limit.spend_until(self.chains.cheaper(chain), step.index)
        found = [self.bounder.bound(chain, part, step, until) for part in chain.parts]
        self.time_limit.note(chain.name, step.index, time.perf_counter() - begun)
        sets.add(chain, [state for state, _ in found])
        width = max(self._mean_width(state) for state, _ in found)
        return next((report for _, report in reversed(found) if report), None), width

    def _mean_width(self, state: State) -> float:
        widths = [state[name].width.flatten() for name in self.graph.parameters]
        return float(torch.cat(widths).mean())

    def _end_if_diverged(self, chain: Chain, sets: StepSets) -> None:
        if any(
            found is not None and not found.is_bounded
            for part in chain.parts
            for found in (part.forward, part.gathered)
        ):
            others = "intervals" if chain is self.chains.tightest else "the other levels"
            why = f"the zonotope reaches beyond {WILD:.0e}; from here on the run is bounded by {others}"
        elif chain.tells_apart and not all(
            bool((box.magnitude <= LARGEST_PARAMETER).all())
            for box in sets.updated[chain.name].values()
        ):
            why = (
                f"a selection leads to parameters beyond {LARGEST_PARAMETER:.0e}; from here on "
                "selections are bounded jointly"
            )
        else:
            return
        self.notes.fall_back(f"step {sets.step.index + 1}: {why}")
        self.chains.end(chain)

    def _end_if_hopeless(self, widths: Mapping[str, float], index: int) -> None:
        for chain in list(self.chains)[:-1]:
            if chain.name == ZONOTOPE and min(widths.values()) < HOPELESS * widths[ZONOTOPE]:
                self.notes.note(
                    f"step {index + 1}: the zonotope is left out from here on; linear forms are far "
                    "tighter"
                )
                self.chains.end(chain)

    def _end_if_idle(self, alone: Mapping[str, float]) -> None:
        """End linear forms that add nothing to a zonotope, where no other chain is built on them, or a
        zonotope that adds next to nothing to them, where it grows with each step.

        ``alone`` are the mean widths of chains by themselves, before the meet, after the last step.
        """
        last, recent = self.chains.tightest, [each.chains for each in self.records[-IDLE_STEPS:]]
        if last.level is Relaxation.LP and self.plan.asked == "auto":
            self._end_if_dear(last, recent)
        if (
            last.name != Relaxation.LINEAR.value
            or len(recent) < IDLE_STEPS
            or ZONOTOPE not in alone
        ):
            return
        if self.plan.straight and alone[last.name] < (1.0 + SMALL) * recent[-1][last.name]:
            self.notes.note(
                f"step {len(self.records)}: the zonotope ends here: it grows with every step of data "
                f"poisoned anew, and takes less than {SMALL:.1%} off linear forms; ask for "
                "relaxation='zonotope' to have it"
            )
            self.chains.end(next(chain for chain in self.chains if chain.name == ZONOTOPE))
            return
        if any(each[last.name] < (1.0 - GAIN) * each.get(ZONOTOPE, torch.inf) for each in recent):
            return
        if alone[last.name] >= (1.0 + WIDER) * alone[ZONOTOPE]:
            self.notes.note(
                f"step {len(self.records)}: linear forms end here: in {IDLE_STEPS} steps they have added "
                "nothing to the zonotope, which is narrower"
            )
            self.chains.end(last)

    def _end_if_dear(self, last: Chain, recent: Sequence[Mapping[str, float]]) -> None:
        """End programs that nobody asked for where they add next to nothing: they take most of the time."""
        others = [min(w for name, w in each.items() if name != last.name) for each in recent]
        gain = zip(recent, others, strict=True)
        if len(recent) == IDLE_STEPS and all(
            each.get(last.name, 0.0) > (1.0 - LITTLE) * other for each, other in gain
        ):
            self.notes.note(
                f"step {len(self.records)}: programs of single steps end here: in {IDLE_STEPS} steps they "
                f"have taken less than {LITTLE:.0%} off the boxes; ask for relaxation='lp' to have them"
            )
            self.chains.end(last)

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

    def _kept(self) -> dict[str, Any]:
        measured = {name: list(last) for name, last in self.time_limit.measured.items()}
        return {"chains": self.chains.kept()[0], "measured": measured}

    def snapshot(self) -> Snapshot:
        return replace(super().snapshot(), parts=self.chains.kept()[1])

    def restore(self, snapshot: Snapshot) -> None:
        """Resume from a snapshot of this run: the same boxes, and the same planes recomputed."""
        super().restore(snapshot)

        def relaxed(part: ChainPart, index: int, kept: Mapping[str, Any]) -> LinearizedStep:
            """A step of a window from its ranges; slopes and intercepts follow from them."""
            step = self.task.step(self.graph, self.poison, index)
            ranges = bound_propagation.Ranges(unpack(kept["boxes"]), dict(kept["sums"]))
            return self.bounder.relax(part.adversary, unpack(kept["state"]), step, ranges)

        self.chains.restore(snapshot.state["chains"], snapshot.parts, relaxed)
        measured = snapshot.state.get("measured", {})
        self.time_limit.measured = {n: (at, spent) for n, (at, spent) in measured.items()}
        self.time_limit.deadline = self.deadline

    def _with_rows(self, reached: Reached) -> Reached:
        """The same with programs on the rows of its zonotope, for questions about the model."""
        if reached.forward is None or not self.records:
            return reached
        final = self.bounder.final_zonotope(reached.forward, len(self.records) - 1)
        return replace(reached, rows=final)

    def result(self) -> Result:
        beside, tightest = self.chains.beside, self.chains.tightest
        # Where the last step has only cheaper bounds, so have questions.
        solved = bool(self.records) and self.records[-1].relaxation == tightest.level.value
        models = ReachableModels(
            self.graph,
            self.order,
            self._nominal_parameters(),
            tuple(map(self._with_rows, self.chains.reached(self.plan.window))),
            self.bounder.last_program(tightest) if solved else None,
            self.plan.pieces.rows,
            None if beside is None else self._with_rows(beside),
            tree=self.tree if len(self.records) == self.plan.steps else None,
        )
        limited = self.notes.limit_reached
        return self._result(models, self.plan.helps(self.time_limit.limit) if limited else ())
