"""How near do certificates come to real attacks? One row for each threat on one recorded training run.

    python examples/reference_runs.py --small
    python examples/reference_runs.py --case A_moons_282_ce.npz --features 1:0.01 --features 5:0.01 --labels 1

A case is a file with x_train, y_train, x_test, y_test, the dense layers W0, b0, W1, b1 ... (relu between
them), lr, steps and loss, and perhaps lr_decay and lr_min: full batches, plain gradient descent. Without
--case: two moons and a small network. All options of the certificate are the defaults unless --window,
--inner-bounds, --selections or --alpha-steps say otherwise; seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import itertools
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import milp_agt as agt
from milp_agt.data import load_dataset
from milp_agt.schedules import InverseTimeDecay
from milp_agt.threats import ThreatModel

Array = npt.NDArray[Any]
HEADER = "threat                        accuracy  nominal  mean width    attacks  ratio    cpu s"


@dataclass(frozen=True)
class Case:
    model: nn.Module
    train: tuple[Array, Array]
    test: tuple[Array, Array]
    training: agt.Training


def dense(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1]).double()


def generated(small: bool) -> Case:
    data = load_dataset("moons", samples=20 if small else 50, seed=0, test_fraction=0.2)
    torch.manual_seed(0)
    training = agt.Training("cross_entropy", learning_rate=0.5, epochs=2 if small else 20)
    return Case(dense(2, 4, 2), (data.x_train, data.y_train), (data.x_test, data.y_test), training)


def from_file(path: Path) -> Case:
    case = np.load(path)
    weights = [case[f"W{k}"] for k in itertools.takewhile(lambda k: f"W{k}" in case, range(99))]
    model = dense(weights[0].shape[1], *(w.shape[0] for w in weights))
    with torch.no_grad():
        for k, layer in enumerate(m for m in model if isinstance(m, nn.Linear)):
            layer.weight.copy_(torch.from_numpy(case[f"W{k}"]))
            layer.bias.copy_(torch.from_numpy(case[f"b{k}"]))
    schedule = None
    if "lr_decay" in case:
        schedule = InverseTimeDecay(float(case["lr_decay"]), float(case["lr_min"]))
    training = agt.Training(
        str(case["loss"]), float(case["lr"]), epochs=int(case["steps"]), schedule=schedule
    )
    train, test = (case["x_train"], case["y_train"]), (case["x_test"], case["y_test"])
    return Case(model, train, test, training)


def features(text: str) -> agt.FeaturePoisoning:
    budget, radius = text.split(":")
    return agt.FeaturePoisoning(int(budget), float(radius))


def labels(text: str) -> agt.LabelPoisoning:
    budget, _, radius = text.partition(":")
    return agt.LabelPoisoning(int(budget), radius=float(radius) if radius else None)


def row(name: str, case: Case, threat: ThreatModel, options: dict[str, Any], small: bool) -> str:
    started = time.process_time()
    result = agt.certify(case.model, case.train, case.training, threat, **options)
    seconds = time.process_time() - started
    accuracy = "      -         -"
    if case.training.loss != "mse":
        found = result.accuracy(*case.test)
        accuracy = f"{found.lower:>8.4f} {found.nominal:>8.4f}"
    search = agt.Search(pool=64, restarts=1, rounds=0) if small else agt.Search()
    attacked = agt.attack(case.model, case.train, case.training, threat, search=search).mean_width
    width = result.reachable.mean_width
    sizes = f"{width:>11.5g} {attacked:>10.4g} {width / attacked:>6.3g} {seconds:>8.1f}"
    return f"{name:<28} {accuracy} {sizes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", metavar="FILE.npz", type=Path)
    parser.add_argument("--small", action="store_true", help="few samples, steps and attacks")
    parser.add_argument("--features", metavar="BUDGET:RADIUS", action="append", default=[])
    parser.add_argument("--labels", metavar="BUDGET[:RADIUS]", action="append", default=[])
    parser.add_argument("--window", type=int)
    parser.add_argument("--inner-bounds")
    parser.add_argument("--selections")
    parser.add_argument("--alpha-steps", type=int)
    arguments = parser.parse_args()
    case = from_file(arguments.case) if arguments.case else generated(arguments.small)
    if not arguments.features and not arguments.labels:
        arguments.features, arguments.labels = (
            ["1:0.01"],
            ["1"] if case.training.loss != "mse" else [],
        )
    asked = {
        key: getattr(arguments, key)
        for key in ("window", "inner_bounds", "selections", "alpha_steps")
        if getattr(arguments, key) is not None
    }
    print(HEADER)
    for text in arguments.features:
        print(row(f"features {text}", case, features(text), asked, arguments.small), flush=True)
    for text in arguments.labels:
        print(row(f"labels {text}", case, labels(text), asked, arguments.small), flush=True)


if __name__ == "__main__":
    main()
