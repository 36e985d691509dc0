"""Whole samples exchanged or removed: closed forms of a step, brute force, unlearning, and bad input."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, assert_inside, network
from pairs import every_pair, every_value
from refusals import refused
from torch import Tensor, nn
from whole import Trainer, subsets
from whole_runs import (
    KINDS,
    POOL,
    POOL_Y,
    RUNS,
    X,
    Y,
    assert_form_meets_the_ball,
    extremes,
    of,
    one_step,
    problem,
    share,
    truth,
)

import milp_agt as agt
from milp_agt.certification import planning
from milp_agt.core.interval import Interval
from milp_agt.errors import InvalidThreatModelError, MilpAgtError
from milp_agt.formulations.exchange import Remove
from milp_agt.training.training import Training

EXCHANGES = [
    ("removal", "norm"),
    *((kind, mode) for kind in ("substitution", "insertion") for mode in ("norm", "clamp")),
]


@every_pair(
    exchange=EXCHANGES, budget=[1, 2], relaxation=["interval", "zonotope", "linear", "lp", "milp"]
)
def test_one_step_is_the_closed_form(
    exchange: tuple[str, str], budget: int, relaxation: str
) -> None:
    kind, mode = exchange
    options = {} if kind == "removal" else {"clip_mode": mode}
    result, case, gradients = one_step(kind, budget, relaxation, **options)
    rate = case.training.learning_rate
    bound = torch.tensor(case.training.clip or 0.0, dtype=torch.float64)
    for name, g in gradients.items():
        low, high = extremes(kind, budget, g, bound)
        start = case.model.state_dict()[name]
        for end, wanted in ((result.reachable.upper, low), (result.reachable.lower, high)):
            found = torch.from_numpy(end[name])
            assert float((found - (start - rate * wanted)).abs().max()) <= 1e-12


@pytest.mark.parametrize("kind", ["substitution", "insertion"])
@pytest.mark.parametrize("mode", ["norm", "clamp"])
def test_a_form_of_all_parameters_meets_the_ball(kind: str, mode: str) -> None:
    assert_form_meets_the_ball(kind, mode)


@every_pair(
    kind=list(KINDS),
    budget=[1, 2],
    name=list(RUNS),
    level=[
        ("interval", "joint"),
        ("linear", "joint"),
        ("linear", "enumerated"),
        pytest.param(("lp", "joint"), marks=pytest.mark.slow),
        pytest.param(("milp", "enumerated"), marks=pytest.mark.slow),
    ],
)
def test_no_run_leaves_the_bounds(
    kind: str, budget: int, name: str, level: tuple[str, str]
) -> None:
    relaxation, selections = level
    if kind == "insertion" and selections == "enumerated":
        pytest.skip("insertions select no sample")
    case = problem(kind, budget, **of(kind, name))
    result, boxes = case.certify(relaxation=relaxation, selections=selections)
    assert_inside(boxes, truth(case))
    listed = kind == "removal" and (relaxation, selections) == ("linear", "enumerated")
    assert result.steps[-1].relaxation == ("listed" if listed else relaxation)
    assert np.isfinite(result.reachable.mean_width)


@every_pair(kind=list(KINDS), budget=[1, 2], name=list(RUNS))
def test_no_run_leaves_the_zonotope_within_intervals(kind: str, budget: int, name: str) -> None:
    run = of(kind, name)
    case = problem(kind, budget, **run)
    result, boxes = case.certify(relaxation="zonotope")
    assert_inside(boxes, truth(case))
    assert result.steps[0].relaxation == "zonotope"
    wide, _ = case.certify(relaxation="interval")
    assert result.reachable.mean_width <= wide.reachable.mean_width
    if (kind, budget) == ("removal", 1) and "batch_size" not in run:
        # One generator for what a removed sample takes away in all steps.
        assert result.reachable.mean_width < 0.85 * wide.reachable.mean_width


@every_value(kind=list(KINDS), relaxation=["lp", "milp"])
def test_no_run_leaves_the_programs(kind: str, relaxation: str) -> None:
    """Programs of two steps, whose selections are shared."""
    case = problem(kind, 1, samples=3, hidden=(), epochs=2, batch_size=2)
    _, boxes = case.certify(relaxation=relaxation, program_window=2)
    assert_inside(boxes, truth(case))


@every_pair(
    static=[True, False],
    scope=["dataset", "batch"],
    relaxation=[
        "interval",
        "zonotope",
        "linear",
        pytest.param("milp", marks=pytest.mark.slow),
    ],
)
def test_fresh_substitutes_in_every_step(static: bool, scope: str, relaxation: str) -> None:
    """An adaptive adversary sets in other samples in every step; per batch, in other places."""
    case = problem("substitution", 1, epochs=2, batch_size=2)
    threat = agt.Substitution(1, static=static, scope=scope)
    case = Problem(case.model, case.features, case.labels, case.training, threat)
    _, boxes = case.certify(relaxation=relaxation)
    trainer, order = Trainer(case), Trainer(case).order()
    y, encoded = trainer.encoded(case.labels), trainer.encoded(POOL_Y)
    generator = torch.Generator().manual_seed(0)

    def drawn(high: int) -> list[Tensor]:
        """One choice for the run, one for each batch, or one for each step."""
        count = 1 if scope == "dataset" else 2
        count = count if static or (high == 4 and scope == "dataset") else 4
        fresh = [torch.randint(high, (300,), generator=generator) for _ in range(count)]
        return (fresh * 4)[: len(order)]

    places, news = drawn(4), drawn(len(POOL))
    if scope == "batch":
        places = [b[p % 2] for b, p in zip(order, places, strict=True)]
    batches = []
    for b, place, new in zip(order, places, news, strict=True):
        x, labels = case.features.expand(300, -1, -1).clone(), y.expand(300, -1, -1).clone()
        x[torch.arange(300), place], labels[torch.arange(300), place] = POOL[new], encoded[new]
        batches.append((x[:, b], labels[:, b], torch.ones(300, len(b), dtype=torch.float64)))
    assert_inside(boxes, trainer.run(batches))


@pytest.mark.parametrize("mode", ["norm", "clamp"])
@pytest.mark.parametrize("kind", KINDS)
def test_batches_in_pieces(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walks over two samples at a time; removals keep their batch whole."""
    monkeypatch.setattr(planning, "FEWEST_SAMPLES", 2)
    monkeypatch.setattr(planning, "CACHED_ELEMENTS", 1)
    case = problem(kind, 2, samples=5, **({} if kind == "removal" else {"clip_mode": mode}))
    result, boxes = case.certify()
    (reached,) = result.models.reached
    assert len(reached.window[-1].chunks) == (1 if kind == "removal" else 3)
    assert_inside(boxes, truth(case))
    pieces, boxes = case.certify(relaxation="interval", memory=1024)
    assert_inside(boxes, truth(case))
    whole, _ = case.certify(relaxation="interval")
    assert pieces.reachable.mean_width == pytest.approx(whole.reachable.mean_width, rel=1e-9)


def test_only_open_samples_can_be_removed() -> None:
    case = problem("removal", 1)
    narrow = Problem(case.model, X[:4], Y[:4], case.training, agt.Removal(1, samples=[2]))
    for selections in ("joint", "enumerated"):
        result, boxes = narrow.certify(selections=selections)
        assert_inside(boxes, Trainer(narrow).removed([[], [2]]))
        assert result.reachable.mean_width < 0.7 * case.certify()[0].reachable.mean_width


def test_more_may_happen_under_a_larger_budget() -> None:
    for kind in KINDS:
        widths = [problem(kind, k).certify(relaxation="interval")[0] for k in (0, 1, 2)]
        sizes = [w.reachable.mean_width for w in widths]
        assert sizes[0] < 1e-12 < sizes[1] < sizes[2]


@pytest.mark.usefixtures("unlisted")
def test_an_emptied_batch_skips_its_step() -> None:
    """Velocities stay, weights do not decay, and a projection is not applied."""
    options = {"batch_size": 1, "epochs": 1, "momentum": 0.9, "weight_decay": 0.5}
    case = problem("removal", 2, samples=3, **options)
    for selections in ("joint", "enumerated"):
        result, boxes = case.certify(selections=selections)
        assert_inside(boxes, truth(case))
        (note,) = result.fallbacks
        assert "may lose all their samples" in note
        assert "step 1" in note
    assert share(case, result) >= 0.99
    boxes = case.certify(relaxation="zonotope")[1]
    assert_inside(boxes, truth(case))


def test_everything_may_be_removed() -> None:
    case = problem("removal", 3, samples=3, projection=(-0.2, 0.2))
    for relaxation, selections in (
        ("interval", "joint"),
        ("zonotope", "joint"),
        ("linear", "enumerated"),
        ("lp", "joint"),
    ):
        result, _ = case.certify(relaxation=relaxation, selections=selections)
        start = {n: v.numpy() for n, v in case.model.state_dict().items()}
        assert result.reachable.contains(start)


@pytest.mark.parametrize("kind", ["substitution", "insertion"])
def test_new_samples_need_clipping(kind: str) -> None:
    with refused("without limit", "no bound is finite", "clip=", kind=InvalidThreatModelError):
        problem(kind, 1, clip=None).certify()


@pytest.mark.parametrize(("threat", "asked", "found"), [
    (agt.Removal(5), "Removal may poison 5", "4 samples"),
    (agt.Substitution(2, samples=[1]), "Substitution may poison 2", "only 1"),
    (agt.Substitution(1, samples=[]), "distinct samples", "0 samples"),
    (agt.Removal(1, scope="epoch"), "scope out of", "epoch"),
    (agt.Insertion(-1), "budget >= 0", "-1"),
    (agt.Insertion(0.5), "budget >= 0", "0.5"),
])  # fmt: skip
def test_bad_threats(threat: Any, asked: str, found: str) -> None:
    case = problem("insertion", 1)
    with refused(asked, found, kind=InvalidThreatModelError):
        Problem(case.model, case.features, case.labels, case.training, threat).certify()


def test_selections_of_insertions_cannot_be_enumerated() -> None:
    with pytest.raises(MilpAgtError, match="Selections can be enumerated"):
        problem("insertion", 1).certify(selections="enumerated")


def test_claims_say_what_happens() -> None:
    words = {
        "substitution": ("any features and labels", "once, before training"),
        "removal": ("left in a batch", "skips its step"),
        "insertion": ("join each batch", "larger batch"),
    }
    for kind, wanted in words.items():
        claim = KINDS[kind](2).describe()
        assert all(word in claim for word in wanted)


@pytest.mark.parametrize(("budget", "least"), [(1, 0.99), (2, 0.98)])
def test_removals_one_by_one_are_nearly_exact(budget: int, least: float) -> None:
    """Every selection is one run: its box is that run, up to the kinks that rounding leaves open."""
    case = problem("removal", budget, samples=5, epochs=5)
    result, _ = case.certify(selections="enumerated")
    assert share(case, result) >= least


def test_joint_bounds_are_within_reach() -> None:
    for kind, least in (("removal", 0.6), ("substitution", 0.35), ("insertion", 0.25)):
        case = problem(kind, 1, epochs=2)
        assert share(case, case.certify()[0]) >= least


def iris() -> tuple[Tensor, Tensor]:
    datasets = pytest.importorskip("sklearn.datasets")
    x, y = datasets.load_iris(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))[:120]
    x = (x - x.mean(0)) / x.std(0)
    return torch.from_numpy(x[order]), torch.from_numpy(y[order])


@pytest.mark.slow
@pytest.mark.parametrize("hidden", [(), (8,)])
def test_unlearning_on_iris(hidden: tuple[int, ...]) -> None:
    """Retrained without each single sample, and without 500 random pairs."""
    x, y = iris()
    run = Training(loss="cross_entropy", learning_rate=0.2, epochs=5, batch_size=40)
    model = network((4, *hidden, 3), seed=0)
    single = Problem(model, x, y, run, agt.Removal(1))
    result, boxes = single.certify(selections="enumerated")
    states = Trainer(single).removed([[i] for i in range(120)])
    assert_inside(boxes, states)
    reached = torch.cat([(v.amax(0) - v.amin(0)).flatten() for v in states[-1].values()])
    assert float(reached.mean()) >= 0.97 * result.reachable.mean_width
    pair = Problem(model, x, y, run, agt.Removal(2))
    rng = np.random.default_rng(0)
    pairs = [rng.choice(120, 2, replace=False).tolist() for _ in range(500)]
    for relaxation in ("interval", "linear"):
        _, boxes = pair.certify(relaxation=relaxation)
        assert_inside(boxes, Trainer(pair).removed(pairs))


def test_unlearning_in_a_convolution() -> None:
    """Gradients of single samples are taken from shared weights as well."""
    torch.manual_seed(0)
    x = torch.randn(4, 1, 3, 3, dtype=torch.float64)
    model = nn.Sequential(nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 1)).double()
    run = Training(loss="bce", learning_rate=0.3, epochs=2)
    case = Problem(model, x, Y[:4], run, agt.Removal(1))
    for selections in ("joint", "enumerated"):
        _, boxes = case.certify(selections=selections)
        assert_inside(boxes, Trainer(case).removed(list(subsets(4, 1))))


@pytest.mark.parametrize("seed", range(20))
def test_means_that_may_be_left(seed: int) -> None:
    """Every mean without i and up to k - 1 others that can be removed, and the extremes are reached."""
    rng = np.random.default_rng(seed)
    count, budget = int(rng.integers(2, 7)), int(rng.integers(1, 5))
    values = torch.from_numpy(rng.normal(size=(count, 2)))
    openness = torch.from_numpy(rng.random(count) < (1.0 if seed % 2 else 0.5))
    openness[0] = True
    chosen = torch.stack([torch.zeros(count), openness.double()]).double().unsqueeze(-1)
    box = Remove(budget).others(Interval.point(values[None]), Interval(chosen, chosen))
    ways = [
        set(gone)
        for gone in subsets(count, min(budget, count - 1))
        if gone and all(openness[i] for i in gone)
    ]
    for i in openness.nonzero()[:, 0].tolist():
        left = [
            values[[j for j in range(count) if j not in gone]].mean(0) for gone in ways if i in gone
        ]
        means = torch.stack(left)
        assert bool((box.lower[0, i] <= means.amin(0)).all())
        assert bool((means.amax(0) <= box.upper[0, i]).all())
        assert float((means.amin(0) - box.lower[0, i]).max()) <= 1e-12
        assert float((box.upper[0, i] - means.amax(0)).max()) <= 1e-12


@pytest.mark.parametrize("chosen", list(itertools.combinations(range(5), 3)))
def test_removals_of_two_out_of_three(chosen: tuple[int, ...]) -> None:
    case = problem("removal", 2, samples=5)
    narrow = Problem(case.model, X, Y, case.training, agt.Removal(2, samples=chosen))
    gone = [s for s in subsets(5, 2) if set(s) <= set(chosen)]
    for relaxation in ("interval", "linear"):
        _, boxes = narrow.certify(relaxation=relaxation)
        assert_inside(boxes, Trainer(narrow).removed(gone))
