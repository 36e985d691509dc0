"""Memory: the work is cut so that what was asked is kept, or it is told that it cannot be."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from attacks import network

import milp_agt as agt
from milp_agt import cost
from milp_agt.inputs import bytes_of


def certify(memory: str, **options: object) -> agt.Result:
    data = torch.randn(20, 2, dtype=torch.float64), torch.randn(20, 1, dtype=torch.float64)
    training = agt.Training(loss="mse", learning_rate=0.1, epochs=1)
    threat = agt.FeaturePoisoning(1, 0.01)
    model = network((2, 3, 1), seed=0)
    return agt.certify(model, data, training, threat, memory=memory, **options)  # type: ignore[arg-type]


def test_a_memory_that_cannot_be_kept_is_told() -> None:
    (line,) = (line for line in certify("100MiB").fallbacks if "memory" in line)
    for part in (
        "memory 100 MiB cannot be kept",
        "libraries 288 MiB",
        "data",
        "steps of the window",
    ):
        assert part in line
    assert not any("memory" in line for line in certify("1GiB").fallbacks)


@pytest.mark.parametrize("window", [1, 3])
def test_what_a_window_holds_is_left_out_of_the_pieces(
    window: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    rooms: list[int] = []
    honest = cost._room

    def room(budget: int, poison: object, kept: int) -> object:
        found = honest(budget, poison, kept)  # type: ignore[arg-type]
        rooms.append(bytes_of("1GiB") - found[0] - cost.BASELINE)
        return found

    monkeypatch.setattr(cost, "_room", room)
    data = torch.randn(3000, 9, dtype=torch.float64), torch.randn(3000, 1, dtype=torch.float64)
    agt.certify(
        network((9, 8, 1), seed=0),
        data,
        agt.Training(loss="mse", learning_rate=0.1, epochs=3, batch_size=3000),
        agt.FeaturePoisoning(1, 0.01, scope="batch", static=False),
        relaxation="linear",
        window=window,
        inner_bounds="interval",
        memory="1GiB",
    )
    # Two ends, offsets and slopes of 8 units in six nodes, for each sample and step.
    assert rooms[0] > window * 3000 * 8 * 6 * 8 * 11


@pytest.mark.slow
def test_a_large_batch_stays_within_its_memory() -> None:
    script = """
import resource, torch, milp_agt as agt
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(9, 48), torch.nn.ReLU(), torch.nn.Linear(48, 1)).double()
x, y = torch.randn(8000, 9, dtype=torch.float64), torch.randn(8000, 1, dtype=torch.float64)
agt.certify(
    net, (x, y), agt.Training(loss="mse", learning_rate=0.05, epochs=2, batch_size=8000),
    agt.FeatureLabelPoisoning(80, 0.01, label_radius=0.01, static=False, scope="batch"),
    relaxation="linear", window=1, inner_bounds="interval", memory="768MiB",
)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=600
    )
    assert int(done.stdout) <= bytes_of("768MiB")
