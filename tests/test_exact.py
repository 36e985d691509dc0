"""miqp over a whole run and a tree over cells are exact: brute force over selections and phases, with local
search inside; so is relu as a product, and trees keep runs on the boundary."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Replay, assert_inside, with_all_ranges
from scipy.optimize import minimize
from test_nesting import case as problem_case
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.bounds import program
from milp_agt.bounds.adversary.joint import Joint
from milp_agt.bounds.cells.goals import Ends
from milp_agt.bounds.cells.search import Limits as SearchLimits
from milp_agt.bounds.cells.shared import searched
from milp_agt.bounds.program import move_columns
from milp_agt.certification.recorder import MemoryRecorder
from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import add
from milp_agt.core.interval import Interval
from milp_agt.core.results import Limits
from milp_agt.formulations.relu import Relu
from milp_agt.solvers import available_solvers, get_solver

# Local search stops within this of a local optimum, and the tree within its gap and tolerances.
EQUAL = 1e-6
RADIUS = 0.3
SOLVERS = pytest.mark.parametrize(
    "solver",
    [
        "highs",
        pytest.param(
            "scip",
            marks=pytest.mark.skipif(
                "scip" not in available_solvers(), reason="pyscipopt is not installed"
            ),
        ),
    ],
)


@dataclass(frozen=True)
class Tiny:
    """A 1-hidden-layer relu network on scalars, trained by hand with phases that may be imposed."""

    loss: str
    x: Tensor
    y: Tensor
    start: tuple[Tensor, Tensor, Tensor, Tensor]
    steps: int
    rate: float

    def model(self) -> nn.Sequential:
        hidden = len(self.start[1])
        model = nn.Sequential(nn.Linear(1, hidden), nn.ReLU(), nn.Linear(hidden, 1)).double()
        with torch.no_grad():
            for parameter, value in zip(model.parameters(), self.start, strict=True):
                parameter.copy_(value)
        return model

    def run(self, x: Tensor, phases: list[Tensor] | None) -> tuple[Tensor, list[Tensor], Tensor]:
        """Final parameters, the phases of each step, and the distances to the kinks, signed so that
        all are >= 0 where the phases are right."""
        w, b, v, c = self.start
        found, slack = [], []
        sign = 2.0 * self.y - 1.0
        for t in range(self.steps):
            z = x @ w.T + b
            a = (z > 0).double() if phases is None else phases[2 * t]
            h = a * z
            f = (h @ v.T + c)[:, 0]
            slack.append((2.0 * a - 1.0) * z)
            if self.loss == "mse":
                delta, g = 2.0 * (f - self.y), torch.zeros(0, dtype=torch.float64)
            else:
                margin = 1.0 - sign * f
                g = (margin > 0).double() if phases is None else phases[2 * t + 1]
                slack.append((2.0 * g - 1.0) * margin)
                delta = -sign * g
            found += [a, g]
            back = delta[:, None] * v * a
            n = len(x)
            dw, db = back.T @ x / n, back.sum(0) / n
            dv, dc = delta @ h / n, delta.sum() / n
            w, b = w - self.rate * dw, b - self.rate * db
            v, c = v - self.rate * dv, c - self.rate * dc
        final = torch.cat([w.flatten(), b, v.flatten(), c.flatten()])
        return final, found, torch.cat([s.flatten() for s in slack])

    def reach(self, value: Callable[[Tensor], Tensor]) -> float:
        """The least value of a function of the final parameters over all poisonings of one sample."""
        return min(self._search(i, phases, e, value) for i, phases, e in self._cells)

    @functools.cached_property
    def ends(self) -> list[tuple[float, float]]:
        """The least and the largest value of every final parameter."""
        count = sum(part.numel() for part in self.start)
        return [
            (self.reach(lambda final, j=j: final[j]), -self.reach(lambda final, j=j: -final[j]))
            for j in range(count)
        ]

    def predict(self, final: Tensor, at: float) -> Tensor:
        """The output of the model with these parameters."""
        hidden = len(self.start[1])
        w, b, v, c = final.split([hidden, hidden, hidden, 1])
        return (v * torch.relu(w * at + b)).sum() + c[0]

    @functools.cached_property
    def _cells(self) -> list[tuple[int, list[Tensor], float]]:
        """Every sample with every pattern of phases of a grid of moves, and of a bisection between
        neighbours that differ: closed cells hold the limits from both sides of every kink."""
        cells = []
        for sample in range(len(self.x)):
            seen: dict[tuple[float, ...], tuple[list[Tensor], float]] = {}

            def look(e: float, sample: int = sample, seen: dict = seen) -> tuple[float, ...]:
                phases = self.run(self._moved(sample, torch.tensor(e)), None)[1]
                key = tuple(torch.cat([p.flatten() for p in phases]).tolist())
                seen.setdefault(key, (phases, e))
                return key

            grid = np.linspace(-RADIUS, RADIUS, 121).tolist()
            open_cells = [(a, b, look(a), look(b)) for a, b in itertools.pairwise(grid)]
            while open_cells:
                a, b, left, right = open_cells.pop()
                if left != right and b - a > 1e-13:
                    middle = 0.5 * (a + b)
                    key = look(middle)
                    open_cells += [(a, middle, left, key), (middle, b, key, right)]
            cells += [(sample, phases, e) for phases, e in seen.values()]
        return cells

    def _moved(self, sample: int, e: Tensor) -> Tensor:
        unit = torch.zeros_like(self.x)
        unit[sample] = 1.0
        return self.x + unit * e

    def _search(
        self, sample: int, phases: list[Tensor], e: float, wanted: Callable[[Tensor], Tensor]
    ) -> float:
        def value(at: np.ndarray) -> tuple[float, np.ndarray]:
            move = torch.tensor(at[0], requires_grad=True)
            final = wanted(self.run(self._moved(sample, move), phases)[0])
            (slope,) = torch.autograd.grad(final, move, allow_unused=True)
            return final.item(), np.array([0.0 if slope is None else slope.item()])

        def slack(at: np.ndarray) -> np.ndarray:
            return self.run(self._moved(sample, torch.tensor(at[0])), phases)[2].numpy()

        found = minimize(
            value,
            [e],
            jac=True,
            method="SLSQP",
            bounds=[(-RADIUS, RADIUS)],
            constraints={"type": "ineq", "fun": slack},
            options={"ftol": 1e-14, "maxiter": 200},
        )
        # What was found may be beyond a kink by the tolerance of the search.
        good, at = np.array([e]), found.x
        for _ in range(60):
            good, at = (at, found.x) if slack(at).min() >= 0.0 else (good, 0.5 * (good + at))
        return min(value(np.array([e]))[0], value(good)[0])


@functools.cache
def tiny(loss: str, steps: int) -> Tiny:
    x = torch.tensor([[0.4], [-0.7], [1.1]], dtype=torch.float64)
    y = torch.tensor([1.0, 0.0, 1.0] if loss == "hinge" else [0.8, -0.3, 0.2], dtype=torch.float64)
    start = (
        torch.tensor([[1.0], [-0.8]], dtype=torch.float64),
        torch.tensor([-0.2, -0.3], dtype=torch.float64),
        torch.tensor([[0.9, 0.5]], dtype=torch.float64),
        torch.tensor([0.1], dtype=torch.float64),
    )
    return Tiny(loss, x, y, start, steps, 0.3)


@SOLVERS
@pytest.mark.parametrize(
    ("loss", "steps"),
    [
        ("hinge", 1),
        *[
            pytest.param(loss, steps, marks=pytest.mark.slow)
            for loss, steps in itertools.product(("mse", "hinge"), (1, 2, 3))
            if (loss, steps) != ("hinge", 1)
        ],
    ],
)
def test_miqp_over_the_run_is_what_brute_force_finds(solver: str, loss: str, steps: int) -> None:
    case = tiny(loss, steps)
    recorder = MemoryRecorder()
    y = case.y.long() if loss == "hinge" else case.y
    result = agt.certify(
        case.model(),
        (case.x, y),
        agt.Training(loss=loss, learning_rate=case.rate, epochs=steps),
        agt.FeaturePoisoning(1, RADIUS),
        inner_bounds="linear",
        recorder=recorder,
    )
    models = result.models
    kept = with_all_ranges(models, recorder.steps["linear"])
    encoded = program.Window(
        models.step_graph, models.schedule, kept, models.poison, True, exact_products=True
    ).program()
    box = recorder.states["linear"][-1]
    options = program.SolveOptions(get_solver(solver), Limits(gap=0.0))
    found, report = program.bound_state(encoded, box, options)
    assert report.limited == 0
    ambiguous = int(encoded.program.integer.sum()) - len(case.x)
    assert 1 <= ambiguous <= 10 * steps
    low = torch.cat([found[n].lower.flatten() for n in models.step_graph.parameters])
    high = torch.cat([found[n].upper.flatten() for n in models.step_graph.parameters])
    for entry, (least, most) in enumerate(case.ends):
        assert low[entry] <= least
        assert most <= high[entry]
        assert least - low[entry] <= EQUAL
        assert high[entry] - most <= EQUAL


@pytest.mark.parametrize(
    ("loss", "steps"), [("mse", 2), pytest.param("hinge", 2, marks=pytest.mark.slow)]
)
def test_a_tree_over_cells_is_what_brute_force_finds(loss: str, steps: int) -> None:
    case = tiny(loss, steps)
    y = case.y.long() if loss == "hinge" else case.y
    training = agt.Training(loss=loss, learning_rate=case.rate, epochs=steps)
    threat = agt.FeaturePoisoning(1, RADIUS)
    result = agt.certify(
        case.model(), (case.x, y), training, threat, relaxation="interval", tree=1.0
    )
    tree = result.models.tree
    assert tree is not None
    assert tree.cells is not None
    entries = (0, 3, 6)  # a weight and a bias of the first layer, the bias of the second one
    rows = torch.eye(tree.cells.run.layout.size, dtype=torch.float64)[list(entries)]
    goal = Ends(torch.cat([rows, -rows]), torch.ones(6, dtype=torch.float64), 0.1 * EQUAL)
    found = searched(tree.cells, goal, SearchLimits(nodes=2000), 1)
    assert not found.limited
    for row, entry in enumerate(entries):
        for end, least in ((row, case.ends[entry][0]), (row + 3, -case.ends[entry][1])):
            assert 0.0 <= least - found.bounds.lower[end, 0] <= EQUAL * max(1.0, abs(least))


@SOLVERS
@pytest.mark.parametrize("steps", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_a_question_on_top_of_the_run_is_exact_too(solver: str, steps: int) -> None:
    case = tiny("mse", steps)
    recorder = MemoryRecorder()
    result = agt.certify(
        case.model(),
        (case.x, case.y),
        agt.Training(loss="mse", learning_rate=case.rate, epochs=steps),
        agt.FeaturePoisoning(1, RADIUS),
        inner_bounds="linear",
        selections="joint",
        recorder=recorder,
    )
    models = result.models
    points = torch.tensor([[0.25], [-0.9]], dtype=torch.float64)
    steps = with_all_ranges(models, recorder.steps["linear"])
    run = (models.step_graph, models.schedule, steps, models.poison)
    question = program.FinalWindow(
        program.SolveOptions(get_solver(solver), Limits(gap=0.0)),
        window=program.Window(*run, True, exact_products=True),
        state=recorder.states["linear"][-1],
    )
    known = Interval(torch.full((1, 2, 1), -9.0).double(), torch.full((1, 2, 1), 9.0).double())
    ones, zeros = torch.ones(2, 1, 1).double(), torch.zeros(2, 1).double()
    inputs = Interval.point(points.unsqueeze(0))
    found = question.bound(program.OutputForms(inputs, ones, zeros), known)
    assert question.reports[0].limited == 0
    for row, at in enumerate(points[:, 0].tolist()):
        least = case.reach(lambda final, at=at: case.predict(final, at))
        most = -case.reach(lambda final, at=at: -case.predict(final, at))
        assert found.lower[0, row, 0] <= least
        assert most <= found.upper[0, row, 0]
        assert least - found.lower[0, row, 0] <= EQUAL
        assert found.upper[0, row, 0] - most <= EQUAL


@pytest.mark.parametrize("selections", ["joint", "enumerated"])
def test_questions_of_a_run_by_programs_are_objectives_of_the_last_one(selections: str) -> None:
    x = torch.tensor([[0.4], [-0.7], [1.1]], dtype=torch.float64)
    y = torch.tensor([1, 0, 1])
    case = tiny("hinge", 2)
    arguments = (
        case.model(),
        (x, y),
        agt.Training(loss="hinge", learning_rate=case.rate, epochs=2),
        agt.FeaturePoisoning(1, RADIUS),
    )
    solved = agt.certify(*arguments, relaxation="lp", window=2, selections=selections)
    low, high = solved.margins(x, y)
    (report,) = solved.models.program.reports
    assert report.solves == 6 if selections == "joint" else 6 <= report.solves <= 6 * 4
    bare = replace(solved, models=replace(solved.models, program=None))
    outer_low, outer_high = bare.margins(x, y)
    assert (low >= outer_low).all()
    assert (high <= outer_high).all()
    assert (low > outer_low + 1e-6).any()
    for e in np.linspace(-RADIUS, RADIUS, 41):
        for sample in range(3):
            final = case.run(case._moved(sample, torch.tensor(e)), None)[0]
            for row in range(3):
                margin = (2.0 * y[row] - 1.0) * case.predict(final, float(x[row, 0]))
                assert low[row] <= margin <= high[row]
    assert agt.certify(*arguments, relaxation="linear").models.program is None


# ------------------------------------------------------------------------ relu as a product


@pytest.mark.parametrize(
    ("slope", "phases", "products", "least", "kept"),
    [
        (0.0, False, False, 0.5, 0),
        (0.0, False, True, 1.0, 1),
        (0.0, True, True, 1.0, 0),
        (0.2, False, True, 0.5, 0),
    ],
)
def test_relu_is_a_product_where_phases_are_relaxed(
    slope: float, phases: bool, products: bool, least: float, kept: int
) -> None:
    """The least phase for z = 1 in [-1, 2]: 1/2 by rows, and 1 where ``v = a z`` or a is integral."""
    encoder = Encoder(phases, products)
    z = encoder.columns(np.full(1, -1.0), np.full(1, 2.0))
    box = Interval(torch.full((1, 1), -1.0).double(), torch.full((1, 1), 2.0).double())
    Relu(slope).encode(encoder, (z,), (box,))
    encoder.rows(z, 1.0, 1.0)
    phase = encoder.phase(z, np.ones(1, dtype=bool))
    built = encoder.finish()
    assert len(built.products) == kept
    costs = np.zeros(built.lower.size)
    costs[phase.matrix.indices] = 1.0
    found = get_solver("highs").open(built).minimise(costs, Limits()).dual_bound
    assert found == pytest.approx(least, abs=1e-5)
    assert found <= least


def test_attacks_stay_inside_where_relu_is_a_product() -> None:
    problem = problem_case("hinge", agt.FeaturePoisoning(1, 0.05), count=2, epochs=1)
    result, boxes = problem.certify(relaxation="qcqp")
    replay, generator = Replay(problem), torch.Generator().manual_seed(0)
    for corners in (True, False):
        assert_inside(boxes, replay.run(replay.random(100, generator, corners)))
    assert result.steps[-1].program["products"] > 0


@SOLVERS
def test_trees_keep_runs_where_rows_hold_with_equality(solver: str) -> None:
    """From a point, influence rows on the state after a step are met by attacks to the last digits; a tree
    by HiGHS with presolve, and rows as they are, cut such runs off."""
    problem = problem_case("bce", agt.FeatureLabelPoisoning(1, 0.2), epochs=1)
    recorder = MemoryRecorder()
    models = problem.certify(relaxation="lp", selections="joint", recorder=recorder)[0].models
    steps, encoder = recorder.steps["lp"], Encoder(True)
    run = (models.step_graph, models.schedule, steps, models.poison)
    encoded = program.Window(*run, True).encode(encoder)
    after = recorder.states["lp"][-1]
    rows = move_columns.influence_on(models.schedule, steps, after, Joint(models.poison))
    poisoned = add(list(encoded.selection.states))
    moves: Any = SimpleNamespace(of_all=lambda: poisoned)
    move_columns.encode_influence(encoder, moves, rows, [encoded.state[name] for name in after])
    window = program.EncodedWindow(encoder.finish(), encoded.state, encoded.batches)
    wide = {n: Interval(b.lower - 10.0, b.upper + 10.0) for n, b in after.items()}
    options = program.SolveOptions(get_solver(solver), Limits())
    found, _ = program.bound_state(window, wide, options)
    replay, generator = Replay(problem), torch.Generator().manual_seed(0)
    for corners in (True, False):
        reached = replay.run(replay.random(200, generator, corners))[-1]
        for name, box in found.items():
            assert bool((box.lower <= reached[name]).all())
            assert bool((reached[name] <= box.upper).all())
