"""What optimised slopes bring, and what they cost.

Some samples of a data set may move; linear bounds through the whole run, first with default slopes, then
with slopes optimised after the last step. Without --case: two moons with a 2-4-1 relu network. A case is
an .npz file with x_train, y_train, loss, lr, and W0, b0, W1, b1 of the linear layers of a relu network.

    python examples/slopes.py --steps 15 --moves 0 5 10
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from torch import nn

import milp_agt as agt
from milp_agt.data import load_dataset


def generated() -> tuple[nn.Module, tuple[np.ndarray, np.ndarray], str, float]:
    torch.manual_seed(0)
    data = load_dataset("moons", samples=50, noise=0.1, seed=0, test_fraction=0.2)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    return model, (data.x_train, data.y_train), "bce", 0.5


def from_file(path: str) -> tuple[nn.Module, tuple[np.ndarray, np.ndarray], str, float]:
    case = np.load(path)
    layers: list[nn.Module] = []
    for number in range(sum(name.startswith("W") for name in case.files)):
        weight, bias = (torch.from_numpy(case[f"{kind}{number}"]) for kind in "Wb")
        layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
        with torch.no_grad():
            layer.weight.copy_(weight)
            layer.bias.copy_(bias.flatten())
        layers += [nn.ReLU(), layer] if layers else [layer]
    return (
        nn.Sequential(*layers),
        (case["x_train"], case["y_train"]),
        str(case["loss"]),
        float(case["lr"]),
    )


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
    model, data, loss, rate = generated() if asked.case is None else from_file(asked.case)
    training = agt.Training(loss=loss, learning_rate=rate, epochs=asked.steps)
    threat = agt.FeaturePoisoning(budget=asked.budget, radius=asked.radius)
    print(f"{'moves':>6s} {'mean width':>11s} {'max width':>10s} {'CPU s':>7s}")
    for moves in asked.moves:
        begun = time.process_time()
        result = agt.certify(
            model, data, training, threat, selections=asked.selections, alpha_steps=moves
        )
        seconds, reached = time.process_time() - begun, result.reachable
        print(f"{moves:6d} {reached.mean_width:11.6f} {reached.max_width:10.5f} {seconds:7.1f}")
        for note in (*result.notes, *result.fallbacks):
            print("      ", note)


if __name__ == "__main__":
    main()
