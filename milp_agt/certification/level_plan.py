"""Which levels a run has: the one that was asked for or that `auto` takes, all looser ones, and its tree."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate

from milp_agt.bounds.cells.plan import TreePlan
from milp_agt.certification.options import CertifyOptions
from milp_agt.certification.sizes import FLOAT, LIVE_BOXES, Sizes
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Remarks
from milp_agt.errors import InvalidInputError, UnsupportedOperationError

# Seconds of `auto` without a time limit.
AUTO_TIME = 120.0
# Under a time limit a level is begun although it does not fit, if at least this share of it does, or so many
# steps; a zonotope before linear forms that get less than so many times as far.
STARTED, FIRST_STEPS, FARTHER = 0.1, 3, 2
# Seconds of a tree that `auto` gives each question, or the share of a time limit.
AUTO_TREE, TREE_SHARE = 10.0, 0.3
# What a zonotope may take of the memory: beside linear forms (a divisor), where it was asked for (a factor).
ZONOTOPE_SHARE, ZONOTOPE_OVER = 4, 2


def choose_level(
    sizes: Sizes, zonotope: tuple[Sequence[float], int] | None, limit: float | None
) -> tuple[Relaxation, Remarks, float]:
    """The tightest level below milp whose predicted time and memory fit, with the reason as a remark.

    Under a time limit the cheapest of the tighter levels of which a tenth fits into the time that is left
    is taken instead, or else one that gets through the first few steps: it ends where its next step does not
    fit, and cheaper ones go on from its boxes. Then the last number is what it is predicted to take in all;
    else it is not a number.
    """
    seconds, memory = AUTO_TIME if limit is None else limit, sizes.memory
    boxes = FLOAT * LIVE_BOXES * sizes.boxes * sizes.window
    predicted = sizes.seconds
    needed = {
        Relaxation.INTERVAL: 0,
        Relaxation.LINEAR: boxes,
        Relaxation.LP: 2 * boxes + 200 * sizes.rows,
    }
    if zonotope is not None:
        predicted[Relaxation.ZONOTOPE], needed[Relaxation.ZONOTOPE] = sum(zonotope[0]), zonotope[1]
    predicted = {level: predicted[level] for level in Relaxation if level in predicted}
    table = ", ".join(
        f"{r.value} {predicted[r]:.3g} s / {needed[r] / 2**20:.3g} MiB" for r in predicted
    )
    told = (
        f"predicted {table}; allowed {seconds:.3g} s / {memory / 2**20:.3g} MiB; milp is never picked "
        "unasked"
    )
    roomy = [level for level in predicted if needed[level] <= memory]
    chosen = [r for r in roomy if r is Relaxation.INTERVAL or predicted[r] <= seconds][-1]
    left = seconds - predicted[chosen]
    tighter = roomy[roomy.index(chosen) + 1 :]
    begun = [level for level in tighter if STARTED * predicted[level] <= left]
    best = min(begun, key=lambda level: predicted[level], default=None)
    if best is None and limit is not None:
        steps = {Relaxation.LINEAR: _fitting(sizes.linear, left)}
        if zonotope is not None:
            steps[Relaxation.ZONOTOPE] = FARTHER * _fitting(zonotope[0], left)
        steps = {r: count for r, count in steps.items() if r in tighter and count >= FIRST_STEPS}
        best = max(steps, key=lambda level: steps[level], default=None)
    if limit is None or best is None:
        return chosen, Remarks(notes=(f"auto picked '{chosen.value}': {told}",)), math.nan
    note = f"auto picked '{best.value}', as far as it gets, and '{chosen.value}' to the end: {told}"
    return best, Remarks(notes=(note,)), predicted[best]


def _fitting(seconds: Sequence[float], left: float) -> int:
    """How many of the first steps fit into the time that is left."""
    return sum(total <= left for total in accumulate(seconds))


def stands_alone(predicted: tuple[float, int], linear: float, seconds: float, memory: int) -> bool:
    """Whether a zonotope takes the place of linear forms, ``linear`` seconds at most: beside them it would
    be dear or large, alone it fits, and it is predicted to be the cheaper one."""
    time, size = predicted
    beside = time <= seconds and size <= memory // ZONOTOPE_SHARE
    return not beside and time <= linear and size <= memory


def levels_of(
    asked: Relaxation,
    refused: str | None,
    predicted: tuple[float, int],
    linear: float,
    seconds: float,
    memory: int,
    carried: str,
    on_rows: bool,
    exact: bool,
) -> tuple[Sequence[Relaxation], Remarks]:
    """The levels of the chains. Above a zonotope it is carried along where it has rules for the run and
    is predicted to take at most some seconds and a share of the memory; one that was asked for and would take
    far more is a box. It takes the place of linear forms where it :func:`stands_alone`, and is left out where
    these are ``exact`` by themselves. Where programs are solved on its rows alone (``on_rows``) it is needed,
    no other chain has any, and far more is an error."""
    time, size = predicted
    levels: Sequence[Relaxation] = asked.chain()
    on_rows = on_rows and asked.uses_programs
    needed = on_rows or asked is Relaxation.ZONOTOPE
    if on_rows:
        levels = _on_rows(asked, refused, carried)
    if needed and refused is None and size > ZONOTOPE_OVER * memory:
        if not on_rows:
            line = (
                f"all generators of the zonotope are folded into the box: they would take about {mib(size)}, "
                f"far more than {mib(memory)}; give more memory to have them"
            )
            return (Relaxation.INTERVAL,), Remarks(fallbacks=(line,))
        found = f"its forms and generators would take about {mib(size)}"
        asked_for, to_do = f"A zonotope within {mib(memory)}", "use smaller batches or more memory"
        raise InvalidInputError(asked_for, found, to_do)
    if Relaxation.ZONOTOPE not in levels or needed:
        return levels, Remarks()
    why = None if refused is None else f"it has no rule for {refused}"
    if carried == "none":
        why = "carried = 'none'"
    elif why is None and exact:
        why = "steps are linear in parameters and moves, so that linear forms lose nothing but rounding"
    elif (
        why is None
        and asked is Relaxation.LINEAR
        and stands_alone(predicted, linear, seconds, memory)
    ):
        line = (
            f"a zonotope in place of linear forms: it is predicted to take {time:.3g} s and {mib(size)}, too "
            f"much beside them, and they {linear:.3g} s; give carried='none' to have them alone"
        )
        return Relaxation.ZONOTOPE.chain(), Remarks(notes=(line,))
    elif why is None and (time > seconds or size > memory // ZONOTOPE_SHARE):
        why = (
            f"it would take about {time:.3g} s and {mib(size)}, more than {seconds:.3g} s or "
            f"{mib(memory // ZONOTOPE_SHARE)}; ask for relaxation='zonotope' to have it"
        )
    if why is None:
        return levels, Remarks()
    kept = tuple(level for level in levels if level is not Relaxation.ZONOTOPE)
    return kept, Remarks(notes=(f"no zonotope is carried along: {why}",))


def _on_rows(asked: Relaxation, refused: str | None, carried: str) -> Sequence[Relaxation]:
    """The levels beside programs on a zonotope's rows alone."""
    why = None if refused is None else f"a zonotope has no rule for {refused}"
    if carried == "none":
        why = "carried = 'none'"
    if asked.exact_products:
        why = f"relaxation '{asked.value}', whose exact products are in programs of steps alone"
    if why is not None:
        raise InvalidInputError(
            "Programs on the rows of a zonotope alone (program_window = 0)",
            why,
            "give program_window=1, say, or relaxation 'lp' or 'milp' with a zonotope",
        )
    return tuple(level for level in asked.chain() if not level.uses_programs)


def tree_of(
    options: CertifyOptions, of: Callable[[float], TreePlan], *, late: bool
) -> TreePlan | None:
    """The tree that was asked for; by `auto` one for what other bounds leave open, where there is a rule.
    ``late``: a time limit left out the zonotope, so that there is none where selections are too many.
    """
    wanted, limit = options.tree, options.time_limit
    if not wanted and options.relaxation != "auto":
        return None
    try:
        return of(wanted or (AUTO_TREE if limit is None else TREE_SHARE * limit))
    except UnsupportedOperationError:
        if wanted and not late:
            raise
        return None


def mib(count: int) -> str:
    return f"{count / 2**20:.4g} MiB"
