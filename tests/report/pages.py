"""Result folders with a report, and what their pages say."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from run_texts import document, run_text

import milp_agt as agt
from milp_agt.cli import main

ACCURACY = "[[property]]\nkind = 'accuracy'\nat_least = 0.5\n[[property]]\nkind = 'stable'\n"
LOSS = "[[property]]\nkind = 'loss'\n"


def run(layers: list[int], rate: float = 0.5, loss: str = "cross_entropy") -> str:
    training = {"loss": loss, "learning_rate": rate, "epochs": 3}
    certify = {"relaxation": "linear", "window": 2}
    return run_text(model={"layers": layers}, training=training, certify=certify)


def certify(folder: Path, x: Any, y: Any, text: str, *options: str) -> Path:
    np.savez(folder / "d.npz", X=x, y=y)
    (folder / "run.toml").write_text(text, encoding="utf-8")
    out = folder / "out"
    assert main(["certify", str(folder / "run.toml"), "--out", str(out), "--quiet", *options]) == 0
    return out


def small(folder: Path, text: str, *options: str, count: int = 8) -> Path:
    """The run of a text on a few samples of two features."""
    y = np.arange(count) % 2
    return certify(folder, np.eye(count)[:, :2] + y[:, None], y, text, *options)


def page(folder: Path) -> str:
    return (folder / "report.html").read_text(encoding="utf-8")


def visible(text: str) -> str:
    """The words of a page, without its tags, scripts and styles."""
    text = re.sub(r"<(script|style|title)\b.*?</\1>", " ", text, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", text)).split())


def copied(folder: Path, target: Path, **changes: Any) -> Path:
    shutil.copytree(folder, target)
    (target / "result.json").write_text(json.dumps(document(folder) | changes))
    return target


def trained(loss: str, x: Any, y: Any, **options: Any) -> agt.Result:
    torch.manual_seed(0)
    outputs = 1 if loss == "mse" else 2
    model = torch.nn.Sequential(torch.nn.Linear(x.shape[1], outputs)).double()
    training = agt.Training(loss=loss, learning_rate=0.1, epochs=2)
    return agt.certify(model, (x, y), training, agt.FeaturePoisoning(1, 0.001), **options)
