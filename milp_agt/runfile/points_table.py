"""What all properties share: thresholds, and the points that a question is about."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field

from milp_agt.core.option_table import Index, Table
from milp_agt.data.dataset import Dataset
from milp_agt.errors import InvalidInputError, Problem

Array = npt.NDArray[Any]


class PickedPoints(NamedTuple):
    """The points that a property is about: positions in their part of the data, and their names."""

    positions: Array
    features: Array
    labels: Array
    groups: Array | None


class TableOfProperty(Table):
    """Keys of every kind; without a threshold a property is only reported."""

    at_least: float | None = Field(
        default=None,
        description="PROVED if the certified lower bound is at least this, in each subgroup as well; "
        "only reported without a threshold.",
    )
    at_most: float | None = Field(
        default=None,
        description="PROVED if the certified upper bound is at most this, in place of `at_least`.",
    )

    is_share: ClassVar[bool] = False

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().contradictions(given)
        if "at_least" in given and "at_most" in given:
            yield "both 'at_least' and 'at_most'", "split it into two properties"
        for key in ("at_least", "at_most") if cls.is_share else ():
            value = given.get(key)
            if isinstance(value, (int, float)) and not 0 <= value <= 1:
                found = f"{key} = {value:g} for a share, which lies between 0 and 1"
                percent = f"{key} = {value / 100:g}, if {value:g} % is meant"
                yield found, f"give {percent}" if 1 < value <= 100 else "give a number from 0 to 1"

    @property
    def detail(self) -> str:
        """What tells this property from others of its kind."""
        return ""


class TableOfPoints(TableOfProperty):
    """Keys of the kinds that ask about test points."""

    on: Literal["test", "train"] = Field(
        default="test", description="The part of the data that is asked about."
    )
    points: Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None,
        description="Points of that part by their rows in the file, from 0, below the header; all unless "
        "given.",
    )
    ids: Annotated[list[str | int], Field(min_length=1)] | None = Field(
        default=None,
        description="The same by who they are, in place of `points`: what stands in the column `id` of "
        "[data].",
    )
    positions: Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None,
        description="The same by position in that part after the split, in place of `points`.",
    )
    groups: Literal["class"] | list[str | int] | None = Field(
        default=None,
        description="Bound every subgroup as well: each class, or the subgroups made by one name for "
        "each point that is asked about, in the order of `points`, or of the rows in the file.",
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().contradictions(given)
        named = [f"'{way}'" for way in ("points", "ids", "positions") if given.get(way) is not None]
        if len(named) > 1:
            yield " and ".join(named), "name the points by one of them"

    def pick(self, dataset: Dataset) -> PickedPoints:
        """The points of a data set.

        Raises:
            InvalidInputError: an empty part, positions outside it, a regression by classes.
        """
        test = self.on == "test"
        x = dataset.x_test if test else dataset.x_train
        y = dataset.y_test if test else dataset.y_train
        if len(x) == 0:
            raise InvalidInputError(
                f"A property of the {self.on} part",
                f"'{dataset.name}' without a {self.on} part",
                "hold samples out with test_fraction, or set on = 'train'",
            )
        index = self._picked(dataset, len(x))
        if self.groups == "class" and dataset.task == "regression":
            raise InvalidInputError(
                "groups = 'class' needs classes", "real targets", "name a group for each point"
            )
        names = y[index] if self.groups == "class" else self.groups
        return PickedPoints(index, x[index], y[index], None if names is None else np.asarray(names))

    def _picked(self, dataset: Dataset, count: int) -> Array:
        """Positions of the points in their part."""
        asked = f"A property of points of the {self.on} part"
        if self.points is not None:
            return np.asarray(dataset.origin.positions(asked, self.on, self.points))
        if self.ids is not None:
            return np.asarray(dataset.origin.positions(asked, self.on, ids=self.ids))
        if self.positions is None:
            listed = isinstance(self.groups, list) or getattr(self, "targets", None) is not None
            return np.argsort(dataset.rows.of(self.on)) if listed else np.arange(count)
        index = np.asarray(self.positions)
        if index.max() >= count:
            raise InvalidInputError(
                f"positions = 0..{count - 1} of the {self.on} part",
                f"position {int(index.max())}",
                "correct 'positions'",
            )
        return index
