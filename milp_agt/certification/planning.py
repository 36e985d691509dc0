"""Predicts the cost of each level and splits the work into pieces that fit a memory budget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from milp_agt.bounds.gathered import Gathered, gathered
from milp_agt.bounds.linear.window_bounds import CACHED_ELEMENTS
from milp_agt.bounds.zonotope import refusal
from milp_agt.certification import sizes as rates
from milp_agt.certification.level_plan import (
    AUTO_TIME,
    STARTED,
    ZONOTOPE_OVER,
    ZONOTOPE_SHARE,
    choose_level,
    levels_of,
    mib,
    stands_alone,
)
from milp_agt.certification.machine import slowness
from milp_agt.certification.options import CertifyOptions
from milp_agt.certification.selection_plan import Selections, selections_of
from milp_agt.certification.sizes import Sizes, degree_of
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Remarks
from milp_agt.core.restriction import Restriction
from milp_agt.threats.poison import Poison, Whole
from milp_agt.threats.sets import Vertices
from milp_agt.training.inputs import bytes_of
from milp_agt.training.tracing import StepGraph
from milp_agt.training.training import Batch, Training

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
# By default, each refinement (linear intermediate bounds, selections told apart) is used if predicted to
# take at most this many seconds, or this share of a time limit.
REFINING_TIME, SPARE = 60.0, 0.6
# Of a time limit, what the steps of a run file with properties have at least.
STEPS_SHARE = 0.6
# Seconds per step that forms may always spend on steps before their window.
PAST_SECONDS = 0.05


@dataclass(frozen=True)
class Pieces:
    """How the work of a step is split, so that it fits into memory and into a processor's cache.

    Attributes:
        rows: of a backward pass that fit into memory; ``chunk`` of them share a pass in the run.
        samples: that intervals bound at once; ``walked_samples`` that backward passes visit at once.
        inner_chunk: rows of a backward pass for intermediate bounds.
        inner_pairs: pairs of a form and a sample, whose coefficients on the parameters are kept at once.
    """

    rows: int
    chunk: int
    samples: int
    walked_samples: int
    inner_chunk: int
    inner_pairs: int

    @staticmethod
    def of(sizes: Sizes, whole: int, tells_apart: bool, room: int) -> Pieces:
        """Pieces for ``room`` bytes; at least ``whole`` samples have to stay together."""
        boxed = max(1, sizes.per_sample if tells_apart else sizes.made)
        at_once = CACHED_ELEMENTS if tells_apart else BOXED_ELEMENTS
        fewest = max(whole, FEWEST_SAMPLES)
        # The other half is for what the allocator still holds of what was freed before.
        half = room // 2
        chunk = max(1, min(2 * sizes.state, ROWS_AT_ONCE, half // sizes.form(fewest)))
        walked = max(fewest, CACHED_ELEMENTS // (chunk * sizes.widest))
        form = sizes.form(walked)
        rows = max(1, half // form)
        cached = max(32, 4 * CACHED_ELEMENTS // max(sizes.walked, 1))
        return Pieces(
            rows=rows,
            chunk=min(chunk, rows),
            samples=max(
                whole,
                min(half // (rates.FLOAT * rates.LIVE_BOXES * boxed), max(64, at_once // boxed)),
            ),
            walked_samples=walked,
            inner_chunk=min(INNER_ROWS, cached, rows),
            inner_pairs=max(1, half // sizes.pair),
        )


@dataclass(frozen=True)
class Plan:
    """The plan of a run: the level, the windows, the pieces, and remarks for the result.

    ``past`` is the number of past steps kept for forms that have reached the beginning of their window.
    ``inner_of_programs``: only programs have linear intermediate bounds. ``first_walk`` are the
    predicted seconds of a backward pass of all entries through one step; ``seconds`` those of all steps,
    where predictions were measured; not a number where nothing is known. ``whole``: those of this
    machine, under a time limit, of the level that was taken although they may be more than allowed;
    ``zonotope``: of one that is left out because of them; not a number where it is not. ``scarce``:
    whether memory, not speed, says how many rows share a backward pass. ``straight``: whether data are
    poisoned anew in steps without kinks and curves: a zonotope grows with each, and linear forms are tight.
    """

    asked: str
    relaxation: Relaxation
    memory: int
    levels: Sequence[Relaxation]
    steps: int
    window: int
    program_window: int
    pieces: Pieces
    linear_inner: bool
    inner_of_programs: bool
    selections: Selections
    past: int
    single_thread: bool
    first_walk: float
    seconds: float
    whole: float
    zonotope: float
    scarce: bool
    straight: bool
    remarks: Remarks
    gathered: Gathered | None = None

    @property
    def longest_window(self) -> int:
        return max(self.window, self.program_window)

    def helps(self, limit: float) -> tuple[str, ...]:
        """Settings with which the level of this plan, or a zonotope, is predicted to bound every step."""
        found = []
        if self.zonotope > 0.0:
            seconds = max(limit, self.zonotope / STEPS_SHARE)
            found.append(f"relaxation = 'zonotope' with time_limit = {seconds:.2g}")
        if self.whole > limit:
            found.append(
                f"time_limit = {self.whole:.2g}, for '{self.relaxation.value}' in every step"
            )
        return tuple(found)


def make_plan(
    step_graph: StepGraph,
    batches: Sequence[Batch],
    poison: Poison,
    training: Training,
    options: CertifyOptions,
    restriction: Restriction,
    given: Sequence[Tensor] = (),
) -> Plan:
    """The plan that follows from the options of a run. ``given`` are data kept besides the poison. Raises
    InvalidInputError: an invalid memory size, or levels and selections that this run cannot have."""
    steps, budget = len(batches), bytes_of(options.memory)
    slow = 1.0 if options.time_limit is None else slowness()
    # Predictions are those of one machine; so is a time limit from here on.
    limit = None if options.time_limit is None else options.time_limit / slow
    window = options.steps_of(options.window, steps)
    solved = options.steps_of(options.program_window, steps)
    walked = min(window or steps, steps)
    on_rows = solved == 0
    solved = min(solved or window or 1, steps)
    batch, exposed = max(len(b) for b in batches), int(poison.exposed.sum())
    sizes = Sizes(step_graph, batch, exposed, training.has_momentum, steps, walked, solved, budget)
    moved = _moved(poison)
    refused = refusal(sizes.schedule, poison, restriction, training.update_rules(steps))
    zonotope = sizes.zonotope(moved, _met(poison, batches), not poison.static)
    summed, in_place = None, Remarks()
    cheap = REFINING_TIME if limit is None else SPARE * limit
    linear = _replaceable(sizes, options, poison, restriction, cheap, limit)
    if refused is None and _is_too_large(options, sizes, zonotope, linear, cheap, limit):
        parts = gathered(step_graph, poison, restriction, training.update_rules(steps))
        line = f"the generators of a zonotope would take about {mib(zonotope[1])}"
        if isinstance(parts, Gathered):
            summed, zonotope = parts, sizes.gathered(_met(poison, batches), poison.budget)
            line += (
                ": in their place the first layer is a sum over samples, with intervals behind it"
            )
        else:
            line += f", and a first layer that is a sum over samples has no rule for {parts}"
        in_place = Remarks(notes=(line,))
    level, remarks, begun = Relaxation.INTERVAL, Remarks(), math.nan
    if options.relaxation == "auto":
        level, remarks, begun = choose_level(sizes, None if refused else zonotope, limit)
    else:
        level = Relaxation.parse(options.relaxation)
    seconds = sizes.inner
    linear_inner = level.walks and options.inner_bounds != "interval"
    dear = linear_inner and options.inner_bounds is None and seconds > cheap
    linear_inner &= not dear
    allowed = max(cheap, seconds if linear_inner else 0.0)
    carry = sum(zonotope[0]), zonotope[1]
    degree = math.inf if poison.static else degree_of(sizes.schedule, poison, training)
    exact = level is Relaxation.LINEAR and walked == steps and degree <= 1.0
    levels, more = levels_of(
        level, refused, carry, linear, allowed, budget, options.carried, on_rows, exact
    )
    if level is Relaxation.LINEAR and levels[-1] is Relaxation.ZONOTOPE:
        alone = options.changed({"relaxation": Relaxation.ZONOTOPE.value})
        found = make_plan(step_graph, batches, poison, training, alone, restriction, given)
        return replace(found, asked=options.relaxation, remarks=more + found.remarks)
    # What is exchanged for whole samples it knows as boxes, linear forms as balls and means.
    carried = Relaxation.ZONOTOPE in levels and poison.whole is None
    named = options.relaxation == Relaxation.ZONOTOPE.value if summed is None else carried
    remarks = remarks + (in_place if named else Remarks()) + more
    told_apart, more = selections_of(sizes, level, options, poison, restriction, cheap, carried)
    if carried and options.inner_bounds is None and not level.uses_programs:
        # Beside a zonotope linear forms gain little by them, but for labels that flip jointly.
        gains = isinstance(poison.label_moves, Vertices) and not told_apart.groups
        linear_inner, dear = linear_inner and gains, dear and gains
    no_time = Relaxation.ZONOTOPE not in levels and options.carried != "none" and not refused
    no_time &= level.walks and carry[1] <= budget
    if dear:
        line = (
            f"inner bounds by intervals: linear ones would take about {seconds:.3g} s, more than "
            f"{cheap:g} s; ask for inner_bounds='linear' to have them"
        )
        remarks += Remarks(notes=(line,))
    if options.window is None and told_apart.window and level is Relaxation.LINEAR:
        line = (
            f"window {told_apart.window} in place of the whole run, so that each selection of samples "
            f"can be bounded by itself; give window='T', or a number of steps, to have that"
        )
        shorter = options.changed({"window": told_apart.window})
        found = make_plan(step_graph, batches, poison, training, shorter, restriction, given)
        return replace(found, remarks=Remarks(notes=(line,)) + found.remarks)
    kept = walked * sizes.kept(poison.states) if level.walks else 0
    data = stored([*poison.tensors, *given])
    if level.walks and Relaxation.ZONOTOPE in levels:
        kept += carry[1]
    room, told = _room(budget, data, kept + told_apart.kept)
    # The mean of the remaining samples needs the whole batch.
    whole = batch if poison.whole is Whole.REMOVED else 1
    pieces = Pieces.of(sizes, whole, told_apart.groups > 0, room)
    large = sizes.walked >= THREADED_ELEMENTS
    total = told_apart.seconds + seconds * linear_inner
    total += carry[0] if Relaxation.ZONOTOPE in levels else 0.0
    if level is not Relaxation.ZONOTOPE:
        total += sizes.seconds.get(level, math.nan)
    return Plan(
        asked=options.relaxation,
        relaxation=level,
        memory=budget,
        levels=levels,
        steps=steps,
        window=walked,
        program_window=0 if on_rows else solved,
        pieces=pieces,
        linear_inner=linear_inner,
        inner_of_programs=linear_inner
        and options.inner_bounds is None
        and carried
        and level.uses_programs,
        selections=told_apart,
        past=0 if training.projection else _past(sizes, room),
        single_thread=not large or (level is Relaxation.INTERVAL and sizes.boxes < THREADED_BOXES),
        first_walk=slow * 2 * sizes.state * sizes.walked / rates.WALKED_PER_SECOND,
        seconds=total,
        whole=slow * (total if math.isnan(begun) else begun),
        zonotope=slow * carry[0] if no_time else math.nan,
        scarce=pieces.chunk < min(2 * sizes.state, ROWS_AT_ONCE),
        straight=math.isfinite(degree),
        remarks=remarks + more + told,
        gathered=summed if Relaxation.ZONOTOPE in levels else None,
    )


def _replaceable(
    sizes: Sizes,
    options: CertifyOptions,
    poison: Poison,
    restriction: Restriction,
    cheap: float,
    limit: float | None,
) -> float:
    """What a zonotope in place of linear forms may take: their seconds, within the limit; none where
    settings of theirs were asked for, or where they tell selections apart."""
    asked = options.inner_bounds == "linear" or options.selections == "enumerated"
    if options.relaxation != Relaxation.LINEAR.value or asked or options.window is not None:
        return 0.0
    apart, _ = selections_of(
        sizes, Relaxation.LINEAR, options, poison, restriction, cheap, zonotope=False
    )
    if apart.groups or apart.window:
        return 0.0
    return min(sum(sizes.linear), math.inf if limit is None else limit)


def _is_too_large(
    options: CertifyOptions,
    sizes: Sizes,
    zonotope: tuple[Sequence[float], int],
    linear: float,
    beside: float,
    limit: float | None,
) -> bool:
    """Whether a zonotope has to be a sum over samples, or would not be there; ``linear`` and ``beside`` are
    the seconds that it may take in place of linear forms, and beside them."""
    seconds, size, memory = sum(zonotope[0]), zonotope[1], sizes.memory
    if options.relaxation == "auto":
        allowed = AUTO_TIME if limit is None else limit
        return size > memory or STARTED * seconds > allowed
    level = Relaxation.parse(options.relaxation)
    if Relaxation.ZONOTOPE not in level.chain() or level.uses_programs:
        return False
    asked = level is Relaxation.ZONOTOPE
    if level is Relaxation.LINEAR:
        asked = stands_alone((seconds, size), linear, beside, memory)
    return size > (ZONOTOPE_OVER * memory if asked else memory // ZONOTOPE_SHARE)


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
    fixed = rates.BASELINE + data + kept
    least = budget // LEAST_ROOM
    if budget - fixed >= least:
        return budget - fixed, Remarks()
    line = (
        f"memory {mib(budget)} cannot be kept: {mib(fixed)} are needed however the work is cut "
        f"(libraries {mib(rates.BASELINE)}, data {mib(data)}, steps of the window and sets "
        f"beside them {mib(kept)}), and "
        f"{mib(least)} are taken for pieces of it; give more memory, or take a shorter window, smaller "
        "batches or relaxation='interval'"
    )
    return max(1, least), Remarks(fallbacks=(line,))


def _moved(poison: Poison) -> int:
    """Number of coefficients on the moves of one sample, plus 1 for its charge."""
    moves = ((poison.features, poison.feature_moves), (poison.labels, poison.label_moves))
    return 1 + sum(data[0].numel() for data, own in moves if own is not None)


def _met(poison: Poison, batches: Sequence[Batch]) -> Sequence[int]:
    """How many exposed samples have been met until each step; anew in each where data are poisoned anew."""
    exposed, counts, known = poison.exposed.tolist(), [], set[int]()
    count = 0
    for batch in batches:
        own = {int(sample) for sample in batch if exposed[int(sample)]} - known
        known |= own if poison.static else set()
        count += len(own)
        counts.append(count)
    return counts


def _past(sizes: Sizes, room: int) -> int:
    """Number of past steps through which forms of all signed entries go on by matrix products.

    They cost at most as much as the backward pass through the window plus PAST_SECONDS, and a quarter of
    the room.
    """
    ends = 2 * sizes.state
    seconds = ends * ends * sizes.state / rates.MULTIPLIED_PER_SECOND
    walk = ends * sizes.walked * sizes.window / rates.WALKED_PER_SECOND
    fitting = room // 4 // (rates.FLOAT * ends * (sizes.state + 2))
    # The newest step is kept for the window of the next.
    wanted = sizes.steps - 1 if sizes.window < sizes.steps else 0
    return min(wanted, fitting, int((walk + PAST_SECONDS) / seconds))
