"""Predicts what each level costs and cuts the work into pieces that fit a memory budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from milp_agt.core.relaxation import Relaxation
from milp_agt.core.restriction import Restriction
from milp_agt.engines.cases import count_cases
from milp_agt.engines.inner import targets
from milp_agt.engines.linear import CACHED_ELEMENTS
from milp_agt.engines.step import Schedule
from milp_agt.errors import InvalidInputError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.exchange import Exchange
from milp_agt.formulations.univariate import Univariate
from milp_agt.inputs import bytes_of
from milp_agt.poison import Poison, Whole
from milp_agt.tracing import FEATURES, LABELS, StepGraph
from milp_agt.training import Batch, Training

FLOAT = 8  # bytes
# Tensors of the size of a coefficient that are alive at once in a walk.
LIVE_COEFFICIENTS = 6
# Boxes and temporaries that are alive at once for an element of a node in interval arithmetic.
LIVE_BOXES = 12
# Rows of a walk.
ROWS_AT_ONCE = 128
INNER_ROWS = 2048
# Where walks jump to the parameters at the outputs, rows of few units and many samples share a pass.
ROWS_OF_UNITS = 32
SAMPLES_OF_UNITS = 2048
FEWEST_SAMPLES = 8
# Below this count of elements in a batch a second thread gains nothing, and on a busy machine the
# threads wait for each other: measured 3 times slower for iris, 2 times faster for 6-128-2 on 3,000.
THREADED_ELEMENTS = 10**5
# Elements of coefficients that one core walks in a second, and elements of boxes that it bounds.
# Measured on one core of a 2020s server with relu networks; only `auto` and the default of
# `inner_bounds` depend on them.
WALKED_PER_SECOND = 5e7
BOUNDED_PER_SECOND = 2e7
# Seconds of one warm-started solve for each row of the program.
SECONDS_PER_ROW = 1e-5
ROWS_PER_ELEMENT = 8
AUTO_TIME = 120.0
# Boxes and offsets of one case that are kept for an element of a node with a sample axis, cases that
# share a walk, products that a core does in a second, and seconds for which cases are carried unasked.
LIVE_CASE_BOXES = 4
MOST_CASES = 1024
FLOPS = 2e10
CASES_TIME = 60.0
NAMED_CASES = 1e5
# Seconds for which inner bounds are walked through the window unasked.
INNER_TIME = 60.0


@dataclass(frozen=True)
class Plan:
    """What will be run: the level, the windows, the pieces, and notes for the result."""

    asked: str
    relaxation: Relaxation
    steps: int
    window: int
    program_window: int
    chunk: int
    fragment: int
    walk_fragment: int
    inner_chunk: int
    inner_pairs: int
    linear_inner: bool
    case_inner: bool
    case_groups: int
    cuts: bool
    alpha_steps: int
    alpha_memory: int
    single_thread: bool
    notes: tuple[str, ...]

    @property
    def longest_window(self) -> int:
        return max(self.window, self.program_window)


def plan(
    step_graph: StepGraph,
    batches: Sequence[Batch],
    poison: Poison,
    training: Training,
    relaxation: str,
    window: int | None,
    program_window: int | None,
    inner_bounds: str | None,
    selections: str | None,
    restriction: Restriction,
    memory: str | int,
    time_limit: float | None,
    alpha_steps: int = 0,
) -> Plan:
    """Settle the options of a run.

    Raises:
        InvalidInputError: an unknown relaxation, a window below 1, a limit that is not positive,
            slopes to be optimised where there are none.
    """
    for name, value in (("window", window), ("program_window", program_window)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise InvalidInputError(
                f"{name} counts steps, at least 1", f"{name} = {value}", "give None for all steps"
            )
    if time_limit is not None and not time_limit >= 0:
        raise InvalidInputError("A time limit is >= 0 seconds", f"{time_limit}", "leave it out")
    if inner_bounds not in (None, "interval", "linear"):
        raise InvalidInputError(
            "inner_bounds is 'interval', 'linear' or None",
            f"{inner_bounds!r}",
            "choose one of them",
        )
    steps = len(batches)
    walked = min(window or steps, steps)
    solved = min(program_window or window or 1, steps)
    budget = bytes_of(memory)
    sizes = _Sizes(
        step_graph, max(len(b) for b in batches), len(poison.open), training.momentum > 0
    )
    if relaxation == "auto":
        level, notes = _choose(
            sizes, steps, walked, budget, AUTO_TIME if time_limit is None else time_limit, solved
        )
    else:
        level, notes = Relaxation.parse(relaxation), ()
    alpha_steps, note = _alpha_steps(alpha_steps, level, relaxation == "auto")
    notes = (*notes, *note)
    seconds = sizes.inner(steps, walked)
    linear_inner = level is not Relaxation.INTERVAL and inner_bounds != "interval"
    if linear_inner and inner_bounds is None and seconds > INNER_TIME:
        linear_inner = False
        notes = (
            *notes,
            f"inner bounds by intervals: linear ones would take about {seconds:.3g} s, more than "
            f"{INNER_TIME:g} s; ask for inner_bounds='linear' to have them",
        )
    cases = count_cases(poison, restriction)
    groups, case_inner, note = _groups(
        sizes, level, selections, cases, steps, walked, inner_bounds, budget
    )
    notes = (*notes, *note)
    per_sample = FLOAT * LIVE_BOXES * max(sizes.per_sample, 1)
    in_cuts = 2 * FLOAT * step_graph.outputs * step_graph.parameter_count * sizes.batch * walked
    cuts = sizes.walked >= THREADED_ELEMENTS and in_cuts <= budget // 4
    # The mean of the samples that are left needs all of them at hand.
    whole = sizes.batch if poison.whole is Whole.REMOVED else 1
    many = SAMPLES_OF_UNITS if cuts else FEWEST_SAMPLES
    fitting = budget // (2 * ROWS_OF_UNITS * sizes.form(1, 0))
    fewest = max(whole, FEWEST_SAMPLES, min(many, fitting))
    chunk = max(1, min(2 * sizes.state, ROWS_AT_ONCE, budget // (2 * sizes.form(fewest, walked))))
    cached = 0 if cuts else CACHED_ELEMENTS // (chunk * sizes.widest)
    walk_fragment = max(fewest, cached)
    return Plan(
        asked=relaxation,
        relaxation=level,
        steps=steps,
        window=walked,
        program_window=solved,
        chunk=chunk,
        fragment=max(
            whole,
            min(budget // (2 * per_sample), max(64, CACHED_ELEMENTS // sizes.per_sample)),
        ),
        walk_fragment=walk_fragment,
        inner_chunk=max(
            1,
            min(
                INNER_ROWS,
                max(32, 4 * CACHED_ELEMENTS // max(sizes.walked, 1)),
                budget // (2 * sizes.form(walk_fragment, walked)),
            ),
        ),
        inner_pairs=max(1, budget // (2 * sizes.pair)),
        linear_inner=linear_inner,
        case_inner=case_inner,
        case_groups=groups,
        cuts=cuts,
        alpha_steps=alpha_steps,
        alpha_memory=budget // 2 if alpha_steps else 0,
        single_thread=sizes.walked < THREADED_ELEMENTS,
        notes=notes,
    )


def _alpha_steps(asked: int, level: Relaxation, chosen: bool) -> tuple[int, tuple[str, ...]]:
    """How many moves slopes are optimised by, and what to note."""
    if not isinstance(asked, int) or asked < 0:
        raise InvalidInputError(
            "alpha_steps counts moves of an optimisation of slopes, at least 0",
            f"alpha_steps = {asked!r}",
            "give 0 for the default slopes, or 5 to 20 for tighter bounds",
        )
    if asked == 0 or level is not Relaxation.INTERVAL:
        return asked, ()
    if chosen:
        return 0, ("alpha_steps is idle: auto picked 'interval', which has no slopes",)
    raise InvalidInputError(
        f"Slopes are to be optimised by alpha_steps = {asked}",
        f"relaxation '{level.value}', which has no slopes",
        "use relaxation 'linear' or above, or leave alpha_steps out",
    )


def _groups(
    sizes: _Sizes,
    level: Relaxation,
    selections: str | None,
    cases: float,
    steps: int,
    window: int,
    inner_bounds: str | None,
    memory: int,
) -> tuple[int, bool, tuple[str, ...]]:
    """In how many groups selections are enumerated, 0 if they are bounded jointly only; and whether
    with linear inner bounds."""
    if selections not in (None, "joint", "enumerated"):
        raise InvalidInputError(
            "selections is 'joint', 'enumerated' or None", f"{selections!r}", "choose one of them"
        )
    if selections == "enumerated" and level is Relaxation.INTERVAL:
        raise InvalidInputError(
            "Enumerated selections need linear forms",
            f"relaxation '{level.value}'",
            "use relaxation 'linear' or above",
        )
    if selections == "joint" or level is Relaxation.INTERVAL:
        return 0, False, ()
    if selections == "enumerated" and math.isinf(cases):
        raise InvalidInputError(
            "Selections can be enumerated where one of them holds for the whole run",
            "a budget in each batch, or nothing that can be poisoned",
            "use scope='dataset', or selections='joint'",
        )
    if math.isinf(cases):
        return 0, False, ()
    # A case costs boxes and offsets of every step in the window.
    fitting = max(1, int(memory // (2 * FLOAT * LIVE_CASE_BOXES * sizes.boxes * window)))
    groups = -(-int(min(cases, 1e9)) // min(fitting, MOST_CASES))
    walks = sum(min(t + 1, window) for t in range(steps))

    def seconds(linear_inner: bool) -> float:
        rows = 2 * sizes.state + (sizes.inner_rows / 2 if linear_inner else 0)
        flops = 4.0 * rows * sizes.boxes * walks * cases
        return flops / FLOPS + groups * rows * sizes.walked * walks / WALKED_PER_SECOND

    dear = seconds(True) > CASES_TIME
    if selections == "enumerated":
        return groups, inner_bounds == "linear" or (inner_bounds is None and not dear), ()
    if seconds(False) > CASES_TIME:
        note = (
            f"selections are bounded jointly: {cases:.3g} of them one by one would take about "
            f"{seconds(False):.3g} s, more than {CASES_TIME:g} s; ask for selections='enumerated' to "
            "have them"
        )
        return 0, False, (note,) if cases < NAMED_CASES else ()
    if inner_bounds == "linear" and dear:
        note = (
            f"selections have inner bounds by intervals: linear ones would take about "
            f"{seconds(True):.3g} s; ask for selections='enumerated' to have them"
        )
        return groups, False, (note,)
    return groups, inner_bounds != "interval" and not dear, ()


class _Sizes:
    """Counts of elements from which costs are predicted."""

    def __init__(self, step_graph: StepGraph, batch: int, samples: int, momentum: bool) -> None:
        schedule = Schedule.of(step_graph)
        self.batch, self.samples = batch, samples
        batched = [n for n in schedule.before if n.batched]
        self.state = step_graph.parameter_count * (2 if momentum else 1)
        self.per_sample = sum(n.signature.size for n in batched)
        self.boxes = self.per_sample * batch
        # Gradients of single samples enter a walk with one coefficient for all samples.
        summed = {n.inputs[0] for n in schedule.sums}
        exchanged = [n for n in batched if isinstance(n.op, Exchange)]
        summed |= {n.inputs[0] for n in exchanged}
        self.walked = sum(n.signature.size for n in batched if n.name not in summed) * batch
        own = [n.signature.size for n in batched if n.name not in summed]
        self.widest = max(own, default=1)
        self.inner_rows = 2 * batch * sum(n.signature.size for n in targets(schedule))
        leaves = (FEATURES, LABELS)
        self.moved = 1 + sum(n.signature.size for n in batched if n.name in leaves)
        self.curved = batch * sum(
            n.signature.size for n in batched if isinstance(n.op, (Einsum, Univariate))
        )

    def form(self, fragment: int, window: int) -> int:
        """Bytes of one row of a walk: coefficients of one fragment, moves of all samples met."""
        met = min(self.batch * window, self.samples)
        own = max(1, self.walked // self.batch) * fragment
        return FLOAT * LIVE_COEFFICIENTS * (own + met * self.moved)

    @property
    def pair(self) -> int:
        """Bytes of a form of one sample: coefficients on its nodes, its data and the parameters."""
        return FLOAT * LIVE_COEFFICIENTS * (self.walked // self.batch + self.state + self.moved)

    def inner(self, steps: int, window: int) -> float:
        """Predicted seconds of all inner walks."""
        walks = sum(min(t, window - 1) + 0.5 for t in range(steps))
        return self.inner_rows * self.walked * walks / WALKED_PER_SECOND


def _choose(
    sizes: _Sizes, steps: int, window: int, memory: int, seconds: float, solved: int
) -> tuple[Relaxation, tuple[str, ...]]:
    """The tightest level below milp whose predicted time and memory fit, and why."""
    walks = sum(min(t + 1, window) for t in range(steps))
    linear = 2 * sizes.state * sizes.walked * walks / WALKED_PER_SECOND
    rows = ROWS_PER_ELEMENT * sizes.curved * solved
    predicted = {
        Relaxation.INTERVAL: 2 * sizes.boxes * steps / BOUNDED_PER_SECOND,
        Relaxation.LINEAR: 2 * linear,
        Relaxation.LP: 3 * linear + 2 * sizes.state * steps * rows * SECONDS_PER_ROW,
    }
    needed = {
        Relaxation.INTERVAL: 0,
        Relaxation.LINEAR: FLOAT * LIVE_BOXES * sizes.boxes * window,
        Relaxation.LP: 2 * FLOAT * LIVE_BOXES * sizes.boxes * window + 200 * rows,
    }
    fitting = [r for r in predicted if predicted[r] <= seconds and needed[r] <= memory] or [
        Relaxation.INTERVAL
    ]
    chosen = fitting[-1]
    table = ", ".join(
        f"{r.value} {predicted[r]:.3g} s / {needed[r] / 2**20:.3g} MiB" for r in predicted
    )
    note = (
        f"auto picked '{chosen.value}': predicted {table}; allowed {seconds:.3g} s / "
        f"{memory / 2**20:.3g} MiB; milp is never picked unasked"
    )
    return chosen, (note,)
