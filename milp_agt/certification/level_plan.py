"""Which levels a run has: all looser than the one asked for, with a zonotope and step programs or without."""

from __future__ import annotations

from collections.abc import Sequence

from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Remarks
from milp_agt.errors import InvalidInputError

# What a zonotope may take of the memory: beside linear forms (a divisor), where it was asked for (a factor).
ZONOTOPE_SHARE, ZONOTOPE_OVER = 4, 2


def levels_of(
    asked: Relaxation,
    refused: str | None,
    predicted: tuple[float, int],
    seconds: float,
    memory: int,
    carried: str,
    on_rows: bool,
) -> tuple[Sequence[Relaxation], Remarks]:
    """The levels of the chains. Above a zonotope it is carried along where it has rules for the run and
    is predicted to take at most some seconds and a share of the memory; one that was asked for and would take
    far more is a box. Where programs are solved on its rows alone (``on_rows``) it is needed, no other chain
    has any, and far more is an error."""
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


def mib(count: int) -> str:
    return f"{count / 2**20:.4g} MiB"
