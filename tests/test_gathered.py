"""Networks too large for a zonotope: a first layer that is a sum over samples, held against every run."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, Replay
from torch import nn

import milp_agt as agt
from milp_agt.bounds.gathered import Gathered, first_layer, gathered, joint, tally
from milp_agt.bounds.gathered.first_layer import FirstLayer
from milp_agt.bounds.gathered.tally import Tally
from milp_agt.bounds.program import OutputForms
from milp_agt.certification import planning
from milp_agt.core.graph import evaluate
from milp_agt.core.interval import Interval
from milp_agt.core.restriction import UNRESTRICTED
from milp_agt.training.tracing import FEATURES as FEATURES_
from milp_agt.training.tracing import LABELS as LABELS_
from milp_agt.training.tracing import LOSS_GRADIENT

LABELS = np.arange(7) % 3
FEATURES = np.random.default_rng(3).normal(size=(7, 3))
RUNS = [
    ("relu", {"epochs": 1, "batch_size": 2}),
    ("relu", {"epochs": 2, "batch_size": 3, "weight_decay": 0.2}),
    ("tanh", {"epochs": 2, "batch_size": 4}),
    ("deep", {"epochs": 1, "batch_size": 3}),
    ("plain", {"epochs": 3}),
    ("relu", {"epochs": 1, "label_smoothing": 0.2, "batch_size": 4}),
]


@pytest.fixture(autouse=True)
def _nothing_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        planning, "_is_too_large", lambda options, *given: options.relaxation != "interval"
    )


def network(kind: str) -> nn.Module:
    torch.manual_seed(1)
    act = nn.Tanh if kind == "tanh" else nn.ReLU
    if kind == "plain":
        return nn.Linear(3, 3).double()
    inner = [nn.Linear(4, 4), act()] if kind == "deep" else []
    bias = kind != "tanh"
    return nn.Sequential(nn.Linear(3, 4, bias=bias), act(), *inner, nn.Linear(4, 3)).double()


def certified(
    kind: str, options: dict[str, Any], relaxation: str = "zonotope", budget: int = 2
) -> Any:
    training = agt.Training("cross_entropy", 0.4, **options)
    threat = agt.LabelPoisoning(budget)
    return agt.certify(network(kind), (FEATURES, LABELS), training, threat, relaxation=relaxation)


def trained(kind: str, options: dict[str, Any], labels: np.ndarray) -> nn.Module:
    """Plain torch on some labels."""
    model = network(kind)
    decay = options.get("weight_decay", 0.0)
    optimiser = torch.optim.SGD(model.parameters(), 0.4, weight_decay=decay)
    more = {"label_smoothing": options.get("label_smoothing", 0.0)}
    for batch in agt.Training("cross_entropy", 0.4, **options).batch_order(len(labels)):
        optimiser.zero_grad()
        outputs = model(torch.as_tensor(FEATURES[batch]))
        nn.functional.cross_entropy(outputs, torch.as_tensor(labels[batch]), **more).backward()
        optimiser.step()
    return model


def every_run(kind: str, options: dict[str, Any]) -> list[nn.Module]:
    found = []
    for chosen in combinations(range(7), 2):
        for moved in product(range(3), repeat=2):
            labels = LABELS.copy()
            labels[list(chosen)] = moved
            found.append(trained(kind, options, labels))
    return found


@pytest.mark.parametrize(("kind", "options"), RUNS)
def test_every_poisoned_run_is_inside_and_intervals_are_wider(kind: str, options: Any) -> None:
    result, boxed = certified(kind, options), certified(kind, options, "interval")
    assert any("the first layer is a sum over samples" in note for note in result.notes)
    box, test = result.reachable, torch.as_tensor(FEATURES[:3] + 0.1)
    outputs = result.models.bound(OutputForms.of_outputs(test, 3))
    for model in every_run(kind, options):
        for name, value in model.named_parameters():
            held = value.detach().numpy()
            assert (box.lower[name] <= held).all()
            assert (held <= box.upper[name]).all()
        assert outputs.contains(model(test).detach()[None])
    for name in box.lower:
        assert (boxed.reachable.lower[name] <= box.lower[name]).all()
        assert (box.upper[name] <= boxed.reachable.upper[name]).all()
    if len(result.steps) > 1:
        assert box.mean_width < 0.96 * boxed.reachable.mean_width


def test_some_pieces_of_a_batch_are_out_of_reach(monkeypatch: Any) -> None:
    """Samples that cannot be poisoned have one state, also where intervals bound them by themselves."""
    training = agt.Training("cross_entropy", 0.4, epochs=1, batch_size=4)
    threat = agt.LabelPoisoning(1, samples=[1, 6])

    def run() -> Any:
        data = (FEATURES, LABELS)
        found = agt.certify(network("relu"), data, training, threat, relaxation="zonotope")
        return found.reachable

    whole, pieces_of = run(), planning.Pieces.of

    def one_by_one(*given: Any) -> planning.Pieces:
        return replace(pieces_of(*given), samples=1)

    monkeypatch.setattr(planning.Pieces, "of", one_by_one)
    found = run()
    for name in whole.lower:
        assert np.allclose(found.lower[name], whole.lower[name], rtol=0.0, atol=1e-12)
        assert np.allclose(found.upper[name], whole.upper[name], rtol=0.0, atol=1e-12)


def test_outputs_of_a_first_layer_are_attained() -> None:
    """The farthest of all choices within the budget is met, on both sides: nothing narrower holds."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    features, weight = drawn(6, 3), Interval.point(drawn(2, 3))
    layer = FirstLayer.of(features, weight, Interval.point(drawn(2)), 2)
    ends, down, up = drawn(4, 2), drawn(4, 2).abs(), drawn(4, 2).abs()
    clean = Interval(ends, ends + 0.3)
    layer = layer.after(torch.arange(4), 0.9, -0.2, clean, down, up)
    layer = layer.after(
        torch.tensor([4, 1]), 0.9, -0.2, Interval(ends[:2], ends[:2]), up[:2], down[:2]
    )
    at = drawn(5, 3)
    found = layer.outputs(at, torch.zeros(2, 4, dtype=torch.float64), 2)
    one = torch.ones(6, 1, dtype=torch.float64)
    inner = torch.cat([at, one[:5]], 1) @ torch.cat([features, one], 1).T
    middle = 0.81 * torch.cat([at, one[:5]], 1) @ layer.start.centre.T
    best = []
    for chosen in combinations(range(6), 2):
        s = torch.zeros(6, 1, dtype=torch.float64)
        s[list(chosen)] = 1.0
        low, high = layer.low - s * layer.down, layer.high + s * layer.up
        terms = torch.maximum(inner[..., None] * high, inner[..., None] * low)
        best.append(middle + terms.sum(1))
    best = torch.stack(best).amax(0)
    assert (best <= found.upper).all()
    assert torch.allclose(best, found.upper, rtol=0.0, atol=1e-12)


def test_samples_that_are_not_told_apart_count_as_the_farthest_of_them(monkeypatch: Any) -> None:
    layer = FirstLayer.of(
        torch.as_tensor(FEATURES), Interval.point(torch.zeros(2, 3).double()), None, 1
    )
    reach = torch.linspace(1.0, 2.0, 14, dtype=torch.float64).reshape(7, 2)
    clean = Interval.point(torch.zeros_like(reach))
    layer = layer.after(torch.arange(7), 1.0, 1.0, clean, 0.5 * reach, reach)
    error = torch.zeros(2, 3, dtype=torch.float64)
    apart = layer.outputs(layer.features, error, 1)
    monkeypatch.setattr(first_layer, "TOLD_APART", 2)
    wider = layer.outputs(layer.features, error, 1)
    assert (wider.upper >= apart.upper).all()
    assert (wider.lower <= apart.lower).all()
    assert bool((wider.upper > apart.upper).any())


def test_a_tally_counts_the_largest_charges_of_all_steps(monkeypatch: Any) -> None:
    start = Interval.point(torch.zeros(1, 2, dtype=torch.float64))
    zero = torch.zeros(2, dtype=torch.float64)
    held = Tally.of(start, 3)
    for charges in ([5.0, 1.0], [4.0, 3.0, 2.0]):
        up = torch.tensor(charges, dtype=torch.float64)[:, None].expand(-1, 2)
        held = held.plus(zero, zero, 0.0 * up, up, zero)
    assert held.box().upper[0].tolist() == pytest.approx([12.0, 12.0], rel=1e-12)
    assert held.times(-0.5).box().lower[0].tolist() == pytest.approx([-6.0, -6.0], rel=1e-12)
    again = held.settled().plus(zero, zero, 0.0 * up, up, zero)
    assert again.box().upper[0].tolist() == pytest.approx([21.0, 21.0], rel=1e-12)
    monkeypatch.setattr(tally, "KEPT", 2)
    held = Tally.of(start, 3).plus(zero, zero, 0.0 * up, up, zero)
    assert held.box().upper[0].tolist() == pytest.approx([10.0, 10.0], rel=1e-12)


def test_a_run_goes_on_from_a_checkpoint(tmp_path: Any) -> None:
    class Stop(Exception):
        pass

    def stop(result: Any, step: int, steps: int) -> None:
        if step == 3:
            raise Stop

    kind, options = RUNS[1]
    training, threat = agt.Training("cross_entropy", 0.4, **options), agt.LabelPoisoning(2)

    def run(**more: Any) -> Any:
        data = (FEATURES, LABELS)
        return agt.certify(network(kind), data, training, threat, relaxation="zonotope", **more)

    with pytest.raises(Stop):
        run(checkpoint=tmp_path, on_step=stop)
    found, whole = run(checkpoint=tmp_path).reachable, run().reachable
    for name in whole.lower:
        assert (found.lower[name] == whole.lower[name]).all()
        assert (found.upper[name] == whole.upper[name]).all()


def test_what_has_no_rule_is_named() -> None:
    training = agt.Training("cross_entropy", 0.4, epochs=2, momentum=0.5)
    data, threat = (FEATURES, LABELS), agt.LabelPoisoning(2)
    result = agt.certify(network("relu"), data, training, threat, relaxation="zonotope")
    assert any("has no rule for momentum" in note for note in result.notes)


def test_one_step_is_as_narrow_as_it_can_be() -> None:
    """From known parameters each end of the first layer is met: by the labels that hurt it most together."""
    options = {"epochs": 1}
    box = certified("relu", options).reachable
    runs = [dict(model.named_parameters()) for model in every_run("relu", options)]
    for name in ("0.weight", "0.bias"):
        values = torch.stack([run[name].detach() for run in runs]).numpy()
        assert np.allclose(values.min(0), box.lower[name], rtol=0.0, atol=1e-12)
        assert np.allclose(values.max(0), box.upper[name], rtol=0.0, atol=1e-12)


def test_sums_that_cancel_hold_for_drawn_states() -> None:
    """Boxes of nodes with all that is known of sums hold every state, and are narrower."""
    training, threat = agt.Training("cross_entropy", 0.4, epochs=1), agt.LabelPoisoning(2)
    data = torch.as_tensor(FEATURES), torch.as_tensor(LABELS)
    case = Replay(Problem(network("relu"), *data, training, threat))
    graph, poison = case.step_graph, case.poison
    parts = gathered(graph, poison, UNRESTRICTED, list(case.updates))
    assert isinstance(parts, Gathered)
    generator = torch.Generator().manual_seed(2)
    state = {name: Interval.point(value[None]).widen(0.05) for name, value in graph.initial.items()}
    boxes = {**state, FEATURES_: poison.feature_box(), LABELS_: poison.label_box()}
    plain: dict[str, Interval] = {}
    for node in parts.order.before:
        if node.name not in boxes:
            plain[node.name] = node.op.interval(*(boxes[name] for name in node.inputs))
            boxes[node.name] = plain[node.name]
            boxes[node.name] = joint.jointly(parts, node, boxes, poison)
    narrower = [n for n in plain if boxes[n].width.sum() < 0.98 * plain[n].width.sum()]
    assert any(name.startswith("affine/") for name in narrower)
    assert any(name.startswith("bilinear/loss_gradient") for name in narrower)
    for corner in (False, True):
        drawn = {}
        for name, box in state.items():
            u = torch.rand(400, *box.lower.shape[1:], generator=generator, dtype=torch.float64)
            drawn[name] = box.lower + (u.round() if corner else u) * box.width
        chosen = torch.ones(400, 7, 1, dtype=torch.bool)
        _, labels = poison.sample_moves(generator, chosen, True)
        leaves = {**drawn, FEATURES_: poison.features.expand(400, -1, -1)}
        for state_, own in enumerate((poison.labels.expand_as(labels), labels)):
            values = evaluate(parts.order.before, {**leaves, LABELS_: own})
            for name in plain:
                box = boxes[name]
                at = min(state_, len(box.lower) - 1)
                assert (box.lower[at] <= values[name]).all(), name
                assert (values[name] <= box.upper[at]).all(), name


def test_softmax_through_weights_is_tight_for_small_boxes() -> None:
    """One logit up and the others down move ``p w`` as far as the rule says, to first order."""
    radius = 1e-5
    logits = torch.tensor([[0.3, -0.2, 0.5]], dtype=torch.float64)
    weights = torch.tensor([[1.0], [0.0], [0.0]], dtype=torch.float64)
    pairs = torch.stack([logits[0, k] - logits[0, j] for j in range(3) for k in range(3) if k != j])
    labels = torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64)
    found = torch.softmax(logits, -1) - labels
    boxes = {
        "f": Interval.point(logits[None]).widen(radius),
        "affine/f": Interval.point(pairs[None, None]).widen(2.0 * radius),
        LABELS_: Interval.point(labels[None]),
        LOSS_GRADIENT: Interval.point(found[None]).widen(radius),
        "w": Interval.point(weights[None]),
    }
    node: Any = SimpleNamespace(name="back", inputs=(LOSS_GRADIENT, "w"))
    box = joint._through_softmax(
        "f", node, boxes, Interval.point((found @ weights)[None]).widen(1.0)
    )
    for sign in (1.0, -1.0):
        moved = logits + sign * radius * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
        value = float((torch.softmax(moved, -1) - labels) @ weights)
        assert float(box.lower) <= value <= float(box.upper)
        reached = abs(value - float(found @ weights))
        assert reached >= 0.999 * 0.5 * float(box.width)


@pytest.mark.parametrize("moved", ["h", "w"])
def test_sums_of_outputs_are_attained(moved: str) -> None:
    """Differences and forms of outputs reach their ends at corners of h, or of W and b; not 1 % less."""
    generator = torch.Generator().manual_seed(5)
    h, w, b, c = (
        torch.randn(*shape, generator=generator, dtype=torch.float64)
        for shape in ((2, 4), (3, 4), (3,), (5, 3))
    )
    boxes = {name: Interval.point(value) for name, value in (("h", h[None]), ("w", w[None]))}
    boxes["b"] = Interval.point(b[None])
    for name in ("h",) if moved == "h" else ("w", "b"):
        boxes[name] = boxes[name].widen(0.1)
    layer, middle = ("w", "h", "b"), (h @ w.T + b) @ c.T
    far = (
        (c @ w).abs().sum(1)
        if moved == "h"
        else (1.0 + h.abs().sum(1, keepdim=True)) * c.abs().sum(1)
    )
    ends = middle - 0.1 * far, middle + 0.1 * far
    zero = torch.zeros(1, 5, dtype=torch.float64)
    for rows in (c[None], c.expand(2, -1, -1)):
        found = joint.forms_of_layer(layer, boxes, rows, zero)
        assert torch.allclose(found.lower[0], ends[0], rtol=0.0, atol=1e-11)
        assert torch.allclose(found.upper[0], ends[1], rtol=0.0, atol=1e-11)
        assert (found.lower[0] <= ends[0] + 1e-15).all()
        assert (found.upper[0] >= ends[1] - 1e-15).all()


@pytest.mark.parametrize("rule", ["budget", "labels"])
def test_one_percent_less_is_noticed(monkeypatch: pytest.MonkeyPatch, rule: str) -> None:
    if rule == "budget":
        honest = Tally._worst
        monkeypatch.setattr(Tally, "_worst", lambda self, charges: 0.99 * honest(self, charges))
    else:
        through = joint._through_labels

        def shrunk(*given: Any) -> Interval:
            box = through(*given)
            lower, upper = box.lower.clone(), box.upper.clone()
            lower[1:] += 0.01 * (box.lower[:1] - box.lower[1:])
            upper[1:] -= 0.01 * (box.upper[1:] - box.upper[:1])
            return Interval(lower, upper)

        monkeypatch.setattr(joint, "_through_labels", shrunk)
    with pytest.raises(AssertionError):
        test_one_step_is_as_narrow_as_it_can_be()
