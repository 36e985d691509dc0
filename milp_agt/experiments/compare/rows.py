"""Certifies one training run once for each relaxation, window and solver."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from milp_agt.attacks import Attack, ParameterSandwich, Search
from milp_agt.certification.certify import certify
from milp_agt.certification.options import CertifyOptions, options_of, takes_options
from milp_agt.certification.result import Result
from milp_agt.core.arguments import at_least, callable_of, listed, of_kind
from milp_agt.core.deadline import Deadline, shorter
from milp_agt.core.reachable import Bounds
from milp_agt.core.relaxation import Relaxation
from milp_agt.data import Dataset
from milp_agt.errors import InvalidInputError, SolverUnavailableError
from milp_agt.experiments.compare.comparison import Comparison, ComparisonRow
from milp_agt.formulations.loss import get_loss
from milp_agt.threats import ThreatModel
from milp_agt.training.inputs import check_run, features_of, located
from milp_agt.training.training import Training

ArrayLike = npt.NDArray[np.generic] | torch.Tensor


# The row of a tree, see :func:`compare`.
TREE = "tree"


class _ComparedCase(NamedTuple):
    """One row that was asked for."""

    relaxation: str
    window: int
    solver: str | None

    @property
    def name(self) -> str:
        """What was asked, in a few words."""
        window = f"window {self.window}" if self.window else ""
        return ", ".join(filter(None, (self.relaxation, window, self.solver)))

    def options(self) -> dict[str, Any]:
        """What this row has of its own."""
        if self.relaxation == TREE:
            return {"relaxation": "zonotope"}
        return {
            "tree": 0.0,
            "relaxation": self.relaxation,
            "window": self.window or None,
            "solver": self.solver,
        }


@takes_options("relaxation", "window", "solver")
def compare(
    model: torch.nn.Module,
    data: tuple[ArrayLike, ArrayLike] | Dataset,
    training: Training,
    threat: ThreatModel,
    relaxations: Sequence[str] = ("interval", "linear", "lp"),
    windows: Sequence[int | Literal["T"]] = (1,),
    X_test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    *,
    solvers: Sequence[str | None] = (None,),
    attack: bool | Search = False,
    on_row: Callable[[ComparisonRow, int, int], None] | None = None,
    within: float | None = None,
    options: CertifyOptions | None = None,
    **changes: Any,
) -> Comparison:
    """Certify the same run with each relaxation over each window by each solver.

    Args:
        model, data, training, threat: as for :func:`milp_agt.certify`.
        relaxations: names of relaxations. ``interval`` keeps no past step and gets one row.
        windows: how many past steps linear forms walk back through; "T" is the whole run. Programs
            span as many steps unless ``program_window`` says otherwise.
        X_test, y_test: test data; with them each row bounds the accuracy (regression: the loss).
        solvers: back ends of the relaxations that solve programs; None picks one. What a solver is not
            able to do, or is not installed for, is left out and stands in the notes.
        attack: attack the run once, so that each row says how far it is from what attacks reach.
        on_row: called after every row with the row, its number from 1, and the number of rows.
        within: seconds for all rows: each has an equal share of what is left, and rows after that are left
            out and named in the notes.
        options: all of those that follow, as one object; what is given by name replaces them. The time
            limit holds for each row. With ``tree = SECONDS`` there is one more row, of a zonotope that a tree
            narrows for so long (:meth:`Result.narrowed`), and questions of this row alone are searched, too.

    Raises:
        InvalidInputError: no relaxation or no window, a window below 1, or only one of X_test and
            y_test; and whatever :func:`milp_agt.certify` raises.
    """
    if (X_test is None) != (y_test is None):
        raise InvalidInputError(
            "Compare relaxations on test data", "only one of X_test and y_test", "give both"
        )
    _check_kinds(relaxations, windows, solvers, on_row)
    options = options_of(options, changes)
    arrays, bound, _ = located(data, threat)
    check_run(model, arrays, training, bound)
    total = len(training.batch_order(len(features_of(arrays[0]))))
    cases = list(dict.fromkeys(_cases(relaxations, windows, solvers, total)))
    if cases and options.tree:
        cases.append(_ComparedCase(TREE, 0, None))
    if not cases:
        raise InvalidInputError(
            "Compare relaxations",
            f"relaxations {tuple(relaxations)}, windows {tuple(windows)}, solvers {tuple(solvers)}",
            "give at least one of each",
        )
    measure = "accuracy" if get_loss(training.loss).is_classification else "loss"
    solved = options.steps_of(options.program_window, total)
    rows: list[ComparisonRow] = []
    notes: list[str] = []
    reached: Attack | None = None
    deadline = Deadline.within(within)
    for number, case in enumerate(cases, 1):
        if rows and deadline.is_over():
            notes.append(f"{case.name}: the time of {within:g} s was over")
            continue
        begun = time.perf_counter()
        try:
            result = certify(
                model,
                data,
                training,
                threat,
                options=_in_time(options, deadline.share(len(cases) + 1 - number)).changed(
                    case.options()
                ),
            )
            if case.relaxation == TREE:
                result = result.narrowed(options.tree)
        except SolverUnavailableError as error:
            notes.append(f"{case.relaxation} by {case.solver or 'any solver'}: {error}")
            continue
        seconds = time.perf_counter() - begun
        if attack is not False and reached is None:
            reached = _attack(model, data, training, threat, attack, deadline.share(1))
        bounds = None
        if X_test is not None and y_test is not None:
            score = result.accuracy if measure == "accuracy" else result.loss
            bounds = score(X_test, y_test)
        spanned = _program_window(case.relaxation, case.window, solved, total)
        rows.append(_row(case, result, spanned, seconds, measure, bounds, reached))
        if on_row is not None:
            on_row(rows[-1], number, len(cases))
    return Comparison(tuple(rows), tuple(notes), deadline.missed)


def _in_time(options: CertifyOptions, share: float | None) -> CertifyOptions:
    """The options with the share of the time of the whole, within the time limit of a row."""
    return options.changed({"time_limit": shorter(options.time_limit, share)})


def _attack(
    model: torch.nn.Module,
    data: tuple[ArrayLike, ArrayLike] | Dataset,
    training: Training,
    threat: ThreatModel,
    attack: bool | Search,
    left: float | None,
) -> Attack:
    """What attacks reach; the bounds that they are checked against are the cheapest."""
    search = Search() if isinstance(attack, bool) else attack
    search = replace(search, time_limit=shorter(search.time_limit, left))
    result = certify(model, data, training, threat, relaxation="interval", attack=search)
    assert result.attack is not None
    return result.attack


def _row(
    case: _ComparedCase,
    result: Result,
    spanned: int | None,
    seconds: float,
    measure: str,
    bounds: Bounds | None,
    reached: Attack | None,
) -> ComparisonRow:
    """
    Raises:
        SoundnessError: an attack outside the reachable set.
    """
    programs = [step.program for step in result.steps if step.program]

    def largest(size: str) -> int:
        return max((program[size] for program in programs), default=0)

    def total(count: str) -> int:
        return sum(program[count] for program in programs)

    widths = [step.mean_width for step in result.steps]
    elapsed = list(itertools.accumulate(step.seconds for step in result.steps))
    if case.relaxation == TREE:
        widths[-1], elapsed[-1] = float(result.reachable.mean_width), seconds
    return ComparisonRow(
        relaxation=case.relaxation,
        window=case.window,
        program_window=spanned,
        solver=case.solver,
        used=", ".join(dict.fromkeys(step.relaxation for step in result.steps)),
        mean_width=float(result.reachable.mean_width),
        max_width=float(result.reachable.max_width),
        attack_ratio=None
        if reached is None
        else ParameterSandwich.of(result.reachable, reached).ratio,
        measure=None if bounds is None else measure,
        lower=None if bounds is None else bounds.lower,
        nominal=None if bounds is None else bounds.nominal,
        upper=None if bounds is None else bounds.upper,
        columns=largest("columns"),
        rows=largest("rows"),
        integers=largest("integers"),
        products=largest("products"),
        solves=total("solves"),
        skipped=total("skipped"),
        limited=total("limited"),
        seconds=seconds,
        limit_reached=result.limit_reached,
        widths=tuple(widths),
        elapsed=tuple(elapsed),
    )


def _check_kinds(relaxations: object, windows: object, solvers: object, on_row: object) -> None:
    listed(relaxations, str, "relaxations", "give names: ('interval', 'linear')")
    listed(windows, (int, str), "windows", "give counts of steps, or 'T' for the whole run")
    names = "give names, or None to have one picked"
    of_kind(solvers, Sequence, "solvers", names)
    listed(solvers, (str, type(None)), "solvers", names)
    if on_row is not None:
        callable_of(on_row, "on_row", "give a function (row, number, rows), or leave it out")


def _cases(
    relaxations: Sequence[str],
    windows: Sequence[int | Literal["T"]],
    solvers: Sequence[str | None],
    total: int,
) -> Iterator[_ComparedCase]:
    for relaxation, window in itertools.product(relaxations, windows):
        steps = total if window == "T" else window
        at_least(steps, 1, "A window of a comparison", "give 1 or more, or 'T'", whole=True)
        walked = 0 if relaxation == "interval" else min(steps, total)
        solves = relaxation == "auto" or Relaxation.parse(relaxation).uses_programs
        for solver in solvers if solves else solvers[:1]:
            yield _ComparedCase(relaxation, walked, solver if solves else None)


def _program_window(relaxation: str, window: int, solved: int | None, total: int) -> int | None:
    if relaxation == "auto":
        return None
    if relaxation == TREE:
        return 0
    uses_programs = Relaxation.parse(relaxation).uses_programs
    return min(window if solved is None else solved, total) if uses_programs else 0
