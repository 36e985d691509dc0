"""What a benchmark found: rows as text, CSV and JSON, with the machine named."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import torch

from milp_agt.certification.fingerprint import versions
from milp_agt.io.tables import csv_text, format_table
from milp_agt.reports.result_folder import hardware

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Row:
    """One certification after one of its steps.

    Attributes:
        case: name of the run; ``seed``, ``samples`` and ``hidden`` of a generated one, else None.
        parameters: how many are trained.
        method: relaxation and window.
        step: finished steps.
        mean_width, max_width: of the parameter box.
        attacked_mean_width, attacked_max_width: of the box that real poisoned runs span.
        ratio: certified over attacked mean width; inf where attacks moved nothing.
        seconds_per_step: mean from the first step to this one.
        peak_mib: most memory so far beyond that of the imported library, in MiB; None where unknown.
    """

    case: str
    seed: int | None
    samples: int | None
    hidden: int | None
    parameters: int
    method: str
    step: int
    mean_width: float
    max_width: float
    attacked_mean_width: float
    attacked_max_width: float
    ratio: float
    seconds_per_step: float
    peak_mib: float | None


def machine() -> dict[str, Any]:
    """What seconds and memory depend on."""
    found = {**hardware(), "threads": torch.get_num_threads(), "versions": versions()}
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


@dataclass(frozen=True)
class Benchmark:
    """Rows in the order in which they were measured, and the machine that measured them.

    ``cut_short`` says that rows are missing for lack of time.
    """

    rows: tuple[Row, ...]
    machine: Mapping[str, Any] = field(default_factory=machine)
    cut_short: bool = False

    def table(self) -> str:
        """The machine in one line, then the rows."""
        names = ["case", "seed", "samples", "hidden", "parameters", "method", "step"]
        names += ["mean_width", "max_width", "attacked_mean_width", "ratio"]
        headers = [name.removesuffix("_mean_width").replace("_", " ") for name in names]
        cells = [
            (
                *(getattr(row, name) for name in names),
                f"{row.seconds_per_step:.3f}",
                None if row.peak_mib is None else f"{row.peak_mib:.0f}",
            )
            for row in self.rows
        ]
        return f"{self.named_machine()}\n\n{format_table([*headers, 's/step', 'MiB'], cells, 4)}"

    def named_machine(self) -> str:
        """The machine and the versions in words."""
        about = self.machine
        parts = [f"{about.get('processor', about['machine'])}, {about['cores']} cores"]
        threads = about["threads"]
        parts.append("one thread" if threads == 1 else f"{threads} threads")
        parts += [about["gpu"]] if "gpu" in about else []
        parts += [f"{name} {version}" for name, version in about["versions"].items()]
        return f"Machine: {', '.join(parts)}"

    def to_csv(self) -> str:
        """The rows as comma-separated text with a header; an absent value is empty."""
        return csv_text([each.name for each in fields(Row)], map(asdict, self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Machine and rows, for a JSON document."""
        rows = [asdict(row) for row in self.rows]
        return {
            "schema_version": SCHEMA_VERSION,
            "machine": dict(self.machine),
            "cut_short": self.cut_short,
            "rows": rows,
        }
