"""What optimised slopes bring, and what they cost.

Some samples of a data set may move; linear bounds through the whole run, first with default slopes, then
with slopes optimised after the last step. Without --case: two moons with a 2-4-1 relu network. A case is
a recorded run (models/recorded.py).

    python examples/slopes.py --steps 15 --moves 0 5 10
"""

from __future__ import annotations

import argparse
import time

import torch
from models.recorded import Recorded, dense

import milp_agt as agt
from milp_agt.data.dataset import load_dataset


def generated() -> Recorded:
    torch.manual_seed(0)
    moons = load_dataset("moons", samples=50, noise=0.1, seed=0, test_fraction=0.2)
    data, test = (moons.x_train, moons.y_train), (moons.x_test, moons.y_test)
    return Recorded(dense(2, 4, 1), data, test, "bce", 0.5, 10)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--case")
    parser.add_argument("--budget", type=int, default=1)
    parser.add_argument("--radius", type=float, default=0.01)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--moves", type=int, nargs="+", default=[0, 5])
    parser.add_argument("--selections", choices=["joint", "enumerated"])
    parser.add_argument("--small", action="store_true", help="three steps, one move")
    asked = parser.parse_args()
    if asked.small:
        asked.steps, asked.moves = 3, [0, 1]
    case = generated() if asked.case is None else Recorded.load(asked.case)
    training = case.training(asked.steps)
    threat = agt.FeaturePoisoning(budget=asked.budget, radius=asked.radius)
    print(f"{'moves':>6s} {'mean width':>11s} {'max width':>10s} {'CPU s':>7s}")
    for moves in asked.moves:
        begun = time.process_time()
        result = agt.certify(
            case.model, case.train, training, threat, selections=asked.selections, alpha_steps=moves
        )
        seconds, reached = time.process_time() - begun, result.reachable
        print(f"{moves:6d} {reached.mean_width:11.6f} {reached.max_width:10.5f} {seconds:7.1f}")
        for note in (*result.notes, *result.fallbacks):
            print("      ", note)


if __name__ == "__main__":
    main()
