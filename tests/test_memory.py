"""Memory: the work is cut so that what was asked is kept, or it is told that it cannot be."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks import network

import milp_agt as agt
from milp_agt.certification import fingerprint, planning
from milp_agt.certification.sizes import Sizes
from milp_agt.formulations.mse import MeanSquaredError
from milp_agt.threats.poison import Poison
from milp_agt.training.inputs import bytes_of
from milp_agt.training.tracing import trace

EXAMPLES = Path(__file__).parents[1] / "examples"


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
    honest = planning._room

    class Planned(Exception):
        """Ends the run once it is planned."""

    def room(budget: int, data: int, kept: int) -> object:
        raise Planned(bytes_of("1GiB") - honest(budget, data, kept)[0] - planning.rates.BASELINE)

    monkeypatch.setattr(planning, "_room", room)
    data = torch.randn(3000, 9, dtype=torch.float64), torch.randn(3000, 1, dtype=torch.float64)
    with pytest.raises(Planned) as planned:
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
    assert planned.value.args[0] > window * 3000 * 8 * 6 * 8 * 11


def bound(radius: object, label_radius: object = 0.1) -> Poison:
    x, y = torch.randn(1000, 4, dtype=torch.float64), torch.randn(1000, 1, dtype=torch.float64)
    threat = agt.FeatureLabelPoisoning(3, radius, label_radius=label_radius)  # type: ignore[arg-type]
    return threat.bind(x, y, MeanSquaredError())


@pytest.mark.parametrize("radius", [0.1, [0.1, 0.2, 0.0, 0.3]], ids=["one", "by feature"])
def test_moves_that_are_the_same_for_all_samples_are_stored_once(radius: object) -> None:
    alike = bound(radius)
    every = bound(np.broadcast_to(np.asarray(radius), (1000, 4)).copy())
    data = alike.features.nbytes + alike.labels.nbytes
    few = 2 * 4 * 8 + 2 * alike.labels.nbytes  # two ends for each feature, two of each target
    assert planning.stored(alike.tensors) <= data + few
    assert planning.stored(every.tensors) >= data + 2 * every.features.nbytes
    assert torch.equal(alike.feature_moves.lower, every.feature_moves.lower)
    assert torch.equal(alike.feature_moves.upper, every.feature_moves.upper)
    index = torch.tensor([3, 999])
    one, other = alike.feature_moves.take(index), every.feature_moves.take(index)
    assert torch.equal(one.upper, other.upper)


def test_what_is_stored_counts_once() -> None:
    whole = torch.zeros(10, 3, dtype=torch.float64)
    assert planning.stored([whole, whole.T, whole[2:]]) == 240
    assert planning.stored([whole, whole.clone()]) == 480
    assert planning.stored([whole[:2]]) == 48
    assert planning.stored([whole[:1].expand(10, 3)]) <= 240


def test_a_walk_has_room_for_the_moves_of_samples_that_can_be_poisoned() -> None:
    graph = trace(network((9, 8, 1), seed=0), "mse", (9,))

    def form(exposed: int, window: int) -> int:
        return Sizes(graph, 100, exposed, False, 3, window, 1, 2**30).form(8)

    few, many = 150, 10**6
    assert form(few, 0) == form(many, 0) < form(few, 1) == form(many, 1)
    assert form(few, 3) < form(many, 2) < form(many, 3)


def test_hashes_are_those_of_whole_arrays(monkeypatch: pytest.MonkeyPatch) -> None:
    array = np.random.default_rng(0).normal(size=(70, 3, 2))
    expected = hashlib.sha256(b"ndarray" + f"{array.dtype.str}{array.shape}".encode())
    expected.update(array.tobytes())
    for block in (1, 100, 2**20):
        monkeypatch.setattr(fingerprint, "BLOCK", block)
        assert fingerprint.digest(array) == expected.hexdigest()[:16]
    assert fingerprint.digest(np.float64(1.0) * np.ones(())) != fingerprint.digest(np.zeros(()))
    assert fingerprint.digest(np.zeros((0, 3))) != fingerprint.digest(np.zeros((3, 0)))


def test_passes_that_are_carried_out_fit_into_half_of_the_room() -> None:
    """The rows of the run's own passes, not of those over fewer samples; the rest is for the allocator."""
    graph = trace(network((9, 48, 1), seed=0), "mse", (9,))
    sizes = Sizes(graph, 8000, 8000, False, 2, 1, 1, 768 * 2**20)
    for room in (2**26, 2**27, 2**28):
        pieces = planning.Pieces.of(sizes, 1, False, room)
        assert 1 < pieces.chunk <= pieces.rows
        assert pieces.chunk * sizes.form(pieces.walked_samples) <= room // 2


PEAK = """
import resource
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def peak(script: str, *arguments: str) -> int:
    """Peak memory of a script in a process of its own."""
    command = [sys.executable, "-c", script + PEAK, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=600)
    return int(done.stdout.split()[-1])


@pytest.mark.slow
def test_a_large_batch_stays_within_its_memory() -> None:
    script = """
import torch, milp_agt as agt
torch.manual_seed(0)
net = torch.nn.Sequential(torch.nn.Linear(9, 48), torch.nn.ReLU(), torch.nn.Linear(48, 1)).double()
x, y = torch.randn(8000, 9, dtype=torch.float64), torch.randn(8000, 1, dtype=torch.float64)
agt.certify(
    net, (x, y), agt.Training(loss="mse", learning_rate=0.05, epochs=2, batch_size=8000),
    agt.FeatureLabelPoisoning(80, 0.01, label_radius=0.01, static=False, scope="batch"),
    relaxation="linear", window=1, inner_bounds="interval", memory="768MiB",
)
"""
    assert peak(script) <= bytes_of("768MiB")


@pytest.mark.slow
@pytest.mark.parametrize("run", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_a_run_of_the_examples_stays_within_its_memory(run: Path, tmp_path: Path) -> None:
    script = "import sys; from milp_agt.cli import main; assert main(sys.argv[1:]) < 2"
    given = ["certify", str(run), "--out", str(tmp_path), "--memory", "1GiB"]
    assert peak(script, *given) <= bytes_of("1GiB")


def pairs_of(memory: str, **options: object) -> agt.Result:
    """60 samples, pairs of which may move: 1,770 selections for a model of 3 parameters."""
    data = torch.randn(60, 2, dtype=torch.float64), torch.randn(60, 1, dtype=torch.float64)
    training = agt.Training(loss="mse", learning_rate=0.1, epochs=4)
    threat = agt.FeaturePoisoning(2, 0.01)
    model = network((2, 1), seed=0)
    return agt.certify(model, data, training, threat, relaxation="linear", memory=memory, **options)  # type: ignore[arg-type]


def test_selections_whose_windows_do_not_fit_are_not_listed() -> None:
    """All groups of selections are carried from step to step: their sum counts, not the largest."""
    small = pairs_of("300MiB", carried="none")
    (line,) = (line for line in small.notes if "selections are not listed" in line)
    for part in ("1.77e+03 of them would hold", "window of 4 steps", "300 MiB", "enumerated"):
        assert part in line
    assert not any("each selection" in chain for chain in small.steps[-1].chains or ())
    large = pairs_of("4GiB", carried="none")
    assert not any("not listed" in line for line in large.notes)
    assert "linear, each selection" in (large.steps[-1].chains or ())


def test_listed_selections_that_were_asked_for_tell_what_they_need() -> None:
    asked = pairs_of("300MiB", selections="enumerated")
    assert "linear, each selection" in (asked.steps[-1].chains or ())
    (line,) = (line for line in asked.fallbacks if "memory" in line)
    assert "memory 300 MiB cannot be kept" in line


def test_a_zonotope_far_beyond_the_memory_is_folded_into_its_box(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert certify("1GiB", relaxation="zonotope").reachable.mean_width > 0
    box = certify("1GiB", relaxation="interval").reachable
    monkeypatch.setattr(Sizes, "zonotope", lambda *given: ([1.0], 3 * 2**30))
    folded = certify("1GiB", relaxation="zonotope")
    (line,) = folded.fallbacks
    assert "would take about 3072 MiB, far more than 1024 MiB; give more memory" in line
    assert folded.reachable.mean_width == box.mean_width
    assert certify("1GiB").reachable.mean_width > 0
