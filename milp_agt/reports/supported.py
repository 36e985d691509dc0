"""The table of what is supported, generated from the registries: ``python -m milp_agt.reports.supported``."""

from __future__ import annotations

from milp_agt.core.relaxation import levels
from milp_agt.formulations.loss import losses
from milp_agt.formulations.registry import operations
from milp_agt.properties.property_table import PROPERTIES
from milp_agt.solvers import solver_table
from milp_agt.threats import THREATS
from milp_agt.threats.sets import move_sets
from milp_agt.training.layers.builder import frozen_only_layers, supported_layers
from milp_agt.training.layers.functions import supported_functions


def _questions() -> list[str]:
    """What is bounded, and for which losses."""
    lines = ["| question | what is bounded | losses |", "|---|---|---|"]
    for kind, asked in PROPERTIES.all().items():
        fitting = ", ".join(f"`{key}`" for key, loss in losses().items() if asked.fits(loss))
        lines.append(f"| `{kind}` | {asked.what} | {fitting} |")
    combined = (
        "Every threat model, every question and every relaxation can be combined, but that `zonotope` "
        "refuses clipping of the total norm in float32 runs."
    )
    return [*lines, "", combined]


def _moves() -> list[str]:
    """Sets of moves: what each kind of bound knows of them."""
    lines = ["| moves of a sample | `linear` | `lp` | `milp` and above |", "|---|---|---|---|"]
    rules = [kind.rules for kind in move_sets()]
    lines += [f"| {r.moves} | {r.support} | {r.relaxed} | {r.exact} |" for r in rules]
    return lines


def table() -> str:
    """Markdown: layers, losses, threat models, relaxations, solvers, and the rules of each operation."""
    summary = [
        ("layers", supported_layers()),
        ("of these only behind layers that are not trained", frozen_only_layers()),
        ("functions in a forward of one's own", supported_functions()),
        ("losses", tuple(losses())),
        ("threat models", tuple(t.made_of.__name__ for t in THREATS.all().values())),
        ("relaxations", levels()),
        ("solvers", tuple(row.name for row in solver_table())),
    ]
    lines = ["| what | supported |", "|---|---|"]
    lines += [f"| {what} | {', '.join(f'`{n}`' for n in names)} |" for what, names in summary]
    lines += ["", *_questions(), "", *_moves()]
    lines += ["", "| operation | how exact |", "|---|---|"]
    lines += [f"| `{key}` | {op.exactness} |" for key, op in operations().items()]
    lines += ["", "| loss | formula, mean over the batch |", "|---|---|"]
    lines += [f"| `{key}` | {loss.formula} |" for key, loss in losses().items()]
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
