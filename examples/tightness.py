"""How tight is each relaxation? Width of the reachable set over steps, against real attacks.

Two moons, 40 samples, a 2-4-1 relu network, 30 full-batch steps; two samples may move by 0.01.
Prints a table; --plot FILE draws it (needs matplotlib). Attacks are real poisoned trainings, so the
truth lies between the attack row and each certificate.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

import milp_agt as agt
from milp_agt.data import load_dataset

LEVELS: dict[str, dict[str, object]] = {
    "interval": {"relaxation": "interval"},
    "linear, window 1": {"window": 1, "inner_bounds": "interval"},
    "lp, window 1": {"relaxation": "lp", "window": 1, "inner_bounds": "interval"},
    "linear, whole run, interval inner bounds": {"inner_bounds": "interval"},
    "linear, whole run": {"inner_bounds": "linear"},
}
BUDGET, RADIUS, RATE = 2, 0.01, 0.5


def train(model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int) -> list[torch.Tensor]:
    """Parameters after every step of plain torch training."""
    model = copy.deepcopy(model)
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE)
    path = []
    for _ in range(steps):
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(x).squeeze(-1), y).backward()
        optimiser.step()
        path.append(torch.cat([p.detach().flatten() for p in model.parameters()]).clone())
    return path


def attack_widths(
    model: nn.Module, x: torch.Tensor, y: torch.Tensor, steps: int, attacks: int
) -> list[float]:
    """Mean width of the box around many poisoned trainings, after every step."""
    generator = torch.Generator().manual_seed(0)
    runs = []
    for _ in range(attacks):
        chosen = torch.randperm(len(x), generator=generator)[:BUDGET]
        poisoned = x.clone()
        signs = torch.randint(0, 2, (BUDGET, x.shape[1]), generator=generator) * 2.0 - 1.0
        poisoned[chosen] += RADIUS * signs
        runs.append(torch.stack(train(model, poisoned, y, steps)))
    paths = torch.stack(runs)
    return (paths.amax(0) - paths.amin(0)).mean(-1).tolist()


def draw(rows: dict[str, list[float]], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.0, 4.0), layout="constrained")
    styles = ["-", "--", "-.", ":", (0, (3, 1, 1, 1)), "-"]
    colours = ["#D55E00", "#E69F00", "#CC79A7", "#56B4E9", "#0072B2", "#000000"]
    for (name, widths), style, colour in zip(rows.items(), styles, colours, strict=True):
        axes.semilogy(range(1, len(widths) + 1), widths, linestyle=style, color=colour, label=name)
    axes.set_xlabel("training step")
    axes.set_ylabel("mean width of a parameter")
    axes.set_title(f"{BUDGET} of 40 samples moved by {RADIUS}: reachable set and attacks")
    axes.legend(fontsize=8)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="fewer steps and attacks")
    parser.add_argument("--plot", metavar="FILE", help="draw the widths (.svg or .png)")
    arguments = parser.parse_args()
    steps, attacks = (4, 20) if arguments.small else (30, 2000)

    torch.manual_seed(7)
    data = load_dataset("moons", samples=50, noise=0.1, seed=0, test_fraction=0.2)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    training = agt.Training(loss="bce", learning_rate=RATE, epochs=steps)
    threat = agt.FeaturePoisoning(budget=BUDGET, radius=RADIUS)

    rows: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    certify: Callable[..., agt.Result] = agt.certify
    for name, options in LEVELS.items():
        started = time.perf_counter()
        result = certify(model, (data.x_train, data.y_train), training, threat, **options)
        rows[name] = [record.mean_width for record in result.steps]
        seconds[name] = (time.perf_counter() - started) / steps
    x = torch.from_numpy(data.x_train)
    y: npt.NDArray[np.float64] = data.y_train.astype(np.float64)
    rows["attacks"] = attack_widths(model, x, torch.from_numpy(y), steps, attacks)

    shown = [t for t in (4, 10, 20, 30) if t <= steps]
    print("mean width after step".ljust(42) + "".join(f"{t:>10}" for t in shown) + "    s/step")
    for name, widths in rows.items():
        cells = "".join(f"{widths[t - 1]:>10.5f}" for t in shown)
        print(name.ljust(42) + cells + (f"{seconds[name]:>10.3f}" if name in seconds else ""))
    if arguments.plot:
        draw(rows, arguments.plot)
        print(f"drawn: {arguments.plot}")


if __name__ == "__main__":
    main()
