"""Numbers that are none: where they are, in words that lead to the cause."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError

Array = npt.NDArray[Any]
SHOWN = 8


def all_finite(
    asked: str,
    what: str,
    values: Array,
    names: tuple[str, ...] = (),
    lines: Array | None = None,
) -> None:
    """See that all numbers of (n, ...) are finite.

    The error names the columns where they are few, which is the cause far more often than the
    samples are, and the first sample.

    Args:
        asked, what: for the message.
        names: of the columns; they are counted from 0 where there are none.
        lines: of each sample in its file.

    Raises:
        InvalidInputError: a NaN or an infinity.
    """
    bad = ~np.isfinite(values)
    if not bad.any():
        return
    flat = bad.reshape(len(bad), -1)
    count, columns, rows = int(bad.sum()), np.flatnonzero(flat.any(0)), np.flatnonzero(flat.any(1))
    kind = "NaN" if np.isnan(values[bad]).all() else "NaN or infinite"
    first = f"sample {rows[0]}" + ("" if lines is None else f" (line {int(lines[rows[0]])})")
    whole = np.flatnonzero(flat.all(0))
    if flat.shape[1] == 1 and not names:
        where = f"in samples {_some(rows)}"
        remedy = "drop or impute these samples before training"
    elif len(whole):
        where = f"in {_columns(whole, names)} of every sample" + (
            f", and {count - len(whole) * len(flat)} elsewhere"
            if count > len(whole) * len(flat)
            else ""
        )
        remedy = (
            "leave these columns out, or see why they are empty (a division by 0, a failed join)"
        )
    elif len(columns) <= max(1, flat.shape[1] // 4) or len(rows) > SHOWN:
        where = f"in {_columns(columns, names)} of samples {_some(rows)}"
        where += f" ({len(rows)} of {len(flat)}), the first {first}" if len(rows) > SHOWN else ""
        remedy = "impute these columns, or drop these samples"
    else:
        at = tuple(int(i) for i in np.argwhere(bad)[0])
        where = f"in samples {_some(rows)}, the first at {at}"
        remedy = "drop or impute these samples before training"
    raise InvalidInputError(asked, f"{count} {kind} values among {what}, {where}", remedy)


def _some(numbers: Array) -> str:
    shown = ", ".join(map(str, numbers[:SHOWN].tolist()))
    return shown + (", ..." if len(numbers) > SHOWN else "")


def _columns(columns: Array, names: tuple[str, ...]) -> str:
    shown = [f"'{names[c]}'" if names else str(c) for c in columns[:SHOWN].tolist()]
    more = ", ..." if len(columns) > SHOWN else ""
    return f"column{'s' if len(columns) > 1 else ''} {', '.join(shown)}{more}"
