"""[[property]]: one table for each kind of question, and how it is asked of a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from milp_agt.core.option_table import KIND, Index, NonNegative, Table, problem
from milp_agt.core.reachable import Bounds
from milp_agt.data.dataset import Dataset
from milp_agt.errors import InvalidInputError

if TYPE_CHECKING:
    from milp_agt.attacks import Objective
    from milp_agt.certification.result import Result
    from milp_agt.properties.answer import Answer
    from milp_agt.properties.triggers import Trigger

Array = npt.NDArray[Any]
Numbers = float | list[float]


class PickedPoints(NamedTuple):
    """The points that a property is about: positions in their part of the data, and their names."""

    positions: Array
    features: Array
    labels: Array
    groups: Array | None


class _PropertyTable(Table):
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


class _PointsTable(_PropertyTable):
    """Keys of the kinds that ask about test points."""

    on: Literal["test", "train"] = Field(
        default="test", description="The part of the data that is asked about."
    )
    points: Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None, description="Points of that part by position; all unless given."
    )
    groups: Literal["class"] | list[str | int] | None = Field(
        default=None,
        description="Bound every subgroup as well: each class, or the subgroups made by one name for "
        "each point that is asked about.",
    )

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
        index = np.arange(len(x)) if self.points is None else np.asarray(self.points)
        if index.max() >= len(x):
            raise InvalidInputError(
                f"points = positions 0..{len(x) - 1} of the {self.on} part",
                f"position {int(index.max())}",
                "correct 'points'",
            )
        if self.groups == "class" and dataset.task == "regression":
            raise InvalidInputError(
                "groups = 'class' needs classes", "real targets", "name a group for each point"
            )
        names = y[index] if self.groups == "class" else self.groups
        return PickedPoints(index, x[index], y[index], None if names is None else np.asarray(names))


class AccuracyTable(_PointsTable):
    """Share of points with the right class."""

    kind: Literal["accuracy"] = Field(description=KIND)

    def ask(self, result: Result, at: PickedPoints) -> Answer:
        return result.accuracy(at.features, at.labels, groups=at.groups)

    def aim(self, at: PickedPoints) -> Objective:
        from milp_agt.attacks import Accuracy

        return Accuracy(at.features, at.labels)


class CollectiveTable(_PointsTable):
    """Share of points with the right class, where all points face the same poisoning."""

    kind: Literal["collective"] = Field(description=KIND)

    def ask(self, result: Result, at: PickedPoints) -> Answer:
        return result.collective(at.features, at.labels, groups=at.groups)

    def aim(self, at: PickedPoints) -> Objective:
        from milp_agt.attacks import Accuracy

        return Accuracy(at.features, at.labels)


class LossTable(_PointsTable):
    """Mean loss."""

    kind: Literal["loss"] = Field(description=KIND)

    def ask(self, result: Result, at: PickedPoints) -> Answer:
        return result.loss(at.features, at.labels, groups=at.groups)

    def aim(self, at: PickedPoints) -> Objective:
        from milp_agt.attacks import Loss

        return Loss(at.features, at.labels)


class StableTable(_PointsTable):
    """Share of points with the class that the run on the data as given predicts."""

    kind: Literal["stable"] = Field(description=KIND)

    def ask(self, result: Result, at: PickedPoints) -> Answer:
        return result.stable(at.features, groups=at.groups)

    def aim(self, at: PickedPoints) -> Objective:
        from milp_agt.attacks import Stable

        return Stable(at.features)


class TargetedTable(_PointsTable):
    """Share of points that the adversary can push into unsafe outputs: `unsafe`, `targets`, or `low`
    and `high` say which."""

    kind: Literal["targeted"] = Field(description=KIND)
    unsafe: Index | Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None, description="Class, or classes, that are unsafe for every point."
    )
    targets: list[Index | list[Index]] | None = Field(
        default=None,
        description="For each point the class, or the classes, that are unsafe for it.",
    )
    low: float | None = Field(
        default=None,
        description="Least unsafe output of a regression; unless given, all outputs up to `high` are.",
    )
    high: float | None = Field(
        default=None,
        description="Largest unsafe output of a regression; unless given, all outputs from `low` are.",
    )

    @model_validator(mode="after")
    def _one_target(self) -> Self:
        interval = self.low is not None or self.high is not None
        given = [self.unsafe is not None, self.targets is not None, interval]
        if sum(given) != 1:
            found = [n for n, g in zip(("unsafe", "targets", "low/high"), given, strict=True) if g]
            raise problem(
                " beside ".join(f"'{n}'" for n in found) or "no unsafe outputs",
                "give one of unsafe = 1, targets = [1, 0], or low and high (regression)",
            )
        return self

    @property
    def detail(self) -> str:
        if self.unsafe is not None:
            return f"class {self.unsafe}"
        if self.targets is not None:
            return "chosen classes"
        if self.low is None:
            return f"at most {self.high:g}"
        return f"at least {self.low:g}" if self.high is None else f"{self.low:g} to {self.high:g}"

    def ask(self, result: Result, at: PickedPoints) -> Answer:
        return result.targeted(at.features, self._targets(at), groups=at.groups)

    def aim(self, at: PickedPoints) -> Objective:
        from milp_agt.attacks import Targeted

        return Targeted(at.features, self._targets(at))

    def _targets(self, at: PickedPoints) -> list[list[int]] | Array:
        """What is unsafe at each point: sets of classes, or ends of the outputs."""
        if self.unsafe is not None:
            classes = self.unsafe if isinstance(self.unsafe, list) else [self.unsafe]
            return [classes] * len(at.positions)
        if self.targets is not None:
            return [t if isinstance(t, list) else [t] for t in self.targets]
        low = -np.inf if self.low is None else self.low
        return np.array((low, np.inf if self.high is None else self.high))


class BackdoorTable(_PointsTable):
    """Success rate of a trigger in the test inputs: a ball (`radius`), free `coordinates` from `low` to
    `high`, or a patch (`coordinates` with `values`)."""

    kind: Literal["backdoor"] = Field(description=KIND)
    radius: NonNegative | list[NonNegative] | None = Field(
        default=None,
        description="Largest move of each feature of a test input, one number or one for each.",
    )
    coordinates: Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None, description="Features that the trigger sets, by position."
    )
    low: Numbers | None = Field(
        default=None,
        description="Low end of the free `coordinates`, or of the input domain beside a `radius`: one "
        "number, or one for each feature.",
    )
    high: Numbers | None = Field(
        default=None,
        description="High end of the free `coordinates`, or of the input domain beside a `radius`: one "
        "number, or one for each feature.",
    )
    values: Numbers | None = Field(
        default=None,
        description="What the patch writes into its `coordinates`: one number, or one for each feature "
        "of the input.",
    )
    target: Index | None = Field(
        default=None, description="The class that the trigger is after; any wrong one unless given."
    )

    @model_validator(mode="after")
    def _one_trigger(self) -> Self:
        keys = ("radius", "coordinates", "low", "high", "values")
        given = {key for key in keys if getattr(self, key) is not None}
        kinds = ({"coordinates", "low", "high"}, {"coordinates", "values"})
        if given not in kinds and not (given <= {"radius", "low", "high"} and "radius" in given):
            named = [f"'{key}'" for key in keys if key in given]
            raise problem(
                f"a trigger of {' and '.join(named)}" if named else "no trigger",
                "give radius; or coordinates with low and high; or coordinates with values",
            )
        return self

    @property
    def detail(self) -> str:
        wanted = "" if self.target is None else f", to class {self.target}"
        if self.radius is not None:
            return f"radius {_text(self.radius)}{wanted}"
        assert self.coordinates is not None
        where = (
            "1 coordinate" if len(self.coordinates) == 1 else f"{len(self.coordinates)} coordinates"
        )
        return f"{where} {'patched' if self.values is not None else 'free'}{wanted}"

    @property
    def trigger(self) -> Trigger:
        """The trigger as an object."""
        from milp_agt.properties.triggers import BallTrigger, FreeTrigger, PatchTrigger

        if self.radius is not None:
            return BallTrigger(self.radius, self.low, self.high)
        assert self.coordinates is not None
        if self.values is not None:
            return PatchTrigger(self.coordinates, self.values)
        assert self.low is not None
        assert self.high is not None
        return FreeTrigger(self.coordinates, self.low, self.high)

    def ask(self, result: Result, at: PickedPoints) -> Answer:
        return result.backdoor(
            at.features, at.labels, trigger=self.trigger, target=self.target, groups=at.groups
        )

    def aim(self, at: PickedPoints) -> Objective:
        from milp_agt.attacks import Backdoor

        return Backdoor(at.features, at.labels, self.trigger, self.target)


class FunctionalTable(_PropertyTable):
    """One linear functional of the parameters."""

    kind: Literal["functional"] = Field(description=KIND)
    coefficients: Annotated[dict[str, list[Any]], Field(min_length=1)] = Field(
        description="Coefficients by the name of a parameter, as nested lists of its shape; parameters "
        "that are left out have none."
    )

    @property
    def detail(self) -> str:
        return ", ".join(self.coefficients)

    def ask(self, result: Result) -> Bounds:
        answers = result.functional(self._arrays())
        if len(answers) != 1:
            raise InvalidInputError(
                "A property is one functional",
                f"{len(answers)} rows of coefficients",
                "split it into one property for each row",
            )
        return answers[0]

    def aim(self) -> Objective:
        from milp_agt.attacks import Functional

        return Functional(self._arrays())

    def _arrays(self) -> dict[str, Array]:
        return {n: _array(n, c) for n, c in self.coefficients.items()}


AnyProperty = (
    AccuracyTable
    | CollectiveTable
    | LossTable
    | StableTable
    | TargetedTable
    | BackdoorTable
    | FunctionalTable
)
PropertyTable = Annotated[AnyProperty, Field(discriminator="kind")]
PROPERTY_TABLES: tuple[type[AnyProperty], ...] = (
    AccuracyTable,
    CollectiveTable,
    LossTable,
    StableTable,
    TargetedTable,
    BackdoorTable,
    FunctionalTable,
)


def kind_of(table: type[AnyProperty]) -> str:
    """The kind that a table is for."""
    (kind,) = table.model_fields["kind"].annotation.__args__  # type: ignore[union-attr]
    return str(kind)


def _array(name: str, values: list[Any]) -> Array:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidInputError(
            f"coefficients of '{name}' are nested lists of numbers",
            str(error),
            "match the shape of the parameter",
        ) from None


def _text(values: Numbers) -> str:
    if isinstance(values, list):
        return f"{min(values):g} to {max(values):g}"
    return f"{values:g}"
