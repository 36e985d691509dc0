"""Relaxations and windows side by side on one training run."""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from milp_agt.certification import certify
from milp_agt.core.relaxation import Relaxation
from milp_agt.errors import InvalidInputError
from milp_agt.formulations.loss import get_loss
from milp_agt.tables import format_number, format_table
from milp_agt.threats import ThreatModel
from milp_agt.training import Training

ArrayLike = npt.NDArray[np.generic] | torch.Tensor


@dataclass(frozen=True)
class ComparisonRow:
    """One certification: what was asked, how wide the parameters are after the last step.

    ``window`` counts the steps that linear forms walk through, ``program_window`` the steps of one
    program; 0 where there is neither, None where auto decides. ``used`` names the relaxations that the
    steps really used. ``measure`` is "accuracy", or "loss" for regression, on the test data;
    ``lower`` and ``upper`` bound it for every admissible poisoning. All four are None without them.
    """

    relaxation: str
    window: int
    program_window: int | None
    used: str
    mean_width: float
    max_width: float
    measure: str | None
    lower: float | None
    nominal: float | None
    upper: float | None
    seconds: float
    limit_reached: bool


@dataclass(frozen=True)
class Comparison:
    """Rows in the order asked: each relaxation over each window."""

    rows: tuple[ComparisonRow, ...]

    @property
    def limit_reached(self) -> bool:
        """Whether any row met a limit."""
        return any(row.limit_reached for row in self.rows)

    def table(self) -> str:
        """The rows as text."""
        measure = next((row.measure for row in self.rows if row.measure), "measure")
        widths = ("relaxation", "window", "program", "used", "mean width", "max width")
        headers = (*widths, f"{measure}: lower", "nominal", "upper", "seconds")
        cells = [
            (
                row.relaxation,
                str(row.window),
                "-" if row.program_window is None else str(row.program_window),
                row.used + (" (limit reached)" if row.limit_reached else ""),
                format_number(row.mean_width),
                format_number(row.max_width),
                format_number(row.lower),
                format_number(row.nominal),
                format_number(row.upper),
                f"{row.seconds:.3f}",
            )
            for row in self.rows
        ]
        return format_table(headers, cells)

    def to_csv(self) -> str:
        """The rows as comma-separated text with a header; an absent value is empty."""
        stream = io.StringIO()
        writer = csv.DictWriter(
            stream, [field.name for field in fields(ComparisonRow)], lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(asdict(row) for row in self.rows)
        return stream.getvalue()

    def to_json(self) -> str:
        """The rows as a JSON document; infinite or undefined numbers as "inf" and "nan"."""
        rows = [
            {
                key: repr(value) if isinstance(value, float) and not math.isfinite(value) else value
                for key, value in asdict(row).items()
            }
            for row in self.rows
        ]
        return json.dumps({"schema_version": 1, "rows": rows}, indent=2, allow_nan=False) + "\n"


def compare(
    model: torch.nn.Module,
    data: tuple[ArrayLike, ArrayLike],
    training: Training,
    threat: ThreatModel,
    relaxations: Sequence[str] = ("interval", "linear", "lp"),
    windows: Sequence[int | Literal["T"]] = (1,),
    X_test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    *,
    program_window: int | Literal["T"] | None = None,
    inner_bounds: str | None = None,
    selections: str | None = None,
    solver: str | None = None,
    device: str = "cpu",
    memory: str = "4GiB",
    time_limit: float | None = None,
    on_row: Callable[[ComparisonRow, int, int], None] | None = None,
) -> Comparison:
    """Certify the same run with each relaxation over each window.

    Args:
        model, data, training, threat: as for :func:`milp_agt.certify`.
        relaxations: names of relaxations. ``interval`` keeps no past step and gets one row.
        windows: how many past steps linear forms walk back through; "T" is the whole run. Programs
            span as many steps unless ``program_window`` says otherwise.
        X_test, y_test: test data; with them each row bounds the accuracy (regression: the loss).
        program_window, inner_bounds, selections, solver, device, memory, time_limit: as for
            :func:`milp_agt.certify`; the time limit holds for each row.
        on_row: called after every row with the row, its number from 1, and the number of rows.

    Raises:
        InvalidInputError: no relaxation or no window, a window below 1, or only one of X_test and
            y_test; and whatever :func:`milp_agt.certify` raises.
    """
    if (X_test is None) != (y_test is None):
        raise InvalidInputError(
            "Compare relaxations on test data", "only one of X_test and y_test", "give both"
        )
    total = len(training.batch_order(len(data[0])))
    cases = list(dict.fromkeys(_cases(relaxations, windows, total)))
    if not cases:
        raise InvalidInputError(
            "Compare relaxations",
            f"relaxations {tuple(relaxations)}, windows {tuple(windows)}",
            "give at least one of each",
        )
    measure = "accuracy" if get_loss(training.loss).is_classification else "loss"
    solved = total if program_window == "T" else program_window
    rows: list[ComparisonRow] = []
    for relaxation, window in cases:
        begun = time.perf_counter()
        result = certify(
            model,
            data,
            training,
            threat,
            relaxation=relaxation,
            window=window or None,
            program_window=solved,
            inner_bounds=inner_bounds,
            selections=selections,
            solver=solver,
            device=device,
            memory=memory,
            time_limit=time_limit,
        )
        seconds = time.perf_counter() - begun
        bounds = None
        if X_test is not None and y_test is not None:
            score = result.accuracy if measure == "accuracy" else result.loss
            bounds = score(X_test, y_test)
        row = ComparisonRow(
            relaxation=relaxation,
            window=window,
            program_window=_program_window(relaxation, window, solved, total),
            used=", ".join(dict.fromkeys(step.relaxation for step in result.steps)),
            mean_width=float(result.reachable.mean_width),
            max_width=float(result.reachable.max_width),
            measure=None if bounds is None else measure,
            lower=None if bounds is None else bounds.lower,
            nominal=None if bounds is None else bounds.nominal,
            upper=None if bounds is None else bounds.upper,
            seconds=seconds,
            limit_reached=result.limit_reached,
        )
        rows.append(row)
        if on_row is not None:
            on_row(row, len(rows), len(cases))
    return Comparison(tuple(rows))


def _cases(
    relaxations: Sequence[str], windows: Sequence[int | Literal["T"]], total: int
) -> Iterator[tuple[str, int]]:
    for relaxation in relaxations:
        for window in windows:
            steps = total if window == "T" else window
            if steps < 1:
                raise InvalidInputError(
                    "Compare relaxations over windows", f"a window of {steps} steps", "give >= 1"
                )
            yield relaxation, 0 if relaxation == "interval" else min(steps, total)


def _program_window(relaxation: str, window: int, solved: int | None, total: int) -> int | None:
    if relaxation == "auto":
        return None
    uses_programs = Relaxation.parse(relaxation).uses_programs
    return min(solved or window, total) if uses_programs else 0
