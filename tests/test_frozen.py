"""Frozen layers in front: bounded once, soundly, rounding included; certified runs on top of them."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from attacks import Problem, assert_sound
from pairs import every_pair
from test_layers import FEATURE_LAYERS, FROZEN_LAYERS, SHAPE, images, network
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.bounds.frozen import frozen_body
from milp_agt.bounds.step import NodeOrder
from milp_agt.core.interval import Interval
from milp_agt.errors import SoundnessError
from milp_agt.formulations.rounding_error import RoundingError
from milp_agt.threats.poison import Poison
from milp_agt.training.inputs import labels_of
from milp_agt.training.tracing import FEATURES, StepGraph, trace
from milp_agt.training.training import Training

BODIES = [
    *("convolution", "two-convolutions", "average", "average-border", "norm", "max"),
    *("max-overlap", "convolution-groups", "convolution-no-bias"),
]


def body_of(name: str) -> list[nn.Module]:
    torch.manual_seed(0)
    return {**FEATURE_LAYERS, **FROZEN_LAYERS}[name]()


def bound(
    name: str, threat: Any, count: int = 5, scale: float = 1.0
) -> tuple[StepGraph, Poison, StepGraph, Poison]:
    """Graph and threat before and after the split."""
    step_graph = trace(network(body_of(name), outputs=2, freeze=True), "cross_entropy", SHAPE)
    x = scale * images(count, *SHAPE)
    y = labels_of(torch.arange(count) % 2, count, step_graph.loss, 2)
    poison = threat.bind(x, y, step_graph.loss)
    head, features, _ = frozen_body.split(step_graph, poison)
    return step_graph, poison, head, features


@pytest.mark.parametrize("norm", ["inf", "2"])
@pytest.mark.parametrize("name", BODIES)
def test_moves_hold_what_poisoned_inputs_reach(name: str, norm: str) -> None:
    step_graph, poison, head, features = bound(
        name, agt.FeaturePoisoning(2, 0.1, norm=norm, samples=[0, 2, 3])
    )
    body = frozen_body.Body.of(step_graph)
    assert body is not None
    generator = torch.Generator().manual_seed(0)
    everyone = poison.open.unsqueeze(-1).expand(200, -1, -1)
    for corners in (True, False):
        x, _ = poison.sample_moves(generator, everyone, corners)
        reached = body.value(x)
        box = features.feature_box()
        assert box.lower[-1].le(reached).all()
        assert box.upper[-1].ge(reached).all()
    moves = features.feature_moves
    assert bool((moves.upper[[1, 4]] == 0).all())
    assert bool((moves.upper[[0, 2, 3]] > moves.lower[[0, 2, 3]]).any())
    assert features.features.shape[1:] == head.graph[FEATURES].shape


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("name", BODIES)
def test_the_granted_rounding_holds_torch_in_any_batch(name: str, scale: float) -> None:
    """The layers in torch, on one sample or many at once, stay within the grant, which is small."""
    count = 40
    step_graph, _, head, features = bound(name, agt.LabelPoisoning(1), count, scale)
    body = frozen_body.Body.of(step_graph)
    assert body is not None
    (blur,) = (node for node in head.graph if isinstance(node.op, RoundingError))
    assert isinstance(blur.op, RoundingError)
    x = scale * images(count, *SHAPE)
    layers = step_graph.model[: len(step_graph.model) - 1]
    shape = head.graph[FEATURES].shape
    for batch in (1, 7, count):
        found = torch.cat([layers(part) for part in x.split(batch)]).reshape(count, *shape)
        assert bool(((found - features.features).abs() <= blur.op.error).all())
    assert float(blur.op.error.max()) <= 1e-12 * (1.0 + 100.0 * scale)


@every_pair(
    name=["two-convolutions", "max", "norm", "average-border"],
    static={"static": True, "adaptive": False},
    relaxation=["interval", "linear"],
)
def test_runs_on_frozen_features(name: str, static: bool, relaxation: str) -> None:
    case = Problem(
        network(body_of(name), outputs=2, freeze=True),
        images(6, *SHAPE),
        torch.arange(6) % 2,
        Training(loss="cross_entropy", learning_rate=0.1, epochs=2, batch_size=4, shuffle_seed=0),
        agt.FeatureLabelPoisoning(2, 0.05, static=static),
    )
    result = assert_sound(
        case,
        images(3, *SHAPE, seed=5),
        torch.arange(3) % 2,
        attacks=16,
        iterations=2,
        relaxation=relaxation,
    )
    assert any("frozen layers" in note for note in result.notes)


def test_attacks_go_through_the_frozen_layers() -> None:
    result = agt.certify(
        network(body_of("max"), outputs=2, freeze=True),
        (images(5, *SHAPE), torch.arange(5) % 2),
        Training(loss="cross_entropy", learning_rate=0.1, epochs=2),
        agt.FeaturePoisoning(1, 0.05),
        attack=True,
    )
    assert result.attack is not None


@pytest.mark.usefixtures("unlisted")
def test_labels_alone_cost_nothing_but_rounding() -> None:
    """The same run on features that were computed beforehand gives the same widths."""
    model = network(body_of("two-convolutions"), outputs=2, freeze=True)
    x, y = images(6, *SHAPE), torch.arange(6) % 2
    training = Training(loss="cross_entropy", learning_rate=0.1, epochs=3)
    threat = agt.LabelPoisoning(1)
    whole = agt.certify(model, (x, y), training, threat)
    with torch.no_grad():
        features = model[:-1](x)
    alone = agt.certify(copy.deepcopy(model[-1]), (features, y), training, threat)
    assert whole.fallbacks == alone.fallbacks == whole.notes == alone.notes == ()
    assert np.allclose(whole.reachable.widths, alone.reachable.widths, rtol=1e-9, atol=1e-12)


def test_forms_through_the_layers_tighten_their_boxes(monkeypatch: pytest.MonkeyPatch) -> None:
    threat = agt.FeaturePoisoning(2, 0.05)
    _, _, _, tight = bound("two-convolutions", threat)
    monkeypatch.setattr(frozen_body, "WALKED_ELEMENTS", 0)
    _, _, _, loose = bound("two-convolutions", threat)
    widths = [float((p.feature_moves.upper - p.feature_moves.lower).mean()) for p in (tight, loose)]
    assert widths[0] < 0.95 * widths[1]


def test_samples_in_parts_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    threat = agt.FeaturePoisoning(2, 0.05)
    _, _, _, whole = bound("max", threat)
    monkeypatch.setattr(frozen_body, "BOXED_ELEMENTS", 1)
    _, _, _, parts = bound("max", threat)
    assert torch.allclose(whole.feature_moves.upper, parts.feature_moves.upper, atol=1e-12)
    assert torch.allclose(whole.features, parts.features, atol=1e-12)


def test_dense_and_trainable_fronts_stay_in_the_graph() -> None:
    dense = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).double()
    dense[0].requires_grad_(False)
    assert frozen_body.Body.of(trace(dense, "mse", (2,))) is None
    trainable = network(FEATURE_LAYERS["convolution"]())
    assert frozen_body.Body.of(trace(trainable, "mse", SHAPE)) is None


def test_nodes_keep_their_names() -> None:
    step_graph, _, head, _ = bound("average", agt.LabelPoisoning(1))
    assert head.parameters == step_graph.parameters
    assert head.gradients == step_graph.gradients
    names = {node.name for node in step_graph.graph}
    assert {node.name for node in head.graph} <= names
    assert len(head.graph) < len(step_graph.graph)
    assert {n.name for n in NodeOrder.of(head).sums} == {
        n.name for n in NodeOrder.of(step_graph).sums
    }


@pytest.mark.parametrize("end", ["lower", "upper"])
def test_a_box_of_features_that_is_too_tight_is_seen(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Moves one per cent too small miss a corner of the inputs of a linear body."""
    original = frozen_body._bounded

    def mutant(*args: Any) -> tuple[Tensor, ...]:
        nominal, low, high, error = original(*args)
        low, high = (0.99 * low, high) if end == "lower" else (low, 0.99 * high)
        return nominal, low, high, error

    def escapes() -> bool:
        step_graph, poison, _, features = bound("average-border", agt.FeaturePoisoning(5, 0.1))
        body = frozen_body.Body.of(step_graph)
        sign = torch.ones(SHAPE, dtype=torch.float64) * (1 if end == "upper" else -1)
        reached = body.value(poison.features + 0.1 * sign)
        box = features.feature_box()
        return not bool((box.lower[-1].le(reached) & box.upper[-1].ge(reached)).all())

    assert not escapes()
    monkeypatch.setattr(frozen_body, "_bounded", mutant)
    assert escapes()


def test_walked_forms_that_are_wrong_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = frozen_body.walked

    def shifted(*args: Any) -> Interval:
        return honest(*args).each(lambda end: end + 10.0)

    monkeypatch.setattr(frozen_body, "walked", shifted)
    with pytest.raises(SoundnessError):
        bound("two-convolutions", agt.FeaturePoisoning(1, 0.01))


def test_a_blur_holds_every_error() -> None:
    error = torch.tensor([0.0, 0.5, 2.0], dtype=torch.float64)
    box = Interval(-torch.ones(1, 4, 3).double(), torch.ones(1, 4, 3).double())
    found = RoundingError(error).interval(box)
    assert bool((found.lower <= -1.0 - error).all())
    assert bool((found.upper >= 1.0 + error).all())
    planes = RoundingError(error).relax(box)
    assert torch.equal(planes.lower, -error.expand(1, 4, 3))
    assert torch.equal(planes.upper, error.expand(1, 4, 3))


def test_predictions_hold_the_outputs_of_attacked_models() -> None:
    model = network(body_of("average"), outputs=2, freeze=True)
    x, y, test = images(6, *SHAPE), images(6, 2, seed=7), images(4, *SHAPE, seed=5)
    training = Training(loss="mse", learning_rate=0.05, epochs=2)
    threat = agt.FeatureLabelPoisoning(1, 0.05, label_radius=0.2)
    found = agt.certify(model, (x, y), training, threat).predictions(test)
    assert found.lower.shape == found.nominal.shape == found.upper.shape == (4, 2)
    for sign in (-1.0, 0.0, 1.0):
        run = copy.deepcopy(model)
        moved, targets = x.clone(), y.clone()
        moved[1] += 0.05 * sign
        targets[1] += 0.2 * sign
        optimiser = torch.optim.SGD([p for p in run.parameters() if p.requires_grad], lr=0.05)
        for _ in range(2):
            optimiser.zero_grad()
            nn.functional.mse_loss(run(moved), targets).backward()
            optimiser.step()
        outputs = run(test).detach().numpy()
        assert ((found.lower <= outputs) & (outputs <= found.upper)).all()
        if sign == 0.0:
            assert np.allclose(outputs, found.nominal, atol=1e-9)
    far = found.largest_error(np.zeros((4, 2)))
    assert np.allclose(far, np.maximum(np.abs(found.lower), np.abs(found.upper)))
