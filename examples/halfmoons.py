"""Half moons in polynomial features, thousands of samples, some labels flipped or features moved.

The experiment of Sosnin et al. 2024: coordinates, their squares and cubes; a 6-128-2 relu network; four
steps on the full batch at a learning rate that decays from 2. The table has the mean width of the reachable
set by each level, then comes the certified accuracy. --case FILE.npz takes a recorded
run (models/recorded.py).
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
import torch
from models.recorded import Array, Recorded, dense

import milp_agt as agt
from milp_agt.data.dataset import load_dataset
from milp_agt.training.schedules import InverseTimeDecay


def generated(samples: int, hidden: int) -> Recorded:
    torch.manual_seed(0)
    data = load_dataset("moons", samples=samples, noise=0.1, seed=0, test_fraction=0.2)

    def lifted(x: Array) -> Array:
        return np.concatenate([x, x**2, x**3], 1)

    return Recorded(
        dense(6, hidden, 2),
        (lifted(data.x_train), data.y_train),
        (lifted(data.x_test), data.y_test),
        "cross_entropy",
        0.5,
        4,
        InverseTimeDecay(0.6, 1e-3),
    )


def measure(
    case: Recorded, threat: agt.LabelPoisoning | agt.FeaturePoisoning, level: str, memory: str
) -> None:
    begun = time.process_time()

    def spent() -> str:
        return f"{time.process_time() - begun:8.1f}"

    def tell(result: agt.Result, step: int, steps: int) -> None:
        widths = result.steps[-1].chains
        print(f"{step:4}  {widths['interval']:.6f}  {widths[level]:.6f}  {spent()}", flush=True)

    print(f"step  interval  {level:>8}     cpu s")
    result = agt.certify(
        case.model,
        case.train,
        case.training(),
        threat,
        relaxation=level,
        selections="joint",
        memory=memory,
        on_step=tell,
    )
    accuracy = result.accuracy(*case.test)
    print(
        f"accuracy at least {accuracy.lower:.3f}, nominal {accuracy.nominal:.3f}; {spent().strip()} s of "
        f"CPU time, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f} GiB"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="few samples and units")
    parser.add_argument("--case", metavar="FILE.npz", help="data and initial weights")
    parser.add_argument("--labels", type=int, help="labels that are flipped")
    parser.add_argument("--features", type=int, help="samples whose features are moved")
    parser.add_argument("--radius", type=float, default=0.01, help="how far, in each coordinate")
    parser.add_argument("--relaxation", choices=("linear", "zonotope"), default="zonotope")
    parser.add_argument("--memory", default="4GiB")
    arguments = parser.parse_args()
    if arguments.small:
        case = generated(60, 8)
    else:
        case = Recorded.load(arguments.case) if arguments.case else generated(1250, 64)
    if arguments.features is None:
        budget = 1 if arguments.labels is None else arguments.labels
        measure(case, agt.LabelPoisoning(budget), arguments.relaxation, arguments.memory)
    else:
        threat = agt.FeaturePoisoning(arguments.features, arguments.radius)
        measure(case, threat, arguments.relaxation, arguments.memory)


if __name__ == "__main__":
    main()
