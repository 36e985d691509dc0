"""A first certificate: two moons, a small network, one sample that may be moved a little.

Run it with --small for a size that takes a second.
"""

from __future__ import annotations

import argparse

import torch

import milp_agt as agt
from milp_agt.data import load_dataset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="fewer samples and steps")
    small = parser.parse_args().small

    data = load_dataset("moons", samples=30 if small else 120, test_fraction=0.2, seed=0)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    training = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=5 if small else 20)
    threat = agt.FeaturePoisoning(budget=1, radius=0.01)

    result = agt.certify(
        model.double(),
        (data.x_train, data.y_train),
        training,
        threat,
        relaxation="linear",
        window=5,
    )
    print(result.claim)
    print(f"mean width of the parameters: {result.reachable.mean_width:.6g}")
    accuracy = result.accuracy(data.x_test, data.y_test)
    print(f"test accuracy: nominal {accuracy.nominal:.3f}, certified {accuracy.lower:.3f}")


if __name__ == "__main__":
    main()
