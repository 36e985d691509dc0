"""What torch modes stand around a call: grad modes change no bit, all others are refused by name."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import pytest
import torch
from attacks import network
from boxes import assert_same
from refusals import refused
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import milp_agt as agt
from milp_agt.attacks import Accuracy, Loss
from milp_agt.errors import UnsupportedOperationError

RNG = np.random.default_rng(0)
X = torch.tensor(RNG.normal(size=(8, 2)))
Y = (X[:, 0] > 0).long()
RUN = agt.Training(loss="cross_entropy", learning_rate=0.5, epochs=3)
THREAT = agt.FeaturePoisoning(1, 0.01)
SEARCH = agt.Search(pool=8, enumerate=8, restarts=1, rounds=1, iterations=3)


def everything() -> list[Any]:
    """Numbers of a certification, of questions and of attacks, as bits."""
    x, y = X.numpy().tolist(), Y.numpy().tolist()
    made_here = torch.tensor(x, dtype=torch.float64), torch.tensor(y)
    model = network((2, 3, 2))
    result = agt.certify(model, made_here, RUN, THREAT, attack=SEARCH)
    attack = agt.attack(model, made_here, RUN, THREAT, search=SEARCH)
    loss = attack.towards(Loss(*made_here))
    accuracy = result.accuracy(*made_here)
    backdoor = result.backdoor(*made_here, target=0, trigger=agt.BallTrigger(0.05))
    both = result.against(Accuracy(*made_here), accuracy)
    boxes = [result.reachable.lower, result.reachable.upper, attack.lower, attack.upper]
    numbers = [box[name].tobytes() for box in boxes for name in sorted(box)]
    ends = [accuracy.lower, accuracy.upper, backdoor.lower, backdoor.upper, both.reached]
    return [*numbers, *ends, np.asarray(loss.value).tobytes(), loss.best.batches[0][0].tobytes()]


def test_the_grad_mode_of_the_caller_changes_no_bit() -> None:
    outside = everything()
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert everything() == outside


def test_data_and_models_of_inference_mode_are_used_outside_of_it() -> None:
    plain = agt.certify(network((2, 3, 2)), (X, Y), RUN, THREAT)
    with torch.inference_mode():
        model, x, y = network((2, 3, 2)), X.clone(), Y.clone()
    result = agt.certify(model, (x, y), RUN, THREAT)
    assert_same(result.reachable, plain.reachable)


class Doubling(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("mode", "named"),
    [
        (lambda: torch.autocast("cpu", dtype=torch.bfloat16), "autocast on 'cpu'"),
        (Doubling, "the mode Doubling"),
        (Watching, "the mode Watching"),
        (
            lambda: torch.autograd.graph.saved_tensors_hooks(lambda t: t, lambda t: t * 2),
            "saved_tensors_hooks",
        ),
        (torch.autograd.graph.save_on_cpu, "saved_tensors_hooks"),
    ],
    ids=["autocast", "function mode", "dispatch mode", "saved tensors", "saved on the CPU"],
)
@pytest.mark.parametrize("call", [agt.certify, agt.attack], ids=["certify", "attack"])
def test_modes_that_change_operations_are_refused(
    mode: Callable[[], AbstractContextManager[Any]], named: str, call: Callable[..., Any]
) -> None:
    model = network((2, 3, 2))
    remedy = "leave the with-block"
    with mode(), refused(found=named, remedy=remedy, kind=UnsupportedOperationError):
        call(model, (X, Y), RUN, THREAT)


def test_a_default_device_is_no_such_mode() -> None:
    with torch.device("cpu"):
        agt.certify(network((2, 3, 2)), (X, Y), RUN, THREAT, relaxation="interval")
