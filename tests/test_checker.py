"""Certificates of small runs, checked; and the checker's bounds held against trained models."""

from __future__ import annotations

import ast
import itertools
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from attacks import Replay
from certified import SHARES, certified, statement_in
from problems import problem
from recorded_script import Script, X, Y
from test_record import RUN_FILE

import milp_agt as agt
from milp_agt import certificates, checker
from milp_agt.checker import functions, layers, training
from milp_agt.checker.__main__ import main
from milp_agt.checker.boxes import Box, Unbounded, corners, dot, exact, matmul
from milp_agt.checker.check import Outcome, check
from milp_agt.checker.proof import all_choices, reached
from milp_agt.checker.statement import Statement
from milp_agt.errors import InvalidInputError
from milp_agt.reports import coverage
from milp_agt.runfile.run_file import load_config
from milp_agt.runfile.verdicts import judge
from milp_agt.training.training import Training

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


def test_a_threshold_that_is_missed_is_not_proved(tmp_path: Path) -> None:
    properties = '[[property]]\nkind = "accuracy"\nat_least = 0.99'
    report = check(certified(tmp_path, properties=properties))
    assert report.outcome is Outcome.NOT_PROVED


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


@pytest.mark.parametrize("loss", ["mse", "bce", "hinge", "cross_entropy"])
@pytest.mark.parametrize("kind", ["features", "labels", "both"])
def test_trained_models_lie_in_the_boxes(loss: str, kind: str) -> None:
    """Random and corner attacks, trained in torch, without a tolerance."""
    run = {"momentum": 0.5, "weight_decay": 0.1, "batch_size": 4, "epochs": 3}
    given, _, _ = problem(loss, kind, run, activation=torch.nn.Tanh, count=6)
    boxes = _bounded(given, loss)
    replay = Replay(given)
    generator = torch.Generator().manual_seed(0)
    for corner in (True, False):
        final = replay.run(replay.random(100, generator, corner))[-1]
        for name, box in boxes.items():
            value = final[name].numpy()
            assert ((box.lo <= value) & (value <= box.hi)).all(), name


def _bounded(given, loss: str):
    """The checker's boxes of a problem of the test suite."""
    replay = Replay(given)
    poison, rules = replay.poison, given.training.update_rules(len(given.training.batch_order(6)))
    problem_ = layers.Problem(
        (
            layers.Layer("dense", "0.weight", "0.bias"),
            layers.Layer("tanh"),
            layers.Layer("dense", "2.weight", "2.bias"),
        ),
        loss,
        given.training.batch_order(6),
        tuple(layers.Rule(r.rate, r.momentum, r.weight_decay) for r in rules),
        layers.ARITHMETICS["float64"],
    )
    x, y = poison.features.numpy(), poison.labels.numpy()
    samples = layers.Samples(Box.point(x[None]), Box.point(y[None]))
    ends = [box.expand_states(2) for box in (poison.feature_box(), poison.label_box())]
    own = [Box(b.lower[1:].numpy(), b.upper[1:].numpy()) for b in ends]
    poisoned = layers.Poisoned(layers.Samples(*own), poison.open.numpy(), poison.budget)
    initial = {n: v.numpy() for n, v in replay.step_graph.initial.items()}
    return training.train(problem_, initial, samples, poisoned)


def test_one_step_of_a_line_is_bounded_exactly() -> None:
    """Attacks reach the ends of the box: no bound in it could be smaller."""
    x, y = np.array([[1.0], [2.0], [-1.0]]), np.array([[0.5], [1.0], [0.0]])
    rule = layers.Rule(0.1)
    line = layers.Problem(
        (layers.Layer("dense", "w"),),
        "mse",
        (np.arange(3),),
        (rule,),
        layers.ARITHMETICS["float64"],
    )
    moved = layers.Samples(Box.point(x[None]), Box((y - 0.2)[None], (y + 0.2)[None]))
    own = layers.Samples(Box.point(x[None]), Box.point(y[None]))
    poisoned = layers.Poisoned(moved, np.array([True, True, True]), 2)
    box = training.train(line, {"w": np.array([[0.7]])}, own, poisoned)["w"]
    reached = []
    for chosen in itertools.combinations(range(3), 2):
        for signs in itertools.product((-0.2, 0.2), repeat=2):
            target = y.copy()
            target[list(chosen), 0] += signs
            reached.append(0.7 - 0.1 * np.mean(2 * (0.7 * x - target) * x))
    assert box.lo[0, 0, 0] <= min(reached) <= max(reached) <= box.hi[0, 0, 0]
    assert box.hi[0, 0, 0] - box.lo[0, 0, 0] <= (max(reached) - min(reached)) * (1 + 1e-12)


def test_listed_runs_are_those_of_every_choice(folders: dict[str, Path]) -> None:
    given = statement_in(folders["labels, listed"])
    choices = list(all_choices(given))
    assert len(choices) == 1 + int(given.poisoned.open.sum())
    assert len({tuple(sorted(c.items())) for c in choices}) == len(choices)


def test_removals_are_listed_and_trained(folders: dict[str, Path]) -> None:
    """Every run on the data without a sample, in torch, ends in the boxes of its case and in the claim."""
    given = statement_in(folders["removed, listed"])
    assert given.removed
    assert given.choices is None
    cases = reached(given)
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
        for name, value in model.state_dict().items():
            found = value.numpy()
            box = cases[case].boxes[name]
            assert ((box.lo[0] <= found) & (found <= box.hi[0])).all()
            assert ((given.lower[name] <= found) & (found <= given.upper[name])).all()


def test_listed_runs_by_processes_agree(folders: dict[str, Path]) -> None:
    folder = folders["labels, listed"]
    assert check(folder, jobs=2).items == check(folder).items


TINY_RUNS = [
    (activation, loss, momentum)
    for activation in ("relu", "leaky_relu", "tanh")
    for loss, momentum in (("mse", 0.0), ("bce", 0.5), ("cross_entropy", 0.0), ("hinge", 0.0))
][:10]


@pytest.mark.parametrize(("activation", "loss", "momentum"), TINY_RUNS)
def test_fractions_agree_with_floats(activation: str, loss: str, momentum: float) -> None:
    """Exact arithmetic gives boxes inside those of floats, and hardly smaller ones."""
    rng = np.random.default_rng(0)
    outputs = 3 if loss == "cross_entropy" else 1
    x = rng.normal(size=(4, 2))
    y = np.eye(3)[[0, 1, 2, 0]] if outputs == 3 else np.array([[0.0], [1.0], [1.0], [0.0]])
    shape = {"a": (2, 2), "b": (2,), "c": (outputs, 2)}
    initial = {name: rng.normal(size=size) for name, size in shape.items()}
    given = layers.Problem(
        (
            layers.Layer("dense", "a", "b"),
            layers.Layer(activation, slope=0.1),
            layers.Layer("dense", "c"),
        ),
        loss,
        (np.arange(4), np.arange(1, 4)),
        (layers.Rule(0.3, momentum, 0.1),) * 2,
        layers.ARITHMETICS["float64"],
    )
    samples = layers.Samples(Box.point(x[None]), Box.point(y[None]))
    moved = layers.Samples(Box(x[None] - 0.05, x[None] + 0.05), samples.y)
    floats = Statement(
        given,
        initial,
        {},
        {},
        {},
        samples,
        layers.Poisoned(moved, np.ones(4, bool), 1),
        None,
        "",
        (),
        (),
        (),
    )
    fractions = floats.exactly()
    near = training.train(given, floats.initial, floats.samples, floats.poisoned)
    true = training.train(given, fractions.initial, fractions.samples, fractions.poisoned)
    for name, box in true.items():
        assert (near[name].lo <= box.lo).all()
        assert (box.hi <= near[name].hi).all()
        gap = np.maximum(near[name].hi - box.hi, box.lo - near[name].lo)
        assert float(gap.max()) <= 1e-12


def test_elementary_functions_are_enclosed() -> None:
    rng = np.random.default_rng(0)
    x = np.concatenate(
        [rng.normal(size=60) * 10.0 ** rng.uniform(-4, 2, 60), [0.0, -745.0, 700.0, 1e-300]]
    )
    for f in (functions.exp, functions.sigmoid, functions.tanh):
        with np.errstate(over="ignore"):
            near, true = f(Box.point(x)), f(Box.point(exact(x)))
        assert (near.lo <= true.hi).all()
        assert (true.lo <= near.hi).all()
        assert (near.hi - near.lo <= 2.0**-45 * np.maximum(1.0, near.hi)).all()
    size = np.abs(x) + 1e-9
    back = functions.exp(functions.log(Box.point(size)))
    assert ((back.lo <= size) & (size <= back.hi)).all()
    logits = rng.normal(size=(8, 4)) * 5
    near, true = functions.softmax(Box.point(logits)), functions.softmax(Box.point(exact(logits)))
    assert (near.lo <= true.hi).all()
    assert (true.lo <= near.hi).all()
    with np.errstate(over="ignore"):
        huge = functions.softmax(Box.point(np.array([[1e5, -1e5, 0.0]])))
    assert huge.lo[0, 0] > 1 - 1e-12
    assert huge.hi[0, 1] < 1e-12


@pytest.mark.parametrize("kind", ["relu", "leaky_relu", "sigmoid", "tanh"])
def test_layers_contain_what_points_give(kind: str) -> None:
    """Values and cotangents of points lie in the images of their boxes, and reach the ends."""
    rng = np.random.default_rng(1)
    middle, radius = rng.normal(size=(1, 6, 8)), rng.uniform(0.1, 1.0, size=(1, 6, 8))
    z = Box(middle - radius, middle + radius)
    delta = Box(rng.normal(size=z.lo.shape) - 0.2, rng.normal(size=z.lo.shape) + 4.0)
    layer = layers.Layer(kind, slope=0.1)
    arithmetic = layers.ARITHMETICS["float64"]
    value = layers.activation(layer, z, arithmetic)
    pulled = layers.pulled(layer, z, value, delta, arithmetic)
    torch_function = {
        "relu": torch.relu,
        "leaky_relu": lambda t: torch.nn.functional.leaky_relu(t, 0.1),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
    }[kind]
    seen: list[tuple[np.ndarray, np.ndarray]] = []
    for share, weight in itertools.product(np.linspace(0, 1, 201), (0.0, 1.0)):
        point = torch.from_numpy(z.lo + share * (z.hi - z.lo)).clamp(
            torch.from_numpy(z.lo), torch.from_numpy(z.hi)
        )
        point.requires_grad_()
        image = torch_function(point)
        image.backward(torch.from_numpy(delta.lo if weight == 0.0 else delta.hi))
        assert point.grad is not None
        seen.append((image.detach().numpy(), point.grad.numpy()))
    for box, values in zip((value, pulled), zip(*seen, strict=True), strict=True):
        low, high = np.min(values, 0), np.max(values, 0)
        assert (box.lo <= low).all()
        assert (high <= box.hi).all()
        assert (box.hi - box.lo <= (high - low) * 1.01 + 1e-3).all()


def test_products_are_enclosed() -> None:
    rng = np.random.default_rng(2)
    a, b = (
        Box(m - r, m + r)
        for m, r in [(rng.normal(size=(5, 4)), rng.uniform(0, 1, (5, 4))) for _ in "ab"]
    )
    true = dot(Box(exact(a.lo), exact(a.hi)), Box(exact(b.lo), exact(b.hi)))
    near = dot(a, b)
    assert ((near.lo <= true.lo) & (true.hi <= near.hi)).all()
    square = Box(b.lo.T, b.hi.T)
    whole = matmul(a, square)
    assert (np.diagonal(whole.lo) <= near.lo + 1e-12).all()
    assert (near.hi - 1e-12 <= np.diagonal(whole.hi)).all()
    low, high = corners(a, b)
    assert (low <= high).all()


def test_infinity_proves_nothing() -> None:
    with pytest.raises(Unbounded), np.errstate(over="ignore"):
        Box.point(np.array([1e308])) + Box.point(np.array([1e308]))
    with pytest.raises(Unbounded), np.errstate(over="ignore"):
        functions.exp(Box.point(np.array([1e4])))
    with pytest.raises(Unbounded):
        Box(np.array([np.nan]), np.array([0.0]))


def test_runs_without_rules_are_not_covered(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = certified(
        tmp_path,
        relaxation="linear",
        properties="",
        training="clip = 1.0",
        threat='kind = "features"\nbudget = 1\nradius = 0.02\nnorm = 2',
    )
    assert main([str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "NOT COVERED  clipping of the gradient of each sample" in shown
    assert "NOT COVERED  features that move in Ball" in shown
    assert shown.splitlines()[-1] == "NOT COVERED"
    assert folder.exists()


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


def test_a_recorded_loop_has_a_certificate(tmp_path: Path) -> None:
    """Without a run file; another training than the recorded one is refused or rejected."""
    run = Script().train()
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
        certificates.Asked("backdoor", x, y, 0.0, 1.0)


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


def test_numpy_alone_is_enough(folders: dict[str, Path]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", ALONE, str(folders["relu"])], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "['milp_agt']"


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


def test_thresholds_are_compared_as_shares() -> None:
    assert float(Fraction(27) * Fraction(1, 30)) == 27 / 30


def test_training_options_reach_the_certificate(folders: dict[str, Path]) -> None:
    given = statement_in(folders["tanh, momentum, batches"])
    rule = given.problem.rules[0]
    assert (rule.momentum, rule.decay, rule.nesterov) == (0.5, 0.01, True)
    order = Training(loss="cross_entropy", epochs=4, batch_size=12).batch_order(30)
    assert [b.tolist() for b in given.problem.batches] == [b.tolist() for b in order]


GROUP = '\n[[training.group]]\nnames = ["*.bias"]\n'


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("positive_weight = 2.0", "options of the loss (positive_weight)"),
        ("clip_total = 1.0", "clipping of the total norm"),
        (
            f"{GROUP}learning_rate = 2.0",
            "groups of parameters with more of their own than no decay",
        ),
        (f"momentum = 0.5\n{GROUP}momentum = 0.0", "groups of parameters with more"),
    ],
)
def test_options_without_rules_are_not_covered(
    options: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    certified(tmp_path, training=options, properties="")
    assert main([str(tmp_path)]) == 1
    assert f"NOT COVERED  {said}" in capsys.readouterr().out


def test_parameters_without_decay_are_covered(tmp_path: Path) -> None:
    options = f"weight_decay = 0.5\n{GROUP}weight_decay = 0.0"
    folder = certified(tmp_path, training=options, properties="")
    assert statement_in(folder).problem.rules[0].undecayed == {"0.bias", "2.bias"}
    assert check(folder).outcome is Outcome.PROVED


@pytest.mark.parametrize("share", [0.01, 0.1])
def test_an_engine_that_is_too_tight_is_found_out(tmp_path: Path, share: float) -> None:
    """The writer hands its claims on as they are."""
    certified(tmp_path)
    run = load_config(tmp_path / "run.toml").build()
    result = run.certify()
    box = result.reachable
    lower = {n: low + share * (box.upper[n] - low) for n, low in box.lower.items()}
    lower = {n: np.minimum(low, box.nominal[n]) for n, low in lower.items()}
    wrong = replace(result, reachable=replace(box, lower=lower))
    verdicts = [v for asked in run.properties for v in judge(result, run.dataset, asked)]
    certificates.write(tmp_path / "certificate", run, wrong, verdicts)
    assert check(tmp_path / "certificate").outcome is Outcome.REJECTED


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
@pytest.mark.parametrize("radius", [0.01, 1e-30])
def test_recorded_loops_in_float32(tmp_path: Path, relaxation: str, radius: float) -> None:
    """The claim holds what the user's own float32 loop ends with, even where rounding is all that moves."""
    recorded = Script().train()
    recorded.save(tmp_path / "run.npz")
    path = tmp_path / "run.toml"
    more = "" if relaxation == "interval" else '\nwindow = 1\ninner_bounds = "interval"'
    text = RUN_FILE.replace('"interval"', f'"{relaxation}"{more}')
    path.write_text(text.replace("radius = 0.01", f"radius = {radius}"))
    run = load_config(path).build()
    result = run.certify()
    verdicts = [v for asked in run.properties for v in judge(result, run.dataset, asked)]
    certificates.write(tmp_path / "certificate", run, result, verdicts)
    assert check(tmp_path / "certificate").outcome is Outcome.PROVED
    given = statement_in(tmp_path / "certificate")
    assert given.problem.arithmetic.name == "float32"
    final = recorded.finished().final
    for name in given.problem.parameters:
        value = final[name].double().numpy()
        assert ((given.lower[name] <= value) & (value <= given.upper[name])).all()
