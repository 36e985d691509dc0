"""Where samples come from: rows and names in the user's file, and the units of its numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from milp_agt.errors import InvalidInputError

Array = npt.NDArray[Any]
Part = Literal["train", "test"]
UNIT_ROUNDOFF = 2.0**-53
NAMED = 3  # features whose units are spelt out


@dataclass(frozen=True, eq=False)
class Parts:
    """One array for the training part and one for the test part, an entry for each sample."""

    train: Array
    test: Array

    def of(self, part: Part) -> Array:
        """The array of one part."""
        return self.train if part == "train" else self.test


@dataclass(frozen=True, eq=False)
class Scaling:
    """How a number of the user's file became one of the run: ``(raw / divisor - mean) / deviation``.

    Attributes:
        mean, deviation: of each column, (*shape); taken from the training part.
        divisor: 255 for pixels, else 1.
        names: of the columns.
        fitted: whether mean and deviation depend on the data.
    """

    mean: Array
    deviation: Array
    divisor: float
    names: tuple[str, ...]
    fitted: bool = True

    @property
    def size(self) -> Array:
        """What one unit of the run is in units of the file, (*shape)."""
        return np.asarray(self.deviation * self.divisor)

    @property
    def unit(self) -> str:
        """The unit of the run in words, after a number."""
        return " standard deviations" if self.fitted else " of the range 0 to 1"

    def apply(self, raw: npt.ArrayLike) -> Array:
        """Numbers of the file as the run sees them, in its own arithmetic; broadcast to (*shape)."""
        values = np.asarray(raw, dtype=np.float64)
        if self.divisor != 1.0:
            values = values / self.divisor
        return np.asarray((values - self.mean) / self.deviation) if self.fitted else values

    def slack(self, largest: npt.ArrayLike) -> Array:
        """How far rounding can move the distance of two scaled numbers, (*shape).

        Each number is rounded at most three times: by ``u |raw / divisor|`` before the mean is taken
        off, and by ``2 u |scaled|`` after that. Both numbers of a distance add up; what depends on the
        distance itself is left to :meth:`radius`.

        Args:
            largest: at least the size of each scaled number, (*shape).
        """
        eight = 8.0 * UNIT_ROUNDOFF
        return np.asarray(eight * (np.abs(largest) + np.abs(self.mean / self.deviation)))

    def beside(self, radius: object, raw: bool) -> str:
        """The other unit of a radius in words, for the first columns."""
        per, given = self.size.reshape(-1), np.asarray(radius)
        value, one = (float(given), True) if given.ndim == 0 else (1.0, False)
        sizes = [value / s if raw else value * s for s in per[:NAMED]]
        if not self.fitted:
            return f"{'' if one else '1 is '}{sizes[0]:.4g} of 0 to {1 if raw else self.divisor:g}"
        lead = "" if one else ("1 in these units is " if raw else f"1{self.unit[:-1]} is ")
        shown = [f"{s:.4g} of '{name}'" for s, name in zip(sizes, self.names, strict=False)]
        shown[0] = shown[0].replace(" of", f"{self.unit if raw else ''} of", 1)
        more = f" and so on for {len(per)} columns" if len(per) > NAMED else ""
        return f"{lead}{', '.join(shown)}{more}"


@dataclass(frozen=True, eq=False)
class Origin:
    """Rows, names and units of the samples of a data set, as they stand in the user's file.

    Attributes:
        where: what rows are counted in, for people: "rows of d.csv".
        rows: of each sample, from 0; below the header, as ``pandas.read_csv`` counts.
        total: rows of the file.
        apart: whether the test part has rows of its own, counted apart.
        ids: who each sample is; None where no column says so.
        features, targets: how they were scaled; None where they are as in the file.
        projected: whether features are components, so that no unit of the file is left.
        names: of the features.
    """

    where: str
    rows: Parts
    total: int
    names: tuple[str, ...]
    apart: bool = False
    ids: Parts | None = None
    features: Scaling | None = None
    targets: Scaling | None = None
    projected: bool = False

    @staticmethod
    def of_arrays(train: int, test: int, names: tuple[str, ...], ids: Parts | None) -> Origin:
        """Samples of arrays: rows are positions in them."""
        rows = Parts(np.arange(train), np.arange(test))
        return Origin("positions in the arrays", rows, train, names, True, ids)

    @property
    def in_order(self) -> bool:
        """Whether the training part is the whole file, in its order."""
        return np.array_equal(self.rows.train, np.arange(self.total))

    def positions(
        self,
        asked: str,
        part: Part,
        rows: Sequence[int] | None = None,
        ids: Sequence[object] | None = None,
        kind: type[InvalidInputError] = InvalidInputError,
    ) -> list[int]:
        """Positions in a part of the samples with these rows, or of all with these ids.

        Raises:
            InvalidInputError (or ``kind``): a row outside the file or in the other part, an id that no
                sample has, or ids where no column says who a sample is.
        """
        if ids is not None:
            return self._with_ids(asked, part, ids, kind)
        own = self.rows.of(part).tolist()
        at = {row: position for position, row in enumerate(own)}
        listed = [] if rows is None else list(rows)
        bad = [row for row in listed if row not in at]
        if bad:
            shown = ", ".join(map(str, own[:5])) + (", ..." if len(own) > 5 else "")
            raise kind(
                asked,
                self._why(bad[0], part),
                f"rows of the {_word(part)} part are {shown} (Dataset.rows.{part}); "
                "test_fraction = 0 holds nothing out",
            )
        return [at[row] for row in listed]

    def _with_ids(
        self, asked: str, part: Part, ids: Sequence[object], kind: type[InvalidInputError]
    ) -> list[int]:
        if self.ids is None:
            raise kind(
                asked,
                "ids, and no column that says who a sample is",
                "name that column with id= ([data] id), or give rows of the file",
            )
        own, other = self.ids.of(part), _other(part)
        wanted = [str(each) for each in ids]
        absent = [each for each in wanted if each not in set(own.tolist())]
        if absent:
            there = absent[0] in set(self.ids.of(other).tolist())
            raise kind(
                asked,
                f"'{absent[0]}', which no sample of the {_word(part)} part is called"
                + (f" (one of the {_word(other)} part is)" if there else ""),
                f"give ids of the {_word(part)} part, for instance '{own[0]}'"
                if len(own)
                else f"that part is empty: ask about the {_word(other)} part",
            )
        return np.flatnonzero(np.isin(own, wanted)).tolist()

    def _why(self, row: object, part: Part) -> str:
        """Why a row has no place in a part."""
        other = _other(part)
        if self.apart or not isinstance(row, (int, np.integer)) or not 0 <= row < self.total:
            count = len(self.rows.of(part)) if self.apart else self.total
            return f"row {row}, beside rows 0..{count - 1} ({self.where})"
        if row in self.rows.of(other):
            return f"row {row}, which is in the {_word(other)} part ({self.where})"
        return f"row {row}, which is in neither part: left out, or not drawn ({self.where})"

    def row(self, position: int) -> int:
        """The row of a training sample; samples beyond these are counted on from the end of the file."""
        own = self.rows.train
        return int(own[position]) if position < len(own) else self.total + position - len(own)

    def name(self, position: int, part: Part = "train") -> str:
        """A sample for people: its row, and its id if it has one."""
        row = int(self.rows.of(part)[position])
        return f"{row}" if self.ids is None else f"{row} ('{self.ids.of(part)[position]}')"

    def in_words(self, positions: Sequence[int]) -> str:
        """Some training samples for people: the first of their rows or ids."""
        shown = ", ".join(self.name(each) for each in positions[:8])
        return shown + (f", ... ({len(positions)} in all)" if len(positions) > 8 else "")

    def of_rows(self, values: Array, asked: str, kind: type[InvalidInputError]) -> Array:
        """Values of the training samples out of one for each row of the file.

        Raises:
            InvalidInputError (or ``kind``): one for each training sample, whose order is not the file's.
        """
        if self.in_order:
            return values
        if len(values) == self.total:
            return np.asarray(values[self.rows.train])
        raise kind(
            asked,
            f"{len(values)} values, where the order of {len(self.rows.train)} training samples is not that "
            f"of the file's {self.total} rows",
            f"give one for each of the {self.total} rows; what stands at rows outside the training part is "
            "not looked at",
        )


def _word(part: Part) -> str:
    return "training" if part == "train" else "test"


def _other(part: Part) -> Part:
    return "test" if part == "train" else "train"


# A data set that was made without one counts its samples by their positions.
UNKNOWN = Origin.of_arrays(0, 0, (), None)
