"""What keeping products and phases is worth on a tiny run: lp, milp, qcqp and miqp by SCIP.

Six samples of two moons, one of which may move by 0.4; a 2-2-1 relu network, hinge loss, four steps. Linear
forms through the whole run give the sets; programs over the last one or two steps bound both ends of the
widest parameters again, each level from the box that linear bounds leave. The table has their mean width.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace

import torch
from torch import nn

import milp_agt as agt
from milp_agt.bounds import program
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.interval import bound_propagation
from milp_agt.bounds.step import State
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.results import Limits
from milp_agt.data.dataset import load_dataset
from milp_agt.solvers import get_solver

LEVELS = {"lp": (False, False), "milp": (True, False), "qcqp": (False, True), "miqp": (True, True)}


def widths(state: State) -> torch.Tensor:
    return torch.cat([box.width.flatten() for box in state.values()])


def measure(steps: int, windows: list[int], count: int, seconds: float, radius: float) -> None:
    torch.manual_seed(0)
    data = load_dataset("moons", samples=6, noise=0.1, seed=0, test_fraction=0.0)
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 1)).double()
    recorder = MemoryRecorder()
    models = agt.certify(
        model,
        (data.x_train, data.y_train),
        agt.Training(loss="hinge", learning_rate=0.5, epochs=steps),
        agt.FeaturePoisoning(1, radius),
        inner_bounds="linear",
        selections="joint",
        recorder=recorder,
    ).models
    schedule, poison = models.schedule, models.poison
    # Linear bounds keep the ranges that they stand on; programs need those of all nodes.
    kept = [
        replace(
            r,
            ranges=bound_propagation.completed(schedule, r.state, r.step, Joint(poison), r.ranges),
        )
        for r in recorder.steps["linear"]
    ]
    known = recorder.states["linear"][-1]
    sizes = widths(known)
    chosen = sizes.argsort(descending=True)[:count]
    least = float(sizes.sort(descending=True).values[count])
    linear = float(sizes[chosen].mean())
    print("window  level  mean width     gain  cpu s/objective        solves  binaries  products")
    print(f"     -  linear {linear:.4e}")
    for window in windows:
        for level, (phases, products) in LEVELS.items():
            encoded = program.Window(
                models.step_graph,
                schedule,
                kept[-window:],
                poison,
                phases,
                exact_products=products,
                past=kept[:-window],
            ).program()
            options = program.SolveOptions(get_solver("scip"), Limits(time=seconds), worth=least)
            begun = time.process_time()
            state, report = program.bound_state(encoded, known, options)
            each = (time.process_time() - begun) / max(report.solves, 1)
            width = float(widths(state)[chosen].mean())
            stopped = f"{report.limited:2} of {report.solves:2} stopped"
            print(
                f"{window:6}  {level:5}  {width:.4e}  "
                f"{1 - width / linear:7.2%}  {each:15.2f}  {stopped}  "
                f"{report.size['integers']:8}  {report.size['products']:8}",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="one step, one parameter")
    parser.add_argument("--widest", type=int, default=3, help="how many parameters are bounded")
    parser.add_argument("--seconds", type=float, default=20.0, help="limit of one objective")
    parser.add_argument("--radius", type=float, default=0.4)
    arguments = parser.parse_args()
    if arguments.small:
        measure(1, [1], 1, 1.0, arguments.radius)
    else:
        measure(4, [1, 2], arguments.widest, arguments.seconds, arguments.radius)


if __name__ == "__main__":
    main()
