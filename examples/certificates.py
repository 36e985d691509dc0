"""What certificates take: certify, write and check, in CPU seconds of one process each.

    python examples/certificates.py                                 # the run files of the page
    python examples/certificates.py --case A.npz 1:0.3 --tree 20    # a recorded run, features moved
    python examples/certificates.py --case A.npz labels:1           # a recorded run, labels exchanged

Prints rows of the table in milp_agt/checker/README.md. Seconds of a check are those of a process that can
import numpy alone, without its start, as those of certifying are; the start comes after a "+". Set
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from models.recorded import Recorded
from torch import nn

import milp_agt as agt
from milp_agt import certificates
from milp_agt.certification.verdicts import judge
from milp_agt.runfile.run_file import load_config
from milp_agt.training.training import Training

HERE = Path(__file__).parent
RUNS = ("iris", "moons", "unlearning", "diabetes_labels", "energy", "untargeted_labels")
ALONE = """
import sys, time
class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names and top not in ("numpy", "milp_agt"):
            raise ImportError(name)
sys.meta_path.insert(0, Only())
from pathlib import Path
from milp_agt.checker import check
began = time.process_time()
report = check(Path(sys.argv[1]))
print(began, time.process_time() - began, report.outcome.text)
"""


@dataclass(frozen=True)
class Run:
    """What a certificate is written from, and the CPU seconds that it took."""

    name: str
    result: agt.Result
    training: Training
    asked: Sequence[certificates.Asked]
    seconds: float
    not_covered: Sequence[str] = ()


def of_file(name: str) -> Run:
    began = time.process_time()
    run = load_config(HERE / f"{name}.toml").build()
    result = run.certify()
    verdicts = [v for asked in run.properties for v in judge(result, run.dataset, asked)]
    spent = time.process_time() - began
    asked, not_covered = certificates.questions_of(run, result, verdicts)
    return Run(f"examples/{name}.toml", result, run.training, asked, spent, not_covered)


def of_case(path: Path, threat: str, tree: float | None) -> Run:
    case, options = Recorded.load(path), dict[str, Any]()
    if tree is not None:
        options["tree"] = tree
    budget = threat.removeprefix("labels:")
    poison: Any
    if threat == budget:
        budget, _, radius = threat.partition(":")
        poison = agt.FeaturePoisoning(int(budget), float(radius))
        options["relaxation"] = "zonotope"
    else:
        poison = agt.LabelPoisoning(int(budget))
    began = time.process_time()
    training = case.training()
    result = agt.certify(case.model, case.train, training, poison, **options)
    found = result.accuracy(*case.test)
    spent = time.process_time() - began
    asked = [certificates.Asked("accuracy", *case.test, found.lower, found.upper)]
    name = f"{path.stem}, {threat}" + (f", tree = {tree:g}" if tree else "")
    return Run(name, result, training, asked, spent)


def of_a_loop() -> Run:
    """A loop in float32, recorded: 6 steps of momentum on two classes of 30 features."""
    data = agt.load_dataset("breast_cancer", test_fraction=0.8, seed=0, standardise=True)
    x, y = torch.from_numpy(data.x_train).float(), torch.from_numpy(data.y_train)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    loss_fn = nn.CrossEntropyLoss()
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=40)
    with agt.record(model, optimizer, loss_fn, loader) as run:
        for _ in range(2):
            for batch, labels in loader:
                optimizer.zero_grad()
                loss_fn(model(batch), labels).backward()
                optimizer.step()
    began = time.process_time()
    threat = agt.FeaturePoisoning(budget=1, radius=0.001)
    result = agt.certify(run, threat, relaxation="interval")
    found = result.accuracy(x, y)
    spent = time.process_time() - began
    asked = [certificates.Asked("accuracy", x, y, found.lower, found.upper)]
    return Run("a loop in float32, recorded", result, run.finished().training, asked, spent)


def row(run: Run, folder: Path) -> str:
    """One row of the table."""
    began = time.process_time()
    parts = run.result, run.training, run.asked, run.not_covered
    claim = json.loads(certificates.write_result(folder, *parts).read_text("utf-8"))
    written = time.process_time() - began
    command = [sys.executable, "-c", ALONE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    start, checked, verdict = done.stdout.split(maxsplit=2)
    size = sum(path.stat().st_size for path in folder.iterdir())
    how = [claim["method"] or "-"]
    how += [what for what in ("multipliers", "tree") if claim.get(what) is not None]
    width = next(
        (w.rpartition(" ")[2].rstrip(".") for w in claim.get("words", ()) if "mean width" in w), "-"
    )
    cells = (
        run.name,
        ", ".join(how),
        f"{run.seconds:.2f}",
        f"{written:.2f}",
        f"{float(checked):.2f} + {float(start):.2f}",
        f"{float(checked) / run.seconds:.2f}",
        f"{size:,}",
        f"{width}, {run.result.reachable.mean_width:.4g}",
        verdict.strip(),
    )
    return f"| {' | '.join(cells)} |"


def runs(arguments: argparse.Namespace) -> Iterator[Run]:
    if arguments.case:
        yield from (of_case(arguments.case, threat, arguments.tree) for threat in arguments.threats)
        return
    yield from map(of_file, RUNS[1:2] if arguments.small else RUNS)
    yield of_a_loop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--small", action="store_true", help="one run file and the recorded loop")
    parser.add_argument("--case", metavar="FILE.npz", type=Path, help="a recorded run")
    what = "budget and radius of features, or labels:BUDGET"
    parser.add_argument(
        "threats", metavar="BUDGET:RADIUS", nargs="*", default=["1:0.01"], help=what
    )
    parser.add_argument("--tree", metavar="SECONDS", type=float, help="a tree for each question")
    arguments = parser.parse_args()
    print("| run | method | certify | write | check | ratio | bytes | mean width, result's | |")
    print("|---|---|---|---|---|---|---|---|---|")
    for run in runs(arguments):
        with tempfile.TemporaryDirectory() as folder:
            print(row(run, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
