"""Certificates of small runs, written and checked."""

from __future__ import annotations

import ast
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from certified import SHARES, certified, statement_in
from pairs import every_value
from recorded_script import Script, X, Y
from test_record_files import RUN_FILE
from torch import nn

import milp_agt as agt
from milp_agt import certificates, checker
from milp_agt.certification.verdicts import judge
from milp_agt.checker import training
from milp_agt.checker.__main__ import main
from milp_agt.checker.check import Outcome, check
from milp_agt.checker.files import CLAIM, SEAL
from milp_agt.checker.proof import all_choices, reached
from milp_agt.cli import main as whole
from milp_agt.core.restriction import Restriction
from milp_agt.errors import InvalidInputError
from milp_agt.reports import coverage
from milp_agt.runfile.run_file import load_config
from milp_agt.training.training import Training

SLOW = pytest.mark.slow
LABELS = 'kind = "labels"\nbudget = {budget}'
LOSS = '\n[[property]]\nkind = "loss"\n'
RUNS = {
    "relu": {},
    "tanh, momentum, batches": {
        "activation": "tanh",
        "layers": [2, 4, 2],
        "loss": "cross_entropy",
        "training": "momentum = 0.5\nbatch_size = 12\nweight_decay = 0.01\nnesterov = true",
        "threat": 'kind = "features"\nbudget = 1\nradius = 0.0002\nstatic = false',
    },
    "sigmoid, l1, projection": {
        "activation": "sigmoid",
        "training": "l1 = 0.01\nprojection = [-1.0, 1.0]",
        "threat": 'kind = "both"\nbudget = 1\nradius = 0.02',
        "properties": "",
    },
    "hinge, deep": {"loss": "hinge", "layers": [2, 3, 3, 1], "properties": ""},
    "three classes": {
        "data": "iris",
        "more_data": "",
        "layers": [4, 5, 3],
        "loss": "cross_entropy",
    },
    "regression": {
        "data": "diabetes",
        "more_data": "standardise_targets = true",
        "layers": [10, 3, 1],
        "loss": "mse",
        "rate": 0.1,
        "threat": 'kind = "labels"\nbudget = 3\nradius = 0.1',
        "properties": "",
    },
    "removed, side by side": {
        "threat": 'kind = "removal"\nbudget = 2\nsamples = [3, 29, 20]',
        "epochs": 2,
        "relaxation": "linear",
        "properties": "",
    },
    "removed, listed": {
        "threat": 'kind = "removal"\nbudget = 1',
        "training": "batch_size = 7",
        "epochs": 2,
        "relaxation": "linear",
        "properties": '[[property]]\nkind = "accuracy"\n' + LOSS,
    },
    "affine": {"relaxation": "linear", "properties": SHARES + LOSS},
    "affine, anew": {
        "relaxation": "linear",
        "threat": 'kind = "both"\nbudget = 1\nradius = 0.01\nstatic = false\nscope = "batch"',
        "training": "batch_size = 10\nmomentum = 0.5",
        "loss": "cross_entropy",
        "layers": [2, 4, 2],
        "epochs": 1,
        "properties": "",
    },
    "norm 1": {
        "relaxation": "linear",
        "threat": 'kind = "features"\nbudget = 1\nradius = 0.02\nnorm = 1',
        "properties": SHARES + '\n[[property]]\nkind = "targeted"\nunsafe = 1\nat_most = 0.9\n',
    },
    "separate budgets": {
        "relaxation": "linear",
        "threat": 'kind = "separate"\nfeatures = {budget = 1, radius = 0.02}\nlabels = {budget = 1}',
        "properties": "",
        "epochs": 2,
    },
    "triggers": {
        "relaxation": "linear",
        "properties": '[[property]]\nkind = "collective"\n\n[[property]]\nkind = "backdoor"\nradius = 0.2\n'
        'at_most = 0.9\n\n[[property]]\nkind = "backdoor"\ncoordinates = [0]\nvalues = 0.5\ntarget = 1\n',
    },
    "labels, listed": {
        "threat": LABELS.format(budget=1),
        "relaxation": "linear",
        "properties": '[[property]]\nkind = "accuracy"\n' + LOSS,
    },
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("certificates")
    return {name: certified(root / str(k), **run) for k, (name, run) in enumerate(RUNS.items())}


@pytest.mark.parametrize("name", RUNS)
def test_certificates_are_proved(folders: dict[str, Path], name: str) -> None:
    report = check(folders[name])
    assert report.outcome is Outcome.PROVED, report.items
    assert all(item.outcome is Outcome.PROVED for item in report.items)


TIGHTER = {
    "norm": 'kind = "features"\nbudget = 1\nradius = 0.02\nnorm = 2',
    "separate budgets": 'kind = "separate"\nfeatures = {budget = 1, radius = 0.02}\nlabels = {budget = 1}',
}


@pytest.mark.parametrize("threat", TIGHTER)
def test_intervals_that_know_more_than_those_of_the_checker(threat: str, tmp_path: Path) -> None:
    report = check(certified(tmp_path, threat=TIGHTER[threat], epochs=2, properties=""))
    assert report.outcome is Outcome.PROVED, report.items


def test_the_claim_is_that_of_the_engine(folders: dict[str, Path]) -> None:
    """Widths in the certificate are those of the result but for a millionth."""
    given = statement_in(folders["relu"])
    proved = training.train(given.problem, given.initial, given.samples, given.poisoned)
    for name, box in proved.items():
        width = box.hi[0] - box.lo[0]
        assert (given.upper[name] - given.lower[name] <= width * (1 + 1e-5) + 1e-10).all()


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("side", ["lower", "upper"])
def test_claims_one_percent_too_tight_are_rejected(
    folders: dict[str, Path], name: str, side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one parameter alone, as an engine with one rule too tight would leave them."""
    given = statement_in(folders[name])
    key = given.problem.parameters[0]
    width = given.upper[key] - given.lower[key]
    inward = (0.01 if side == "lower" else -0.01) * width
    ends = {**getattr(given, side), key: getattr(given, side)[key] + inward}
    object.__setattr__(given, side, ends)
    monkeypatch.setattr(sys.modules["milp_agt.checker.check"], "state", lambda _: given)
    report = check(folders[name])
    assert report.outcome is Outcome.REJECTED
    assert f"{side} end of '{key}'" in next(
        i.detail for i in report.items if i.outcome is Outcome.REJECTED
    )


def test_listed_runs_are_those_of_every_choice(folders: dict[str, Path]) -> None:
    given = statement_in(folders["labels, listed"])
    choices = list(all_choices(given))
    assert len(choices) == 1 + int(given.poisoned.open.sum())
    assert len({tuple(sorted(c.items())) for c in choices}) == len(choices)


@pytest.mark.parametrize("name", ["removed, listed", "removed, side by side"])
def test_removals_are_listed_and_trained(folders: dict[str, Path], name: str) -> None:
    """Every run on the data without a sample, in torch, ends in the boxes of its case and in the claim."""
    given = statement_in(folders[name])
    assert given.choices is None
    cases = [
        {n: box[k] for n, box in each.boxes.items()}
        for each in reached(given)
        for k in range(len(each.boxes["0.bias"].lo))
    ]
    assert len(cases) == len(list(all_choices(given)))
    x, y = (torch.from_numpy(box.lo[0].copy()) for box in (given.samples.x, given.samples.y))
    for case, left_out in enumerate(all_choices(given)):
        model = torch.nn.Sequential(
            torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 1)
        ).double()
        model.load_state_dict({n: torch.from_numpy(v.copy()) for n, v in given.initial.items()})
        optimiser = torch.optim.SGD(model.parameters(), given.problem.rules[0].rate)
        for batch in given.problem.batches:
            rest = [i for i in batch.tolist() if i not in left_out]
            optimiser.zero_grad()
            loss = torch.nn.functional.binary_cross_entropy_with_logits(model(x[rest]), y[rest])
            loss.backward()
            optimiser.step()
        for key, value in model.state_dict().items():
            found = value.numpy()
            box = cases[case][key]
            assert ((box.lo <= found) & (found <= box.hi)).all()
            assert ((given.lower[key] <= found) & (found <= given.upper[key])).all()


@pytest.mark.parametrize("name", ["relu", pytest.param("removed, side by side", marks=SLOW)])
def test_fractions_agree(folders: dict[str, Path], name: str) -> None:
    floats, fractions = check(folders[name]), check(folders[name], exactly=True)
    assert [i.outcome for i in fractions.items] == [i.outcome for i in floats.items]


def test_fractions_say_first_that_they_are_slow(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (CLAIM, SEAL):
        (tmp_path / name).touch()
    assert main([str(tmp_path), "--exact"]) == 3
    assert "a thousand times as slow" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 3
    assert not capsys.readouterr().err


@pytest.mark.parametrize("there", [(), (CLAIM,)])
def test_a_run_without_a_certificate_is_no_verdict(
    there: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that was interrupted: what is missing, and what to do, by both commands."""
    (tmp_path / "certificate").mkdir()
    (tmp_path / "result.json").touch()
    for name in there:
        (tmp_path / "certificate" / name).touch()
    for command in (lambda: main([str(tmp_path)]), lambda: whole(["check", str(tmp_path)])):
        with pytest.raises(SystemExit, match="2"):
            sys.exit(command())
        said = capsys.readouterr().err
        assert all(word in said for word in (SEAL, "certificate", "certify --resume"))
        assert (CLAIM in said) == (not there)
        assert "REJECTED" not in said


def test_listed_runs_by_processes_agree(folders: dict[str, Path]) -> None:
    folder = folders["labels, listed"]
    assert check(folder, jobs=2).items == check(folder).items


def test_the_command_line_says_what_was_checked(
    folders: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(folders["relu"].parent)]) == 0
    shown = capsys.readouterr().out
    assert (
        "at most 1 of 30 samples poisoned in any batch: every feature moved by at most 0.02"
        in shown
    )
    assert shown.splitlines()[-1] == "PROVED"
    assert main([str(folders["relu"]), "--jobs", "2"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main([str(folders["relu"] / "nowhere")])


def test_a_recorded_loop_has_a_certificate(tmp_path: Path) -> None:
    """Without a run file; another training than the recorded one is refused or rejected."""
    run = Script(model=nn.Sequential(nn.Linear(30, 2))).train()
    result = agt.certify(run, agt.FeaturePoisoning(budget=1, radius=0.001), relaxation="interval")
    own, (x, y) = run.finished().training, (X[:20], Y[:20])
    found = result.accuracy(x, y)
    asked = [certificates.Asked("accuracy", x, y, found.lower, found.upper, at_least=0.1)]
    folder = tmp_path / "certificate"
    certificates.write_result(folder, result, own, asked, ["something else"])
    report = check(folder)
    assert [item.outcome.name for item in report.items] == ["PROVED"] * 3 + ["NOT_COVERED"]
    assert "float32" in report.words[0]
    certificates.write_result(folder, result, own, asked, seconds=0.0)
    assert check(folder).outcome is Outcome.NOT_COVERED
    assert "the time that the limit left" in (folder / "claim.json").read_text()
    with pytest.raises(InvalidInputError, match="give the training that was certified"):
        certificates.write_result(folder, result, Training("cross_entropy", 0.1))
    with pytest.raises(InvalidInputError, match="name it in not_covered"):
        certificates.Asked("functional", x, y, 0.0, 1.0)


def test_the_page_shows_what_is_covered() -> None:
    page = (PACKAGE / "README.md").read_text("utf-8")
    shown = page.partition("<!-- coverage -->\n")[2].partition("\n<!-- end -->")[0]
    assert shown == coverage.table(), "python -m milp_agt.reports.coverage prints it"


PACKAGE = Path(checker.__file__).parent
ALONE = """
import sys
class Only:
    def find_spec(self, name, path=None, target=None):
        top = name.partition('.')[0]
        if top not in sys.stdlib_module_names and top not in ('numpy', 'milp_agt'):
            raise ImportError(name)
sys.meta_path.insert(0, Only())
from milp_agt.checker.__main__ import main
code = main([sys.argv[1]])
print(sorted(m for m in sys.modules if m.startswith('milp_agt') and not m.startswith('milp_agt.checker')))
sys.exit(code)
"""


def assert_proved_alone(folder: Path) -> None:
    """By a process that can import nothing but numpy beside the checker."""
    command = [sys.executable, "-c", ALONE, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['milp_agt']"


@pytest.mark.parametrize("name", ["relu", "affine", "removed, side by side"])
def test_numpy_alone_is_enough(folders: dict[str, Path], name: str) -> None:
    assert_proved_alone(folders[name])


def test_the_checker_is_small() -> None:
    """Lines of code; its docstrings are the proof."""
    count = 0
    for path in PACKAGE.glob("*.py"):
        text = path.read_text("utf-8")
        spoken = {
            line
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
        }
        lines = enumerate(text.splitlines(), 1)
        count += sum(n not in spoken and line.strip(" \t#") != "" for n, line in lines)
    assert count < 2000


def test_training_options_reach_the_certificate(folders: dict[str, Path]) -> None:
    given = statement_in(folders["tanh, momentum, batches"])
    rule = given.problem.rules[0]
    assert (rule.momentum, rule.decay, rule.nesterov) == (0.5, 0.01, True)
    order = Training(loss="cross_entropy", epochs=4, batch_size=12).batch_order(30)
    assert [b.tolist() for b in given.problem.batches] == [b.tolist() for b in order]


GROUP = '\n[[training.group]]\nnames = ["*.bias"]\n'
UNCOVERED = {
    "options of the loss (positive_weight)": {"training": "positive_weight = 2.0"},
    "clipping of the total norm": {"training": "clip_total = 1.0"},
    "clipping of the gradient of each sample": {"training": "clip = 1.0", "relaxation": "linear"},
    "threats to whole samples": {
        "threat": 'kind = "insertion"\nbudget = 1',
        "training": "clip = 1.0",
        "relaxation": "linear",
    },
    "groups of parameters with more of their own than no decay": {
        "training": f"{GROUP}learning_rate = 2.0"
    },
    "groups of parameters with more": {"training": f"momentum = 0.5\n{GROUP}momentum = 0.0"},
}


@pytest.mark.parametrize("said", UNCOVERED)
def test_runs_without_rules_are_not_covered(
    said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certified(tmp_path, properties="", **UNCOVERED[said])
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert f"NOT COVERED  {said}" in shown
    assert shown.splitlines()[-1] == "NOT COVERED"


ONE = np.array([[0.5, -0.5]])
PARTS = {
    "initial parameters in boxes": {"initial": {"0.weight": (ONE - 0.1, ONE + 0.1)}},
    "a restriction to a part of the threat": {"restriction": Restriction(outside=frozenset({1}))},
}


@pytest.mark.parametrize("said", PARTS)
def test_parts_of_a_threat_are_not_covered(said: str, tmp_path: Path) -> None:
    """Nor a box of initial parameters: a certificate is about one point and the whole threat."""
    model, training = nn.Sequential(nn.Linear(2, 1)).double(), Training("mse", 0.1)
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(ONE))
    data = X[:6, :2].double(), np.zeros((6, 1))
    threat = agt.LabelPoisoning(1, radius=0.1)
    result = agt.certify(model, data, training, threat, relaxation="interval", **PARTS[said])
    certificates.write_result(tmp_path / "certificate", result, training)
    assert [item.name for item in check(tmp_path / "certificate").items] == [said]


def test_parameters_without_decay_are_covered(tmp_path: Path) -> None:
    options = f"weight_decay = 0.5\n{GROUP}weight_decay = 0.0"
    folder = certified(tmp_path, training=options, properties="")
    assert statement_in(folder).problem.rules[0].undecayed == {"0.bias", "2.bias"}
    assert check(folder).outcome is Outcome.PROVED


def test_an_engine_that_is_too_tight_is_found_out(tmp_path: Path) -> None:
    """The writer hands its claims on as they are."""
    certified(tmp_path)
    run = load_config(tmp_path / "run.toml").build()
    result = run.certify()
    box = result.reachable
    lower = {
        n: np.minimum(low + 0.01 * (box.upper[n] - low), box.nominal[n])
        for n, low in box.lower.items()
    }
    wrong = replace(result, reachable=replace(box, lower=lower))
    verdicts = [v for asked in run.properties for v in judge(result, run.dataset, asked)]
    certificates.write(tmp_path / "certificate", run, wrong, verdicts)
    assert check(tmp_path / "certificate").outcome is Outcome.REJECTED


@every_value(relaxation=["interval", "linear"], radius=[0.01, 1e-30])
def test_recorded_loops_in_float32(tmp_path: Path, relaxation: str, radius: float) -> None:
    """The claim holds what the user's own float32 loop ends with, even where rounding is all that moves."""
    recorded = Script(model=nn.Sequential(nn.Linear(30, 2))).train()
    recorded.save(tmp_path / "run.npz")
    path = tmp_path / "run.toml"
    more = "" if relaxation == "interval" else '\nwindow = 1\ninner_bounds = "interval"'
    text = RUN_FILE.replace('"interval"', f'"{relaxation}"{more}')
    path.write_text(text.replace("radius = 0.01", f"radius = {radius}"))
    run = load_config(path).build()
    result = run.certify()
    verdicts = [v for asked in run.properties for v in judge(result, run.dataset, asked)]
    certificates.write(tmp_path / "certificate", run, result, verdicts)
    assert_proved_alone(tmp_path / "certificate")
    given = statement_in(tmp_path / "certificate")
    assert given.problem.arithmetic.name == "float32"
    final = recorded.finished().final
    for name in given.problem.parameters:
        value = final[name].double().numpy()
        assert ((given.lower[name] <= value) & (value <= given.upper[name])).all()
