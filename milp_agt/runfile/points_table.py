"""What all properties share: thresholds, and the points that a question is about."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from milp_agt.data.dataset import Dataset
from milp_agt.errors import InvalidInputError
from milp_agt.runfile.table import Index, Table, problem

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

    @model_validator(mode="after")
    def _one_threshold(self) -> Self:
        if self.at_least is not None and self.at_most is not None:
            raise problem("both 'at_least' and 'at_most'", "split it into two properties")
        return self

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

    @model_validator(mode="after")
    def _one_choice(self) -> Self:
        ways = ("points", "ids", "positions")
        given = [f"'{way}'" for way in ways if getattr(self, way) is not None]
        if len(given) > 1:
            raise problem(" and ".join(given), "name the points by one of them")
        return self

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
