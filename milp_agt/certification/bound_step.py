"""Bounds of one training step by one level: ranges, linear bounds and programs over the box of a chain."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from milp_agt.bounds import program
from milp_agt.bounds.adversary.enumerated import Enumerated
from milp_agt.bounds.adversary.model import AdversaryModel
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.linear import intermediate, window_bounds
from milp_agt.bounds.linear.linearized_step import LinearizedStep, linearize_step
from milp_agt.bounds.linear.window_bounds import Collected
from milp_agt.bounds.passes import Passes
from milp_agt.bounds.step import NodeOrder, State, Step
from milp_agt.bounds.zonotope import ZonotopePass
from milp_agt.certification import planning
from milp_agt.certification.chains import Chain, ChainPart
from milp_agt.certification.machine import free_at_once
from milp_agt.certification.options import CertifyOptions
from milp_agt.certification.recorder import Recorder
from milp_agt.certification.witnesses import Witnesses
from milp_agt.core.relaxation import STEP_RULES, Relaxation
from milp_agt.core.remarks import Notes
from milp_agt.core.restriction import Restriction
from milp_agt.errors import SolverUnavailableError
from milp_agt.solvers.solver import Solver
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import StepGraph

# Steps with larger ranges keep the bounds of the cheaper relaxation.
PROGRAM_RANGE_LIMIT = program.RANGE_LIMIT


@dataclass
class Bounder:
    """Bounds single steps by any level; records in the notes what it could not do."""

    step_graph: StepGraph
    schedule: NodeOrder
    plan: planning.Plan
    poison: Poison
    restriction: Restriction
    solvers: Mapping[Relaxation, Solver]
    options: CertifyOptions
    recorder: Recorder
    notes: Notes
    witnesses: Witnesses | None = None
    passes: Passes = field(default_factory=Passes)
    inner_passes: Passes = field(default_factory=Passes)
    incumbents: tuple[Sequence[program.Incumbents], ...] = ()  # of the newest programs
    final: program.FinalZonotope | None = None  # the newest

    def __post_init__(self) -> None:
        if self.plan.scarce and any(level.walks for level in self.plan.levels):
            free_at_once()

    def bound(
        self, chain: Chain, part: ChainPart, step: Step, until: float | None
    ) -> tuple[State, program.ProgramReport | None]:
        """The box of the next state by one level, before the meet with looser chains.

        Solves end at ``until``, a time of ``time.monotonic``.
        """
        if chain.name in STEP_RULES:
            state: State = STEP_RULES[chain.name](self, part, step)
            return state, None
        part.forget(self.plan.longest_window - 1)
        if part.forward is not None:
            last = step.index + 1 == self.plan.steps
            part.forward = part.forward.advanced(step, last=last)
            state = part.forward.updated()
            if not last:
                return state, None
            return self._solve_rows(chain, part.forward, step, state, until)
        if part.gathered is not None:
            samples = self.plan.pieces.samples
            part.gathered = part.gathered.advanced(step, part.state, part.adversary, samples)
            return part.gathered.state(), None
        if chain.level is Relaxation.INTERVAL and all(b.is_whole for b in part.state.values()):
            return part.state, None  # nothing is known any more, and nothing can come of it
        ranges = self.ranges(chain, part, step)
        if chain.level is Relaxation.INTERVAL:
            return self._updated(part, step, ranges), None
        kept = self.relax(part.adversary, part.state, step, ranges)
        part.window = [*part.window, kept]
        self.recorder.step(chain.name, kept)
        state = self.walked(part, step, ranges)
        if not chain.level.uses_programs:
            return state, None
        return self._solve(chain, part, step, state, until)

    def walked(self, part: ChainPart, step: Step, ranges: bound_propagation.Ranges) -> State:
        """The box after the window of a part that ends with this step, by backward pass and intervals."""
        window = part.window[-self.plan.window :]
        # For steps whose window begins later.
        collected = Collected() if self.plan.past else None
        found = window_bounds.bound_state(
            self.schedule,
            window,
            part.adversary,
            self.plan.pieces.chunk,
            self.passes,
            part.before(window),
            collected,
        )
        if collected is not None:
            newest = collected.past(step.index, window[-1].state)
            kept = [past for past in part.past if past.index < step.index]
            part.past = [*kept, newest][-self.plan.past :]
        self._tell_of_memory(step)
        boxes = self._updated(part, step, ranges)
        return {  # in the order of the state before the step, which numbers the signed entries
            name: boxes[name].meet(found[name], f"'{name}' by interval and linear")
            for name in part.state
        }

    def _updated(self, part: ChainPart, step: Step, ranges: bound_propagation.Ranges) -> State:
        return bound_propagation.update(self.step_graph, part.state, ranges, step)

    def _tell_of_memory(self, step: Step) -> None:
        for name, passes in (("", self.passes), ("inner ", self.inner_passes)):
            for before, after in passes.told():
                self.notes.note(
                    f"step {step.index + 1}: memory ran out with {before} {name}rows in a pass; from here "
                    f"on {after} share one"
                )

    def ranges(self, chain: Chain, part: ChainPart, step: Step) -> bound_propagation.Ranges:
        level = chain.level
        keep = self.schedule.supports if level.walks else frozenset()
        keep = self.schedule.batched if level.uses_programs else keep
        if level.walks and self._walks_inside(chain, part.adversary):
            past = part.window[max(0, len(part.window) - self.plan.window + 1) :]
            walks = intermediate.BackwardPasses(
                self.schedule,
                past,
                part.adversary,
                self.plan.pieces.inner_chunk,
                self.plan.pieces.inner_pairs,
                self.inner_passes,
            )
            return intermediate.propagate(walks, part.state, step, keep)
        return bound_propagation.propagate(
            self.schedule, part.state, step, part.adversary, self.plan.pieces.samples, keep
        )

    def _walks_inside(self, chain: Chain, adversary: AdversaryModel) -> bool:
        """Whether intermediate bounds go through the window, too."""
        if self.plan.inner_of_programs and not chain.level.uses_programs:
            return False
        one_by_one = isinstance(adversary, Enumerated) and adversary.cases > 1
        return self.plan.selections.enumerated_inner if one_by_one else self.plan.linear_inner

    def _solve(
        self, chain: Chain, part: ChainPart, step: Step, state: State, until: float | None
    ) -> tuple[State, program.ProgramReport | None]:
        window, level = self._window(chain, part), chain.level
        largest = window.largest
        if not largest <= PROGRAM_RANGE_LIMIT:
            self.notes.fall_back(
                f"step {step.index + 1}: ranges up to {largest:.1e} are beyond what a solver "
                f"can take; '{level.value}' was left to the linear bounds"
            )
            return state, None
        options, witness = self._solving(level, until), self._witness(step.index)
        try:
            state, report = program.bound_state(window.program(), state, options, witness)
        except SolverUnavailableError as error:  # a licence that is too small, say
            self.notes.fall_back(
                f"step {step.index + 1}: '{level.value}' was left to the cheaper bounds: {error}",
                limit=True,
            )
            return state, None
        self._take(chain.name, level, step, state, report)
        return state, report

    def _solve_rows(
        self, chain: Chain, forward: ZonotopePass, step: Step, state: State, until: float | None
    ) -> tuple[State, program.ProgramReport | None]:
        """The box of a zonotope met with what programs on its rows prove, in half the time that is left."""
        final = self.final_zonotope(forward, step.index)
        if final is None:
            return state, None
        # With a projection the rows hold the state after it, the box the one before.
        if step.update.projection is not None:
            self.notes.note("programs on the rows of the zonotope bound no projected state")
            return state, None
        try:
            deadline = None if until is None else 0.5 * (time.monotonic() + until)
            state, report = final.bound_state(state, deadline)
        except SolverUnavailableError as error:  # a licence that is too small, say
            self.notes.fall_back(
                f"step {step.index + 1}: the rows of the zonotope were not solved: {error}"
            )
            return state, None
        final.of_state = report.incumbents
        self._take(chain.name, self._level_of_rows, step, state, report)
        return state, report

    def final_zonotope(self, forward: ZonotopePass, index: int) -> program.FinalZonotope | None:
        """The program on the rows of a zonotope after a step; None where it gains nothing, and for levels
        without programs."""
        if not self.plan.relaxation.uses_programs or not program.FinalZonotope.gains(forward):
            return None
        if self.final is None or self.final.forward is not forward:
            level, witness = self._level_of_rows, self._witness(index)
            options = self._solving(level)
            self.final = program.FinalZonotope(
                options, witness, forward=forward, exact=level.exact_phases
            )
        return self.final

    def _solving(self, level: Relaxation, deadline: float | None = None) -> program.SolveOptions:
        solver, limits = self.solvers[level], self.options.solve_limits
        return program.SolveOptions(solver, limits, deadline=deadline, workers=self.options.workers)

    @property
    def _level_of_rows(self) -> Relaxation:
        return Relaxation.MILP if self.plan.relaxation.exact_phases else Relaxation.LP

    def _take(
        self, name: str, level: Relaxation, step: Step, state: State, report: program.ProgramReport
    ) -> None:
        """Confirm the bounds of programs by real runs, and note what was lost and limited."""
        self._confirm(step, state, report, self.solvers[level])
        self.recorder.program(step.index, name, report)
        if report.lost:
            self.notes.fall_back(
                f"step {step.index + 1}: {report.lost} objectives of '{level.value}' were lost with "
                "workers that died twice; they keep the cheaper bound",
                limit=True,
            )
        if report.limited:
            self.notes.fall_back(
                f"step {step.index + 1}: {report.limited} of {report.solves + report.limited} solves by "
                f"'{level.value}' met a limit; their best dual bound counts, or the linear one",
                limit=True,
            )

    def relax(
        self, adversary: AdversaryModel, state: State, step: Step, ranges: bound_propagation.Ranges
    ) -> LinearizedStep:
        samples = self.plan.pieces.walked_samples
        return linearize_step(self.schedule, state, step, ranges, adversary, samples)

    def _window(self, chain: Chain, part: ChainPart) -> program.Window:
        """The steps of the program over the current window."""
        count = self.plan.program_window
        return program.Window(
            self.step_graph,
            self.schedule,
            part.window[-count:],
            self.poison,
            chain.level.exact_phases,
            self.restriction,
            chain.level.exact_products,
            part.window[:-count],
        )

    def last_program(self, chain: Chain) -> program.FinalWindow | None:
        """The programs over the current window, for questions; None for levels without programs."""
        part = chain.parts[0]
        if not chain.level.uses_programs or not part.window:
            return None
        return program.FinalWindow(
            self._solving(chain.level),
            self._witness(part.window[-1].step.index),
            self.incumbents,
            window=self._window(chain, part),
            state=chain.state,
        )

    def _confirm(
        self, step: Step, state: State, report: program.ProgramReport, solver: Solver
    ) -> None:
        """Check the bounds against real runs on the adversary's choices in the programs' own points."""
        self.incumbents = report.incumbents
        if self.witnesses is None or not report.incumbents:
            return
        runs = self.witnesses.propose(step.index, report.incumbents)
        names = list(state)
        runs.check_state(names, program.ends_of(state, names)[0], solver.name)

    def _witness(self, index: int) -> program.Witness | None:
        """States of real runs after the step of an index, which no bound of a program may exclude."""
        return None if self.witnesses is None else self.witnesses.after(index)
