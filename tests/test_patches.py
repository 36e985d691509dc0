"""Boxes of the layers of a frozen body, by forms from patches of the input: sound, exact where possible."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.bounds.frozen import frozen_body, patches
from milp_agt.core.interval import Interval
from milp_agt.formulations.linear import Reshape
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, trace

SHAPE = (2, 11, 14)
LIMIT = 2**40
BODIES: dict[str, list[nn.Module]] = {
    "strides": [nn.Conv2d(2, 3, (3, 2), (2, 1)), nn.ReLU(), nn.Conv2d(3, 4, 2, (1, 2)), nn.ReLU(),
                nn.Conv2d(4, 2, (2, 3), 2), nn.ReLU()],
    "groups": [nn.Conv2d(2, 4, 3, 3), nn.LeakyReLU(0.1), nn.Conv2d(4, 4, 2, groups=2), nn.ReLU()],
    "smooth": [nn.Conv2d(2, 3, 4, 2), nn.Tanh(), nn.Conv2d(3, 2, 2), nn.Sigmoid()],
    "dense": [nn.Conv2d(2, 2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 5), nn.ReLU(),
              nn.Linear(5, 3), nn.ReLU()],
}  # fmt: skip


def of(
    layers: list[nn.Module], radius: float, count: int = 3
) -> tuple[frozen_body.Body, Poison, Any]:
    torch.manual_seed(2)
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.normal_(parameter, mean=0.3 * (parameter.dim() == 1), std=0.4)
    body = nn.Sequential(*layers, nn.Flatten()).double()
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(count, *SHAPE, generator=generator, dtype=torch.float64)
    model = nn.Sequential(body.requires_grad_(False), nn.Linear(body(x).shape[1], 1).double())
    graph = trace(model, "mse", SHAPE)
    raw = agt.FeaturePoisoning(1, radius).bind(x, torch.zeros(count, 1).double(), graph.loss)
    found = frozen_body.Body.of(graph)
    box = raw.feature_box()
    return found, raw, found.boxes(Interval(box.lower[-1:], box.upper[-1:]))


def values(body: frozen_body.Body, x: Tensor) -> dict[str, Tensor]:
    found = {FEATURES: x}
    for node in body.nodes[1:]:
        found[node.name] = node.op.value(*(found[i] for i in node.inputs))
    return found


@pytest.mark.parametrize("radius", [0.002, 0.2])
@pytest.mark.parametrize("name", BODIES)
def test_every_layer_holds_what_moved_inputs_make_of_it(name: str, radius: float) -> None:
    """Random corners, and for single units the corner that gradients point to."""
    body, poison, boxes = of(BODIES[name], radius)
    tight = patches.refined(body.nodes, poison, boxes, LIMIT)
    x, generator = poison.features, torch.Generator().manual_seed(4)
    corners = [torch.randn(x.shape, generator=generator, dtype=torch.float64) for _ in range(20)]
    for node in body.nodes[1:]:
        moving = x.clone().requires_grad_(True)
        out = values(body, moving)[node.name].flatten(1)
        for unit in torch.randint(out.shape[1], (4,), generator=generator):
            (slope,) = torch.autograd.grad(out[:, unit].sum(), moving, retain_graph=True)
            corners += [slope, -slope]
    for corner in corners:
        for at, value in values(body, x + radius * corner.sign()).items():
            assert bool((tight[at].lower[0] <= value).all())
            assert bool((value <= tight[at].upper[0]).all())
    last = [n.name for n in body.nodes if not isinstance(n.op, (*patches.ELEMENTWISE, Reshape))][-1]
    assert tight[last].width.mean() < 0.97 * boxes[last].width.mean()


@pytest.mark.parametrize("name", ["strides", "groups", "smooth"])
def test_patches_give_what_whole_images_give(name: str) -> None:
    body, poison, boxes = of(BODIES[name], 0.1)
    seen = 0
    for number, node in enumerate(body.nodes):
        part = body.nodes[: number + 1]
        if not isinstance(node.op, patches.Convolution):
            continue
        patch = patches.Patch.of(part)
        cut = patch.bounds(poison.features, boxes)
        whole = patches.walked(part, poison, boxes)
        assert torch.allclose(cut.lower, whole.lower, rtol=1e-9, atol=1e-9)
        assert torch.allclose(cut.upper, whole.upper, rtol=1e-9, atol=1e-9)
        seen += 1
    assert seen >= 2


def test_pieces_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    body, poison, boxes = of(BODIES["strides"], 0.1)
    once = patches.refined(body.nodes, poison, boxes, LIMIT)
    monkeypatch.setattr(patches, "ELEMENTS_AT_ONCE", 1)
    pieces = patches.refined(body.nodes, poison, boxes, LIMIT)
    for name, box in once.items():
        assert torch.allclose(box.lower, pieces[name].lower, rtol=1e-12, atol=1e-13)


def test_where_kinks_are_far_the_bounds_are_reached() -> None:
    """With units that are always on, the second layer is linear: one per cent less is too little."""
    layers = [nn.Conv2d(2, 3, 3, 2), nn.ReLU(), nn.Conv2d(3, 2, 2), nn.ReLU()]
    body, poison, _ = of(layers, 0.01)
    with torch.no_grad():
        layers[0].bias += 50.0  # type: ignore[operator]
    graph = trace(nn.Sequential(*layers, nn.Flatten(), nn.Linear(40, 1).double()), "mse", SHAPE)
    found = frozen_body.Body.of(graph)
    assert found is not None
    body = found
    box = poison.feature_box()
    boxes = body.boxes(Interval(box.lower[-1:], box.upper[-1:]))
    tight = patches.refined(body.nodes, poison, boxes, LIMIT)
    node = next(n for n in body.nodes[2:] if isinstance(n.op, patches.Convolution))
    moving = poison.features.clone().requires_grad_(True)
    out = values(body, moving)[node.name]
    (slope,) = torch.autograd.grad(out[:, 0, 1, 2].sum(), moving)
    reached = values(body, poison.features + 0.01 * slope.sign())[node.name][:, 0, 1, 2]
    proved = tight[node.name].upper[0, :, 0, 1, 2]
    nominal = out.detach()[:, 0, 1, 2]
    assert bool((reached <= proved).all())
    assert bool((reached > nominal + 0.99 * (proved - nominal)).all())


@pytest.mark.parametrize(
    "layers",
    [
        [nn.Conv2d(2, 2, 3, padding=1), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU()],
        [nn.Conv2d(2, 2, 3), nn.MaxPool2d(2), nn.Conv2d(2, 2, 2), nn.ReLU()],
        [nn.Conv2d(2, 2, 2, dilation=2), nn.ReLU(), nn.Conv2d(2, 2, 3), nn.ReLU()],
    ],
)
def test_other_layers_keep_their_intervals(layers: list[nn.Module]) -> None:
    body, poison, boxes = of(layers, 0.1)
    for number in range(2, len(body.nodes)):
        assert patches.Patch.of(body.nodes[: number + 1]) is None
    tight = patches.refined(body.nodes, poison, boxes, 0)
    assert all(torch.equal(tight[name].lower, box.lower) for name, box in boxes.items())


def test_a_layer_that_costs_too_much_keeps_its_intervals() -> None:
    body, poison, boxes = of(BODIES["strides"], 0.1)
    tight = patches.refined(body.nodes, poison, boxes, 0)
    assert all(torch.equal(tight[name].lower, box.lower) for name, box in boxes.items())


def test_a_run_on_frozen_convolutions_is_tighter_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    layers = [nn.Conv2d(2, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 2), nn.ReLU()]
    layers += [nn.Conv2d(4, 2, 2), nn.ReLU(), nn.Flatten()]
    torch.manual_seed(0)
    body = nn.Sequential(*layers).double().requires_grad_(False)
    x = torch.rand(6, *SHAPE, dtype=torch.float64)
    model = nn.Sequential(body, nn.Linear(body(x).shape[1], 1).double())
    training = agt.Training(loss="mse", learning_rate=0.1, epochs=2)
    run = (model, (x, torch.zeros(6, 1)), training, agt.FeaturePoisoning(1, 0.05))
    tight = agt.certify(*run).reachable.mean_width
    monkeypatch.setattr(frozen_body, "REFINED_ELEMENTS", 0)
    assert tight < 0.9 * agt.certify(*run).reachable.mean_width
