"""How much of the price of not knowing the poisoned sample programs win back.

One sample of two moons may move by 0.01; a 2-8-2 relu network. Linear bounds over all choices of the
sample at once are wider than linear bounds made choice by choice. Programs over the last steps bound those
ends of parameters where that gap is largest: from the sets of the first, with all choices in one program, and
from the sets of the second, one choice after the other, the loosest first. The table says what share of
the gap they close (beyond 100 %: tighter than linear bounds of single choices), and at which price.
--case FILE.npz takes a recorded run (models/recorded.py).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from models.recorded import Recorded, dense

import milp_agt as agt
from milp_agt.bounds import program
from milp_agt.bounds.adversary.box_algebra import SEPARATE
from milp_agt.bounds.adversary.enumerated import Enumerated, list_selections
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.linear import window_bounds
from milp_agt.bounds.linear.linearized_step import LinearizedStep
from milp_agt.bounds.program import by_choice
from milp_agt.bounds.program.solves import Objectives, minimise
from milp_agt.bounds.program.state_bounds import both_ends, ends_of
from milp_agt.bounds.step import State
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.expression import Array, Index, stacked
from milp_agt.core.results import Limits
from milp_agt.data.dataset import load_dataset
from milp_agt.properties.models import ReachableModels
from milp_agt.solvers import get_solver


def generated(samples: int) -> Recorded:
    torch.manual_seed(0)
    moons = load_dataset("moons", samples=samples, noise=0.1, seed=0, test_fraction=0.2)
    data, test = (moons.x_train, moons.y_train), (moons.x_test, moons.y_test)
    return Recorded(dense(2, 8, 2), data, test, "cross_entropy", 0.5, 10)


def certified(case: Recorded, steps: int, selections: str) -> tuple[agt.Result, MemoryRecorder]:
    recorder = MemoryRecorder()
    result = agt.certify(
        case.model,
        case.train,
        case.training(steps),
        agt.FeaturePoisoning(budget=1, radius=0.01),
        relaxation="linear",
        inner_bounds="linear",
        selections=selections,
        recorder=recorder,
    )
    return result, recorder


def ends(state: State) -> Array:
    """Both ends of every parameter as lower bounds."""
    low = torch.cat([box.lower.amin(0).flatten() for box in state.values()])
    high = torch.cat([box.upper.amax(0).flatten() for box in state.values()])
    return np.asarray(torch.cat([low, -high]).numpy())


def measure(case: Recorded, steps: int, window: int, count: int, seconds: float) -> None:
    result, recorder = certified(case, steps, "joint")
    _, apart = certified(case, steps, "enumerated")
    run, states = result.models, recorder.states["linear"][-1]
    known = ends(states)
    gap = np.maximum(ends(apart.states["linear, each selection"][-1]) - known, 0.0)
    chosen = np.argsort(-gap)[:count]
    worth = np.zeros_like(gap)
    worth[chosen] = gap[chosen]
    print(f"step {steps}: {len(chosen)} ends of parameters hold {gap[chosen].sum():.3e}")
    print(f"of the {gap.sum():.3e} that not knowing the sample costs")
    joint = Joint(run.poison)
    # Linear bounds keep the ranges that they stand on; programs need those of all nodes.
    kept = [
        replace(
            r, ranges=bound_propagation.completed(run.schedule, r.state, r.step, joint, r.ranges)
        )
        for r in recorder.steps["linear"][-window:]
    ]
    past = recorder.steps["linear"][:-window]
    print(
        "level  choices                        gap closed  cpu s/objective  solves  stopped  columns    rows"
    )
    best = known
    for level, tied in (("lp", False), ("lp", True)):
        encoded = program.encode_window(
            run.step_graph,
            run.schedule,
            kept,
            run.poison,
            level == "milp",
            past=past if tied else (),
        )
        new = list(encoded.state.values())
        forms = stacked([e.reshape((e.size,)) for e in new], (-1,))
        both = stacked([forms.below, forms.above.scale(-1.0)], (-1,))
        objectives = Objectives.of(encoded.program, both, worth)
        options = program.SolveOptions(get_solver("highs"), Limits(time=seconds, gap=1e-3))
        begun = time.process_time()
        solved = minimise(objectives, options)
        each = (time.process_time() - begun) / max(solved.solves, 1)
        # As in a run, each level carries the looser ones.
        best = np.maximum(best, solved.bounds)
        won = (best - known)[chosen].sum() / gap[chosen].sum()
        name = "all at once, tied to the past" if tied else "all at once"
        tell(level, name, won, each, solved.solves, solved.limited, objectives.program.size)
    single = Choices.of(result, apart, window)
    for level in ("lp", "milp"):
        begun = time.process_time()
        found = single.bounds(level == "milp", chosen, Limits(time=seconds, gap=1e-3))
        each = (time.process_time() - begun) / len(chosen)
        best = np.maximum(best, found.least)
        won = (best - known)[chosen].sum() / gap[chosen].sum()
        programs = [evidence.objectives.program.size for evidence in found.evidence]
        largest = {key: max(size[key] for size in programs) for key in programs[0]}
        tell(level, "choice by choice", won, each, found.solves, found.limited, largest)


def tell(
    level: str,
    choices: str,
    won: float,
    each: float,
    solves: int,
    stopped: int,
    size: dict[str, int],
) -> None:
    print(
        f"{level:5}  {choices:29}  {won:10.1%}  {each:15.2f}  {solves:6}  {stopped:7}  "
        f"{size['columns']:7} {size['rows']:7}",
        flush=True,
    )


@dataclass(frozen=True)
class Choices:
    """The last steps of a run with a box for every choice, and the linear bounds of each choice."""

    run: ReachableModels
    adversary: Enumerated
    window: Sequence[LinearizedStep]
    outer: Sequence[State]
    known: Array
    names: Sequence[str]

    @staticmethod
    def of(result: agt.Result, recorder: MemoryRecorder, window: int) -> Choices:
        run = result.models
        adversary = Enumerated(run.poison, list_selections(run.poison))
        steps = recorder.steps["linear, each selection"]
        last = recorder.states["linear, each selection"]
        names = list(last[-1])
        walked = window_bounds.bound_state(run.schedule, steps, adversary, 64)
        known = np.maximum(ends_of(walked, names), ends_of(last[-1], names))
        outer = [{n: SEPARATE.hull(b) for n, b in r.state.items()} for r in steps[-window:]]
        return Choices(run, adversary, steps[-window:], outer, known, names)

    def bounds(self, exact_phases: bool, chosen: Index, limits: Limits) -> by_choice.Branched:
        """Both ends of the chosen entries, by programs of single choices."""
        gain = np.zeros(self.known.shape[1])
        gain[chosen] = 1.0

        def build(choice: int) -> Objectives:
            leaf = by_choice.Leaf.of(
                self.run.schedule, self.adversary, choice, self.window, self.outer
            )
            encoded = program.encode_window(
                self.run.step_graph,
                self.run.schedule,
                leaf.window,
                leaf.poison,
                exact_phases,
                leaf.restriction,
            )
            return both_ends(encoded, self.names, gain)

        options = program.SolveOptions(get_solver("highs"), limits)
        return by_choice.minimise_leaves(self.known, gain, build, options)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="few samples, two steps")
    parser.add_argument("--case", metavar="FILE.npz", help="data and initial weights")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--window", type=int, default=5, help="steps of one program")
    parser.add_argument("--objectives", type=int, default=4, help="ends of parameters")
    parser.add_argument("--seconds", type=float, default=15.0, help="limit of one objective")
    arguments = parser.parse_args()
    if arguments.small:
        measure(generated(12), 3, 2, 2, 0.5)
        return
    case = Recorded.load(arguments.case) if arguments.case else generated(125)
    measure(case, arguments.steps, arguments.window, arguments.objectives, arguments.seconds)


if __name__ == "__main__":
    main()
