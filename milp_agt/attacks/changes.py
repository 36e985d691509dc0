"""What poisoned data change, in words: rows of the user's file, features by name and in its units."""

from __future__ import annotations

import numpy as np

from milp_agt.attacks.unrolled import Poisoning, Unrolled
from milp_agt.core.reachable import Array
from milp_agt.data.origin import Origin

NAMED = 3  # features of a sample that are spelt out


def in_words(
    unrolled: Unrolled, data: Poisoning, origin: Origin | None
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Rows of the samples that one run changes, and a line for each; positions where there is no file.

    A static threat is told in full. Of an adaptive one the line says in how many steps the sample differs,
    and what it is in the first of these.
    """
    told: dict[int, tuple[str, int]] = {}
    own, x, y = unrolled.moves, data.features[0], data.labels[0]
    moved = (x != own.features).flatten(1).any(1) | (y != own.labels).any(-1)
    turned = unrolled.turned(data)[0]
    if data.there is not None:
        moved = turned | (moved & (data.there[0] > 0))
    labels = unrolled.decoded(own.labels), unrolled.decoded(y)
    for entry in moved.nonzero()[:, 0].tolist():
        sample = int(unrolled.cover[entry])
        what, steps = told.get(sample, ("", 0))
        if not what:
            flat = own.features[entry].flatten().cpu().numpy(), x[entry].flatten().cpu().numpy()
            kinds = [_features(*flat, origin), _label(labels[0][entry], labels[1][entry])]
            what = ", ".join(kind for kind in kinds if kind)
            if bool(turned[entry]) and data.there is not None:
                what = f"inserted, {what}" if float(data.there[0, entry]) else "removed"
        told[sample] = what, steps + 1
    lines, rows = [], []
    for position in sorted(told):
        row = position if origin is None else origin.row(position)
        known = origin is not None and position < len(origin.rows.train)
        name = origin.name(position) if origin is not None and known else str(row)
        what, steps = told[position]
        again = "" if unrolled.poison.static else f" (in {steps} steps; the first is told)"
        rows.append(row)
        lines.append(f"{'sample' if origin is None else 'row'} {name}: {what}{again}")
    return tuple(rows), tuple(lines)


def _features(nominal: Array, given: Array, origin: Origin | None) -> str:
    changed = np.flatnonzero(nominal != given)
    if not len(changed):
        return ""
    names = [f"feature {k}" for k in range(len(nominal))]
    if origin is not None and len(origin.names) == len(nominal):
        names = [f"'{name}'" for name in origin.names]
    units = ""
    scaling = None if origin is None or origin.projected else origin.features
    if scaling is not None and scaling.size.size in (1, len(nominal)):
        size = np.broadcast_to(scaling.size.reshape(-1), nominal.shape)
        mean = np.broadcast_to(np.asarray(scaling.mean).reshape(-1), nominal.shape)
        offset = mean * scaling.divisor if scaling.fitted else np.zeros_like(nominal)
        nominal, given = nominal * size + offset, given * size + offset
        units = " (units of the file)"
    largest = changed[np.argsort(-np.abs(given - nominal)[changed], kind="stable")][:NAMED]
    shown = [f"{names[k]} {nominal[k]:.6g} {given[k] - nominal[k]:+.3g}" for k in sorted(largest)]
    more = f" and {len(changed) - NAMED} more features" if len(changed) > NAMED else ""
    return ", ".join(shown) + more + units


def _label(nominal: object, given: object) -> str:
    if np.array_equal(np.asarray(nominal), np.asarray(given)):
        return ""
    return f"label {_plain(nominal)} -> {_plain(given)}"


def _plain(label: object) -> str:
    values = np.asarray(label).reshape(-1).tolist()
    return ", ".join(f"{value:.6g}" for value in values)
