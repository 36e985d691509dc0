"""One thing is one file: each file of ``one_file/`` adds something without a change of the package."""

from __future__ import annotations

import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import checks_rules
import draws
import numpy as np
import pytest
import torch
from attacks import Problem, network
from checks_programs import random_lp
from checks_rules import check_interval, check_relax, check_residual
from draws import KINDS, make_boxes
from instances import Instance, per_sample
from mutants import is_caught, shrunk
from torch import nn

import milp_agt as agt
from milp_agt.certification import options
from milp_agt.certification.verdicts import judge
from milp_agt.core import relaxation
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits
from milp_agt.formulations import loss as losses
from milp_agt.formulations import registry
from milp_agt.properties.property_table import PROPERTIES
from milp_agt.reports import supported
from milp_agt.runfile.reference import markdown
from milp_agt.runfile.run_file import load_config
from milp_agt.solvers import choose, get_solver, solver
from milp_agt.threats.threat_model import THREATS
from milp_agt.training.layers import builder

FILES = Path(__file__).parent / "one_file"
RNG = np.random.default_rng(1)
X = np.array([[1.0, 0.2], [-0.8, 0.5], [0.3, -1.0], [-0.4, -0.6], [0.7, 0.9], [-1.0, 0.1]])
CLASSES = (X[:, 0] > 0).astype(np.int64)
TARGETS = X @ np.array([0.5, -1.0])


@pytest.fixture
def add(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[[str], ModuleType]]:
    """Imports a copy of one of the files, and forgets it after the test."""
    supported.table()  # finds all that is in the package
    registries: tuple[Any, ...] = (
        *(registry._OPERATIONS, losses._LOSSES, builder._RULES, solver._BACK_ENDS),
        *(PROPERTIES._tables, THREATS._tables, relaxation.STEP_RULES, options.FURTHER),
    )
    before = [each.copy() for each in registries]

    def added(name: str) -> ModuleType:
        path = tmp_path / f"my_{name}.py"
        path.write_bytes((FILES / f"{name}.py").read_bytes())
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, path.stem, module)
        spec.loader.exec_module(module)
        return module

    yield added
    for each, kept in zip(registries, before, strict=True):
        each.clear()
        each.extend(kept) if isinstance(each, list) else each.update(kept)
    assert not {"confident", "fading", "halved"} & set(re.findall(r"\w+", markdown()))


Add = Callable[[str], ModuleType]


def run_file(folder: Path, labels: np.ndarray[Any, Any], **keys: str) -> Any:
    """A small run file, with some of its tables replaced."""
    np.savez(folder / "data.npz", x_train=X, y_train=labels, x_test=X, y_test=labels)
    tables = {
        "data": "path = 'data.npz'",
        "model": "layers = [2, 2, 2]",
        "training": "loss = 'cross_entropy'\nlearning_rate = 0.5\nepochs = 2",
        "threat": "kind = 'features'\nbudget = 1\nradius = 0.05",
        "certify": "relaxation = 'linear'\nattack = true",
        "attack": "pool = 32\ncorners = 4\nrestarts = 1\nrounds = 1\niterations = 2",
    } | keys
    path = folder / "RUN.toml"
    path.write_text(
        "\n".join(f"{'' if n == 'end' else f'[{n}]'}\n{text}" for n, text in tables.items())
    )
    return load_config(path).build()


def check_run(run: Any) -> None:
    """Bounds hold under attack (judge raises where not), and every property has a verdict."""
    result = run.certify(attack=run.search)
    assert result.sandwich.reached > 0
    assert result.sandwich.ratio >= 1
    for asked in run.properties:
        (verdict, *_) = judge(result, run.dataset, asked)
        assert verdict.reached is not None
        assert verdict.status in ("PROVED", "REFUTED", "OPEN")


CONFIDENT = "[[property]]\nkind = 'confident'\nlead = 0.1\nat_least = 0.5"


def test_an_activation(add: Add, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    op = add("activation").LogCoshOperation()
    for checks in (draws, checks_rules):
        monkeypatch.setattr(checks, "exact_univariate", lambda _, x: np.log(np.cosh(x)))
    instance = Instance("log cosh", op, (per_sample(2),))
    for seed in range(6):
        rng = np.random.default_rng(seed)
        boxes = make_boxes(instance, KINDS[:3], ("apart",), rng)
        check_interval(instance, boxes, rng)
        check_relax(instance, boxes, rng)
    for low, high in ((-1.0, 2.0), (0.1, 0.1 + 1e-9), (-30.0, 40.0)):
        check_residual(instance, np.array([low]), np.array([high]))
    box = Interval(torch.full((1, 3, 2), -1.0).double(), torch.full((1, 3, 2), 2.0).double())
    interval = type(op).interval

    def tight(self: Any, *boxes: Interval) -> Interval:
        return shrunk(interval(self, *boxes), "upper")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(op), "interval", tight)
        assert is_caught(lambda seed: check_interval(instance, (box,), np.random.default_rng(seed)))
    check_run(run_file(tmp_path, CLASSES, model="layers = [2, 2, 2]\nactivation = 'log_cosh'"))
    assert '"log_cosh"' in markdown()
    assert "| `log_cosh` |" in supported.table()


def test_a_layer(add: Add, tmp_path: Path) -> None:
    gain = add("layer").Gain
    model = nn.Sequential(gain(2), *network((2, 2, 2)))
    x, y = torch.from_numpy(X), torch.from_numpy(CLASSES)
    training = agt.Training("cross_entropy", 0.5, epochs=2)
    problem = Problem(model, x, y, training, agt.FeaturePoisoning(1, 0.05))
    result, _ = problem.certify(attack=agt.Search(pool=32, corners=0, rounds=0, restarts=1))
    assert result.reachable.mean_width > result.sandwich.reached > 0
    result.save(tmp_path / "kept.npz")
    kept = agt.load(tmp_path / "kept.npz")
    assert np.array_equal(kept.reachable.lower["0.weight"], result.reachable.lower["0.weight"])
    assert "`Gain`" in supported.table()


def test_a_loss(add: Add, tmp_path: Path) -> None:
    own = add("loss").LogCoshLoss()
    centre = torch.from_numpy(RNG.normal(size=(5, 2)))
    box = Interval(centre - 0.7, centre + 0.7)
    planes = own.planes(box)
    for share in RNG.random((40, 5, 2)):
        m = box.lower + torch.from_numpy(share) * box.width
        value = own.value(m, torch.zeros_like(m))
        assert bool(((planes.slope_lower * m).sum(-1) + planes.lower <= value).all())
        assert bool((value <= (planes.slope_upper * m).sum(-1) + planes.upper).all())
        assert bool((own.of_forms(box).lower <= value).all())
    training = "loss = 'log_cosh_loss'\nlearning_rate = 0.3\nepochs = 2"
    question = "[[property]]\nkind = 'loss'\nat_most = 2"
    model = "layers = [2, 3, 1]"
    check_run(run_file(tmp_path, TARGETS, model=model, training=training, end=question))
    assert '"log_cosh_loss"' in markdown()
    assert "| `log_cosh_loss` | sum over outputs of log cosh(f - y) |" in supported.table()


def test_a_threat_and_a_property(add: Add, tmp_path: Path) -> None:
    fading = add("threat").Fading
    add("property")
    run = run_file(
        tmp_path, CLASSES, threat="kind = 'fading'\nbudget = 2\nshare = 0.2", end=CONFIDENT
    )
    assert run.threat.share == 0.2
    assert "share: the largest share" in fading.__doc__
    check_run(run)
    lead = run.certify().ask(run.properties[0], run.properties[0].pick(run.dataset))
    assert lead.upper <= run.certify().accuracy(X, CLASSES).upper
    assert "- `share`: number >= 0; required; kind fading." in markdown()
    assert "- `lead`: number >= 0; required; kind confident." in markdown()
    page = supported.table()
    assert "`Fading`" in page
    assert "| `confident` | share of test points that are right by some lead |" in page


def test_a_solver(add: Add, tmp_path: Path) -> None:
    add("solver")
    for seed in range(4):
        program, point = random_lp(np.random.default_rng(seed), 6, 4)
        objective = np.random.default_rng(seed).normal(size=6)
        own, known = (
            get_solver(name).open(program).minimise(objective, Limits())
            for name in ("scipy", "highs")
        )
        assert own.dual_bound == pytest.approx(known.dual_bound, abs=1e-6)
        assert own.dual_bound <= objective @ point
    assert (choose("scipy").name, choose(None).name) == ("scipy", "highs")
    check_run(
        run_file(
            tmp_path, CLASSES, certify="relaxation = 'lp'\nprogram_window = 1\nsolver = 'scipy'"
        )
    )
    assert "`scipy`" in supported.table()


def test_a_level_and_its_option(add: Add, tmp_path: Path) -> None:
    add("level")
    run = run_file(tmp_path, CLASSES, certify="relaxation = 'halved'\nhalvings = 3\nattack = true")
    check_run(run)
    widths = {
        halvings: agt.certify(
            run.model, run.dataset, run.training, run.threat, relaxation=level, **given
        )
        for halvings, level, given in (
            (None, "interval", {}),
            (0, "halved", {"halvings": 0}),
            (5, "halved", {"halvings": 5}),
        )
    }
    mean = {halvings: found.reachable.mean_width for halvings, found in widths.items()}
    assert mean[5] < mean[0] == mean[None]
    assert {step.relaxation for step in widths[5].steps} == {"halved"}
    with pytest.raises(agt.errors.InvalidInputError, match="no option 'halving'"):
        agt.certify(run.model, run.dataset, run.training, run.threat, halving=1)
    assert "- `halvings`: whole number >= 0; default `1`. How often boxes are halved" in markdown()
    assert '"halved"' in markdown()
    assert "`halved`" in supported.table()
