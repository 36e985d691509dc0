"""What certificates cover, generated from the rules: ``python -m milp_agt.reports.coverage``."""

from __future__ import annotations

from dataclasses import replace

import torch

from milp_agt.certificates.asked import SHARES
from milp_agt.certificates.covered import LOSSES, barred, larger, methods_of
from milp_agt.checker.statement import KINDS
from milp_agt.core.relaxation import Relaxation
from milp_agt.formulations.loss import losses
from milp_agt.properties.property_table import PROPERTIES
from milp_agt.threats import (
    FeatureLabelPoisoning,
    FeaturePoisoning,
    Insertion,
    LabelPoisoning,
    Removal,
    SeparatePoisoning,
    Substitution,
    ThreatModel,
)

# One of each kind of move, with classes or targets.
_THREATS: dict[str, tuple[ThreatModel, str]] = {
    "features, norm inf": (FeaturePoisoning(1, 0.1), "bce"),
    "features, norm 1": (FeaturePoisoning(1, 0.1, norm="1"), "bce"),
    "features, norm 2": (FeaturePoisoning(1, 0.1, norm="2"), "bce"),
    "features, categories": (FeaturePoisoning(1, 0.1, categorical=[[0, 1]]), "bce"),
    "labels of classes": (LabelPoisoning(1), "bce"),
    "targets in ranges": (LabelPoisoning(1, radius=0.1), "mse"),
    "features and labels together": (FeatureLabelPoisoning(1, 0.1), "bce"),
    "features and labels, separate budgets": (
        SeparatePoisoning(FeaturePoisoning(1, 0.1), LabelPoisoning(1)),
        "bce",
    ),
    "samples substituted": (Substitution(1), "bce"),
    "samples removed": (Removal(1), "bce"),
    "samples inserted": (Insertion(1), "bce"),
}
# When poison is chosen: whether once for the run, and whether the budget is one of each batch.
_SCOPES = {
    "once for the run": (True, False),
    "once, in every batch": (True, True),
    "anew in every step": (False, False),
}


def _threats() -> list[str]:
    """By which methods each threat is checked, by when it is chosen."""
    features = torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([[0.0], [1.0], [0.0]], dtype=torch.float64)
    lines = [f"| threat | stated as | {' | '.join(_SCOPES)} |", "|---" * (2 + len(_SCOPES)) + "|"]
    for name, (threat, loss) in _THREATS.items():
        cells, bound = [], threat.bind(features, labels, losses()[loss])
        for static, per_batch in _SCOPES.values():
            poison = replace(bound, static=static, per_batch=per_batch)
            cells.append(", ".join(methods_of(poison)) or f"no: {'; '.join(barred(poison))}")
        lines.append(f"| {name} | {larger(bound)} | {' | '.join(cells)} |")
    return lines


def table() -> str:
    """Markdown: threats, questions, layers and losses, and what is claimed of each relaxation."""
    lines = [*_threats(), "", "| question | covered |", "|---|---|"]
    known = (*SHARES, "loss")
    said = dict.fromkeys(known, "yes") | {
        "targeted": "one unsafe class for each point",
        "backdoor": "on test points",
        "collective": "as accuracy: what is proved of points one by one",
    }
    lines += [f"| {q} | {said.get(q, 'no')} |" for q in PROPERTIES.all()]
    lines += [
        "",
        "Layers: " + ", ".join(KINDS) + ". Losses: " + ", ".join(LOSSES) + ". By every method.",
    ]
    lines += ["", "| relaxation of the run | what the certificate claims |", "|---|---|"]
    for level in Relaxation:
        own = _JUDGED if level is Relaxation.INTERVAL else _PROVED
        lines.append(f"| {level.value} | {own} |")
    return "\n".join(lines)


_JUDGED = "its bounds, up to rounding (with norms, and threats stated as larger ones: as below)"
_PROVED = "what the checker proves: its own bounds where they hold, at most four times as wide"


if __name__ == "__main__":
    print(table())
