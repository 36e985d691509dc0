"""What programs add to linear bounds: windows of 1, 3 and 10 steps, from the sets of the linear engine.

Two moons, 40 samples, a 2-4-1 relu network, full batch; two samples may move by 0.01. Linear bounds
through the whole run give the sets; at some steps a program over the last w of them bounds the
parameters again, milp on top of lp. The table says by how much the mean width shrinks and how long one
objective takes.
--case FILE.npz takes the data (X, y) and the weights (W1, b1, w2, b2) from a file.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import milp_agt as agt
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits
from milp_agt.data import load_dataset
from milp_agt.engines import program
from milp_agt.engines.recorder import MemoryRecorder
from milp_agt.solvers import get_solver

BUDGET, RADIUS, RATE = 2, 0.01, 0.5
Case = tuple[nn.Module, npt.NDArray[np.float64], npt.NDArray[np.int64]]


def generated() -> Case:
    torch.manual_seed(7)
    data = load_dataset("moons", samples=50, noise=0.1, seed=0, test_fraction=0.2)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    return model, data.x_train, data.y_train.astype(np.int64)


def from_file(path: str) -> Case:
    case = np.load(path)
    hidden, features = case["W1"].shape
    model = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, 1)).double()
    shapes = [(hidden, features), (hidden,), (1, hidden), (1,)]
    with torch.no_grad():
        for parameter, key, shape in zip(
            model.parameters(), ("W1", "b1", "w2", "b2"), shapes, strict=True
        ):
            parameter.copy_(torch.from_numpy(np.asarray(case[key]).reshape(shape)))
    return model, case["X"], case["y"].astype(np.int64)


def mean_width(state: Mapping[str, Interval]) -> float:
    return float(torch.cat([box.width.flatten() for box in state.values()]).mean())


def measure(
    case: Case, steps: Sequence[int], windows: Sequence[int], trees: int, seconds: float
) -> None:
    model, x, y = case
    recorder = MemoryRecorder()
    result = agt.certify(
        model,
        (x, y),
        agt.Training(loss="bce", learning_rate=RATE, epochs=max(steps)),
        agt.FeaturePoisoning(budget=BUDGET, radius=RADIUS),
        relaxation="linear",
        inner_bounds="linear",
        selections="joint",
        recorder=recorder,
    )
    kept, states = recorder.steps["linear"], recorder.states["linear"]
    run = result.models
    print(
        "step  window  level   mean width   gain   s/objective            solves  columns    rows"
    )
    for step in steps:
        linear = mean_width(states[step - 1])
        print(f"{step:4}       -  linear  {linear:.4e}       -")
        for window in windows:
            state = states[step - 1]
            for level, exact in (("lp", False), ("milp", True)):
                if exact and window > trees:
                    continue
                encoded = program.encode_window(
                    run.step_graph,
                    run.schedule,
                    kept[max(0, step - window) : step],
                    run.poison,
                    exact,
                )
                limits = Limits(time=seconds if exact else None)
                options = program.SolveOptions(get_solver("highs"), limits)
                begun = time.perf_counter()
                state, report = program.bound_state(encoded, state, options)
                each = (time.perf_counter() - begun) / max(report.solves, 1)
                stopped = f"{report.limited} of {report.solves} stopped" if exact else "optimal"
                width = mean_width(state)
                print(
                    f"{step:4}  {window:6}  {level:6}  {width:.4e}  {1 - width / linear:6.2%}  "
                    f"{each:11.3f}  {stopped:>16}  {report.size['columns']:7} {report.size['rows']:7}",
                    flush=True,
                )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="two steps, windows of 1 and 2")
    parser.add_argument("--case", metavar="FILE.npz", help="data and initial weights")
    parser.add_argument("--trees", type=int, default=3, help="longest window for milp")
    parser.add_argument("--seconds", type=float, default=2.0, help="limit of one milp objective")
    arguments = parser.parse_args()
    case = from_file(arguments.case) if arguments.case else generated()
    if arguments.small:
        measure(case, [2], [1, 2], 1, 0.05)
    else:
        measure(case, [10, 20, 30], [1, 3, 10], arguments.trees, arguments.seconds)


if __name__ == "__main__":
    main()
