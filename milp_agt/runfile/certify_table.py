"""[certify] of a RUN.toml: the relaxation, what it spans, and the means that it may use."""

from __future__ import annotations

import warnings
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from milp_agt.core.relaxation import Relaxation
from milp_agt.core.results import Limits
from milp_agt.core.strengthening import DEFAULT, Strengthening
from milp_agt.runfile.table import Count, Index, Memory, NonNegative, Seconds, Table, problem

RELAXATIONS = (*(level.value for level in Relaxation), "auto")
EACH_SOLVE = Limits()
Window = Count | Literal["T"]
_GONE = "it gained nothing that was worth its cost, and programs do without it"
_ALWAYS = "programs always do it"
# Switches of older run files: such files go on working, and one line says what holds.
REMOVED = {
    **dict.fromkeys(("cuts", "phases", "rlt", "symmetry", "selection_first"), _GONE),
    **dict.fromkeys(("on_off", "influence", "by_choice"), _ALWAYS),
    "identity": "'qcqp' always does it, the other levels never",
}


class StrengtheningTable(Table):
    """What may make the programs of `lp` and above tighter, at further cost."""

    pieces: Count = Field(
        default=DEFAULT.pieces,
        description="Pieces of the range of one operand of a chosen product, each with McCormick "
        "envelopes and a binary of its own (`milp` and `miqp`); 1 for none.",
    )
    pieced: Count = Field(
        default=DEFAULT.pieced,
        description="Products of a window that are cut into `pieces`: those with the largest gap.",
    )
    obbt_seconds: Annotated[NonNegative, Field(json_schema_extra={"x-unit": "seconds"})] = Field(
        default=DEFAULT.obbt_seconds,
        description="Time in which every step of `lp` and above may tighten the ranges inside it by "
        "linear programs before it is bounded itself; 0 for none.",
    )

    @model_validator(mode="before")
    @classmethod
    def _without_removed(cls, table: Any) -> Any:
        """Switches that are gone are left out, with a warning for each."""
        if not isinstance(table, dict):
            return table
        for key in [key for key in table if key in REMOVED]:
            warnings.warn(
                f"[certify.strengthening] '{key}' has no effect: the switch was removed, "
                f"{REMOVED[key]}; drop the line",
                UserWarning,
                stacklevel=2,
            )
        return {key: value for key, value in table.items() if key not in REMOVED}

    def build(self) -> Strengthening:
        return Strengthening(**self.model_dump())


class CertifyTable(Table):
    """Which relaxation, over which window, with which means."""

    relaxation: str = Field(
        default="linear",
        description="How the run is bounded, from cheap and loose to dear and tight; `auto` takes the "
        "tightest of the first three whose predicted cost fits `time_limit` and `memory`.",
        json_schema_extra={"enum": list(RELAXATIONS)},
    )
    window: Window | None = Field(
        default=None,
        description='Past steps that linear forms are walked through; `"T"`, or leaving it out, is '
        "the whole run.",
    )
    program_window: Window | None = Field(
        default=None,
        description='Steps in one program of `lp` and above, `"T"` for the whole run; unless given, '
        "as many as `window` says, and 1 without either.",
    )
    inner_bounds: Literal["interval", "linear"] | None = Field(
        default=None,
        description="How the ranges inside a step are bounded in `linear` and above, by intervals or "
        "by linear forms through the window; unless given, linear where its predicted cost is small.",
    )
    selections: Literal["joint", "charged", "enumerated"] | None = Field(
        default=None,
        description="Bound all choices of poisoned samples at once, charge every error to the samples "
        "that can cause it, or carry a box for each choice (`linear` and above); unless given, "
        "enumerated where that is predicted to be cheap, else charged where that is, else joint.",
    )
    alpha_steps: Index = Field(
        default=0,
        description="Moves of the gradient ascent that optimises the slopes of linear bounds, for each "
        "end of each parameter (`linear` and above); 0 for none, 10 to 30 are worth trying.",
    )
    alpha_every: Count | None = Field(
        default=None,
        description="After how many training steps slopes are optimised; unless given, at the end of "
        "the run alone.",
    )
    solver: str | None = Field(
        default=None,
        description="Back end of programs: `highs`, `scip`, `gurobi`, `cvxpy`, or `cvxpy:NAME` for a "
        "solver that cvxpy reaches; unless given, the first of them that is installed and able.",
        examples=["highs"],
    )
    solve_time_limit: Seconds | None = Field(
        default=EACH_SOLVE.time,
        description="Time for each solve of a program; a limit loosens bounds and never breaks them.",
    )
    solve_gap: NonNegative = Field(
        default=EACH_SOLVE.gap,
        description="Relative distance of the bound to the best point found at which the tree of a "
        "solve may stop (`milp` and above).",
    )
    solve_nodes: Count | None = Field(
        default=None,
        description="Nodes of the tree of each solve, at most (`milp` and above); no limit unless given.",
    )
    strengthening: StrengtheningTable = StrengtheningTable()
    workers: Count = Field(
        default=1, description="Processes that solve programs (extra `parallel` for more than one)."
    )
    device: str = Field(
        default="cpu",
        description="`cpu`, `cuda` or another device of torch, or `auto`, the GPU if there is one.",
        examples=["cuda"],
    )
    memory: Memory = Field(
        default="4GiB",
        description="Memory of the process, in B, KB, MB, GB, KiB, MiB or GiB; work is cut into pieces "
        "that fit, and a fallback says where it cannot be kept.",
    )
    time_limit: Seconds | None = Field(
        default=None,
        description="Time for the whole run: what is predicted not to fit ends first, programs before "
        "linear forms, and intervals go on to the end; no limit unless given.",
    )
    attack: bool = Field(
        default=False,
        description="Attack the run as well when the bounds are done, as [attack] says, so that every "
        "number has both sides.",
    )

    @model_validator(mode="after")
    def _known_relaxation(self) -> Self:
        if self.relaxation not in RELAXATIONS:
            raise problem(
                f"relaxation = '{self.relaxation}'",
                f"relaxation should be one of {', '.join(RELAXATIONS)}",
            )
        return self

    def limits(self) -> Limits:
        """The limits of each solve of a program."""
        return Limits(self.solve_time_limit, self.solve_gap, self.solve_nodes)
