"""Which relaxation should I use? The same training run under several, and how to read the table.

Run it with --small for a size that takes a few seconds.
"""

from __future__ import annotations

import argparse

import torch

import milp_agt as agt


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="fewer samples, steps and rows")
    small = parser.parse_args().small

    data = agt.load_dataset("moons", samples=20 if small else 30, test_fraction=0.2, seed=0)
    train = data.x_train, data.y_train
    torch.manual_seed(1)
    hidden = 2 if small else 3
    layers = torch.nn.Linear(2, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 1)
    model = torch.nn.Sequential(*layers).double()
    training = agt.Training(loss="bce", learning_rate=0.5, epochs=3 if small else 6)
    threat = agt.FeaturePoisoning(budget=2, radius=0.01)

    print("All of these hold for the same run; a smaller width is a tighter certificate.\n")
    comparison = agt.compare(
        model,
        train,
        training,
        threat,
        relaxations=("interval", "linear", "lp"),
        windows=(1,) if small else (1, "T"),
        program_window=1,
        X_test=data.x_test,
        y_test=data.y_test,
    )
    print(comparison.table())
    print(
        "\nwindow: steps that linear bounds are followed back through; program: steps in one program; used: "
        "the tightest level that was really used; accuracy: certified lower end, unpoisoned, upper end."
    )

    interval, best = comparison.rows[0], min(comparison.rows, key=lambda row: row.mean_width)
    gain, price = interval.mean_width / best.mean_width, best.seconds / interval.seconds
    print(
        f"\nTightest: {best.relaxation} with window {best.window}, {gain:.3g} times narrower than "
        f"intervals, at {price:.3g} times their time. Intervals grow with every step, so the gap "
        "widens in longer runs.\n\n"
        "Begin with linear. Go down to interval where the network is too large for it, widen the "
        "window (T is the whole run) where the certificate is not tight enough, and try lp or milp "
        "on small networks for the last bit."
    )

    # Undecided? auto takes the tightest one whose predicted cost fits the time, and says why.
    result = agt.certify(model, train, training, threat, relaxation="auto", time_limit=1.0)
    print("\nWhat auto says of its choice:\n  " + "\n  ".join(result.notes))
    print(f"mean width by auto: {result.reachable.mean_width:.6g}")


if __name__ == "__main__":
    main()
