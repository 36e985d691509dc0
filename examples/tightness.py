"""How tight is each relaxation? Width of the reachable set over steps, against real attacks.

Two moons, 40 samples, a 2-4-1 relu network, 30 full-batch steps; two samples may move by 0.01.
Prints a table; --plot FILE draws it (needs matplotlib). Attacks are real poisoned trainings, so the
truth lies between the attack row and each certificate.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import nn

import milp_agt as agt
from milp_agt.data.dataset import load_dataset

BARE: dict[str, object] = {"inner_bounds": "interval", "selections": "joint", "carried": "none"}
WHOLE: dict[str, object] = {"inner_bounds": "linear", "carried": "none"}
LEVELS: dict[str, dict[str, object]] = {
    "interval": {"relaxation": "interval"},
    "linear, window 1": BARE | {"window": 1},
    "lp, window 1": BARE | {"relaxation": "lp", "window": 1},
    "linear, whole run": WHOLE | {"selections": "joint"},
    "linear, whole run, each selection": WHOLE | {"selections": "enumerated"},
    "zonotope": {"relaxation": "zonotope"},
    "defaults": {},
}
BUDGET, RADIUS, RATE = 2, 0.01, 0.5


def training(steps: int) -> agt.Training:
    return agt.Training(loss="bce", learning_rate=RATE, epochs=steps)


def draw(rows: dict[str, list[float]], attacked: dict[int, float], path: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.0, 4.0), layout="constrained")
    styles = ["-", "--", "-.", ":", (0, (3, 1, 1, 1)), (0, (5, 1)), "-"]
    colours = [
        "#D55E00",
        "#E69F00",
        "#CC79A7",
        "#56B4E9",
        "#009E73",
        "#0072B2",
        "#000000",
    ]
    for (name, widths), style, colour in zip(rows.items(), styles, colours, strict=True):
        axes.semilogy(range(1, len(widths) + 1), widths, linestyle=style, color=colour, label=name)
    axes.semilogy(*zip(*attacked.items(), strict=True), "o-", color="#000000", label="attacks")
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
    steps = 4 if arguments.small else 30
    search = agt.Search(pool=64, restarts=1, rounds=0) if arguments.small else agt.Search()

    torch.manual_seed(7)
    dataset = load_dataset("moons", samples=50, noise=0.1, seed=0, test_fraction=0.2)
    data = (dataset.x_train, dataset.y_train)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1)).double()
    threat = agt.FeaturePoisoning(budget=BUDGET, radius=RADIUS)

    rows: dict[str, list[float]] = {}
    seconds: dict[str, float] = {}
    certify: Callable[..., agt.Result] = agt.certify
    for name, options in LEVELS.items():
        started = time.perf_counter()
        result = certify(model, data, training(steps), threat, **options)
        rows[name] = [record.mean_width for record in result.steps]
        seconds[name] = (time.perf_counter() - started) / steps

    shown = [t for t in (4, 10, 20, 30) if t <= steps]
    attacked = {
        t: agt.attack(model, data, training(t), threat, search=search).mean_width for t in shown
    }
    print("mean width after step".ljust(42) + "".join(f"{t:>10}" for t in shown) + "    s/step")
    for name, widths in rows.items():
        cells = "".join(f"{widths[t - 1]:>10.5f}" for t in shown)
        print(name.ljust(42) + cells + f"{seconds[name]:>10.3f}")
    print("attacks".ljust(42) + "".join(f"{width:>10.5f}" for width in attacked.values()))
    if arguments.plot:
        draw(rows, attacked, arguments.plot)
        print(f"drawn: {arguments.plot}")


if __name__ == "__main__":
    main()
