"""Relaxations, windows and solvers side by side on one training run."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from milp_agt.attacks import Attack, ParameterSandwich, Search
from milp_agt.certification.certify import certify
from milp_agt.certification.options import CertifyOptions, options_of, takes_options
from milp_agt.core.arguments import at_least, callable_of, listed, of_kind
from milp_agt.core.deadline import Deadline
from milp_agt.core.relaxation import Relaxation
from milp_agt.data import Dataset
from milp_agt.errors import InvalidInputError, SolverUnavailableError
from milp_agt.formulations.loss import get_loss
from milp_agt.io.drawing import COLOURS, DASHES, MARKERS, write_figure
from milp_agt.io.tables import Exported, format_table
from milp_agt.threats import ThreatModel
from milp_agt.training.inputs import check_run, features_of, located
from milp_agt.training.training import Training

SCHEMA_VERSION = 2
TREE = "tree"  # the relaxation of the row of a tree
STEPS_SHARE = 0.8  # of the time of a row; the rest is for its questions
_SERIES = ("widths", "elapsed")
_LARGEST, _SUMS = ("columns", "rows", "integers", "products"), ("solves", "skipped", "limited")
ArrayLike = npt.NDArray[np.generic] | torch.Tensor


@dataclass(frozen=True, kw_only=True)
class ComparisonRow:
    """One certification: what was asked, how wide the parameters are after the last step.

    Attributes:
        relaxation, window, program_window, solver: what was asked. ``window`` counts the steps that
            linear forms walk through, ``program_window`` the steps of one program; 0 where there is
            neither, None where auto decides. ``solver`` is None where nothing is solved or it was left
            open.
        used: the relaxations that the steps really used.
        mean_width, max_width: of the parameter box after the last step.
        attack_ratio: certified over attacked mean width; None without attacks.
        measure: "accuracy", or "loss" for regression, on the test data; ``lower`` and ``upper`` bound it
            for every admissible poisoning. All four are None without test data.
        columns, rows, integers, products: the largest program of a step; 0 without programs.
        solves, skipped, limited: objectives solved, closed by the cheaper bound, and stopped by a limit.
        seconds: wall-clock time of the certification.
        limit_reached: whether a limit was met anywhere.
        widths, elapsed: mean width after each step, and seconds from the start.
    """

    relaxation: str
    window: int
    program_window: int | None = 0
    solver: str | None = None
    used: str = ""
    mean_width: float
    max_width: float
    attack_ratio: float | None = None
    measure: str | None = None
    lower: float | None = None
    nominal: float | None = None
    upper: float | None = None
    columns: int = 0
    rows: int = 0
    integers: int = 0
    products: int = 0
    solves: int = 0
    skipped: int = 0
    limited: int = 0
    seconds: float
    limit_reached: bool = False
    widths: tuple[float, ...] = ()
    elapsed: tuple[float, ...] = ()

    @property
    def name(self) -> str:
        """What was asked, in a few words."""
        return _named(self.relaxation, self.window, self.solver)


def _named(relaxation: str, window: int, solver: str | None) -> str:
    return ", ".join(filter(None, (relaxation, f"window {window}" if window else "", solver)))


@dataclass(frozen=True)
class Comparison(Exported):
    """Rows in the order asked: each relaxation over each window by each solver.

    ``notes`` say what was left out and why, a solver that does not know bilinear terms, say. The series over
    the steps are in the JSON document alone.
    """

    rows: tuple[ComparisonRow, ...]
    notes: tuple[str, ...] = ()
    cut_short: bool = False

    columns = tuple(each.name for each in fields(ComparisonRow) if each.name not in _SERIES)

    @property
    def limit_reached(self) -> bool:
        """Whether any row met a limit, or was left out for lack of time."""
        return self.cut_short or any(row.limit_reached for row in self.rows)

    def table(self) -> str:
        """The rows as text: widths and the property, then what the programs took, then notes.

        Beside a tree, each width is divided by its, too.
        """
        measure = next((row.measure for row in self.rows if row.measure), "measure")
        headers = ["relaxation", "window", "program", "solver", "used", "mean width", "max width"]
        # Hardly above attacks, a tree is the truth: how far each row is from it.
        trees = [row.mean_width for row in self.rows if row.relaxation == TREE]
        headers += ["/ attack", *("/ tree" for _ in trees)]
        headers += [f"{measure}: lower", "nominal", "upper", "seconds"]
        cells = [
            (
                *(row.relaxation, row.window, row.program_window, row.solver),
                row.used + (" (limit reached)" if row.limit_reached else ""),
                *(row.mean_width, row.max_width, row.attack_ratio),
                *(row.mean_width / width if width else None for width in trees),
                *(row.lower, row.nominal, row.upper),
                f"{row.seconds:.3f}",
            )
            for row in self.rows
        ]
        parts = [format_table(headers, cells)]
        sizes = [
            (row.name, *(getattr(row, size) for size in (*_LARGEST, *_SUMS)))
            for row in self.rows
            if row.solves or row.limited
        ]
        if sizes:
            parts.append(format_table(("largest program", *_LARGEST, *_SUMS), sizes))
        if self.notes:
            parts.append("\n".join(f"left out: {note}" for note in self.notes))
        return "\n\n".join(parts)

    def lines(self) -> Iterable[Mapping[str, Any]]:
        return map(asdict, self.rows)

    def document(self) -> Mapping[str, Any]:
        return {"schema_version": SCHEMA_VERSION, "rows": [*self.lines()], "notes": self.notes}

    def draw(self) -> Any:
        """A matplotlib figure: left the mean width after each step, right that width against the seconds
        that had passed; one line for each row."""
        figure = import_module("matplotlib.figure").Figure(
            figsize=(10.0, 4.0), layout="constrained"
        )
        left, right = figure.subplots(1, 2, sharey=True)
        finite = False
        for number, row in enumerate(self.rows):
            style = {
                "label": row.name,
                "color": COLOURS[number % len(COLOURS)],
                "marker": MARKERS[number % len(MARKERS)],
                "linestyle": DASHES[number // len(COLOURS) % len(DASHES)],
                "markevery": max(1, len(row.widths) // 10),
            }
            # Gaps where a logarithmic axis has no place.
            widths = np.array(row.widths)
            widths = np.where(np.isfinite(widths) & (widths > 0.0), widths, np.nan)
            finite |= bool(np.isfinite(widths).any())
            left.plot(np.arange(1, len(widths) + 1), widths, **style)
            right.plot(np.array(row.elapsed), widths, **style)
        for axes, label in ((left, "training step"), (right, "seconds")):
            axes.set_xlabel(label)
            axes.grid(axis="y", color="#dddddd", linewidth=0.8)
        if finite:
            left.set_yscale("log")
            right.set_xscale("log")
        left.set_ylabel("mean width of a parameter")
        left.set_title("Width over steps", loc="left")
        right.set_title("Tightness over time", loc="left")
        right.legend(fontsize=8, frameon=False)
        return figure

    def plot(self, folder: Path) -> tuple[Path, ...]:
        """Draw ``compare.png`` and ``compare.svg`` into a folder.

        Raises:
            InvalidInputError: matplotlib is not installed.
        """
        return write_figure(self.draw, folder, "compare")


class _Case(NamedTuple):
    """One row that was asked for."""

    relaxation: str
    window: int
    solver: str | None

    def options(self) -> dict[str, Any]:
        """What this row has of its own."""
        if self.relaxation == TREE:
            return {"relaxation": "zonotope"}
        return {"tree": 0.0, **self._asdict(), "window": self.window or None}

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
        SoundnessError: an attack outside the reachable set of a row.
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
    if not cases:
        raise InvalidInputError(
            "Compare relaxations",
            f"relaxations {tuple(relaxations)}, windows {tuple(windows)}, solvers {tuple(solvers)}",
            "give at least one of each",
        )
    if options.tree:
        cases.append(_Case(TREE, 0, None))
    measure = "accuracy" if get_loss(training.loss).is_classification else "loss"
    solved = options.steps_of(options.program_window, total)
    rows: list[ComparisonRow] = []
    notes: list[str] = []
    reached: Attack | None = None
    deadline = Deadline.within(within)
    for number, case in enumerate(cases, 1):
        if rows and deadline.is_over():
            notes.append(f"{_named(*case)}: the time of {within:g} s was over")
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
            part = deadline.share(len(cases) + 1 - number)
            search = (Search() if isinstance(attack, bool) else attack).within(part)
            # The bounds that attacks are checked against are the cheapest.
            cheap = certify(
                model, data, training, threat, relaxation="interval", attack=search, time_limit=part
            )
            reached = cheap.attack
        found: dict[str, Any] = {"limit_reached": result.limit_reached}
        if X_test is not None and y_test is not None:
            score = result.accuracy if measure == "accuracy" else result.loss
            bounds = score(X_test, y_test)
            found = {end: getattr(bounds, end) for end in ("lower", "nominal", "upper")}
            found |= {"measure": measure}
            found |= {"limit_reached": result.limit_reached or bounds.limit_reached}
        programs = [step.program for step in result.steps if step.program]
        found |= {n: max((program[n] for program in programs), default=0) for n in _LARGEST}
        found |= {n: sum(program[n] for program in programs) for n in _SUMS}
        if reached is not None:
            found["attack_ratio"] = ParameterSandwich.of(result.reachable, reached).ratio
        widths = [step.mean_width for step in result.steps]
        elapsed = list(itertools.accumulate(step.seconds for step in result.steps))
        if case.relaxation == TREE:
            widths[-1], elapsed[-1] = float(result.reachable.mean_width), seconds
        row = ComparisonRow(
            **case._asdict(),
            program_window=case.spanned(solved, total),
            used=", ".join(dict.fromkeys(step.relaxation for step in result.steps)),
            mean_width=float(result.reachable.mean_width),
            max_width=float(result.reachable.max_width),
            seconds=seconds,
            widths=tuple(widths),
            elapsed=tuple(elapsed),
            **found,
        )
        rows.append(row)
        if on_row is not None:
            on_row(row, number, len(cases))
    return Comparison(tuple(rows), tuple(notes), deadline.missed)


def _cases(
    relaxations: Sequence[str],
    windows: Sequence[int | Literal["T"]],
    solvers: Sequence[str | None],
    total: int,
) -> Iterator[_Case]:
    for relaxation, window in itertools.product(relaxations, windows):
        steps = total if window == "T" else window
        at_least(steps, 1, "A window of a comparison", "give 1 or more, or 'T'", whole=True)
        walked = 0 if relaxation == "interval" else min(steps, total)
        solves = relaxation == "auto" or Relaxation.parse(relaxation).uses_programs
        for solver in solvers if solves else solvers[:1]:
            yield _Case(relaxation, walked, solver if solves else None)
