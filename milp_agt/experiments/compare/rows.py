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
from milp_agt.core.deadline import Deadline
from milp_agt.core.reachable import Bounds
from milp_agt.core.relaxation import Relaxation
from milp_agt.data import Dataset
from milp_agt.errors import InvalidInputError, SolverUnavailableError
from milp_agt.experiments.compare.comparison import TREE, Comparison, ComparisonRow, asked
from milp_agt.formulations.loss import get_loss
from milp_agt.threats import ThreatModel
from milp_agt.training.inputs import check_run, features_of, located
from milp_agt.training.training import Training

STEPS_SHARE = 0.8  # of the time of a row; the rest is for its questions
ArrayLike = npt.NDArray[np.generic] | torch.Tensor


class _ComparedCase(NamedTuple):
    """One row that was asked for."""

    relaxation: str
    window: int
    solver: str | None

    @property
    def name(self) -> str:
        return asked(*self)

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

    def spanned(self, solved: int | None, total: int) -> int | None:
        """Steps of one program, where ``solved`` were asked for."""
        if self.relaxation == "auto":
            return None
        if self.relaxation == TREE or not Relaxation.parse(self.relaxation).uses_programs:
            return 0
        return min(self.window if solved is None else solved, total)


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
    listed(relaxations, str, "relaxations", "give names: ('interval', 'linear')")
    listed(windows, (int, str), "windows", "give counts of steps, or 'T' for the whole run")
    names = "give names, or None to have one picked"
    of_kind(solvers, Sequence, "solvers", names)
    listed(solvers, (str, type(None)), "solvers", names)
    if on_row is not None:
        callable_of(on_row, "on_row", "give a function (row, number, rows), or leave it out")
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
        # Its share of the time of the whole, within the time limit of a row.
        share = Deadline.within(deadline.share(len(cases) + 1 - number))
        own = options.within(share.share(1, STEPS_SHARE)).changed(case.options())
        try:
            result = certify(model, data, training, threat, options=own)
            result = result.within(share)
            if case.relaxation == TREE:
                result = result.narrowed(min(options.tree, share.left))
        except SolverUnavailableError as error:
            notes.append(f"{case.relaxation} by {case.solver or 'any solver'}: {error}")
            continue
        seconds = time.perf_counter() - begun
        if attack is not False and reached is None:
            search = Search() if isinstance(attack, bool) else attack
            part = deadline.share(len(cases) + 1 - number)
            search = search.within(part)
            # The bounds that attacks are checked against are the cheapest.
            cheap = certify(
                model, data, training, threat, relaxation="interval", attack=search, time_limit=part
            )
            reached = cheap.attack
        bounds = None
        if X_test is not None and y_test is not None:
            score = result.accuracy if measure == "accuracy" else result.loss
            bounds = score(X_test, y_test)
        rows.append(_row(case, result, case.spanned(solved, total), seconds, bounds, reached))
        if bounds is not None:
            rows[-1] = replace(rows[-1], measure=measure)
        if on_row is not None:
            on_row(rows[-1], number, len(cases))
    return Comparison(tuple(rows), tuple(notes), deadline.missed)


def _row(
    case: _ComparedCase,
    result: Result,
    spanned: int | None,
    seconds: float,
    bounds: Bounds | None,
    reached: Attack | None,
) -> ComparisonRow:
    """
    Raises:
        SoundnessError: an attack outside the reachable set.
    """
    programs = [step.program for step in result.steps if step.program]
    own: dict[str, Any] = {}
    for name in ("columns", "rows", "integers", "products"):
        own[name] = max((program[name] for program in programs), default=0)
    for name in ("solves", "skipped", "limited"):
        own[name] = sum(program[name] for program in programs)
    if bounds is not None:
        own |= {end: getattr(bounds, end) for end in ("lower", "nominal", "upper")}
    widths = [step.mean_width for step in result.steps]
    elapsed = list(itertools.accumulate(step.seconds for step in result.steps))
    if case.relaxation == TREE:
        widths[-1], elapsed[-1] = float(result.reachable.mean_width), seconds
    sandwich = None if reached is None else ParameterSandwich.of(result.reachable, reached)
    return ComparisonRow(
        **case._asdict(),
        program_window=spanned,
        used=", ".join(dict.fromkeys(step.relaxation for step in result.steps)),
        mean_width=float(result.reachable.mean_width),
        max_width=float(result.reachable.max_width),
        attack_ratio=None if sandwich is None else sandwich.ratio,
        **own,
        seconds=seconds,
        limit_reached=result.limit_reached or (bounds is not None and bounds.limit_reached),
        widths=tuple(widths),
        elapsed=tuple(elapsed),
    )


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
