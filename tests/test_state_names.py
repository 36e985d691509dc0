"""Saved parameters that do not fit: the error says what to save instead, and that then fits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import refused
from test_config import build, with_line
from torch import nn

from milp_agt.errors import ConfigurationError


def saved() -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 2)).double()


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = saved()[0], saved()[2]


class Inside(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.ModuleDict({"head": saved()})


def load(tmp_path: Path, state: Any) -> Any:
    torch.save(state, tmp_path / "s.pt")
    return build(tmp_path, with_line("model", 'state = "s.pt"')).model.state_dict()


def normed() -> Any:
    model = saved()
    nn.utils.parametrizations.weight_norm(model[0])
    return model


PLAIN = saved().state_dict()
CASES: dict[str, tuple[Any, str, str]] = {
    "DataParallel": (nn.DataParallel(saved()).state_dict(), "'module.' in front of every name",
        "torch.save(model.module.state_dict(), path)"),
    "compiled": ({f"_orig_mod.{n}": v for n, v in PLAIN.items()}, "'_orig_mod.'",
        "model._orig_mod.state_dict()"),
    "inside": (Inside().state_dict(), "'net.head.'", "model.net.head.state_dict()"),
    "checkpoint": ({"epoch": 3, "model_state_dict": PLAIN, "loss": 0.5},
        "the keys 'epoch', 'model_state_dict', 'loss'",
        "torch.save(checkpoint['model_state_dict'], path)"),
    "other names": (Named().state_dict(), "'fc1.weight' for '0.weight'", "dict(zip(['0.weight'"),
    "normed": (normed().state_dict(), "torch.nn.utils.parametrize", "remove_parametrizations"),
    "pruned": ({"0.weight_mask": torch.ones(3, 2)} | PLAIN, "torch.nn.utils.prune", "prune.remove"),
    "another shape": (PLAIN | {"2.bias": torch.zeros(5)},
        "other shapes: 2.bias (5,) where the model has (2,)", "let [model] describe"),
    "too few": ({"0.weight": PLAIN["0.weight"]}, "no tensor for: 0.bias", "let [model] describe"),
    "a tensor": (torch.zeros(2), "an object of type Tensor", "model.state_dict()"),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_named_with_what_to_save(name: str, tmp_path: Path) -> None:
    state, found, remedy = CASES[name]
    with refused(found=found, remedy=remedy, kind=ConfigurationError):
        load(tmp_path, state)


def test_the_remedies_help(tmp_path: Path) -> None:
    wrapped = nn.DataParallel(saved())
    renamed = dict(zip(PLAIN, Named().state_dict().values(), strict=True))
    for state in (wrapped.module.state_dict(), Inside().net["head"].state_dict(), renamed):
        loaded = load(tmp_path, state)
        assert all(torch.equal(loaded[name], value) for name, value in PLAIN.items())
