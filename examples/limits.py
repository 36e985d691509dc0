"""How far does it reach? Seconds, memory and what is proved, for runs of growing size.

    python examples/limits.py --seconds 60

Every row is a process of its own, so that its peak memory is its own: relaxation="auto" with this time limit,
then the accuracy on the test set. A row says until which step the boxes are useful: narrower than
the parameters are large.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass

import torch
from models.recorded import dense

import milp_agt as agt
from milp_agt.threats import ThreatModel

HEADER = (
    "data           network     parameters  samples  batch  steps  threat           "
    "   s   MiB  accuracy  nominal  useful until"
)
THREATS: dict[str, Callable[[int], ThreatModel]] = {
    "1 label": lambda count: agt.LabelPoisoning(1),
    "1 at 0.01": lambda count: agt.FeaturePoisoning(1, 0.01),
    "10 at 0.01": lambda count: agt.FeaturePoisoning(10, 0.01),
    "all at 0.001": lambda count: agt.FeaturePoisoning(count, 0.001),
}


@dataclass(frozen=True)
class Size:
    """A run: a built-in data set, the hidden units, samples per batch (0: all), epochs, momentum."""

    data: str
    hidden: tuple[int, ...]
    batch: int
    epochs: int
    rate: float
    momentum: float = 0.0


SIZES = (
    Size("moons", (8,), 0, 20, 0.5),
    Size("moons", (8,), 0, 100, 0.5),
    Size("iris", (8,), 0, 20, 0.5),
    Size("iris", (16, 16), 0, 20, 0.2),
    Size("breast_cancer", (8,), 32, 5, 0.05, 0.9),
    Size("digits", (16,), 500, 4, 0.2),
    Size("digits", (64,), 100, 4, 0.1),
)


@dataclass(frozen=True)
class Row:
    """A size, a threat's name and the time limit in seconds."""

    size: Size
    threat: str
    seconds: float

    def text(self) -> str:
        """Certifies the run and describes what came out in one line of the table."""
        size = self.size
        data = agt.load_dataset(size.data, seed=0, test_fraction=0.2, standardise=True)
        torch.manual_seed(0)
        count, inputs = data.x_train.shape
        model = dense(inputs, *size.hidden, int(data.y_train.max()) + 1)
        batch = size.batch or count
        training = agt.Training(
            "cross_entropy",
            size.rate,
            epochs=size.epochs,
            batch_size=batch,
            momentum=size.momentum,
        )
        started = time.perf_counter()
        result = agt.certify(
            model,
            (data.x_train, data.y_train),
            training,
            THREATS[self.threat](count),
            relaxation="auto",
            time_limit=self.seconds,
        )
        answer = result.accuracy(data.x_test, data.y_test)
        seconds = time.perf_counter() - started
        mebibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        network = "-".join(map(str, (inputs, *size.hidden, int(data.y_train.max()) + 1)))
        parameters = sum(weights.numel() for weights in model.parameters())
        return (
            f"{size.data:<14} {network:<12}{parameters:>10}  {count:>7}  {batch:>5}  {len(result.steps):>5}  "
            f"{self.threat:<15}{seconds:>6.0f} {mebibytes:>5.0f}  {answer.lower:>8.3f}  "
            f"{answer.nominal:>7.3f}  {result.worth.useful_until:>6} of {len(result.steps)}"
        )


def rows(small: bool, seconds: float) -> Iterator[Row]:
    """The rows of the table; with ``small`` the first one alone."""
    for size in SIZES[:1] if small else SIZES:
        for threat in list(THREATS)[:1] if small else THREATS:
            yield Row(size, threat, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of a row")
    parser.add_argument("--small", action="store_true", help="one row")
    arguments = parser.parse_args()
    print(HEADER)
    for row in rows(arguments.small, arguments.seconds):
        spawn = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, mp_context=spawn) as alone:
            print(alone.submit(row.text).result(), flush=True)


if __name__ == "__main__":
    main()
