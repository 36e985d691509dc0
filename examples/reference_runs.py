"""How near do certificates come to real attacks? One row for each threat on one recorded training run.

    python examples/reference_runs.py --small
    python examples/reference_runs.py --case A_moons_282_ce.npz --features 1:0.01 --features 5:0.01 --labels 1

A case is a recorded run (models/recorded.py). Without --case: two moons and a small network. All options of
the certificate are the defaults unless --relaxation, --window, --inner-bounds, --selections
or --tree say otherwise; seconds are those of the processor.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from models.recorded import Recorded, dense

import milp_agt as agt
from milp_agt.data.dataset import load_dataset
from milp_agt.threats import ThreatModel

OPTIONS = (
    *("relaxation", "window", "program_window", "solve_nodes"),
    *("inner_bounds", "selections", "tree"),
)
HEADER = "threat                        accuracy  nominal  mean width    attacks  ratio    cpu s"


def generated(small: bool) -> Recorded:
    moons = load_dataset("moons", samples=20 if small else 50, seed=0, test_fraction=0.2)
    torch.manual_seed(0)
    data, test = (moons.x_train, moons.y_train), (moons.x_test, moons.y_test)
    return Recorded(dense(2, 4, 2), data, test, "cross_entropy", 0.5, 2 if small else 20)


def features(text: str) -> agt.FeaturePoisoning:
    budget, radius = text.split(":")
    return agt.FeaturePoisoning(int(budget), float(radius))


def labels(text: str) -> agt.LabelPoisoning:
    budget, _, radius = text.partition(":")
    return agt.LabelPoisoning(int(budget), radius=float(radius) if radius else None)


def row(
    name: str,
    case: Recorded,
    threat: ThreatModel,
    options: dict[str, Any],
    small: bool,
    narrow: float | None = None,
) -> str:
    training = case.training()
    started = time.process_time()
    result = agt.certify(case.model, case.train, training, threat, **options)
    if narrow:
        result = result.narrowed(narrow)
    seconds = time.process_time() - started
    accuracy = "      -         -"
    if case.loss != "mse":
        found = result.accuracy(*case.test)
        accuracy = f"{found.lower:>8.4f} {found.nominal:>8.4f}"
    search = agt.Search(pool=64, restarts=1, rounds=0) if small else agt.Search()
    attacked = agt.attack(case.model, case.train, training, threat, search=search).mean_width
    width = result.reachable.mean_width
    sizes = f"{width:>11.5g} {attacked:>10.4g} {width / attacked:>6.3g} {seconds:>8.1f}"
    return f"{name:<28} {accuracy} {sizes}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--case", metavar="FILE.npz", type=Path)
    parser.add_argument("--small", action="store_true", help="few samples, steps and attacks")
    parser.add_argument("--features", metavar="BUDGET:RADIUS", action="append", default=[])
    parser.add_argument("--labels", metavar="BUDGET[:RADIUS]", action="append", default=[])
    parser.add_argument("--relaxation")
    parser.add_argument("--window", type=int)
    parser.add_argument("--program-window", type=int, help="0: programs on a zonotope's rows alone")
    parser.add_argument("--solve-nodes", type=int)
    parser.add_argument("--inner-bounds")
    parser.add_argument("--selections")
    parser.add_argument("--tree", type=float, help="seconds of a tree for each question")
    parser.add_argument("--narrow", type=float, help="seconds of a tree for the mean width")
    arguments = parser.parse_args()
    case = Recorded.load(arguments.case) if arguments.case else generated(arguments.small)
    if not arguments.features and not arguments.labels:
        arguments.features, arguments.labels = (
            ["1:0.01"],
            ["1"] if case.loss != "mse" else [],
        )
    asked = {key: getattr(arguments, key) for key in OPTIONS if getattr(arguments, key) is not None}
    if arguments.narrow and not arguments.tree:
        asked["tree"] = arguments.narrow
    print(HEADER)
    for text in arguments.features:
        print(
            row(f"features {text}", case, features(text), asked, arguments.small, arguments.narrow),
            flush=True,
        )
    for text in arguments.labels:
        print(
            row(f"labels {text}", case, labels(text), asked, arguments.small, arguments.narrow),
            flush=True,
        )


if __name__ == "__main__":
    main()
