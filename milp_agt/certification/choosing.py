"""Which level `auto` takes: the tightest that fits, or one that is begun and ended in time; and its tree."""

from __future__ import annotations

import math
from collections.abc import Callable

from milp_agt.bounds.cells.plan import TreePlan
from milp_agt.certification.options import CertifyOptions
from milp_agt.certification.sizes import FLOAT, LIVE_BOXES, ROWS_PER_ELEMENT, Sizes
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Remarks
from milp_agt.errors import UnsupportedOperationError

# Under a time limit a level is begun although it does not fit, if at least this share of its steps does.
STARTED = 0.1
# Seconds of a tree that `auto` gives each question, or the share of a time limit.
AUTO_TREE, TREE_SHARE = 10.0, 0.3


def choose_level(
    sizes: Sizes,
    steps: int,
    window: int,
    memory: int,
    seconds: float,
    solved: int,
    zonotope: tuple[float, int] | None,
    *,
    starts: bool,
) -> tuple[Relaxation, Remarks, float]:
    """The tightest level below milp whose predicted time and memory fit, with the reason as a remark.

    Where it ``starts``, the cheapest of the tighter levels of which a tenth fits into the time that is left
    is taken instead: it ends where its next step does not fit, and cheaper ones go on from its boxes. Then
    the last number is what it is predicted to take in all; else it is not a number.
    """
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
    table = ", ".join(
        f"{r.value} {predicted[r]:.3g} s / {needed[r] / 2**20:.3g} MiB" for r in predicted
    )
    told = (
        f"predicted {table}; allowed {seconds:.3g} s / {memory / 2**20:.3g} MiB; milp is never picked "
        "unasked"
    )
    roomy = [level for level in predicted if needed[level] <= memory]
    fitting = [level for level in roomy if predicted[level] <= seconds] or [Relaxation.INTERVAL]
    chosen = fitting[-1]
    left = seconds - predicted[chosen]
    tighter = [level for level in roomy if roomy.index(level) > roomy.index(chosen)]
    begun = [level for level in tighter if STARTED * predicted[level] <= left]
    if not starts or not begun:
        return chosen, Remarks(notes=(f"auto picked '{chosen.value}': {told}",)), math.nan
    best = min(begun, key=lambda level: predicted[level])
    note = f"auto picked '{best.value}', as far as it gets, and '{chosen.value}' to the end: {told}"
    return best, Remarks(notes=(note,)), predicted[best]


def tree_of(options: CertifyOptions, of: Callable[[float], TreePlan]) -> TreePlan | None:
    """The tree that was asked for; by `auto` one for what other bounds leave open, where there is a rule."""
    if options.tree or options.relaxation != "auto":
        return of(options.tree) if options.tree else None
    limit = options.time_limit
    try:
        return of(AUTO_TREE if limit is None else TREE_SHARE * limit)
    except UnsupportedOperationError:
        return None
