"""An audit from raw files to report: a table of patients, a run file, a verdict, a page to hand on.

Takes a minute or two; run it with --small for a few seconds. The files stay in runs/audit, or in the
folder that --out names.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path

from milp_agt.cli import main as milp_agt
from milp_agt.data.dataset import load_dataset

# What an auditor asks: any two of the records may be false, each measurement by up to 0.02 standard
# deviations. Is the classifier that comes out of training still right for 80 % of the test patients?
RUN = """
[data]
path = "patients.csv"
target = "benign"
test_fraction = 0.25
seed = 0
standardise = true

[model]
layers = [6, 6, 2]
seed = 0

[training]
loss = "cross_entropy"
learning_rate = 0.5
epochs = {epochs}

[threat]
kind = "features"
budget = 2
radius = 0.02

[certify]
relaxation = "linear"
window = 5

[[property]]
kind = "accuracy"
at_least = 0.8

[[property]]
kind = "stable"
"""
COLUMNS = ("mean radius", "mean texture", "mean smoothness", "mean concavity", "mean symmetry")


def write_patients(path: Path, count: int) -> None:
    """The raw file: one row for each patient, measurements and diagnosis."""
    data = load_dataset("breast_cancer", samples=count, test_fraction=0.0, seed=1)
    columns = [data.feature_names.index(name) for name in (*COLUMNS, "worst area")]
    with path.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow([*(data.feature_names[k] for k in columns), "benign"])
        for row, label in zip(data.x_train, data.y_train, strict=True):
            writer.writerow([*(row[k] for k in columns), label])


def audit(folder: Path, small: bool) -> None:
    write_patients(folder / "patients.csv", 40 if small else 120)
    (folder / "run.toml").write_text(RUN.format(epochs=3 if small else 15), encoding="utf-8")

    # The same as: milp-agt certify run.toml --out audit. Cut off, it goes on with
    # milp-agt certify --resume audit, to the same numbers.
    code = milp_agt(["certify", str(folder / "run.toml"), "--out", str(folder / "audit")])
    if code > 1:  # bad input, or a limit that was reached first; the message says which
        raise SystemExit(code)
    print(f"\nexit code {code}: {'proved' if code == 0 else 'not proved'}")

    document = json.loads((folder / "audit" / "result.json").read_text(encoding="utf-8"))
    accuracy = document["properties"][0]
    print(
        f"accuracy {accuracy['nominal']:.3f} on the data as given; whatever two records say, between "
        f"{accuracy['lower']:.3f} and {accuracy['upper']:.3f}"
    )
    print(f"for the file: data with SHA-256 {document['sha256']['data'][:16]}...")
    print(f"for people: {folder / 'audit' / 'report.html'}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", action="store_true", help="fewer patients and steps")
    parser.add_argument("--out", metavar="DIR", type=Path, default=Path("runs/audit"))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    audit(arguments.out, arguments.small)


if __name__ == "__main__":
    main()
