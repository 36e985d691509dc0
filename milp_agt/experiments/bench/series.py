"""The sweep: one axis at a time around a base point, every certificate beside real attacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from milp_agt.attacks import Attack, ParameterSandwich, Search
from milp_agt.core.deadline import Deadline
from milp_agt.errors import InvalidInputError
from milp_agt.experiments.bench.bench_table import Benchmark, Row
from milp_agt.experiments.bench.cases import CaseSource, Moons, RunFile
from milp_agt.experiments.bench.measure import (
    FORWARD,
    Level,
    Measured,
    attacked,
    certified,
    processes,
)

# Enough for envelopes within some percent of those of the default search, at a tenth of its time.
QUICK = Search(pool=256, restarts=1, rounds=1)
OnRow = Callable[[Row, int, int], None]


@dataclass(frozen=True)
class Series:
    """What is measured. The first entry of each axis is its base; one axis varies at a time.

    Attributes:
        relaxations: names, as ``certify`` takes them.
        windows: steps that linear forms walk back through; 0 is the whole run.
        samples, hidden: sizes of the generated runs.
        marks: steps after which widths are set beside attacks; the last ends the run.
        seeds: all of this for each of them.
        budget, radius: of the generated runs.
        case: a run file to measure in place of generated runs; it has sizes and steps of its own.
        selections, device: as ``certify`` takes them.
        search: how much the attacks try.

    Raises:
        InvalidInputError: an empty axis, or a negative window.
    """

    relaxations: Sequence[str] = ("zonotope", "linear", "interval")
    windows: Sequence[int] = (0, 1, 4)
    samples: Sequence[int] = (40, 20, 80)
    hidden: Sequence[int] = (4, 8, 16)
    marks: Sequence[int] = (2, 5, 10)
    seeds: Sequence[int] = (0,)
    budget: int = 1
    radius: float = 0.01
    case: Path | None = None
    selections: str | None = None
    device: str = "cpu"
    search: Search = field(default=QUICK)

    def __post_init__(self) -> None:
        for name in ("relaxations", "windows", "samples", "hidden", "marks", "seeds"):
            if not getattr(self, name):
                raise InvalidInputError(
                    "A benchmark needs at least one entry on each axis",
                    f"nothing for '{name}'",
                    f"give {name} or leave them out",
                )
        if min(self.windows) < 0:
            raise InvalidInputError(
                "A window counts steps; 0 is the whole run", f"{min(self.windows)}", "give >= 0"
            )

    def sources(self) -> list[CaseSource]:
        """The base run of each seed, followed by those with another size."""
        if self.case is not None:
            return [RunFile.of(self.case)]
        sizes = [(self.samples[0], self.hidden[0])]
        sizes += [(n, self.hidden[0]) for n in self.samples[1:]]
        sizes += [(self.samples[0], h) for h in self.hidden[1:]]
        marks = tuple(sorted(set(self.marks)))
        return [
            Moons(seed, n, h, marks, self.budget, self.radius)
            for seed in self.seeds
            for n, h in dict.fromkeys(sizes)
        ]

    def levels(self, source: CaseSource) -> list[Level]:
        """How a source is bounded: over all windows at the base sizes, else over the first."""
        base = self.samples[0], self.hidden[0]
        own = (source.samples, source.hidden) if isinstance(source, Moons) else base
        windows = self.windows if own == base else self.windows[:1]
        found = [
            Level(name, 0, None, self.device)
            if name in FORWARD
            else Level(name, window, self.selections, self.device)
            for name in self.relaxations
            for window in windows
        ]
        return list(dict.fromkeys(found))


def bench(sweep: Series, on_row: OnRow | None = None, *, within: float | None = None) -> Benchmark:
    """Measure everything that a sweep asks for, each certification in a process of its own.

    ``within`` so many seconds: each certification and its attacks have an equal share of what is left; rows
    that are not reached in it are left out.

    Raises:
        SoundnessError: an attack outside a certificate.
        InvalidInputError, UnsupportedOperationError, SolverUnavailableError: as ``certify``.
    """
    work = [(source, sweep.levels(source)) for source in sweep.sources()]
    total = sum(len(source.marks) * len(levels) for source, levels in work)
    rows: list[Row] = []
    deadline = Deadline.within(within)
    left = sum(len(source.marks) + len(levels) for source, levels in work)
    cut_short = False
    with processes() as pool:
        for source, levels in work:
            reached = []
            for mark in source.marks:
                search = sweep.search.within(deadline.share(left))
                reached.append(attacked(source, mark, search))
                left -= 1
            for level in levels:
                share, left = deadline.share(left), left - 1
                measured = pool.submit(certified, source, level, share).result()
                cut_short |= measured.cut_short
                for row in _rows(source, level, measured, reached):
                    rows.append(row)
                    if on_row is not None:
                        on_row(row, len(rows), total)
    return Benchmark(tuple(rows), cut_short=cut_short)


def _rows(
    source: CaseSource, level: Level, measured: Measured, reached: Sequence[Attack]
) -> list[Row]:
    """One row for each mark.

    Raises:
        SoundnessError: an attack outside the reachable set.
    """
    size = {name: getattr(source, name, None) for name in ("seed", "samples", "hidden")}
    rows = []
    for index, mark in enumerate(source.marks[: len(measured.reachable)]):
        sandwich = ParameterSandwich.of(measured.reachable[index], reached[index])
        peak = measured.peak_bytes[index]
        rows.append(
            Row(
                case=source.name,
                **size,
                parameters=measured.parameters,
                method=level.name,
                step=mark,
                mean_width=sandwich.certified,
                max_width=sandwich.largest[1],
                attacked_mean_width=sandwich.reached,
                attacked_max_width=sandwich.largest[0],
                ratio=sandwich.ratio,
                seconds_per_step=measured.seconds[index],
                peak_mib=None if peak is None else peak / 2**20,
            )
        )
    return rows
