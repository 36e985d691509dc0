"""The table of what is supported, generated from the registries: ``python -m milp_agt.support``."""

from __future__ import annotations

from milp_agt.core.relaxation import Relaxation
from milp_agt.formulations.base import operations
from milp_agt.formulations.loss import losses
from milp_agt.solvers import solver_table
from milp_agt.threats import THREATS
from milp_agt.tracing import supported_layers


def table() -> str:
    """Markdown: layers, losses, threat models, relaxations, solvers, and the rules of each operation."""
    summary = [
        ("layers", supported_layers()),
        ("losses", tuple(losses())),
        ("threat models", tuple(t.__name__ for t in THREATS)),
        ("relaxations", (*(r.value for r in Relaxation), "auto")),
        ("solvers", tuple(row.name for row in solver_table())),
    ]
    lines = ["| what | supported |", "|---|---|"]
    lines += [f"| {what} | {', '.join(f'`{n}`' for n in names)} |" for what, names in summary]
    lines += ["", "| operation | how exact |", "|---|---|"]
    lines += [f"| `{key}` | {op.exactness} |" for key, op in operations().items()]
    lines += ["", "| loss | formula, mean over the batch |", "|---|---|"]
    lines += [f"| `{key}` | {loss.formula} |" for key, loss in losses().items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
