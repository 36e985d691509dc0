"""Predicts the cost of each level and splits the work into pieces that fit a memory budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from milp_agt.bounds.linear.window_bounds import CACHED_ELEMENTS
from milp_agt.bounds.zonotope import refusal
from milp_agt.certification.level_plan import levels_of, mib
from milp_agt.certification.machine import slowness
from milp_agt.certification.options import CertifyOptions
from milp_agt.certification.selection_plan import Selections, selections_of
from milp_agt.certification.sizes import (
    BASELINE,
    FLOAT,
    MULTIPLIED_PER_SECOND,
    ROWS_PER_ELEMENT,
    WALKED_PER_SECOND,
    Sizes,
)
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Remarks
from milp_agt.core.restriction import Restriction
from milp_agt.threats.poison import Poison, Whole
from milp_agt.training.inputs import bytes_of
from milp_agt.training.tracing import StepGraph
from milp_agt.training.training import Batch, Training

# Boxes and temporaries alive at once for an element of a node in interval arithmetic.
LIVE_BOXES = 12
# 1 / LEAST_ROOM of the memory is the least for pieces.
LEAST_ROOM = 8
# Most rows of a backward pass, and of one for intermediate bounds.
ROWS_AT_ONCE = 128
INNER_ROWS = 2048
FEWEST_SAMPLES = 8
# Elements of the boxes of a sample chunk: few enough for a processor's last cache, many per call.
BOXED_ELEMENTS = 2**19
# Below this number of elements in a batch a second thread gains nothing, and on a busy machine the
# threads wait for each other: measured 3 times slower for iris, 2 times faster for 6-128-2 on 3,000.
THREADED_ELEMENTS = 10**5
# The same for steps by intervals only, which take half a second at this size.
THREADED_BOXES = 2 * 10**7
AUTO_TIME = 120.0
# By default, each refinement (linear intermediate bounds, selections told apart) is used if predicted to
# take at most this many seconds, or this share of a time limit.
REFINING_TIME, SPARE = 60.0, 0.6
# Seconds per step that forms may always spend on steps before their window.
PAST_SECONDS = 0.05


@dataclass(frozen=True)
class Plan:
    """The plan of a run: the level, the windows, the pieces, and remarks for the result.

    ``past`` is the number of past steps kept for forms that have reached the beginning of their window.
    ``inner_of_programs``: only programs have linear intermediate bounds. ``rows`` of a
    backward pass fit into memory; ``chunk`` of them share a pass in the run. ``first_walk`` are the
    predicted seconds of a backward pass of all entries through one step; ``seconds`` those of all steps,
    where predictions were measured; not a number where nothing is known.
    """

    asked: str
    relaxation: Relaxation
    memory: int
    levels: Sequence[Relaxation]
    steps: int
    window: int
    program_window: int
    rows: int
    chunk: int
    sample_chunk: int
    walk_fragment: int
    inner_chunk: int
    inner_pairs: int
    linear_inner: bool
    inner_of_programs: bool
    selections: Selections
    composed_steps: bool
    past: int
    single_thread: bool
    first_walk: float
    seconds: float
    remarks: Remarks

    @property
    def longest_window(self) -> int:
        return max(self.window, self.program_window)


def make_plan(
    step_graph: StepGraph,
    batches: Sequence[Batch],
    poison: Poison,
    training: Training,
    options: CertifyOptions,
    restriction: Restriction,
    given: Sequence[Tensor] = (),
) -> Plan:
    """The plan that follows from the options of a run. ``given`` are data kept besides the poison.

    Raises:
        InvalidInputError: an invalid memory size.
    """
    steps = len(batches)
    inner_bounds = options.inner_bounds
    slow = 1.0 if options.time_limit is None else slowness()
    # Predictions are those of one machine; so is a time limit from here on.
    time_limit = None if options.time_limit is None else options.time_limit / slow
    window = options.steps_of(options.window, steps)
    program_window = options.steps_of(options.program_window, steps)
    walked = min(window or steps, steps)
    solved = min(program_window or window or 1, steps)
    on_rows = program_window == 0
    budget = bytes_of(options.memory)
    exposed = int(poison.exposed.sum())
    sizes = Sizes(step_graph, max(len(b) for b in batches), exposed, training.has_momentum)
    moved = _moved(poison)
    refused = refusal(sizes.schedule, poison, restriction, training.update_rules(steps))
    zonotope = sizes.zonotope(steps, moved, not poison.static, budget)
    if options.relaxation == "auto":
        allowed = AUTO_TIME if time_limit is None else time_limit
        level, remarks = _choose(
            sizes, steps, walked, budget, allowed, solved, None if refused else zonotope
        )
    else:
        level, remarks = Relaxation.parse(options.relaxation), Remarks()
    seconds = sizes.inner(steps, walked)
    cheap = REFINING_TIME if time_limit is None else SPARE * time_limit
    large = sizes.walked >= THREADED_ELEMENTS
    composed_steps = large and _pays(sizes, moved, walked, budget) and training.projection is None
    linear_inner = level.walks and inner_bounds != "interval"
    if linear_inner and inner_bounds is None and seconds > cheap:
        linear_inner = False
        line = (
            f"inner bounds by intervals: linear ones would take about {seconds:.3g} s, more than "
            f"{cheap:g} s; ask for inner_bounds='linear' to have them"
        )
        remarks += Remarks(notes=(line,))
    allowed = max(cheap, seconds if linear_inner else 0.0)
    levels, more = levels_of(level, refused, zonotope, allowed, budget, options.carried, on_rows)
    remarks, carried = remarks + more, Relaxation.ZONOTOPE in levels
    told_apart, more = selections_of(
        sizes,
        level,
        options.selections,
        poison,
        restriction,
        training,
        steps,
        walked,
        inner_bounds,
        budget,
        cheap,
        carried,
    )
    if options.window is None and told_apart.window and level is Relaxation.LINEAR:
        line = (
            f"window {told_apart.window} in place of the whole run, so that each selection of samples "
            f"can be bounded by itself; give window='T', or a number of steps, to have that"
        )
        shorter = options.changed({"window": told_apart.window})
        found = make_plan(step_graph, batches, poison, training, shorter, restriction, given)
        return replace(found, remarks=Remarks(notes=(line,)) + found.remarks)
    remarks += more
    kept = walked * sizes.kept(poison.states) if level.walks else 0
    kept += told_apart.kept
    data = stored([*poison.tensors, *given])
    room, told = _room(budget, data, kept)
    remarks += told
    boxed = max(1, sizes.per_sample if told_apart.splits else sizes.made)
    per_sample = FLOAT * LIVE_BOXES * boxed
    at_once = CACHED_ELEMENTS if told_apart.splits else BOXED_ELEMENTS
    # The mean of the remaining samples needs the whole batch.
    whole = sizes.batch if poison.whole is Whole.REMOVED else 1
    fewest = max(whole, FEWEST_SAMPLES)
    chunk = max(1, min(2 * sizes.state, ROWS_AT_ONCE, room // sizes.form(fewest, walked)))
    walk_fragment = max(fewest, CACHED_ELEMENTS // (chunk * sizes.widest))
    rows = max(1, room // sizes.form(walk_fragment, walked))
    return Plan(
        asked=options.relaxation,
        relaxation=level,
        memory=budget,
        levels=levels,
        steps=steps,
        window=walked,
        program_window=0 if on_rows else solved,
        rows=rows,
        chunk=chunk,
        sample_chunk=max(
            whole,
            min(room // (2 * per_sample), max(64, at_once // boxed)),
        ),
        walk_fragment=walk_fragment,
        inner_chunk=max(
            1,
            min(
                INNER_ROWS,
                max(32, 4 * CACHED_ELEMENTS // max(sizes.walked, 1)),
                room // (2 * sizes.form(walk_fragment, walked)),
            ),
        ),
        inner_pairs=max(1, room // (2 * sizes.pair)),
        linear_inner=linear_inner,
        inner_of_programs=linear_inner and inner_bounds is None and carried,
        selections=told_apart,
        composed_steps=composed_steps,
        past=0 if training.projection else _past(sizes, steps, walked, room),
        single_thread=sizes.walked < THREADED_ELEMENTS
        or (level is Relaxation.INTERVAL and sizes.boxes < THREADED_BOXES),
        first_walk=slow * 2 * sizes.state * sizes.walked / WALKED_PER_SECOND,
        seconds=told_apart.seconds
        + seconds * linear_inner
        + sizes.seconds(steps, walked, solved).get(level, math.nan),
        remarks=remarks,
    )


def stored(tensors: Sequence[Tensor]) -> int:
    """Bytes that tensors take; storage shared by several of them counts once."""
    sizes: dict[int, int] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        own = min(storage.nbytes(), tensor.numel() * tensor.element_size())
        sizes[storage.data_ptr()] = max(own, sizes.get(storage.data_ptr(), 0))
    return sum(sizes.values())


def _room(budget: int, data: int, kept: int) -> tuple[int, Remarks]:
    """Bytes for pieces of work, besides what any split of the work needs."""
    fixed = BASELINE + data + kept
    least = budget // LEAST_ROOM
    if budget - fixed >= least:
        return budget - fixed, Remarks()
    line = (
        f"memory {mib(budget)} cannot be kept: {mib(fixed)} are needed however the work is cut "
        f"(libraries {mib(BASELINE)}, data {mib(data)}, steps of the window {mib(kept)}), and "
        f"{mib(least)} are taken for pieces of it; give more memory, or take a shorter window, smaller "
        "batches or relaxation='interval'"
    )
    return max(1, least), Remarks(fallbacks=(line,))


def _moved(poison: Poison) -> int:
    """Number of coefficients on the moves of one sample, plus 1 for its charge."""
    moves = ((poison.features, poison.feature_moves), (poison.labels, poison.label_moves))
    return 1 + sum(data[0].numel() for data, own in moves if own is not None)


def _pays(sizes: Sizes, moved: int, window: int, memory: int) -> bool:
    """Whether composed steps make passes through earlier steps cheaper and fit into memory."""
    elements = sizes.composed(moved)
    cheaper = elements / MULTIPLIED_PER_SECOND < sizes.walked / WALKED_PER_SECOND
    return window > 1 and cheaper and FLOAT * elements * window <= memory // 2


def _past(sizes: Sizes, steps: int, window: int, room: int) -> int:
    """Number of past steps through which forms of all signed entries go on by matrix products.

    They cost at most as much as the backward pass through the window plus PAST_SECONDS, and a quarter of
    the room.
    """
    ends = 2 * sizes.state
    seconds = ends * ends * sizes.state / MULTIPLIED_PER_SECOND
    walk = ends * sizes.walked * window / WALKED_PER_SECOND
    fitting = room // 4 // (FLOAT * ends * (sizes.state + 2))
    # The newest step is kept for the window of the next.
    wanted = steps - 1 if window < steps else 0
    return min(wanted, fitting, int((walk + PAST_SECONDS) / seconds))


def _choose(
    sizes: Sizes,
    steps: int,
    window: int,
    memory: int,
    seconds: float,
    solved: int,
    zonotope: tuple[float, int] | None,
) -> tuple[Relaxation, Remarks]:
    """The tightest level below milp whose predicted time and memory fit, with the reason as a remark."""
    predicted = sizes.seconds(steps, window, solved)
    rows = ROWS_PER_ELEMENT * sizes.curved * solved
    needed = {
        Relaxation.INTERVAL: 0,
        Relaxation.LINEAR: FLOAT * LIVE_BOXES * sizes.boxes * window,
        Relaxation.LP: 2 * FLOAT * LIVE_BOXES * sizes.boxes * window + 200 * rows,
    }
    if zonotope is not None:
        predicted[Relaxation.ZONOTOPE], needed[Relaxation.ZONOTOPE] = zonotope
    predicted = {level: predicted[level] for level in Relaxation if level in predicted}
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
    return chosen, Remarks(notes=(note,))
