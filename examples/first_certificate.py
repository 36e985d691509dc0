"""First certificate in five minutes: two moons, a small network, one sample that may be moved a little.

Takes less than a minute; run it with --small for a few seconds. The page at the end needs the extra
``report``.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

import milp_agt as agt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="fewer samples and steps")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/first_certificate"))
    arguments = parser.parse_args()
    small = arguments.small

    # 1. Data, a torch model with its initial weights, and how it is trained.
    data = agt.load_dataset("moons", samples=30 if small else 120, test_fraction=0.2, seed=0)
    torch.manual_seed(0)
    layers = torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2)
    model = torch.nn.Sequential(*layers).double()
    epochs = 5 if small else 20
    training = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=epochs)

    # 2. What the adversary may do: move one training sample, whichever it likes, by 0.01.
    threat = agt.FeaturePoisoning(budget=1, radius=0.01)

    # 3. The certificate: a box that holds everything that training could end in. The model itself is
    #    copied, not trained. window= is how many steps the bounds are followed back through.
    result = agt.certify(
        model, (data.x_train, data.y_train), training, threat, relaxation="linear", window=5
    )
    print(result.claim)
    print(f"\nmean width of the parameters: {result.reachable.mean_width:.6g}")

    # 4. What follows for predictions, in the worst case over all poisoned data sets. The certificate is
    #    good where the worst case is close to the unpoisoned value.
    accuracy = result.accuracy(data.x_test, data.y_test)
    print(
        f"test accuracy: {accuracy.nominal:.3f} unpoisoned, at least {accuracy.lower:.3f} poisoned"
    )

    # 5. See for yourself: poison a sample, train in plain torch, and look whether it is inside.
    poisoned = data.x_train.copy()
    poisoned[0] += np.array([0.01, -0.01])
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    x, y = torch.from_numpy(poisoned), torch.from_numpy(data.y_train)
    for _ in range(epochs):
        optimiser.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    print(f"a run on poisoned data ends inside: {result.reachable.contains(model.state_dict())}")

    # 6. A page to hand on: the claim, the verdict, every test point, a map of what cannot be changed.
    page = agt.report(
        result,
        data,
        arguments.out,
        properties=[{"kind": "accuracy", "at_least": 0.8}, {"kind": "stable"}],
    )
    print(f"read it in a browser: {page}")


if __name__ == "__main__":
    main()
