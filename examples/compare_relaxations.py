"""The same training run under several relaxations and windows: how tight, and at what price.

Run it with --small for a size that takes a few seconds.
"""

from __future__ import annotations

import argparse

import torch

import milp_agt as agt
from milp_agt.data import load_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="fewer samples, steps and rows")
    small = parser.parse_args().small

    data = load_dataset("moons", samples=20 if small else 30, test_fraction=0.2, seed=0)
    torch.manual_seed(0)
    hidden = 2 if small else 4
    model = torch.nn.Sequential(
        torch.nn.Linear(2, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1)
    )
    comparison = agt.compare(
        model.double(),
        (data.x_train, data.y_train),
        agt.Training(loss="bce", learning_rate=0.5, epochs=3 if small else 6),
        agt.FeaturePoisoning(budget=2, radius=0.01),
        relaxations=("interval", "linear", "lp"),
        windows=(1,) if small else (1, "T"),
        program_window=1,
        X_test=data.x_test,
        y_test=data.y_test,
    )
    print(comparison.table())


if __name__ == "__main__":
    main()
