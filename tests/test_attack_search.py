"""``agt.attack``: brute force on tiny runs, replay, budgets, objectives, bad input."""

from __future__ import annotations

import copy
import itertools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from attacks import network
from refusals import refused
from torch import Tensor, nn

import milp_agt as agt
from milp_agt import attacks
from milp_agt.attacks import Search
from milp_agt.attacks.packed import Packed
from milp_agt.attacks.unrolled import Unrolled
from milp_agt.errors import SoundnessError, UnsupportedOperationError
from milp_agt.formulations.loss import get_loss
from milp_agt.properties.triggers import BallTrigger, PatchTrigger
from milp_agt.threats.poison import Poison

QUICK = Search(pool=64, restarts=2, rounds=1, iterations=3)
TRAINING = agt.Training(loss="bce", learning_rate=0.5, epochs=3)


def data(count: int = 4, classes: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % classes


def attacked(
    threat: Any,
    objective: attacks.Objective | None = None,
    search: Search = QUICK,
    model: nn.Module | None = None,
    samples: tuple[Tensor, Tensor] | None = None,
    run: agt.Training = TRAINING,
) -> agt.Attack:
    """A threat to a small network on eight samples, or to another run."""
    own = network((2, 3, 1)) if model is None else model
    return agt.attack(own, samples or data(8), run, threat, objective=objective, search=search)


def trained(
    model: nn.Module, x: Tensor, y: Tensor, training: agt.Training, batches: Any = None
) -> dict[str, Tensor]:
    """Plain torch: one run, one optimiser, one loop."""
    model = copy.deepcopy(model)
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=training.learning_rate,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
        nesterov=training.nesterov,
    )
    outputs, loss = model(x[:1]).shape[1], get_loss(training.loss)
    steps = batches or [(x[b], y[b]) for b in map(torch.from_numpy, training.batch_order(len(x)))]
    for features, labels in steps:
        optimiser.zero_grad()
        out = model(torch.as_tensor(features))
        loss.plain(out, loss.encode(torch.as_tensor(labels), outputs)).backward()
        optimiser.step()
    return {n: v.detach() for n, v in model.state_dict().items()}


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([v.flatten() for v in state.values()])


def loaded(model: nn.Module, found: agt.Attack) -> nn.Module:
    """The model of the best run, as a user loads it."""
    copied = copy.deepcopy(model)
    copied.load_state_dict(dict(found.state_dict))
    return copied


def widths(ends: list[Tensor]) -> np.ndarray:
    every = torch.stack(ends)
    return (every.amax(0) - every.amin(0)).numpy()


@pytest.mark.parametrize("enumerate_", [0, 100], ids=["search", "enumeration"])
def test_flips_reach_the_enumerated_optimum(enumerate_: int) -> None:
    model, (x, y) = network((2, 2, 1)), data(5)
    ends = []
    for chosen in itertools.chain(*(itertools.combinations(range(5), k) for k in range(3))):
        labels = y.clone()
        labels[list(chosen)] = 1 - labels[list(chosen)]
        ends.append(flat(trained(model, x, labels, TRAINING)))
    search = Search(pool=0, restarts=2, rounds=2, iterations=3, enumerate=enumerate_)
    found = attacked(agt.LabelPoisoning(2), None, search, model, (x, y))
    np.testing.assert_allclose(found.widths, widths(ends), rtol=1e-9)
    assert found.exhaustive == bool(enumerate_)
    assert found.value == pytest.approx(widths(ends).mean())


def test_label_moves_of_a_linear_model_reach_the_closed_form() -> None:
    """theta_T is affine in the targets, so the budget's largest columns are the answer."""
    x, _ = data(8)
    y = x @ torch.tensor([[1.0], [-2.0]], dtype=torch.float64) + 0.1
    model, training = network((2, 1)), agt.Training(loss="mse", learning_rate=0.1, epochs=6)
    base, moves = flat(trained(model, x, y, training)), 0.5 * torch.eye(8).double()[..., None]
    columns = torch.stack([flat(trained(model, x, y + e, training)) - base for e in moves])
    largest = columns.abs().sort(0, descending=True).values[:3].sum(0)
    found = attacked(agt.LabelPoisoning(3, radius=0.5), None, QUICK, model, (x, y), training)
    np.testing.assert_allclose(found.widths, 2 * largest.numpy(), rtol=1e-9)


def test_features_reach_the_best_corner_of_the_best_sample() -> None:
    model, (x, y) = network((2, 2, 1), nn.Tanh), data(5)
    corners = torch.tensor(list(itertools.product((-0.1, 0.1), repeat=2)), dtype=torch.float64)
    ends = []
    for i, corner in itertools.product(range(5), corners):
        moved = x.clone()
        moved[i] += corner
        ends.append(flat(trained(model, moved, y, TRAINING)))
    found = attacked(agt.FeaturePoisoning(1, 0.1), None, QUICK, model, (x, y))
    assert (found.widths >= widths(ends) * (1 - 1e-9)).all()


def test_categories_are_enumerated_with_the_labels() -> None:
    """One-hot columns and labels: every joint choice for one sample, by a loop in plain torch."""
    generator = torch.Generator().manual_seed(0)
    number = torch.randn(5, 1, generator=generator, dtype=torch.float64)
    hot = torch.eye(3, dtype=torch.float64)
    x, y = torch.cat([number, hot[torch.arange(5) % 3]], 1), torch.arange(5) % 2
    model, ends = network((4, 2, 1)), []
    for i, category, label in itertools.product(range(5), range(3), range(2)):
        moved, labels = x.clone(), y.clone()
        moved[i, 1:], labels[i] = hot[category], label
        ends.append(flat(trained(model, moved, labels, TRAINING)))
    threat = agt.FeatureLabelPoisoning(1, 0.0, categorical=[[1, 2, 3]])
    found = attacked(threat, None, QUICK, model, (x, y))
    np.testing.assert_allclose(found.widths, widths(ends), rtol=1e-9)


THREATS: dict[str, agt.FeaturePoisoning | agt.LabelPoisoning | agt.FeatureLabelPoisoning] = {
    "features": agt.FeaturePoisoning(2, [0.1, 0.0]),
    "labels": agt.LabelPoisoning(2, samples=[0, 2, 5]),
    "both": agt.FeatureLabelPoisoning(2, 0.1),
    "static batch": agt.FeaturePoisoning(1, 0.1, scope="batch"),
    "adaptive": agt.FeatureLabelPoisoning(1, 0.1, static=False),
    "adaptive batch": agt.LabelPoisoning(1, static=False, scope="batch"),
}
RUN = agt.Training(
    loss="bce", learning_rate=0.3, epochs=2, batch_size=4, momentum=0.5, weight_decay=0.01
)


@pytest.mark.parametrize("mode", ["norm", "clamp"])
def test_clipped_runs_are_confirmed(mode: Literal["norm", "clamp"]) -> None:
    run = agt.Training(loss="bce", learning_rate=0.3, epochs=2, clip=0.1, clip_mode=mode)
    clipped, free = (attacked(THREATS["both"], samples=data(6), run=r) for r in (run, TRAINING))
    assert 0.0 < clipped.value < free.value


@pytest.mark.parametrize("kind", THREATS)
def test_attacks_stay_within_the_threat_and_train_as_torch_does(kind: str) -> None:
    threat, (x, y) = THREATS[kind], data(8)
    found = attacked(threat, run=RUN)
    order = RUN.batch_order(8)
    for index in range(len(found.runs)):
        run = found.runs.describe(index)
        per_step = []
        for batch, (own_x, own_y) in zip(order, run.batches, strict=True):
            moved = (x[batch].numpy() != own_x).any(1) | (y[batch].numpy() != own_y)
            per_step.append(set(batch[moved].tolist()))
            radius = np.asarray(getattr(threat, "radius", None) or 0.0)
            assert (np.abs(own_x - x[batch].numpy()) <= radius + 1e-15).all()
        assert set(run.poisoned) == set().union(*per_step)
        counted = per_step if threat.scope == "batch" else [run.poisoned]
        assert max(map(len, counted)) <= threat.budget
        if threat.samples is not None:
            assert set(run.poisoned) <= set(threat.samples)
        for name, value in trained(network((2, 3, 1)), x, y, RUN, run.batches).items():
            torch.testing.assert_close(run.state_dict[name], value, rtol=1e-9, atol=1e-12)
            assert (found.lower[name] <= run.state_dict[name].numpy()).all()
    unrolled, whole = found.runs.unrolled, found.runs.data.unpacked(found.runs.unrolled)
    again = Packed.of(whole, unrolled).unpacked(unrolled)
    assert torch.equal(whole.features, again.features)
    assert torch.equal(whole.labels, again.labels)


def test_the_best_run_is_handed_back_whole() -> None:
    model, (x, y) = network((2, 3, 1)), data(8)
    threat = agt.FeatureLabelPoisoning(2, 0.2)
    found = attacked(threat, attacks.Parameter("0.weight", (1, 0)))
    state = trained(model, torch.tensor(found.features), torch.tensor(found.labels), TRAINING)
    assert float(state["0.weight"][1, 0]) == pytest.approx(found.value, rel=1e-9)
    assert found.nominal == pytest.approx(float(trained(model, x, y, TRAINING)["0.weight"][1, 0]))
    least = attacked(threat, attacks.Parameter("0.weight", (1, 0), direction="min"))
    assert least.value < found.nominal < found.value
    assert 0 < len(found.poisoned) <= 2
    assert loaded(model, found) is not None
    whole = attacked(threat, attacks.Functional({"0.weight": -np.eye(3, 2)[[1, 0, 2]]}))
    minus = -whole.state_dict["0.weight"][1, 0] - whole.state_dict["0.weight"][0, 1]
    assert whole.value == pytest.approx(float(minus))


@pytest.mark.parametrize("objective", [attacks.Envelope, attacks.Loss, attacks.Accuracy])
def test_a_small_memory_gives_the_same_kind_of_answer(objective: Any) -> None:
    aim = objective() if objective is attacks.Envelope else objective(*data(8))
    whole, cut = (
        attacked(agt.LabelPoisoning(2), aim, Search(memory=memory)) for memory in ("1GB", "64KB")
    )
    assert whole.exhaustive
    assert cut.exhaustive
    np.testing.assert_allclose(cut.reached, whole.reached, rtol=1e-12)


def test_predictions_losses_and_backdoors() -> None:
    model, samples = network((2, 4, 3), seed=1), data(12, classes=3)
    run = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=4)
    test, labels = data(20, classes=3, seed=5)

    def reach(objective: attacks.Objective) -> agt.Attack:
        return attacked(agt.LabelPoisoning(2), objective, QUICK, model, samples, run)

    def share(found: agt.Attack, x: Tensor, of: Any) -> float:
        return float((loaded(model, found)(x).argmax(-1) == of).double().mean())

    worst = reach(attacks.Accuracy(test, labels))
    best = reach(attacks.Accuracy(test, labels, direction="max"))
    assert worst.value <= worst.nominal <= best.value
    assert worst.value < best.value
    assert share(worst, test, labels) == worst.value
    loss = reach(attacks.Loss(test, labels))
    own = nn.functional.cross_entropy(loaded(model, loss)(test), labels).detach()
    assert float(own) == pytest.approx(loss.value)
    assert loss.value > loss.nominal
    assert reach(attacks.Targeted(test, labels)).value == best.value
    assert reach(attacks.Stable(test)).nominal == 1.0
    still, wide = (reach(attacks.Backdoor(test, labels, BallTrigger(r))) for r in (0.0, 1.0))
    assert still.value == pytest.approx(1.0 - worst.value)
    assert wide.value > still.value
    hit = reach(attacks.Backdoor(test, labels, PatchTrigger([0], 9.0), target=2))
    patched = test[labels != 2].clone()
    patched[:, 0] = 9.0
    assert share(hit, patched, 2) == hit.value


def test_a_region_of_outputs_is_a_target_of_a_regression() -> None:
    x, _ = data(8)
    y, model = x.sum(1, keepdim=True), network((2, 1))
    run = agt.Training(loss="mse", learning_rate=0.1, epochs=4)
    out = nn.functional.linear(x, *trained(model, x, y, run).values())
    aim = attacks.Targeted(x, np.array([float(out.max()) + 1e-3, np.inf]))
    found = attacked(agt.LabelPoisoning(2, radius=1.0), aim, QUICK, model, (x, y), run)
    assert found.nominal == 0.0
    assert found.value > 0.0


def test_a_run_that_torch_does_not_confirm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Unrolled.run

    def shifted(self: Unrolled, *arguments: Any) -> dict[str, Tensor]:
        return {n: v * (1.0 + 1e-6) for n, v in honest(self, *arguments).items()}

    monkeypatch.setattr(Unrolled, "run", shifted)
    with pytest.raises(SoundnessError, match=r"plain torch.*differs by.*report"):
        attacked(THREATS["features"])


def test_nothing_to_poison_reaches_nothing() -> None:
    found = attacked(agt.FeaturePoisoning(0, 0.1))
    assert found.value == 0.0
    assert found.exhaustive
    assert found.poisoned == ()


X, Y = data(6)
BAD: dict[str, tuple[attacks.Objective, tuple[str, str, str]]] = {
    "parameter": (attacks.Parameter("0.weight", (9, 9)), ("was asked for", "0.weight", "index")),
    "names": (attacks.Functional({"x": X}), ("on parameter 'x'", "0.weight", "state_dict")),
    "nothing": (attacks.Functional({}), ("one count of rows", "no coefficients", "array")),
    "rows": (attacks.Functional({"0.bias": np.eye(3)}), ("one functional", "3 rows", "one row")),
    "shape": (attacks.Functional({"0.bias": X}), ("need shape", "(6, 2)", "match")),
    "features": (attacks.Loss(X[:, :1], Y), ("Test features need", "(1,)", "trained on")),
    "classes": (attacks.Accuracy(X, Y + 3), ("must be classes", "3", "renumber")),
    "targets": (attacks.Targeted(X, 7), ("classes of the model", "7", "0 to 1")),
    "target": (attacks.Backdoor(X, Y, BallTrigger(0.1), 9), ("class of the model", "9", "0 to 1")),
    "trigger": (
        attacks.Backdoor(X, Y, BallTrigger([0.1] * 3)),
        ("needs one number", "(3,)", "match"),
    ),
    "no others": (
        attacks.Backdoor(X, 0 * Y, BallTrigger(0.1), 0),
        ("other classes", "all of class 0", "add points"),
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_objectives_are_refused(kind: str) -> None:
    objective, parts = BAD[kind]
    with refused(*parts):
        attacked(THREATS["features"], objective, samples=(X, Y))


def test_bad_settings_are_refused() -> None:
    with refused("'pool'", "pool = -1", "change pool"):
        Search(pool=-1)
    with refused("64 bits", "seed = 18446744073709551616", "change seed"):
        Search(seed=2**64)
    with refused("memory", "much", "KiB"):
        Search(memory="much")
    with refused("direction", "'up'", "'max' or 'min'"):
        attacks.Loss(X, Y, direction="up")  # type: ignore[arg-type]
    regression, y = agt.Training(loss="mse", epochs=2), Y.double()[:, None]
    with refused("needs a classifier", "'mse'", "aim at the loss"):
        threat, aim = agt.LabelPoisoning(1, radius=0.1), attacks.Accuracy(X, Y)
        attacked(threat, aim, QUICK, network((2, 1)), (X, y), regression)
    with refused("poisoned data set", "adaptive", "batches"):
        _ = attacked(THREATS["adaptive"], run=RUN).features


def test_gradients_of_every_step_reach_the_data() -> None:
    """The gradient of the unrolled run against central differences."""
    found = attacked(THREATS["both"], model=network((2, 3, 1), nn.Tanh), run=RUN)
    unrolled = found.runs.unrolled

    def score(state: dict[str, Tensor]) -> Tensor:
        return state["0.weight"][:, 0, 0]

    _, gradient = unrolled.gradient(unrolled.nominal(1), score)
    step = 1e-6
    for i, j in itertools.product(range(8), range(2)):
        ends = []
        for sign in (1.0, -1.0):
            moved = unrolled.nominal(1).map(torch.clone)
            moved.features[0, i, j] += sign * step
            ends.append(float(score(unrolled.run(moved))))
        slope = (ends[0] - ends[1]) / (2 * step)
        assert slope == pytest.approx(float(gradient.features[0, i, j]), rel=1e-5, abs=1e-8)


def test_rounds_and_restarts_are_used() -> None:
    """Each phase trains models, and none of them makes the result worse."""
    none = dict.fromkeys(("pool", "corners", "restarts", "rounds", "enumerate"), 0)

    def run(**settings: int) -> agt.Attack:
        return attacked(THREATS["both"], None, Search(**(none | {"iterations": 2} | settings)))

    nothing = run()
    assert nothing.trained == 1
    assert nothing.value == 0.0
    for settings in ({"pool": 16}, {"corners": 16}, {"restarts": 1}, {"rounds": 1}):
        found = run(**settings)
        assert found.trained > 1
        assert found.value > 0.0
    assert run(restarts=1, aims=2).trained < run(restarts=1).trained


MOVES: dict[str, agt.FeaturePoisoning] = {
    "norm 2": agt.FeaturePoisoning(2, 0.2, norm=2),
    "norm 1": agt.FeaturePoisoning(2, 0.2, norm=1),
    "norm 0": agt.FeaturePoisoning(2, 0.2, norm=0, coordinates=1),
    "domain": agt.FeaturePoisoning(2, np.inf, domain=(-3.0, 3.0)),
    "missing": agt.FeaturePoisoning(2, 0.1, missing=0.0),
    "rows": agt.FeaturePoisoning(2, 0.2, rows=(np.array([[1.0, 1.0]]), np.array([0.1]))),
}


def test_a_threat_without_moves_is_refused() -> None:
    class Nameless:
        budget = 1

        def bind(self, features: Tensor, labels: Tensor, loss: Any) -> Poison:
            everyone = torch.ones(len(features), dtype=torch.bool)
            return Poison(features, labels, everyone, 1, static=True, per_batch=False)

        def describe(self) -> str:
            return "anything"

    with refused("attack needs moves", "whole samples", "certify", kind=UnsupportedOperationError):
        attacked(Nameless())


def test_a_run_that_is_best_for_many_ends_is_packed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its data are as large as the data set: a copy for each of thousands of ends takes longer than it."""
    unpatched, packed = Packed.of, list[int]()

    def counted(data: Any, unrolled: Unrolled) -> Packed:
        packed.append(len(data))
        return unpatched(data, unrolled)

    monkeypatch.setattr(Packed, "of", staticmethod(counted))
    search = Search(pool=4, corners=0, restarts=0, rounds=0)
    model = network((2, 6, 1), seed=1)
    found = attacked(agt.FeaturePoisoning(1, 0.3), None, search, model, data(12))
    assert found.mean_width > 0.0
    assert len(found.widths) == 25
    assert max(packed) <= 2  # of 50 ends
