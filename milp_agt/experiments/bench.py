"""How tight, how fast and how large is a certification, over steps, widths, samples and windows?

Two moons of many sizes: one axis varies at a time around a base point, every certification runs in a process
of its own, and every width stands beside that of real attacks.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NamedTuple

import torch
from torch import nn

from milp_agt.attacks import Attack, ParameterSandwich, Search, attack
from milp_agt.certification.certify import certify
from milp_agt.certification.fingerprint import versions
from milp_agt.certification.result import Result
from milp_agt.core.deadline import Deadline
from milp_agt.core.reachable import ReachableSet
from milp_agt.core.torch_modes import threads
from milp_agt.data.dataset import load_dataset
from milp_agt.errors import InvalidInputError
from milp_agt.io.tables import format_table
from milp_agt.reports.result_folder import hardware
from milp_agt.threats import FeaturePoisoning
from milp_agt.training.training import Training

SCHEMA_VERSION = 2
LEARNING_RATE = 0.5
FORWARD = ("interval", "zonotope")  # these have no window
# Enough for envelopes within some percent of those of the default search, at a tenth of its time.
QUICK = Search(pool=256, restarts=1, rounds=1)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One certification after one of its steps.

    Attributes:
        seed, samples, hidden: of the run, of which ``parameters`` are trained.
        method: relaxation and window.
        step: finished steps.
        mean_width, max_width: of the parameter box.
        attacked_mean_width, attacked_max_width: of the box that real poisoned runs span.
        ratio: certified over attacked mean width; inf where attacks moved nothing.
        seconds_per_step: mean from the first step to this one.
        peak_mib: most memory so far beyond that of the imported library, in MiB; None where unknown.
    """

    seed: int
    samples: int
    hidden: int
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


OnRow = Callable[[Row, int, int], None]


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
        """The machine and the versions in one line, then the rows."""
        about, headers = self.machine, [each.name for each in fields(Row)]
        headers.remove("attacked_max_width")
        parts = [f"{about.get('processor', about['machine'])}, {about['cores']} cores"]
        count = about["threads"]
        parts.append("one thread" if count == 1 else f"{count} threads")
        parts += [about["gpu"]] if "gpu" in about else []
        parts += [f"{name} {version}" for name, version in about["versions"].items()]
        cells = [
            (
                *(getattr(row, name) for name in headers[:-2]),
                f"{row.seconds_per_step:.3f}",
                None if row.peak_mib is None else f"{row.peak_mib:.0f}",
            )
            for row in self.rows
        ]
        names = [n.replace("attacked_mean_width", "attacked").replace("_", " ") for n in headers]
        table = format_table([*names[:-2], "s/step", "MiB"], cells, 4)
        return f"Machine: {', '.join(parts)}\n\n{table}"

    def to_dict(self) -> dict[str, Any]:
        """Machine and rows, for a JSON document."""
        return {"schema_version": SCHEMA_VERSION, **asdict(self)}


class Level(NamedTuple):
    """How a run is bounded: linear forms and programs by themselves, over ``window`` steps, 0 for all."""

    relaxation: str
    window: int
    device: str

    @property
    def name(self) -> str:
        if self.relaxation in FORWARD:
            return self.relaxation
        return f"{self.relaxation}, {f'window {self.window}' if self.window else 'whole run'}"


@dataclass(frozen=True)
class Moons:
    """Two moons and a 2-h-1 relu network, full batch, binary cross entropy, rate 0.5.

    Attributes:
        seed: of the moons and of the initial parameters.
        samples, hidden: n and h.
        marks: steps, ascending, after which widths are set beside attacks; the last ends the run.
        budget, radius: so many samples move by so much in each feature (static adversary).
    """

    seed: int
    samples: int
    hidden: int
    marks: tuple[int, ...]
    budget: int = 1
    radius: float = 0.01

    def at(self, steps: int) -> tuple[nn.Module, Any, Training, FeaturePoisoning]:
        """Model, data, training and threat of the run, cut off after one of the marks."""
        drawn = load_dataset("moons", samples=self.samples, seed=self.seed, test_fraction=0.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            model = nn.Sequential(nn.Linear(2, self.hidden), nn.ReLU(), nn.Linear(self.hidden, 1))
        training = Training(loss="bce", learning_rate=LEARNING_RATE, epochs=steps)
        data = drawn.x_train, drawn.y_train
        return model.double(), data, training, FeaturePoisoning(self.budget, self.radius)


@dataclass(frozen=True)
class Series:
    """What is measured. The first entry of each axis is its base; one axis varies at a time.

    Attributes:
        relaxations: names, as ``certify`` takes them.
        windows: steps that linear forms walk back through; 0 is the whole run.
        samples, hidden: sizes of the runs.
        marks: steps after which widths are set beside attacks; the last ends the run.
        seeds: all of this for each of them.
        budget, radius: of the threat.
        device: as ``certify`` takes it.
        search: how much the attacks try.

    Raises:
        InvalidInputError: an empty axis, a negative window, or a size that is not positive.
    """

    relaxations: Sequence[str] = ("zonotope", "linear", "interval")
    windows: Sequence[int] = (0, 1, 4)
    samples: Sequence[int] = (40, 20, 80)
    hidden: Sequence[int] = (4, 8, 16)
    marks: Sequence[int] = (2, 5, 10)
    seeds: Sequence[int] = (0,)
    budget: int = 1
    radius: float = 0.01
    device: str = "cpu"
    search: Search = field(default=QUICK)

    def __post_init__(self) -> None:
        least = {"windows": 0, "samples": 2, "hidden": 1, "marks": 1, "seeds": 0}
        for name in ("relaxations", *least):
            if not (given := getattr(self, name)):
                raise InvalidInputError(
                    "A benchmark needs at least one entry on each axis",
                    f"nothing for '{name}'",
                    f"give {name} or leave them out",
                )
            if min(given) < least.get(name, min(given)):
                raise InvalidInputError(
                    f"The {name} of a benchmark", f"{min(given)}", f"give {least[name]} or more"
                )

    def sources(self) -> list[Moons]:
        """The base run of each seed, followed by those with another size."""
        sizes = [(self.samples[0], self.hidden[0])]
        sizes += [(n, self.hidden[0]) for n in self.samples[1:]]
        sizes += [(self.samples[0], h) for h in self.hidden[1:]]
        marks = tuple(sorted(set(self.marks)))
        return [
            Moons(seed, n, h, marks, self.budget, self.radius)
            for seed in self.seeds
            for n, h in dict.fromkeys(sizes)
        ]

    def levels(self, source: Moons) -> list[Level]:
        """How a source is bounded: over all windows at the base sizes, else over the first."""
        at_base = (source.samples, source.hidden) == (self.samples[0], self.hidden[0])
        windows = self.windows if at_base else self.windows[:1]
        found = [
            Level(name, 0 if name in FORWARD else window, self.device)
            for name in self.relaxations
            for window in windows
        ]
        return list(dict.fromkeys(found))


class Measured(NamedTuple):
    """One certification at the marks of its source that it came to.

    ``marks`` are the set after each, the seconds of a step in the mean up to it, and the most bytes up to it
    beyond what the process had before (on a GPU, of its tensors; None where the system does not tell).
    """

    marks: tuple[tuple[ReachableSet, float, int | None], ...]
    parameters: int
    cut_short: bool


class _TimeIsOver(Exception):
    """Ends a certification after a step."""


def certified(source: Moons, level: Level, within: float | None = None) -> Measured:
    """Certify a run to its last mark, or to the first step after so many seconds."""
    deadline = Deadline.within(within)
    on_gpu = level.device != "cpu" and torch.cuda.is_available()
    before, parameters = peak_bytes(on_gpu), 0
    marks: list[tuple[ReachableSet, float, int | None]] = []

    def keep(result: Result, done: int, total: int) -> None:
        nonlocal parameters
        parameters = result.models.step_graph.parameter_count
        if done in source.marks:
            after = peak_bytes(on_gpu)
            peak = None if before is None or after is None else after - before
            seconds = sum(record.seconds for record in result.steps) / done
            marks.append((result.reachable, seconds, peak))
        if done < total and deadline.is_over():
            raise _TimeIsOver

    with suppress(_TimeIsOver):
        certify(
            *source.at(source.marks[-1]),
            relaxation=level.relaxation,
            window=level.window or None,
            carried="none",
            device=level.device,
            on_step=keep,
        )
    return Measured(tuple(marks), parameters, deadline.missed)


def peak_bytes(on_gpu: bool) -> int | None:
    """The most memory that this process has held so far; None where the system does not tell."""
    if on_gpu:
        return torch.cuda.max_memory_allocated()
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@contextmanager
def processes() -> Iterator[ProcessPoolExecutor]:
    """A process for each task, one after the other, so that no task pays for what another left.

    Where the system can, each is a copy of one that has imported everything and done nothing yet.
    """
    able = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if "forkserver" in able else "spawn")
    if "forkserver" in able:
        context.set_forkserver_preload(["milp_agt.experiments.bench", "sklearn.datasets"])
    with ProcessPoolExecutor(1, mp_context=context, max_tasks_per_child=1) as pool:
        yield pool


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
    left = sum(len(source.marks) + len(levels) for source, levels in work)
    rows: list[Row] = []
    deadline, cut_short = Deadline.within(within), False
    with processes() as pool:
        for source, levels in work:
            reached: list[Attack] = []
            for mark in source.marks:
                search = sweep.search.within(deadline.share(left))
                with threads(1):  # which suits small runs best
                    reached.append(attack(*source.at(mark), search=search))
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
    source: Moons, level: Level, measured: Measured, reached: Sequence[Attack]
) -> Iterator[Row]:
    """One row for each mark; a SoundnessError where an attack is outside the reachable set."""
    for mark, found, (reachable, seconds, peak) in zip(
        source.marks, reached, measured.marks, strict=False
    ):
        sandwich = ParameterSandwich.of(reachable, found)
        yield Row(
            seed=source.seed,
            samples=source.samples,
            hidden=source.hidden,
            parameters=measured.parameters,
            method=level.name,
            step=mark,
            mean_width=sandwich.certified,
            max_width=sandwich.largest[1],
            attacked_mean_width=sandwich.reached,
            attacked_max_width=sandwich.largest[0],
            ratio=sandwich.ratio,
            seconds_per_step=seconds,
            peak_mib=None if peak is None else peak / 2**20,
        )
