"""Loops that look like the run that is recorded, and are another on poisoned data; numbers that say so."""

from __future__ import annotations

import copy
import json
import math
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from recorded_script import THREAT, Script, X, Y, assert_clean, assert_right, certified
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional

import milp_agt as agt
from milp_agt.errors import InvalidInputError, MilpAgtError, UnsupportedOperationError
from milp_agt.recording.origins import is_watched, watched


def _threaded(action: Callable[[Script], object]) -> Callable[[Script], None]:
    def act(script: Script) -> None:
        thread = threading.Thread(target=action, args=(script,))
        thread.start()
        thread.join()

    return act


def _clamp_gradients(script: Script) -> None:
    for parameter in script.model.parameters():
        parameter.grad.data.clamp_(-1e3, 1e3)  # never reached


def _rate_by_thread(script: Script) -> None:
    loss = functional.cross_entropy(script.model(X), Y)
    script.opt.param_groups[0]["lr"] = 0.1 / (1.0 + loss.item())


def _clamp_momentum(script: Script, loss: Tensor) -> None:
    for parameter in script.model.parameters():
        state = script.opt.state[parameter]
        state["momentum_buffer"] = state["momentum_buffer"].clamp(-1e3, 1e3)  # never reached


def _reload(script: Script, loss: Tensor) -> None:
    script.opt.load_state_dict(copy.deepcopy(script.opt.state_dict()))


def _hard_by_numpy(script: Script, loss: Tensor) -> None:
    with torch.no_grad():
        losses = functional.cross_entropy(script.model(X), Y, reduction="none").numpy()
    script.order = np.argsort(losses)


def _stop_by_mean(script: Script, loss: Tensor) -> bool:
    return bool(np.mean([loss.item()]) < 1e-9)


def _view_clamped(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    x[:, 0].clamp_(-1e3, 1e3)  # never reached, and through a view
    return x, y


def _edge_hooked(script: Script) -> None:
    script.node = get_gradient_edge(script.model[0].weight).node
    script.node.register_prehook(lambda gradients: (gradients[0].clamp(-1e3, 1e3),))


LEAVE = "numbers of the training leave"
# What is done, where in the script, and what is said of it.
REFUSED: dict[str, tuple[str, Any, str]] = {
    "gradients clamped in a thread": ("after_backward", _threaded(_clamp_gradients),
        "step 1: gradients that are changed by clamp_"),
    "rate by a thread": ("after_backward", _threaded(_rate_by_thread), "computed from tensors"),
    "momentum clamped": ("after_step", _clamp_momentum, "step 2: a momentum buffer of"),
    "optimiser loaded": ("after_step", _reload, "step 2: a momentum buffer of"),
    "hard examples by numpy": ("after_step", _hard_by_numpy, LEAVE),
    "a list of losses": ("after_step",
        lambda s, loss: s.seen.append(loss.detach().reshape(1).tolist()),
        f"{LEAVE} torch at test_record_red_team"),
    "a loss by float": ("after_step", lambda s, loss: float(loss.detach()) and None, "leave torch"),
    "data by numpy": ("batch", lambda x, y: (torch.from_numpy(np.clip(x.numpy(), -1e3, 1e3)), y),
        f"step 1: {LEAVE} torch"),
    "early stopping by numpy": ("after_epoch", _stop_by_mean, "compared or converted at"),
    "steps by the loss": ("after_epoch", lambda s, loss: len(range(round(1e3 * loss.item()))) == 0,
        "compared or converted at test_record_red_team"),
    "features clamped through a view": ("batch", _view_clamped, r"by clamp_\(\)"),
    "a rate in a tensor": ("batch", lambda x, y: (torch.stack([x, x * 1.0])[0], y),
        "features that were computed"),
    "hook by an edge": ("start", _edge_hooked, "a node of the gradient's graph"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_runs_that_values_would_change_are_refused(name: str) -> None:
    place, quirk, message = REFUSED[name]
    script = Script(**{place: quirk})
    with pytest.warns(UserWarning, match="This run cannot be certified"):
        run = script.train()
    with pytest.raises(MilpAgtError, match=message) as found:
        certified(run)
    assert found.value.remedy
    assert threading.Thread.start.__module__ == "threading"


def test_hooks_on_nodes_of_parameters_are_found() -> None:
    """On a node that is held, and on one that hangs on the graph of an earlier loss."""
    training = agt.Training("cross_entropy")
    model = nn.Sequential(nn.Linear(30, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    x = X.double()
    loss = functional.cross_entropy(model(x), Y)
    loss.backward()
    agt.certify(model, (x, Y), training, THREAT, relaxation="interval")
    get_gradient_edge(model[0].bias).node.register_prehook(lambda g: (g[0].clamp(-1e3, 1e3),))
    with pytest.raises(UnsupportedOperationError, match="graph hangs on it, and hooks on nodes"):
        agt.certify(model, (x, Y), training, THREAT)
    del loss
    node = get_gradient_edge(model[0].bias).node
    agt.certify(model, (x, Y), training, THREAT, relaxation="interval")
    handle = node.register_hook(lambda inputs, outputs: None)
    with pytest.raises(UnsupportedOperationError, match=r"'0\.bias': a hook on the node that"):
        agt.certify(model, (x, Y), training, THREAT)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(UnsupportedOperationError, match="a hook on the node that takes"):
        agt.record(model, opt, nn.CrossEntropyLoss(), (x, Y))
    handle.remove()
    agt.certify(model, (x, Y), training, THREAT, relaxation="interval")


def test_random_numbers_of_the_loop_may_decide() -> None:
    """What is drawn does not depend on the data, and neither does what is made of it."""

    def report(script: Script, loss: Tensor) -> None:
        order = torch.randperm(5).argsort().tolist()
        assert sorted(order) == list(range(5))
        if float(torch.rand(3).mean()) < 2.0 and torch.rand(1).item() < 2.0:
            script.opt.param_groups[0]["lr"] *= 0.9

    script = Script(after_step=report)
    assert_right(script, script.train())


def test_what_is_only_logged_stands_in_the_claim() -> None:
    script = Script(
        after_step=lambda s, loss: np.mean(loss.detach().numpy()) and None,
        recorded={"values_only_logged": True},
    )
    run = script.train()
    assert_right(script, run)
    told = [a for a in run.finished().assumptions if "test_record_red_team.py" in a]
    assert len(told) == 1
    assert "only printed or saved" in told[0]


def test_a_norm_that_is_only_measured_is_no_clipping() -> None:
    norms: list[Tensor] = []
    script = Script(
        after_backward=lambda s: norms.append(
            nn.utils.clip_grad_norm_(s.model.parameters(), float("inf"))
        )
    )
    run = script.train()
    assert_right(script, run)
    assert len(norms) == 6
    assert {rule.clip_total for rule in run.finished().training.rules} == {None}


def test_batches_from_elsewhere_stand_in_the_claim() -> None:
    x, y = X.numpy(), Y.numpy()
    torch.manual_seed(0)
    model = nn.Linear(30, 2)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    with agt.record(model, opt, nn.CrossEntropyLoss(), (x, y)) as run:
        for part in np.arange(len(x)).reshape(2, -1)[:, :40]:
            opt.zero_grad()
            features, labels = torch.from_numpy(x[part]), torch.from_numpy(y[part])
            functional.cross_entropy(model(features), labels).backward()
            opt.step()
    assert any("arrays of numpy" in each for each in certified(run).assumptions)
    script = Script()
    assert not any("arrays of numpy" in each for each in certified(script.train()).assumptions)


def _number(value: object) -> tuple[object, list[int]]:
    seen: list[int] = []
    return watched(value, lambda: seen.append(1)), seen


@pytest.mark.parametrize("value", [0.75, 3])
def test_they_are_the_numbers_that_they_are(value: float) -> None:
    x, seen = _number(value)
    assert isinstance(x, type(value))
    assert f"{x:.3f}" == f"{value:.3f}"
    assert json.dumps([x]) == json.dumps([value])
    assert f"{x}" == f"{value}"
    assert hash(x) == hash(value)
    for copied in (pickle.loads(pickle.dumps(x)), copy.deepcopy(x), copy.copy(x)):
        assert type(copied) is type(value)
        assert copied == value
    assert not seen


@pytest.mark.parametrize(
    "compute",
    [
        lambda x: x + 1,
        lambda x: 1 - x,
        lambda x: 2 * x / 3,
        lambda x: -(abs(x) ** 2),
        lambda x: round(x, 1),
        lambda x: sum([x, x]) / 2,
        lambda x: x // 2 % 5,
    ],
)
@pytest.mark.parametrize("value", [0.75, 3])
def test_arithmetic_gives_the_same_and_keeps_the_watch(compute, value: float) -> None:
    x, seen = _number(value)
    found = compute(x)
    assert is_watched(found)
    assert not seen
    assert float(found) == float(compute(value))
    assert type(found).__mro__[1] is type(compute(value))


@pytest.mark.parametrize(
    "decide",
    [
        lambda x: x < 1,
        lambda x: 1 < x,  # noqa: SIM300
        lambda x: x >= 0.5,
        lambda x: x == 1,
        lambda x: x != 1,
        lambda x: bool(x),
        lambda x: not x,
        lambda x: min(x, 1),
        lambda x: max([0, x]),
        lambda x: sorted([2, x]),
        lambda x: 0 < x + 1 < 10,
        lambda x: x in (1, 2),
        lambda x: float(x),
        lambda x: int(x),
        lambda x: math.floor(x),
        lambda x: divmod(x, 1),
        lambda x: divmod(1, x),
        lambda x: x.as_integer_ratio(),
        lambda x: round(float(x) + x),
    ],
)
@pytest.mark.parametrize("value", [0.75, 3])
def test_every_comparison_is_reported_and_right(decide, value: float) -> None:
    x, seen = _number(value)
    found = decide(x)
    assert seen
    plain = decide(value)
    assert np.array_equal(np.asarray(found), np.asarray(plain))


def test_numpy_and_whole_numbers_lose_the_watch_and_say_so() -> None:
    x, seen = _number(0.75)
    assert np.mean([x]) == 0.75
    assert seen
    for convert in (lambda x: list(range(round(4 * x))), lambda x: np.asarray([x])):
        x, seen = _number(0.75)
        convert(x)
        assert seen


def test_other_things_are_left_as_they_are() -> None:
    for value in (True, "text", None):
        assert _number(value)[0] is value


def test_reading_and_printing_values_is_nobodys_business(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def report(script: Script, loss: Tensor) -> None:
        script.model.eval()
        with torch.no_grad():
            accuracy = (script.model(X).argmax(1) == Y).float().mean().item()
        script.model.train()
        print(f"{loss.item():.3f} {100 * accuracy:.1f} {round(sum([accuracy, 1.0]), 2)}", loss)

    script = Script(after_step=report)
    assert_right(script, script.train())
    assert len(capsys.readouterr().out.splitlines()) == 6


def test_an_error_in_the_loop_goes_through_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(script: Script, loss: Tensor) -> None:
        raise RuntimeError("out of luck")

    script = Script(after_step=fail)
    recording = agt.record(script.model, script.opt, script.loss_fn, script.loader)
    monkeypatch.setattr(agt, "record", lambda *_, **__: recording)
    with pytest.raises(RuntimeError, match="out of luck"):
        script.train()
    assert_clean(script)
    with pytest.raises(MilpAgtError, match="ended with RuntimeError: out of luck"):
        certified(recording)


def test_a_run_without_steps_and_a_block_that_has_not_ended() -> None:
    script = Script(epochs=0)
    with pytest.warns(UserWarning, match="no step"):
        run = script.train()
    with pytest.raises(InvalidInputError, match="no step"):
        certified(run)
    open_one = agt.record(script.model, script.opt, script.loss_fn, script.loader)
    with pytest.raises(InvalidInputError, match="has not ended"):
        certified(open_one)
    with pytest.raises(InvalidInputError, match="certify\\(run, threat\\)"):
        agt.certify(run, THREAT, agt.Training(loss="mse"), THREAT)


def test_weights_changed_after_the_last_step_or_by_value_are_found() -> None:
    """Through a view of numpy, which no call of torch shows."""

    for epochs, when in ((1, "after the last step"), (2, "step 4: .*before this step")):
        script = Script(epochs=epochs)
        bias = script.model[0].bias.detach().numpy()
        script.after_epoch = lambda script, loss, bias=bias: bias.__iadd__(1e-3) is None
        with pytest.warns(UserWarning, match=when):
            run = script.train()
        with pytest.raises(MilpAgtError, match=r"other values of parameter '0\.bias'"):
            certified(run)


def test_a_layer_that_reads_values_while_the_model_is_called(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = nn.ReLU.forward

    def branching(layer: nn.ReLU, x: Tensor) -> Tensor:
        return plain(layer, x) if x.sum() < 1e9 else x

    monkeypatch.setattr(nn.ReLU, "forward", branching)
    script = Script()
    with pytest.raises(UnsupportedOperationError, match=r"ReLU\.forward of torch replaced"):
        script.train()
