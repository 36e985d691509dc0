"""What a comparison found: rows as text, CSV and JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields

from milp_agt.io.tables import csv_text, format_table, json_text

SCHEMA_VERSION = 2
TREE = "tree"  # the relaxation of the row of a tree
_SERIES = ("widths", "elapsed")
_SIZES = ("columns", "rows", "integers", "products", "solves", "skipped", "limited")


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
        return asked(self.relaxation, self.window, self.solver)


def asked(relaxation: str, window: int, solver: str | None) -> str:
    """What was asked, in a few words."""
    return ", ".join(filter(None, (relaxation, f"window {window}" if window else "", solver)))


@dataclass(frozen=True)
class Comparison:
    """Rows in the order asked: each relaxation over each window by each solver.

    ``notes`` say what was left out and why, a solver that does not know bilinear terms, say.
    """

    rows: tuple[ComparisonRow, ...]
    notes: tuple[str, ...] = ()
    cut_short: bool = False

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
                row.relaxation,
                row.window,
                row.program_window,
                row.solver,
                row.used + (" (limit reached)" if row.limit_reached else ""),
                *(row.mean_width, row.max_width, row.attack_ratio),
                *(row.mean_width / width if width else None for width in trees),
                *(row.lower, row.nominal, row.upper),
                f"{row.seconds:.3f}",
            )
            for row in self.rows
        ]
        parts = [format_table(headers, cells)]
        solved = [row for row in self.rows if row.solves or row.limited]
        if solved:
            sizes = [(row.name, *(getattr(row, size) for size in _SIZES)) for row in solved]
            parts.append(format_table(("largest program", *_SIZES), sizes))
        if self.notes:
            parts.append("\n".join(f"left out: {note}" for note in self.notes))
        return "\n\n".join(parts)

    def to_csv(self) -> str:
        """The rows as comma-separated text with a header; an absent value is empty. The series over
        the steps are in the JSON document."""
        names = [field.name for field in fields(ComparisonRow) if field.name not in _SERIES]
        return csv_text(names, map(asdict, self.rows))

    def to_json(self) -> str:
        """Rows and notes as a JSON document; infinite or undefined numbers as "inf" and "nan"."""
        rows = [asdict(row) for row in self.rows]
        return json_text({"schema_version": SCHEMA_VERSION, "rows": rows, "notes": self.notes})
