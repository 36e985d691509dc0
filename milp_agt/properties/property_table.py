"""What all kinds of properties share: thresholds, the points that a question is about, and their registry."""

from __future__ import annotations

import importlib
import math
import pkgutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import Field
from torch import Tensor

from milp_agt.core.option_table import Index, Kinds, Table
from milp_agt.core.reachable import Bounds
from milp_agt.data.dataset import Dataset
from milp_agt.errors import InvalidInputError, Problem
from milp_agt.formulations.loss import LossFunction
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.question import Question

Array = npt.NDArray[Any]


class PickedPoints(NamedTuple):
    """The points that a property is about: positions in their part of the data, and their names."""

    positions: Array
    features: Array
    labels: Array
    groups: Array | None


class PropertyTable(Table):
    """One kind of property: its keys in a run file, and how it is asked of a result.

    Without a threshold it is only reported. A kind is one class with ``@PROPERTIES.register``.

    Attributes:
        what: what is bounded, for the table of what is supported.
        needs_classes: whether only classifiers can be asked.
        is_share: whether it is a share of points, from 0 to 1.
        high_is_good: whether the adversary wants it low.
        least: the least value that any model has.
        searches_inputs: whether test inputs move, so that an attack shows only its largest value.
        in_short, in_words, where_exact: the certified worst case as a clause, the bounds as a sentence, and
            where both ends are one; with ``{low}``, ``{high}``, ``{given}`` (by the data as given),
            ``{part}`` and ``{detail}``. Empty for words that fit every kind.
        on: the part of the data that it is about; "parameters" for none.
    """

    what: ClassVar[str]
    needs_classes: ClassVar[bool] = False
    is_share: ClassVar[bool] = False
    high_is_good: ClassVar[bool] = False
    least: ClassVar[float] = -math.inf
    searches_inputs: ClassVar[bool] = False
    in_short: ClassVar[str] = ""
    in_words: ClassVar[str] = ""
    where_exact: ClassVar[str] = ""
    if TYPE_CHECKING:
        kind: str

        @property
        def on(self) -> str: ...

    at_least: float | None = Field(
        default=None,
        description="PROVED if the certified lower bound is at least this, in each subgroup as well; "
        "only reported without a threshold.",
    )
    at_most: float | None = Field(
        default=None,
        description="PROVED if the certified upper bound is at most this, in place of `at_least`.",
    )

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

    @classmethod
    def fits(cls, loss: LossFunction) -> bool:
        """Whether it can be asked of a model trained on this loss."""
        return loss.is_classification or not cls.needs_classes

    @property
    def detail(self) -> str:
        """What tells this property from others of its kind."""
        return ""

    @property
    def name(self) -> str:
        """The kind with what tells it from others, and the part: ``backdoor (radius 0.1) on test``."""
        return (
            f"{self.kind} ({self.detail}) on {self.on}"
            if self.detail
            else f"{self.kind} on {self.on}"
        )


PROPERTIES: Kinds[PropertyTable] = Kinds("property", PropertyTable, lambda: _import_kinds())


def _import_kinds() -> None:
    import milp_agt.properties as package

    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")


class TableOfPoints(PropertyTable):
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

    @property
    def is_listed(self) -> bool:
        """Whether other keys say something of each point, in the order of the rows of the file."""
        return isinstance(self.groups, list)

    def pick(self, dataset: Dataset) -> PickedPoints:
        """The points of a data set. Raises InvalidInputError: an empty part, positions outside it, a
        regression by classes."""
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
            return np.argsort(dataset.rows.of(self.on)) if self.is_listed else np.arange(count)
        index = np.asarray(self.positions)
        if index.max() >= count:
            raise InvalidInputError(
                f"positions = 0..{count - 1} of the {self.on} part",
                f"position {int(index.max())}",
                "correct 'positions'",
            )
        return index

    @abstractmethod
    def question(self, models: ReachableModels, features: Tensor, labels: Tensor) -> Question:
        """The question about features (n, *shape) and encoded labels (n, width).

        It is bounded, decided and, unless attacks have an objective of their own for the kind, attacked
        through its forms.
        """


class TableOfShares(TableOfPoints):
    """A kind that asks a classifier for a share of the points."""

    needs_classes = True
    is_share = True


class TableOfParameters(PropertyTable):
    """A kind that asks about the parameters."""

    on: ClassVar[str] = "parameters"

    @abstractmethod
    def bounds(self, models: ReachableModels) -> Bounds:
        """Bounds over all reachable models."""

    @abstractmethod
    def arrays(self) -> dict[str, Array]:
        """The coefficients by the name of the parameter, which attacks aim at."""
