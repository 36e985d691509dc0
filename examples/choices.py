"""Programs choice by choice, all choices at once, and linear bounds: widths, and what they cost.

At some steps of a run whose selections of poisoned samples are enumerated, a program over the last w
steps bounds both ends of every parameter: from the sets of all choices jointly ("all at once"), and from
those of each choice, the loosest choice first ("by choice"). --points asks for the margins of test points
instead, as objectives on top of the same programs. A gain is what the mean width shrinks by, of that of
linear bounds of single choices.
--case FILE.npz takes a recorded run (models/recorded.py). Without it: 12 samples of two moons.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass, replace

import torch
from models.recorded import Array, Recorded, dense

import milp_agt as agt
from milp_agt.bounds import program
from milp_agt.bounds.adversary.enumerated import Enumerated
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.restriction import UNRESTRICTED
from milp_agt.data.dataset import load_dataset
from milp_agt.solvers import get_solver

Pair = tuple[Array, Array]


def generated() -> Recorded:
    torch.manual_seed(7)
    moons = load_dataset("moons", samples=15, noise=0.1, seed=0, test_fraction=0.2)
    data, test = (moons.x_train, moons.y_train), (moons.x_test, moons.y_test)
    return Recorded(dense(2, 4, 1), data, test, "bce", 0.5, 10)


@dataclass(frozen=True)
class Bounded:
    """A run by linear forms, with all choices jointly and one by one."""

    joint: agt.Result
    apart: agt.Result
    steps: list[LinearizedStep]

    @staticmethod
    def of(case: Recorded, steps: int, budget: int, radius: float) -> Bounded:
        recorder = MemoryRecorder()
        joint, apart = (
            agt.certify(
                case.model,
                case.train,
                case.training(steps),
                agt.FeaturePoisoning(budget, radius),
                inner_bounds="linear",
                selections=selections,
                recorder=recorder if selections == "joint" else None,
            )
            for selections in ("joint", "enumerated")
        )
        # Linear bounds keep the ranges that they stand on; programs need those of all nodes.
        adversary, schedule = Joint(joint.models.poison), joint.models.schedule
        kept = [
            replace(
                r,
                ranges=bound_propagation.completed(schedule, r.state, r.step, adversary, r.ranges),
            )
            for r in recorder.steps["linear"]
        ]
        return Bounded(joint, apart, kept)

    def all_at_once(self, window: int, exact: bool, seconds: float) -> agt.Result:
        """With one program over the last steps of all choices jointly."""
        models, past = self.joint.models, self.steps[:-window]
        span = program.Span(self.steps[-window:], models.state, models.poison, UNRESTRICTED, past)
        return with_program(self.joint, program.Together(span), exact, seconds)

    def by_choice(self, window: int, exact: bool, seconds: float) -> agt.Result:
        """With a program over the last steps of each choice."""
        models, groups = self.apart.models, []
        for reached in models.reached:
            assert isinstance(reached.adversary, Enumerated)
            last = reached.window[-window:]
            groups.append(program.SelectionGroup(reached.adversary, last, reached.state))
        outer = [relaxed.state for relaxed in self.steps[-window:]]
        choices = program.OneByOne(models.schedule, groups, outer, models.state)
        return with_program(self.apart, choices, exact, seconds)


def with_program(
    result: agt.Result, choices: program.Choices, exact: bool, seconds: float
) -> agt.Result:
    models = result.models
    encoding = program.Encoding(models.step_graph, models.schedule, exact_phases=exact)
    options = program.SolveOptions(get_solver("highs"), agt.Limits(time=seconds))
    asked = program.FinalWindow(encoding, choices, options)
    return replace(result, models=replace(models, program=asked))


def mean_width(result: agt.Result, test: Pair | None) -> float:
    """Of all parameters, or of the margins of test points."""
    if test is not None:
        low, high = result.margins(*test)
        return float((high - low).mean())
    state, asked = result.models.state, result.models.program
    if asked is not None:
        choices, encoding = asked.choices, asked.encoding
        state, report = program.bound_choices(
            state, choices.states, lambda n: encoding.window(choices.span(n)), asked.options
        )
        asked.reports.append(report)
    return float(torch.cat([box.width.flatten() for box in state.values()]).mean())


def measure(
    case: Recorded,
    steps: list[int],
    windows: list[int],
    levels: list[str],
    seconds: float,
    budget: int,
    test: Pair | None,
) -> None:
    print(
        "step  window  level   choices      mean width     gain  cpu s/end  solves  stopped  columns    rows"
    )
    for step in steps:
        bounded = Bounded.of(case, step, budget, 0.01)
        linear = mean_width(bounded.apart, test)
        for name, width in (
            ("all at once", mean_width(bounded.joint, test)),
            ("by choice", linear),
        ):
            print(f"{step:4}       -  linear  {name:11}  {width:.4e}  {1 - width / linear:7.2%}")
        for window, level in itertools.product(windows, levels):
            how = window, level == "milp", seconds
            for name, result in (
                ("all at once", bounded.all_at_once(*how)),
                ("by choice", bounded.by_choice(*how)),
            ):
                begun = time.process_time()
                width = mean_width(result, test)
                spent = time.process_time() - begun
                assert result.models.program is not None
                reports = result.models.program.reports
                ends = 2 * (
                    result.models.step_graph.parameter_count if test is None else len(test[1])
                )
                size = reports[0].size
                print(
                    f"{step:4}  {window:6}  {level:6}  {name:11}  {width:.4e}  {1 - width / linear:7.2%}  "
                    f"{spent / ends:9.2f}  {sum(r.solves for r in reports):6}  "
                    f"{sum(r.limited for r in reports):7}  {size['columns']:7}  {size['rows']:6}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="12 samples, two steps")
    parser.add_argument("--case", metavar="FILE.npz", help="data and initial weights")
    parser.add_argument("--budget", type=int, default=1)
    parser.add_argument("--steps", type=int, nargs="+", default=[10])
    parser.add_argument("--windows", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--levels", choices=["lp", "milp"], nargs="+", default=["lp"])
    parser.add_argument("--seconds", type=float, default=60.0, help="limit of one solve")
    parser.add_argument("--points", type=int, help="bound the margins of so many test points")
    arguments = parser.parse_args()
    case = Recorded.load(arguments.case) if arguments.case else generated()
    steps, windows = ([2], [1]) if arguments.small else (arguments.steps, arguments.windows)
    count = arguments.points
    test = None if count is None else (case.test[0][:count], case.test[1][:count])
    how = windows, arguments.levels, arguments.seconds
    measure(case, steps, *how, arguments.budget, test)


if __name__ == "__main__":
    main()
