"""Options of torch's optimisers and losses, held against the training loop that a user writes with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pairs import every_pair
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.runfile.run_file import load_config

RADIUS, BUDGET = 0.1, 2
Group = agt.ParameterGroup


@dataclass(frozen=True)
class Case:
    """One run, as a user of torch writes it and as the library is told of it."""

    loss: nn.Module
    training: agt.Training
    outputs: int
    groups: Callable[[nn.Module], list[dict[str, Any]]] = lambda m: [{"params": m.parameters()}]
    options: dict[str, Any] = field(default_factory=dict)
    clip: float | None = None
    milestones: tuple[int, ...] = ()
    labels: bool = True

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(8, 2, generator=generator, dtype=torch.float64)
        classes = (x[:, 0] + 0.3 * torch.randn(8, generator=generator) > 0).long()
        classes = classes + (x[:, 1] > 0.8).long() if self.outputs > 2 else classes
        return x, classes[:, None].double() if self.outputs == 1 else classes

    def model(self) -> nn.Module:
        torch.manual_seed(5)
        return nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, self.outputs)).double()

    def train(self, x: Tensor, y: Tensor, record: bool = False) -> tuple[nn.Module, Any]:
        """The loop in plain torch."""
        model = self.model().to(x.dtype)
        opt = torch.optim.SGD(self.groups(model), **self.options)
        scheduler = torch.optim.lr_scheduler.MultiStepLR(opt, self.milestones, gamma=0.5)
        loss = copy.deepcopy(self.loss).to(x.dtype)
        watch = agt.record(model, opt, loss, (x, y)) if record else nullcontext()
        with watch as run:
            for _ in range(2):
                for rows in (slice(0, 5), slice(5, 8)):
                    opt.zero_grad()
                    loss(model(x[rows]), y[rows]).backward()
                    if self.clip is not None:
                        nn.utils.clip_grad_norm_(model.parameters(), self.clip)
                    opt.step()
                    scheduler.step()
        return model, run

    @property
    def classes(self) -> Tensor:
        y = self.data[1]
        return y[:, 0].long() if self.outputs == 1 else y

    def certify(self, threat: Any, **options: Any) -> agt.Result:
        return agt.certify(
            self.model(), (self.data[0], self.classes), self.training, threat, **options
        )


def of(loss: str, **options: Any) -> agt.Training:
    return agt.Training(loss, batch_size=5, epochs=2, **options)


CASES = {
    "a faster head": Case(
        nn.CrossEntropyLoss(),
        of(
            "cross_entropy",
            learning_rate=0.1,
            momentum=0.5,
            weight_decay=0.1,
            groups=[Group(["2.*"], learning_rate=0.8, momentum=0.0, weight_decay=0.0)],
            schedule=agt.Milestones((2,), 0.5),
        ),
        3,
        lambda m: [
            {"params": m[0].parameters(), "weight_decay": 0.1, "momentum": 0.5},
            {"params": m[2].parameters(), "lr": 0.8},
        ],
        {"lr": 0.1},
        milestones=(2,),
    ),
    "a head with momentum": Case(
        nn.BCEWithLogitsLoss(),
        of(
            "bce",
            learning_rate=0.5,
            groups=[Group(["2.weight", "*.bias"], momentum=0.6, nesterov=True, weight_decay=0.3)],
        ),
        1,
        lambda m: [
            {"params": [m[0].weight]},
            {
                "params": [m[0].bias, *m[2].parameters()],
                "momentum": 0.6,
                "nesterov": True,
                "weight_decay": 0.3,
            },
        ],
        {"lr": 0.5},
    ),
    "label smoothing": Case(nn.CrossEntropyLoss(label_smoothing=0.2),
        of("cross_entropy", learning_rate=0.5, label_smoothing=0.2), 3, options={"lr": 0.5}),
    "smoothing of two": Case(nn.CrossEntropyLoss(label_smoothing=0.3),
        of("cross_entropy", learning_rate=0.5, label_smoothing=0.3, momentum=0.5), 2,
        options={"lr": 0.5, "momentum": 0.5}),
    "class weights": Case(
        nn.CrossEntropyLoss(weight=torch.tensor([0.5, 2.0, 3.0]).double(), label_smoothing=0.1),
        of(
            "cross_entropy",
            learning_rate=0.5,
            momentum=0.4,
            class_weights=(0.5, 2.0, 3.0),
            label_smoothing=0.1,
        ),
        3,
        options={"lr": 0.5, "momentum": 0.4},
        labels=False,
    ),
    "weights of two": Case(nn.CrossEntropyLoss(weight=torch.tensor([1.0, 4.0]).double()),
        of("cross_entropy", learning_rate=0.5, class_weights=[1.0, 4.0]), 2, options={"lr": 0.5},
        labels=False),
    "positive weight": Case(nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0).double()),
        of("bce", learning_rate=0.5, positive_weight=3.0), 1, options={"lr": 0.5}),
    "total norm": Case(nn.CrossEntropyLoss(),
        of("cross_entropy", learning_rate=0.5, momentum=0.5, weight_decay=0.1, clip_total=0.3), 2,
        options={"lr": 0.5, "momentum": 0.5, "weight_decay": 0.1}, clip=0.3),
    "a norm that is reached now and then": Case(nn.BCEWithLogitsLoss(),
        of("bce", learning_rate=0.5, clip_total=0.42, groups=[Group(["2.*"], learning_rate=1.0)]),
        1, lambda m: [{"params": m[0].parameters()}, {"params": m[2].parameters(), "lr": 1.0}],
        {"lr": 0.5}, clip=0.42),
}  # fmt: skip


def poisoned(case: Case, kind: str, count: int = 24) -> list[tuple[Tensor, Tensor]]:
    """Admissible data: random corners, corners along the gradient of the end, flipped labels."""
    x, y = case.data
    generator = torch.Generator().manual_seed(0)
    found = []
    leaf = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(case.loss(case.train(x, y)[0](leaf), y), leaf)
    for index in range(count):
        moved, labels = x.clone(), y.clone()
        rows = torch.randperm(len(x), generator=generator)[:BUDGET]
        if kind == "features":
            signs = torch.randn(BUDGET, 2, generator=generator).sign().double()
            signs = slope[rows].sign() * (-1.0) ** index if index % 3 == 0 else signs
            moved[rows] += RADIUS * signs
        elif case.outputs > 2:
            labels[rows] = torch.randint(case.outputs, (BUDGET,), generator=generator)
        else:
            labels[rows] = 1 - labels[rows]
        found.append((moved, labels))
    return found


def threat_of(kind: str) -> Any:
    return (
        agt.FeaturePoisoning(BUDGET, RADIUS) if kind == "features" else agt.LabelPoisoning(BUDGET)
    )


def escapes(result: agt.Result, models: list[nn.Module], shrink: float = 1.0) -> bool:
    """Whether a model lies outside the boxes, shrunk around their middle."""
    for model in models:
        for name, value in model.state_dict().items():
            low, high = result.reachable.lower[name], result.reachable.upper[name]
            middle, half = 0.5 * (low + high), 0.5 * shrink * (high - low)
            if (np.abs(value.double().numpy() - middle) > half + 1e-16 * np.abs(middle)).any():
                return True
    return False


@every_pair(
    name=list(CASES),
    kind=["features", "labels"],
    level=["interval", "linear", pytest.param("lp", marks=pytest.mark.slow), "zonotope"],
)
def test_plain_runs_lie_inside(name: str, kind: str, level: str) -> None:
    case = CASES[name]
    if kind == "labels" and not case.labels:
        with pytest.raises(UnsupportedOperationError, match="labels may be poisoned"):
            case.certify(threat_of(kind))
        return
    models = [case.train(*data)[0] for data in poisoned(case, kind)]
    clean, _ = case.train(*case.data)
    window = {"window": 2, "program_window": 1} if level == "lp" else {}
    result = case.certify(threat_of(kind), relaxation=level, **window)
    assert not escapes(result, [clean, *models])
    assert escapes(result, [clean, *models], 0.02)
    for key, value in clean.state_dict().items():
        assert np.abs(result.reachable.nominal[key] - value.numpy()).max() < 1e-12


@pytest.mark.parametrize("name", CASES)
def test_attacks_train_the_same_run(name: str) -> None:
    """The attacker's model is that of the plain loop on the data that it gives back."""
    case = CASES[name]
    search = agt.Search(pool=8, corners=4, restarts=1, rounds=1, iterations=2)
    data = (case.data[0], case.classes)
    found = agt.attack(case.model(), data, case.training, threat_of("features"), search=search)
    model, _ = case.train(torch.as_tensor(found.features), case.data[1])
    for key, value in model.state_dict().items():
        assert torch.allclose(value, found.state_dict[key], atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_recorded_runs(name: str, tmp_path: Path) -> None:
    """In both precisions, read from a file and taken as they are."""
    case, index = CASES[name], list(CASES).index(name)
    dtype, from_file = (torch.float32, torch.float64)[index % 2], index // 2 % 2
    x, y = case.data
    x, y = x.to(dtype), y.to(dtype) if y.is_floating_point() else y
    model, run = case.train(x, y, record=True)
    run.save(tmp_path / "run.npz")
    loaded = agt.load_run(tmp_path / "run.npz", case.model())
    each, carried = (loaded, "none") if from_file else (run, "zonotope")
    result = agt.certify(each, threat_of("features"), relaxation="linear", carried=carried)
    others = [case.train(moved.to(dtype), y)[0] for moved, _ in poisoned(case, "features", 8)]
    assert not escapes(result, [model, *others])
    assert result.nominal_check is not None
    if dtype == torch.float64:
        told = case.certify(threat_of("features"), relaxation="linear", carried=carried)
        for key, value in told.reachable.lower.items():
            assert np.allclose(value, result.reachable.lower[key], rtol=0, atol=1e-12)
    assert result.claim


INF, NAN = float("inf"), float("nan")
BAD_CLIPS = (0.0, -1.0, NAN, INF, True, 1e-200, "0.5")
BAD_BOXES = ((1.0, 1.0), (2.0, -1.0), (0.0,), "ab", (0.0, NAN), 3.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip_total": 1e-6}, "clip_total to be a number >= 1e-05"),
        ({"clip_total": 1.0, "l1": 0.1}, "would count in the norm"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"label_smoothing": 0.1, "loss": "bce"}, "'bce' was asked for with label_smoothing"),
        ({"class_weights": [1.0, 0.0]}, "class_weights"),
        ({"class_weights": []}, "class_weights to be a list of numbers"),
        ({"class_weights": np.array(2.0)}, "class_weights to be a list of numbers"),
        ({"projection": np.array(2.0)}, "projection to be a pair"),
        ({"groups": np.array(2)}, "groups of a training must be a list"),
        ({"momentum": 10**400}, "momentum to be a number >= 0"),
        ({"epochs": 10**400}, "epochs to be a whole number >= 1"),
        ({"class_weights": [1.0], "clip": 1.0}, "leave one of them out"),
        ({"positive_weight": 2.0}, "'cross_entropy' was asked for with positive_weight"),
        ({"clip": 1.0, "clip_mode": "value"}, r"clip_mode to be 'norm' or 'clamp'.*'value'"),
        ({"clip_mode": "clamp"}, r"clip_mode = 'clamp'.*clip = None.*clip="),
        *(({"clip": v}, "clip to be a number >.*What to do: change clip") for v in BAD_CLIPS),
        *(({"l1": v}, "l1 to be a number >= 0.*What to do: change l1") for v in (-0.1, INF, "1")),
        *(({"projection": v}, "projection to be a pair.*to do: change") for v in BAD_BOXES),
    ],
)
def test_options_that_contradict_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInputError, match=message):
        agt.Training(**{"loss": "cross_entropy"} | options)


@pytest.mark.parametrize("rate", [np.array([1.0, 2.0]), torch.ones(2), 10**400, 0, -1.0])
def test_a_group_needs_one_rate_above_zero(rate: Any) -> None:
    with pytest.raises(InvalidInputError, match="learning_rate"):
        agt.ParameterGroup(["0.*"], learning_rate=rate)


def test_threats_to_whole_samples_are_refused_beside_options_of_batches() -> None:
    for name in ("total norm", "class weights"):
        with pytest.raises(
            UnsupportedOperationError, match=r"whole samples|labels may be poisoned"
        ):
            CASES[name].certify(agt.Removal(1))
    wrong = replace(CASES["class weights"], training=of("cross_entropy", class_weights=[1.0]))
    with pytest.raises(InvalidInputError, match="1 weights, 3 outputs"):
        wrong.certify(threat_of("features"))


def test_groups_in_a_run_file(tmp_path: Path) -> None:
    path = tmp_path / "RUN.toml"
    path.write_text("""
[data]
name = "iris"
[model]
layers = [4, 3, 3]
[training]
loss = "cross_entropy"
learning_rate = 0.1
clip_total = 0.5
label_smoothing = 0.1
class_weights = [1.0, 2.0, 3.0]
[[training.group]]
names = ["2.*"]
learning_rate = 1.0
weight_decay = 0.5
[threat]
kind = "features"
budget = 1
radius = 0.01
[[property]]
kind = "accuracy"
""")
    training = load_config(path).build().training
    assert training.groups == (Group(("2.*",), 1.0, None, 0.5),)
    (rule,) = training.update_rules(1)
    assert rule.clip_total == rule.of("2.bias").clip_total == 0.5
    assert training.objective.options == {"label_smoothing": 0.1, "class_weights": (1.0, 2.0, 3.0)}
    assert (rule.of("2.bias").rate, rule.of("0.bias").rate) == (1.0, 0.1)


def test_groups_that_fit_no_parameters() -> None:
    case = CASES["a faster head"]
    for groups, message in (
        ([Group(["3.*"])], r"'3\.\*', where the trainable parameters are 0\.weight"),
        ([Group(["0.*"]), Group(["*.bias"])], r"'0\.bias' in several groups"),
    ):
        wrong = replace(case, training=replace(case.training, groups=groups))
        with pytest.raises(InvalidInputError, match=message):
            wrong.certify(threat_of("features"))
    for options in (
        {"names": []},
        {"names": ["a"], "momentum": -1.0},
        {"names": ["a"], "learning_rate": 0},
    ):
        with pytest.raises(InvalidInputError):
            Group(**options)
    with pytest.raises(InvalidInputError, match="momentum = 0 of a"):
        agt.Training("mse", groups=[Group(["a"], nesterov=True)])


@pytest.mark.parametrize("name", ["total norm", "a norm that is reached now and then"])
def test_listed_runs_clip_as_well(name: str) -> None:
    """Few enough flipped labels are listed, each a run of its own."""
    case = CASES[name]
    result = case.certify(agt.LabelPoisoning(1))
    models = []
    for row in range(len(case.data[0])):
        labels = case.data[1].clone()
        labels[row] = 1 - labels[row]
        models.append(case.train(case.data[0], labels)[0])
    assert not escapes(result, models)
    assert escapes(result, models, 0.9)
