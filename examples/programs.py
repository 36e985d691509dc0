"""What programs add to linear bounds: windows of 1, 3 and 10 steps, from the sets of the linear engine.

Two moons, 40 samples, a 2-4-1 relu network, full batch; two samples may move by 0.01. Linear bounds
through the whole run give the sets; at some steps a program over the last w of them bounds the
parameters again, milp on top of lp. The table says by how much the mean width shrinks and how long one
objective takes, in seconds of one core. The last row of each step is the mean width that attacks reach; they
start from what the programs had their adversary do, among others.
--case FILE.npz takes a recorded run (models/recorded.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from models.recorded import Recorded, dense

import milp_agt as agt
from milp_agt.attacks import Attacker, Envelope, Search
from milp_agt.attacks.unrolled import Unrolled
from milp_agt.bounds import program
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits
from milp_agt.data.dataset import load_dataset
from milp_agt.properties.models import ReachableModels
from milp_agt.solvers import get_solver

BUDGET, RADIUS = 2, 0.01


def generated() -> Recorded:
    torch.manual_seed(7)
    moons = load_dataset("moons", samples=50, noise=0.1, seed=0, test_fraction=0.2)
    data, test = (moons.x_train, moons.y_train), (moons.x_test, moons.y_test)
    return Recorded(dense(2, 4, 1), data, test, "bce", 0.5, 30)


def widths(state: Mapping[str, Interval]) -> torch.Tensor:
    return torch.cat([box.width.flatten() for box in state.values()])


def mean_width(state: Mapping[str, Interval]) -> float:
    return float(widths(state).mean())


@dataclass(frozen=True)
class Bounded:
    """A run bounded by linear forms, ready for programs over any window."""

    case: Recorded
    run: ReachableModels
    steps: list[LinearizedStep]
    states: list[Mapping[str, Interval]]

    @staticmethod
    def of(case: Recorded, steps: int) -> Bounded:
        recorder = MemoryRecorder()
        result = agt.certify(
            case.model,
            case.train,
            case.training(steps),
            agt.FeaturePoisoning(budget=BUDGET, radius=RADIUS),
            relaxation="linear",
            inner_bounds="linear",
            selections="joint",
            recorder=recorder,
        )
        run = result.models
        # Linear bounds keep the ranges that they stand on; programs need those of all nodes.
        joint = Joint(run.poison)
        whole = [
            replace(
                r,
                ranges=bound_propagation.completed(run.schedule, r.state, r.step, joint, r.ranges),
            )
            for r in recorder.steps["linear"]
        ]
        return Bounded(case, run, whole, list(recorder.states["linear"]))

    def solve(
        self,
        step: int,
        window: int,
        exact: bool,
        state: Mapping[str, Interval],
        seconds: float | None,
        worth: float = 0.0,
    ) -> tuple[Mapping[str, Interval], program.ProgramReport, float]:
        """The box after a step by one program, and the seconds of one core for an objective.

        Parameters whose width is no more than ``worth`` are left as they are.
        """
        run, first = self.run, max(0, step - window)
        past, steps = self.steps[:first], self.steps[first:step]
        solver = get_solver("highs")
        begun = time.process_time()
        encoded = program.Window(
            run.step_graph,
            run.schedule,
            steps,
            run.poison,
            exact,
            past=past,
        ).program()
        options = program.SolveOptions(solver, Limits(time=seconds), worth)
        found, report = program.bound_state(encoded, dict(state), options)
        return found, report, (time.process_time() - begun) / max(report.solves, 1)

    def attacked(
        self, step: int, incumbents: Sequence[Sequence[program.Incumbents]]
    ) -> torch.Tensor:
        """Widths that attacks on the first steps reach, in the order of the state."""
        run = self.run
        unrolled = Unrolled.of(run.step_graph, self.case.training(step), run.poison)
        found = Attacker(unrolled, Search()).attack(Envelope(), incumbents=incumbents)
        return torch.from_numpy(found.widths)


def measure(
    case: Recorded,
    steps: Sequence[int],
    windows: Sequence[int],
    trees: int,
    seconds: float,
    widest: int | None,
) -> None:
    bounded = Bounded.of(case, max(steps))
    print(
        "step  window  level   mean width   gain   s/objective            solves  columns    rows"
    )
    for step in steps:
        known = widths(bounded.states[step - 1])
        count = min(widest or len(known), len(known))
        chosen = known.argsort(descending=True)
        worth = 0.0 if count == len(known) else float(known[chosen[count]])
        linear = float(known[chosen[:count]].mean())
        print(f"{step:4}       -  linear  {linear:.4e}       -")
        incumbents: list[Sequence[program.Incumbents]] = []
        for window in windows:
            state = bounded.states[step - 1]
            for level, exact in (("lp", False), ("milp", True)):
                if exact and window > trees:
                    continue
                limit = seconds if exact else None
                state, report, each = bounded.solve(step, window, exact, state, limit, worth=worth)
                stopped = f"{report.limited} of {report.solves} stopped" if exact else "optimal"
                width = float(widths(state)[chosen[:count]].mean())
                incumbents += report.incumbents
                print(
                    f"{step:4}  {window:6}  {level:6}  {width:.4e}  {1 - width / linear:6.2%}  "
                    f"{each:11.3f}  {stopped:>16}  {report.size['columns']:7} {report.size['rows']:7}",
                    flush=True,
                )
        reached = float(bounded.attacked(step, incumbents)[chosen[:count]].mean())
        print(f"{step:4}       -  attacks {reached:.4e}  {1 - reached / linear:6.2%}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="two steps, windows of 1 and 2")
    parser.add_argument("--case", metavar="FILE.npz", help="data and initial weights")
    parser.add_argument("--steps", type=int, nargs="+", default=[10, 20, 30])
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 3, 10])
    parser.add_argument("--trees", type=int, default=3, help="longest window for milp")
    parser.add_argument("--seconds", type=float, default=2.0, help="limit of one milp objective")
    parser.add_argument("--widest", type=int, help="bound only so many parameters, the widest ones")
    arguments = parser.parse_args()
    case = Recorded.load(arguments.case) if arguments.case else generated()
    if arguments.small:
        measure(case, [2], [1, 2], 1, 0.05, arguments.widest)
    else:
        chosen = arguments.steps, arguments.windows
        measure(case, *chosen, arguments.trees, arguments.seconds, arguments.widest)


if __name__ == "__main__":
    main()
