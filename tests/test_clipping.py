"""Clipping of per-sample gradients: the graph against torch.func, closed forms, attacks, infinite data."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from attacks import Problem, assert_sound, clipped_mean, network, per_sample_gradients
from hypothesis import given, settings
from hypothesis import strategies as st
from pairs import every_pair, every_value
from problems import EXPENSIVE, OUTPUTS, caught, data, problem
from same_run import MODELS, shared_module, shared_parameter
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.bounds.step import NodeOrder
from milp_agt.core.graph import Graph, evaluate
from milp_agt.core.interval import Interval
from milp_agt.errors import UnsupportedOperationError
from milp_agt.formulations import clip
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.clip_factor import ClipFactor, Shorten
from milp_agt.formulations.leaves import Features, ParameterLeaf
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.squared_norm import SquaredNorm
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.training import inputs
from milp_agt.training.clipping import clip_gradients
from milp_agt.training.tracing import FEATURES, LABELS, trace
from milp_agt.training.training import Clipping, Training

MODES = ("norm", "clamp")


def gradients_of_graph(model: nn.Module, loss: str, x: Tensor, y: Tensor, clipping: Clipping):
    """The sums of clipped gradients by parameter, and the terms of each."""
    step_graph = trace(model, loss, tuple(x.shape[1:]), clipping)
    labels = inputs.labels_of(y, len(x), step_graph.loss, step_graph.outputs)
    values = evaluate(
        NodeOrder.of(step_graph).all, dict(step_graph.initial) | {FEATURES: x, LABELS: labels}
    )
    graph = step_graph.graph
    sums = {n: values[g] for n, g in step_graph.gradients.items()}
    terms = {n: values[graph[g].inputs[0]] for n, g in step_graph.gradients.items()}
    return sums, terms, labels


# Sizes at which all, some or none of the gradients are cut.
BOUNDS = (1e-3, 0.3, 1e3)


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize("name", list(MODELS))
def test_the_graph_has_the_gradients_of_torch_func(name: str, bound: float) -> None:
    model = MODELS[name]().double()
    width = next(p for p in model.modules() if isinstance(p, nn.Linear)).in_features
    x = torch.randn(5, width, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y = torch.tensor([0, 1, 1, 0, 1])
    for mode in MODES:
        sums, terms, labels = gradients_of_graph(model, "bce", x, y, Clipping(bound, mode))
        wanted = per_sample_gradients(model, "bce", x, labels)
        mean = clipped_mean(wanted, bound, mode)
        assert set(sums) == set(mean)
        for parameter in sums:
            size = 1e-13 * (1.0 + bound)
            assert float((sums[parameter] / len(x) - mean[parameter]).abs().max()) <= size
            if bound == BOUNDS[-1]:
                assert float((terms[parameter] - wanted[parameter]).abs().max()) <= 1e-13


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("loss", list(OUTPUTS))
def test_no_term_of_a_sum_is_above_the_bound(loss: str, mode: str) -> None:
    x, y, _, _ = data(loss, count=8)
    model = network((2, 3, OUTPUTS[loss]), scale=3.0)
    _, terms, _ = gradients_of_graph(model, loss, 1e3 * x, y, Clipping(0.2, mode))
    flat = torch.cat([t.flatten(1) for t in terms.values()], 1)
    largest = torch.linalg.vector_norm(flat, ord=2 if mode == "norm" else math.inf, dim=1)
    assert float(largest.max()) <= 0.2 * (1 + 1e-14)
    assert float(largest.max()) >= 0.2 * (1 - 1e-14)


def test_a_module_used_twice_is_clipped_as_one() -> None:
    """Both uses add up before the norm is taken; the graph has no sum of a part of the gradient."""
    for model in (shared_module(), shared_parameter()):
        step_graph = trace(model, "bce", (2,), Clipping(0.5))
        graph = step_graph.graph
        sums = NodeOrder.of(step_graph).sums
        assert len(sums) == len(step_graph.parameters)
        assert NodeOrder.of(step_graph).after == ()
        (square,) = (n for n in graph if isinstance(n.op, SquaredNorm))
        assert len(square.inputs) == len(step_graph.parameters)


def test_linear_operations_after_a_sum_move_before_it() -> None:
    """A gradient through a product with a matrix of parameters, as weights made of weights have."""
    from milp_agt.formulations.bilinear import Einsum
    from milp_agt.formulations.linear import Affine, Combine, Reshape

    matrix = torch.tensor([[1.0, 2.0], [0.0, -1.0]], dtype=torch.float64)
    for side in ("ab,bc->ac", "bc,ab->ac"):
        graph = Graph()
        x = graph.add(Features((2, 2)), name="x")
        w = graph.add(ParameterLeaf((2, 2)), name="w")
        total = graph.add(SumSamples(2), x)
        pair = (total, w) if side.startswith("ab") else (w, total)
        product = graph.add(Einsum(side), *pair)
        flat = graph.add(Reshape((2, 2), (4,)), product)
        back = graph.add(Reshape((4,), (2, 2)), flat)
        moved = Combine.build(graph, [(2.0, graph.add(Affine(matrix), back)), (-1.0, total)])
        clipped = clip_gradients(graph, {"w": moved.name}, Clipping(1e6, "clamp"))
        values = evaluate(
            graph,
            {
                "x": torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0)).double(),
                "w": torch.tensor([[0.5, -1.0], [2.0, 0.25]], dtype=torch.float64),
            },
        )
        assert float((values[clipped["w"]] - values[moved.name]).abs().max()) <= 1e-13


def test_a_curved_function_after_a_sum_is_refused() -> None:
    graph = Graph()
    total = graph.add(SumSamples(1), graph.add(Features((2,)), name="x"))
    curved = graph.add(Sigmoid(), total)
    with pytest.raises(UnsupportedOperationError, match=r"sigmoid.*What to do: leave out clip="):
        clip_gradients(graph, {"w": curved.name}, Clipping(1.0))


# ---------------------------------------------------------------------------------- closed forms


def single_clipped(gradients: dict[str, Tensor], bound: float, mode: str) -> dict[str, Tensor]:
    """The clipped gradient of every sample."""
    count = len(next(iter(gradients.values())))
    each = [
        clipped_mean({n: g[i : i + 1] for n, g in gradients.items()}, bound, mode)
        for i in range(count)
    ]
    return {n: torch.stack([own[n] for own in each]) for n in gradients}


@every_pair(mode=MODES, budget=[1, 2], relaxation=["interval", "linear"])
def test_one_step_under_flipped_labels(mode: str, budget: int, relaxation: str) -> None:
    """From a point, every sample has two clipped gradients; the step is the best k differences.

    Exact with clamp. The norm of all coordinates is not known from their ranges: there the bounds
    hold, and are at most what a clipped gradient can do.
    """
    x, y, _, _ = data("bce", count=6, seed=3)
    model = network((2, 3, 1), seed=3, scale=2.0)
    run = Training(loss="bce", learning_rate=0.5, clip=0.3, clip_mode=mode)
    result = agt.certify(model, (x, y), run, agt.LabelPoisoning(budget), relaxation=relaxation)
    clean, flipped = (
        single_clipped(
            per_sample_gradients(model, "bce", x, labels.double().reshape(-1, 1)), 0.3, mode
        )
        for labels in (y, 1 - y)
    )
    for name, value in model.named_parameters():
        difference = flipped[name] - clean[name]
        start = value.detach() - 0.5 * clean[name].mean(0)
        worst = difference.clamp(min=0).topk(budget, 0).values.sum(0) * 0.5 / 6
        best = (-difference).clamp(min=0).topk(budget, 0).values.sum(0) * 0.5 / 6
        low, high = result.reachable.lower[name], result.reachable.upper[name]
        below, above = (start - worst).numpy() - low, high - (start + best).numpy()
        assert min(below.min(), above.min()) >= 0
        rest = 1e-13 if mode == "clamp" else 0.5 / 6 * budget * 0.6
        assert max(below.max(), above.max()) <= rest


# --------------------------------------------------------------------------- the rules, chained


def chain(gradients: list[Interval], bound: float) -> list[Interval]:
    """Boxes of the clipped gradients from boxes of the gradients of one sample each."""
    ranks = tuple(g.lower.dim() - 2 for g in gradients)
    factor = ClipFactor(bound).interval(SquaredNorm(ranks).interval(*gradients))
    return [
        Shorten(f"n{axes},nz->n{axes}", cap=bound * (1 + 1e-12)).interval(g, factor)
        for g, axes in zip(gradients, ("ab"[:r] for r in ranks), strict=True)
    ]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**20),
    bound=st.sampled_from([1e-6, 0.5, 3.0]),
    scale=st.sampled_from([1e-3, 1.0, 1e4]),
    infinite=st.booleans(),
)
def test_boxes_of_clipped_gradients_hold(
    seed: int, bound: float, scale: float, infinite: bool
) -> None:
    rng = np.random.default_rng(seed)
    boxes = []
    for shape in ((2, 3), (2,)):
        low, high = np.sort(scale * rng.normal(size=(2, 2, 4, *shape)), axis=0)
        if infinite:
            low[1] = np.where(rng.random(low[1].shape) < 0.5, -np.inf, low[1])
            high[1] = np.where(rng.random(low[1].shape) < 0.5, np.inf, high[1])
        boxes.append(Interval(torch.from_numpy(low), torch.from_numpy(high)))
    found = chain(boxes, bound)
    for box in found:
        assert bool((box.lower <= box.upper).all())
        assert float(box.magnitude.max()) <= bound * (1 + 1e-11)
    for _ in range(32):
        finite = [Interval(b.lower.clamp(min=-1e6), b.upper.clamp(max=1e6)) for b in boxes]
        share = rng.choice([0.0, 1.0, 0.3], size=2)
        g = [b.lower + (b.upper - b.lower) * float(s) for b, s in zip(finite, share, strict=True)]
        flat = torch.cat([v.flatten(2) for v in g], 2)
        factor = (bound / torch.linalg.vector_norm(flat, dim=2)).clamp(max=1.0)
        for box, value in zip(found, g, strict=True):
            clipped = value * factor.reshape(*factor.shape, *[1] * (value.dim() - 2))
            assert box.contains(clipped)


def test_nothing_known_of_a_sample_leaves_the_clipping_bound() -> None:
    """(-inf, inf) in the state POISONED: finite ends there, and the state CLEAN is left as it was."""
    clean = torch.tensor([[0.1, -0.2], [0.3, 0.0]], dtype=torch.float64)
    line = torch.full_like(clean, torch.inf)
    box = Interval(torch.stack([clean, -line]), torch.stack([clean, line]))
    (norm,) = chain([box], 0.5)
    clamped = Clip(-0.5, 0.5).interval(box)
    for found in (norm, clamped):
        assert torch.allclose(found.lower[0], clean, rtol=1e-13, atol=1e-280)
        assert torch.allclose(found.upper[0], clean, rtol=1e-13, atol=1e-280)
        assert torch.allclose(found.lower[1], torch.tensor(-0.5).double(), rtol=1e-11)
        assert torch.allclose(found.upper[1], torch.tensor(0.5).double(), rtol=1e-11)


def test_planes_over_an_infinite_range_are_never_a_number_too_tight() -> None:
    """An offset over an infinite range is vacuous or right; it is never NaN."""
    low = torch.tensor([[0.1, -1.0, 2.0], [-torch.inf, -torch.inf, 2.0]], dtype=torch.float64)
    high = torch.tensor([[0.2, 1.0, 3.0], [torch.inf, 1.0, torch.inf]], dtype=torch.float64)
    box = Interval(low.unsqueeze(-1), high.unsqueeze(-1))
    points = torch.linspace(-1e3, 1e3, 401, dtype=torch.float64)
    for op in (Clip(-0.5, 0.5), ClipFactor(0.5)):
        planes = op.relax(box)
        for offset in (planes.lower, planes.upper):
            assert not bool(torch.isnan(offset).any())
        for state, i in itertools.product((0, 1), range(3)):
            x = points[(points >= low[state, i]) & (points <= high[state, i])]
            below = planes.slope_lower[i] * x + planes.lower[state, i]
            above = planes.slope_upper[i] * x + planes.upper[state, i]
            assert bool((below <= op.value(x) + 1e-12).all())
            assert bool((op.value(x) <= above + 1e-12).all())


def test_clip_planes_are_edges_of_the_hull() -> None:
    low = torch.tensor([-2.5, -1.0, -0.2, 0.6, -3.0], dtype=torch.float64)
    high = torch.tensor([1.0, 3.0, 0.3, 2.0, -1.0], dtype=torch.float64)
    below, above = Clip(-0.5, 0.5).slopes(Interval(low, high))
    assert below.tolist() == pytest.approx([0.0, 1.0 / 3.5, 1.0, 0.0, 0.0])
    assert above.tolist() == pytest.approx([1.0 / 3.0, 0.0, 1.0, 0.0, 0.0])
    planes = Clip(-0.5, 0.5).relax(Interval(low[None], high[None]))
    assert planes.lower[0].tolist() == pytest.approx([-0.5, -0.5 + 0.5 / 3.5, 0.0, 0.5, -0.5])
    assert planes.upper[0].tolist() == pytest.approx([0.5 - 0.5 / 3.0, 0.5, 0.0, 0.5, -0.5])


def test_clip_factor_planes() -> None:
    """The kink is at 0.25; chord below, and above the chord from the kink or the constant 1."""
    low = torch.tensor([0.0, 0.0, 0.25, 1.0], dtype=torch.float64)
    high = torch.tensor([0.3, 1.0, 1.0, 4.0], dtype=torch.float64)
    value = ClipFactor(0.5).value
    below, above = ClipFactor(0.5).slopes(Interval(low, high))
    chord = ((value(high) - value(low)) / (high - low)).tolist()
    assert below.tolist() == pytest.approx(chord)
    assert above.tolist() == pytest.approx([0.0, -0.5 / 0.75, *chord[2:]])


# --------------------------------------------------------------------------------------- attacks


KINDS = [("bce", "features"), ("bce", "labels"), *((loss, "both") for loss in OUTPUTS)]


@every_pair(mode=MODES, threat=KINDS, relaxation=["interval", "linear"])
def test_every_threat_and_loss(mode: str, threat: tuple[str, str], relaxation: str) -> None:
    loss, kind = threat
    run = {"clip": 0.3, "clip_mode": mode, "batch_size": 4, "epochs": 2, "shuffle_seed": 1}
    case, test, labels = problem(loss, kind, run, radius=0.05)
    bounds = None if relaxation == "interval" else "linear"
    assert_sound(case, test, labels, attacks=24, relaxation=relaxation, inner_bounds=bounds)


@pytest.mark.parametrize("relaxation", ["lp", EXPENSIVE])
@pytest.mark.parametrize("mode", MODES)
def test_programs(mode: str, relaxation: str) -> None:
    run = {"clip": 0.3, "clip_mode": mode, "epochs": 2}
    case, test, labels = problem("bce", "both", run, (2,), count=4, budget=1, radius=0.05)
    assert_sound(case, test, labels, attacks=24, relaxation=relaxation)


@pytest.mark.usefixtures("unlisted")
@pytest.mark.parametrize("kind", ["features", "labels"])
@pytest.mark.parametrize("mode", MODES)
def test_each_selection_by_itself(mode: str, kind: str) -> None:
    run = {"clip": 0.3, "clip_mode": mode, "epochs": 2}
    case, test, labels = problem("bce", kind, run, radius=0.05, budget=1)
    options = {"relaxation": "linear", "selections": "enumerated"}
    result = assert_sound(case, test, labels, attacks=24, **options)
    assert "linear, each selection" in result.steps[-1].chains


OPTIONS = {
    "momentum and decay": {"momentum": 0.9, "weight_decay": 0.1},
    "nesterov": {"momentum": 0.5, "nesterov": True},
    "tiny": {"clip": 1e-6},
    "one epoch": {"epochs": 1, "clip": 0.05},
}


@every_value(options=OPTIONS, mode=MODES)
def test_options_of_the_run(mode: str, options: dict[str, float]) -> None:
    run = {"clip": 0.2, "clip_mode": mode} | options
    case, test, labels = problem("cross_entropy", "both", run, (3, 2), nn.Tanh, radius=0.05)
    assert_sound(case, test, labels, attacks=24, relaxation="linear")


@pytest.mark.parametrize("mode", MODES)
def test_huge_features(mode: str) -> None:
    """What the adversary may do to a sample is bounded by the clip, however far it moves."""
    run = {"clip": 0.1, "clip_mode": mode, "epochs": 2, "learning_rate": 0.5}
    case, test, labels = problem("bce", "features", run, budget=1, radius=1e6)
    result = assert_sound(case, test, labels, relaxation="interval")
    assert result.reachable.max_width <= 2.0
    assert_sound(case, test, labels, relaxation="linear")


def test_a_bound_that_never_cuts_changes_nothing_but_rounding() -> None:
    case, _, _ = problem("bce", "features", {}, radius=0.02)
    plain, _ = case.certify(relaxation="linear")
    for mode in MODES:
        run = Training(loss="bce", learning_rate=0.3, epochs=3, clip=1e3, clip_mode=mode)
        clipped, _ = Problem(case.model, case.features, case.labels, run, case.threat).certify()
        for name, low in plain.reachable.lower.items():
            assert np.abs(clipped.reachable.lower[name] - low).max() <= 1e-9


# --------------------------------------------------------------------------------------- mutants


def one_step(mode: str, kind: str = "labels"):
    run = {"clip": 0.1, "clip_mode": mode, "epochs": 1}
    return problem("bce", kind, run, (), outputs=1, radius=0.5, budget=2)


@pytest.mark.parametrize("relaxation", ["interval", "linear"])
def test_a_clamp_one_per_cent_too_tight_is_caught(relaxation: str, monkeypatch) -> None:
    honest = Clip.value
    case, test, labels = one_step("clamp")
    _, boxes = case.certify(relaxation=relaxation)
    assert not caught(case, boxes, test, labels)

    def tight(self: Clip, box: Interval) -> Interval:
        return Interval(0.99 * honest(self, box.lower), 0.99 * honest(self, box.upper))

    monkeypatch.setattr(clip.Clip, "interval", tight)
    monkeypatch.setattr(clip.Clip, "value", lambda self, x: 0.99 * honest(self, x))
    _, boxes = case.certify(relaxation=relaxation)
    monkeypatch.undo()
    assert caught(case, boxes, test, labels)
