"""``agt.attack``: brute force on tiny runs, replay, budgets, objectives, bad input."""

from __future__ import annotations

import copy
import itertools
from typing import Any, Literal

import numpy as np
import pytest
import torch
from attacks import network
from torch import Tensor, nn

import milp_agt as agt
from milp_agt import attacks
from milp_agt.attacks import Search
from milp_agt.attacks.packed import Packed
from milp_agt.attacks.replay import mean_loss
from milp_agt.attacks.unrolled import Unrolled
from milp_agt.errors import InvalidInputError, SoundnessError, UnsupportedOperationError
from milp_agt.formulations.loss import get_loss
from milp_agt.properties.triggers import BallTrigger, PatchTrigger
from milp_agt.threats.poison import Poison

QUICK = Search(pool=64, restarts=2, rounds=1, iterations=3)
TRAINING = agt.Training(loss="bce", learning_rate=0.5, epochs=3)


def data(count: int = 4, classes: int = 2, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 2, generator=generator, dtype=torch.float64)
    return x, torch.arange(count) % classes


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
    outputs = model(x[:1]).shape[1]
    loss = get_loss(training.loss)
    steps = batches or [(x[b], y[b]) for b in map(torch.from_numpy, training.batch_order(len(x)))]
    for features, labels in steps:
        optimiser.zero_grad()
        out = model(torch.as_tensor(features))
        encoded = loss.encode(torch.as_tensor(labels), outputs)
        mean_loss(loss)(out, encoded).backward()
        optimiser.step()
    return {n: v.detach() for n, v in model.state_dict().items()}


def flat(state: dict[str, Tensor]) -> Tensor:
    return torch.cat([v.flatten() for v in state.values()])


def every_flip(x: Tensor, y: Tensor, budget: int, model: nn.Module) -> Tensor:
    """Trained parameters for every choice of flipped labels, (ways, P)."""
    found = []
    for count in range(budget + 1):
        for chosen in itertools.combinations(range(len(y)), count):
            labels = y.clone()
            labels[list(chosen)] = 1 - labels[list(chosen)]
            found.append(flat(trained(model, x, labels, TRAINING)))
    return torch.stack(found)


@pytest.mark.parametrize("enumerate_", [0, 100], ids=["search", "enumeration"])
def test_flips_reach_the_enumerated_optimum(enumerate_: int) -> None:
    model, (x, y) = network((2, 2, 1)), data(5)
    ends = every_flip(x, y, 2, model)
    search = Search(pool=0, restarts=2, rounds=2, iterations=3, enumerate=enumerate_)
    found = agt.attack(model, (x, y), TRAINING, agt.LabelPoisoning(2), search=search)
    widths = (ends.amax(0) - ends.amin(0)).numpy()
    np.testing.assert_allclose(found.widths, widths, rtol=1e-9)
    assert found.exhaustive == bool(enumerate_)
    assert found.value == pytest.approx(widths.mean())


def test_label_moves_of_a_linear_model_reach_the_closed_form() -> None:
    """theta_T is affine in the targets, so the budget's largest columns are the answer."""
    x, _ = data(8)
    y = x @ torch.tensor([[1.0], [-2.0]], dtype=torch.float64) + 0.1
    model, training = network((2, 1)), agt.Training(loss="mse", learning_rate=0.1, epochs=6)
    base = flat(trained(model, x, y, training))
    columns = []
    for i in range(8):
        moved = y.clone()
        moved[i] += 0.5
        columns.append(flat(trained(model, x, moved, training)) - base)
    largest = torch.stack(columns).abs().sort(0, descending=True).values[:3].sum(0)
    found = agt.attack(model, (x, y), training, agt.LabelPoisoning(3, radius=0.5), search=QUICK)
    np.testing.assert_allclose(found.widths, 2 * largest.numpy(), rtol=1e-9)


def test_features_reach_the_best_corner_of_the_best_sample() -> None:
    model, (x, y) = network((2, 2, 1), nn.Tanh), data(5)
    corners = torch.tensor(list(itertools.product((-0.1, 0.1), repeat=2)), dtype=torch.float64)
    ends = []
    for i, corner in itertools.product(range(5), corners):
        moved = x.clone()
        moved[i] += corner
        ends.append(flat(trained(model, moved, y, TRAINING)))
    everything = torch.stack(ends)
    found = agt.attack(model, (x, y), TRAINING, agt.FeaturePoisoning(1, 0.1), search=QUICK)
    assert (found.widths >= (everything.amax(0) - everything.amin(0)).numpy() * (1 - 1e-9)).all()


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
    model, (x, y) = network((2, 3, 1)), data(6)
    found = agt.attack(model, (x, y), run, THREATS["both"], search=QUICK)
    free = agt.attack(model, (x, y), TRAINING, THREATS["both"], search=QUICK)
    assert 0.0 < found.value < free.value


@pytest.mark.parametrize("kind", THREATS)
def test_attacks_stay_within_the_threat_and_train_as_torch_does(kind: str) -> None:
    threat = THREATS[kind]
    model, (x, y) = network((2, 3, 1)), data(8)
    found = agt.attack(model, (x, y), RUN, threat, search=QUICK)
    for index in range(len(found.runs)):
        run = found.runs.describe(index)
        per_step = [
            {
                int(i)
                for i, own_x, own_y in zip(order, bx, by, strict=True)
                if (x[i].numpy() != own_x).any() or int(y[i]) != own_y
            }
            for order, (bx, by) in zip(RUN.batch_order(8), run.batches, strict=True)
        ]
        assert set(run.poisoned) == set().union(*per_step)
        if threat.scope == "batch":
            assert max(map(len, per_step)) <= threat.budget
        else:
            assert len(run.poisoned) <= threat.budget
        if threat.samples is not None:
            assert set(run.poisoned) <= set(threat.samples)
        for order, (bx, _) in zip(RUN.batch_order(8), run.batches, strict=True):
            radius = np.asarray(getattr(threat, "radius", None) or 0.0)
            assert (np.abs(bx - x[order].numpy()) <= radius + 1e-15).all()
        again = trained(model, x, y, RUN, run.batches)
        for name, value in again.items():
            torch.testing.assert_close(run.state_dict[name], value, rtol=1e-9, atol=1e-12)
            assert (found.lower[name] <= run.state_dict[name].numpy()).all()


def test_the_best_run_is_handed_back_whole() -> None:
    model, (x, y) = network((2, 3, 1)), data(8)
    objective = attacks.Parameter("0.weight", (1, 0))
    threat = agt.FeatureLabelPoisoning(2, 0.2)
    found = agt.attack(model, (x, y), TRAINING, threat, objective=objective, search=QUICK)
    state = trained(model, torch.tensor(found.features), torch.tensor(found.labels), TRAINING)
    assert float(state["0.weight"][1, 0]) == pytest.approx(found.value, rel=1e-9)
    assert found.nominal == pytest.approx(float(trained(model, x, y, TRAINING)["0.weight"][1, 0]))
    assert found.value > found.nominal
    assert 0 < len(found.poisoned) <= 2
    copied = copy.deepcopy(model)
    copied.load_state_dict(dict(found.state_dict))
    least = agt.attack(
        model,
        (x, y),
        TRAINING,
        threat,
        objective=attacks.Parameter("0.weight", (1, 0), direction="min"),
        search=QUICK,
    )
    assert least.value < found.nominal
    whole = agt.attack(
        model,
        (x, y),
        TRAINING,
        threat,
        objective=attacks.Functional({"0.weight": -np.eye(3, 2)[[1, 0, 2]]}),
        search=QUICK,
    )
    minus = -whole.state_dict["0.weight"][1, 0] - whole.state_dict["0.weight"][0, 1]
    assert whole.value == pytest.approx(float(minus))


def test_a_small_memory_gives_the_same_kind_of_answer() -> None:
    model, (x, y) = network((2, 3, 1)), data(8)
    threat = agt.LabelPoisoning(2)
    for objective in (attacks.Envelope(), attacks.Loss(x, y), attacks.Accuracy(x, y)):
        whole = agt.attack(model, (x, y), TRAINING, threat, objective=objective)
        small = Search(memory="64KB")
        cut = agt.attack(model, (x, y), TRAINING, threat, objective=objective, search=small)
        assert whole.exhaustive
        assert cut.exhaustive
        np.testing.assert_allclose(cut.reached, whole.reached, rtol=1e-12)


def test_predictions_losses_and_backdoors() -> None:
    torch.manual_seed(0)
    model, (x, y) = network((2, 4, 3), seed=1), data(12, classes=3)
    run = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=4)
    threat = agt.LabelPoisoning(2)
    test, labels = data(20, classes=3, seed=5)

    def reach(objective: attacks.Objective) -> agt.Attack:
        return agt.attack(model, (x, y), run, threat, objective=objective, search=QUICK)

    worst, best = (
        reach(attacks.Accuracy(test, labels)),
        reach(attacks.Accuracy(test, labels, direction="max")),
    )
    assert worst.value <= worst.nominal <= best.value
    assert worst.value < best.value
    copied = copy.deepcopy(model)
    copied.load_state_dict(dict(worst.state_dict))
    assert float((copied(test).argmax(-1) == labels).double().mean()) == worst.value
    loss = reach(attacks.Loss(test, labels))
    copied.load_state_dict(dict(loss.state_dict))
    own = nn.functional.cross_entropy(copied(test), labels).detach()
    assert float(own) == pytest.approx(loss.value)
    assert loss.value > loss.nominal
    targeted = reach(attacks.Targeted(test, labels))
    assert targeted.value == best.value
    assert reach(attacks.Stable(test)).nominal == 1.0
    still = reach(attacks.Backdoor(test, labels, BallTrigger(0.0)))
    assert still.value == pytest.approx(1.0 - worst.value)
    wide = reach(attacks.Backdoor(test, labels, BallTrigger(1.0)))
    assert wide.value > still.value
    hit = reach(attacks.Backdoor(test, labels, PatchTrigger([0], 9.0), target=2))
    patched = test[labels != 2].clone()
    patched[:, 0] = 9.0
    copied.load_state_dict(dict(hit.state_dict))
    assert float((copied(patched).argmax(-1) == 2).double().mean()) == hit.value


def test_a_region_of_outputs_is_a_target_of_a_regression() -> None:
    x, _ = data(8)
    y = x.sum(1, keepdim=True)
    run = agt.Training(loss="mse", learning_rate=0.1, epochs=4)
    model = network((2, 1))
    out = nn.functional.linear(x, *trained(model, x, y, run).values())
    aim = attacks.Targeted(x, np.array([float(out.max()) + 1e-3, np.inf]))
    threat = agt.LabelPoisoning(2, radius=1.0)
    found = agt.attack(model, (x, y), run, threat, objective=aim, search=QUICK)
    assert found.nominal == 0.0
    assert found.value > 0.0


@pytest.mark.parametrize("kind", THREATS)
def test_packed_data_come_back(kind: str) -> None:
    model, (x, y) = network((2, 3, 1)), data(8)
    found = agt.attack(model, (x, y), RUN, THREATS[kind], search=QUICK)
    unrolled = found.runs.unrolled
    whole = found.runs.data.unpacked(unrolled)
    again = Packed.of(whole, unrolled).unpacked(unrolled)
    assert torch.equal(whole.features, again.features)
    assert torch.equal(whole.labels, again.labels)


def test_a_run_that_torch_does_not_confirm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (x, y) = network((2, 3, 1)), data(8)
    honest = Unrolled.run

    def shifted(self: Unrolled, *arguments: Any) -> dict[str, Tensor]:
        return {n: v * (1.0 + 1e-6) for n, v in honest(self, *arguments).items()}

    monkeypatch.setattr(Unrolled, "run", shifted)
    with pytest.raises(SoundnessError, match=r"plain torch.*differs by.*report"):
        agt.attack(model, (x, y), TRAINING, THREATS["features"], search=QUICK)


def test_nothing_to_poison_reaches_nothing() -> None:
    model, (x, y) = network((2, 3, 1)), data(8)
    found = agt.attack(model, (x, y), TRAINING, agt.FeaturePoisoning(0, 0.1), search=QUICK)
    assert found.value == 0.0
    assert found.exhaustive
    assert found.poisoned == ()


X, Y = data(6)
BAD: dict[str, tuple[Any, str, str, str]] = {
    "parameter": (attacks.Parameter("0.weight", (9, 9)), "was asked for", "0.weight", "index"),
    "names": (attacks.Functional({"x": X}), "on parameter 'x'", "0.weight", "state_dict"),
    "nothing": (attacks.Functional({}), "one count of rows", "no coefficients", "array"),
    "rows": (attacks.Functional({"0.bias": np.eye(3)}), "one functional", "3 rows", "one row"),
    "shape": (attacks.Functional({"0.bias": X}), "need shape", r"\(6, 2\)", "match"),
    "features": (attacks.Loss(X[:, :1], Y), "Test features need", r"\(1,\)", "trained on"),
    "classes": (attacks.Accuracy(X, Y + 3), "must be classes", "3", "renumber"),
    "targets": (attacks.Targeted(X, 7), "classes of the model", "7", "0 to 1"),
    "target": (attacks.Backdoor(X, Y, BallTrigger(0.1), 9), "class of the model", "9", "0 to 1"),
    "trigger": (
        attacks.Backdoor(X, Y, BallTrigger([0.1] * 3)),
        "needs one number",
        r"\(3,\)",
        "match",
    ),
    "no others": (
        attacks.Backdoor(X, 0 * Y, BallTrigger(0.1), 0),
        "other classes",
        "all of class 0",
        "add points",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_objectives_are_refused(kind: str) -> None:
    objective, asked, found, remedy = BAD[kind]
    with pytest.raises(
        InvalidInputError, match=f"(?s){asked}.*Found:.*{found}.*What to do:.*{remedy}"
    ):
        agt.attack(
            network((2, 3, 1)),
            (X, Y),
            TRAINING,
            THREATS["features"],
            objective=objective,
            search=QUICK,
        )


def test_bad_settings_are_refused() -> None:
    with pytest.raises(InvalidInputError, match=r"'pool'.*pool = -1.*change pool"):
        Search(pool=-1)
    with pytest.raises(InvalidInputError, match=r"memory.*bytes"):
        Search(memory="much")
    with pytest.raises(InvalidInputError, match=r"direction.*'up'.*'max' or 'min'"):
        attacks.Loss(X, Y, direction="up")  # type: ignore[arg-type]
    x, y = data(6)
    y = y.double()[:, None]
    regression = agt.Training(loss="mse", epochs=2)
    with pytest.raises(InvalidInputError, match=r"needs a classifier.*'mse'.*aim at the loss"):
        agt.attack(
            network((2, 1)),
            (x, y),
            regression,
            agt.LabelPoisoning(1, radius=0.1),
            objective=attacks.Accuracy(x, Y),
        )
    found = agt.attack(network((2, 3, 1)), (X, Y), RUN, THREATS["adaptive"], search=QUICK)
    with pytest.raises(InvalidInputError, match=r"poisoned data set.*adaptive.*batches"):
        _ = found.features


def test_gradients_of_every_step_reach_the_data() -> None:
    """The gradient of the unrolled run against central differences."""
    model, (x, y) = network((2, 3, 1), nn.Tanh), data(8)
    found = agt.attack(model, (x, y), RUN, THREATS["both"], search=QUICK)
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
    model, (x, y) = network((2, 3, 1)), data(8)

    def run(**settings: int) -> agt.Attack:
        none = {
            "pool": 0,
            "corners": 0,
            "restarts": 0,
            "rounds": 0,
            "iterations": 2,
            "enumerate": 0,
        }
        return agt.attack(
            model, (x, y), TRAINING, THREATS["both"], search=Search(**{**none, **settings})
        )

    nothing = run()
    assert nothing.trained == 1
    assert nothing.value == 0.0
    for settings in ({"pool": 16}, {"corners": 16}, {"restarts": 1}, {"rounds": 1}):
        found = run(**settings)
        assert found.trained > 1
        assert found.value > 0.0
    few = run(restarts=1, aims=2)
    assert few.trained < run(restarts=1).trained


MOVES: dict[str, agt.FeaturePoisoning] = {
    "norm 2": agt.FeaturePoisoning(2, 0.2, norm=2),
    "norm 1": agt.FeaturePoisoning(2, 0.2, norm=1),
    "norm 0": agt.FeaturePoisoning(2, 0.2, norm=0, coordinates=1),
    "domain": agt.FeaturePoisoning(2, np.inf, domain=(-3.0, 3.0)),
    "missing": agt.FeaturePoisoning(2, 0.1, missing=0.0),
    "rows": agt.FeaturePoisoning(2, 0.2, rows=(np.array([[1.0, 1.0]]), np.array([0.1]))),
}


@pytest.mark.parametrize("kind", MOVES)
def test_every_set_of_moves_is_attacked_from_inside(kind: str) -> None:
    model, (x, y) = network((2, 3, 1)), data(8)
    few = Search(pool=16, corners=0, restarts=0, rounds=0)
    random = agt.attack(model, (x, y), TRAINING, MOVES[kind], search=few)
    found = agt.attack(model, (x, y), TRAINING, MOVES[kind], search=QUICK)
    assert found.value > random.value
    unrolled = found.runs.unrolled
    moves = unrolled.poison.feature_moves
    assert moves is not None
    whole = found.runs.data.unpacked(unrolled)
    excess = moves.excess((whole.features - unrolled.poison.features).flatten(2))
    assert float(excess.max()) <= 1e-12
    changed = (whole.features != unrolled.poison.features).any(-1)
    assert int(changed.sum(1).max()) <= 2


def test_categories_are_enumerated_with_the_labels() -> None:
    """One-hot columns and labels: every joint choice for one sample, by a loop in plain torch."""
    generator = torch.Generator().manual_seed(0)
    number = torch.randn(5, 1, generator=generator, dtype=torch.float64)
    hot = torch.eye(3, dtype=torch.float64)
    x, y = torch.cat([number, hot[torch.arange(5) % 3]], 1), torch.arange(5) % 2
    model = network((4, 2, 1))
    ends = []
    for i, category, label in itertools.product(range(5), range(3), range(2)):
        moved, labels = x.clone(), y.clone()
        moved[i, 1:], labels[i] = hot[category], label
        ends.append(flat(trained(model, moved, labels, TRAINING)))
    widths = (torch.stack(ends).amax(0) - torch.stack(ends).amin(0)).numpy()
    threat = agt.FeatureLabelPoisoning(1, 0.0, categorical=[[1, 2, 3]])
    found = agt.attack(model, (x, y), TRAINING, threat, search=QUICK)
    np.testing.assert_allclose(found.widths, widths, rtol=1e-9)


def test_a_threat_without_moves_is_refused() -> None:
    class Nameless:
        budget = 1

        def bind(self, features: Tensor, labels: Tensor, loss: Any) -> Poison:
            everyone = torch.ones(len(features), dtype=torch.bool)
            return Poison(features, labels, everyone, 1, static=True, per_batch=False)

        def describe(self) -> str:
            return "anything"

    model, (x, y) = network((2, 3, 1)), data(8)
    with pytest.raises(
        UnsupportedOperationError, match=r"attack needs moves.*whole samples.*certify"
    ):
        agt.attack(model, (x, y), TRAINING, Nameless())
