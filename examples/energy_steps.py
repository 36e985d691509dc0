"""How far intervals and linear forms carry on household power: certified over nominal MSE, step by step.

9-64-1 relu network, learning rate 0.05; in every batch, features (not the clock) and targets of one percent
of the hours are poisoned anew. Intervals run until they have doubled the error, linear forms (window 1) for
as many steps. --data FILE takes the minutes of the UCI repository; --small is a size of seconds.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import time
from pathlib import Path

import numpy as np
import torch
from torch import nn

import milp_agt as agt

SHIPPED = Path(__file__).parent / "data" / "household_power_hourly.csv.gz"
TESTED = 200  # hours on which the error is bounded


class Doubled(Exception):
    """The certified error is at least twice the nominal one."""


def certify(
    options: argparse.Namespace, data: agt.Dataset, relaxation: str, steps: int
) -> list[float]:
    """CPU seconds of each step of a run that prints what it proves.

    Intervals stop where they have doubled the error; linear forms are asked at their last step only, for
    each answer walks through a batch.
    """
    torch.manual_seed(0)
    layers = nn.Linear(9, options.hidden), nn.ReLU(), nn.Linear(options.hidden, 1)
    draw = np.random.default_rng(0)
    batches = [draw.permutation(len(data.x_train))[: options.batch].tolist() for _ in range(steps)]
    threat = agt.FeatureLabelPoisoning(
        max(1, options.batch // 100),
        radius=[options.radius] * 5 + [0.0] * 4,
        label_radius=options.radius,
        static=False,
        scope="batch",
    )
    seconds: list[float] = []
    clock = time.process_time()

    def note(result: agt.Result, done: int, steps: int) -> None:
        nonlocal clock
        seconds.append(time.process_time() - clock)
        text = f"{relaxation:8s} {done:4d}  {seconds[-1]:7.2f}  {result.reachable.mean_width:.3e}"
        ratio = 0.0
        if relaxation == "interval" or done == steps:
            loss = result.loss(data.x_test[:TESTED], data.y_test[:TESTED])
            ratio, alone = loss.upper / loss.nominal, float(loss.points.upper.mean()) / loss.nominal
            text += f"  {ratio:7.3f}  {alone:14.3f}"
        print(text, flush=True)
        clock = time.process_time()
        if relaxation == "interval" and ratio >= 2.0:
            raise Doubled

    with contextlib.suppress(Doubled):
        agt.certify(
            nn.Sequential(*layers).double(),
            (data.x_train, data.y_train),
            agt.Training(loss="mse", learning_rate=0.05, batches=batches),
            threat,
            relaxation=relaxation,
            window=1,
            inner_bounds="interval",
            memory="1GiB",
            on_step=note,
        )
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=SHIPPED, help="hourly or minute file")
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--radius", type=float, default=0.01)
    parser.add_argument("--steps", type=int, default=150, help="most steps")
    parser.add_argument("--small", action="store_true", help="a size that takes seconds")
    options = parser.parse_args()
    if options.small:
        options.batch, options.hidden, options.steps = 200, 8, 3
    data = agt.load_dataset(str(options.data), standardise=True, standardise_targets=True)
    print("certified over nominal MSE: all points together, and each with its own worst run")
    print("         step  CPU s  mean width     MSE  point by point")
    done = certify(options, data, "interval", options.steps)
    certify(options, data, "linear", len(done))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory of the process: {peak:.2f} GiB")


if __name__ == "__main__":
    main()
