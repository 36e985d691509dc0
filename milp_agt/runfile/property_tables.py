"""[[property]]: one table for each kind of question, and how it is asked of a result."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from milp_agt.core.option_table import KIND, Index, NonNegative
from milp_agt.core.reachable import Bounds
from milp_agt.errors import InvalidInputError, Problem
from milp_agt.runfile.points_table import PickedPoints, TableOfPoints, TableOfProperty

if TYPE_CHECKING:
    from milp_agt.attacks import Objective
    from milp_agt.certification.result import Result
    from milp_agt.properties.answer import Answer
    from milp_agt.properties.triggers import Trigger

Array = npt.NDArray[Any]
Numbers = float | list[float]


class AccuracyTable(TableOfPoints):
    """Share of points with the right class."""

    is_share: ClassVar[bool] = True
    kind: Literal["accuracy"] = Field(description=KIND)

    def ask(self, result: Result, at: PickedPoints) -> Answer:
        return result.accuracy(at.features, at.labels, groups=at.groups)

    def aim(self, at: PickedPoints) -> Objective:
        from milp_agt.attacks import Accuracy

        return Accuracy(at.features, at.labels)


class CollectiveTable(TableOfPoints):
    """Share of points with the right class, where all points face the same poisoning."""

    is_share: ClassVar[bool] = True
    kind: Literal["collective"] = Field(description=KIND)

    def ask(self, result: Result, at: PickedPoints) -> Answer:
        return result.collective(at.features, at.labels, groups=at.groups)

    def aim(self, at: PickedPoints) -> Objective:
        from milp_agt.attacks import Accuracy

        return Accuracy(at.features, at.labels)


class LossTable(TableOfPoints):
    """Mean loss."""

    kind: Literal["loss"] = Field(description=KIND)

    def ask(self, result: Result, at: PickedPoints) -> Answer:
        return result.loss(at.features, at.labels, groups=at.groups)

    def aim(self, at: PickedPoints) -> Objective:
        from milp_agt.attacks import Loss

        return Loss(at.features, at.labels)


class StableTable(TableOfPoints):
    """Share of points with the class that the run on the data as given predicts."""

    is_share: ClassVar[bool] = True
    kind: Literal["stable"] = Field(description=KIND)

    def ask(self, result: Result, at: PickedPoints) -> Answer:
        return result.stable(at.features, groups=at.groups)

    def aim(self, at: PickedPoints) -> Objective:
        from milp_agt.attacks import Stable

        return Stable(at.features)


class TargetedTable(TableOfPoints):
    """Share of points that the adversary can push into unsafe outputs: `unsafe`, `targets`, or `low`
    and `high` say which."""

    is_share: ClassVar[bool] = True
    kind: Literal["targeted"] = Field(description=KIND)
    unsafe: Index | Annotated[list[Index], Field(min_length=1)] | None = Field(
        default=None, description="Class, or classes, that are unsafe for every point."
    )
    targets: list[Index | list[Index]] | None = Field(
        default=None,
        description="For each point the class, or the classes, that are unsafe for it, in the order of "
        "`points`, or of the rows in the file.",
    )
    low: float | None = Field(
        default=None,
        description="Least unsafe output of a regression; unless given, all outputs up to `high` are.",
    )
    high: float | None = Field(
        default=None,
        description="Largest unsafe output of a regression; unless given, all outputs from `low` are.",
    )

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().contradictions(given)
        found = [name for name in ("unsafe", "targets") if name in given]
        found += ["low/high"] * bool({"low", "high"} & given.keys())
        if len(found) != 1:
            yield (
                " beside ".join(f"'{n}'" for n in found) or "no unsafe outputs",
                "give one of unsafe = 1, targets = [1, 0], or low and high (regression)",
            )

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


class BackdoorTable(TableOfPoints):
    """Success rate of a trigger in the test inputs: a ball (`radius`), free `coordinates` from `low` to
    `high`, or a patch (`coordinates` with `values`)."""

    is_share: ClassVar[bool] = True
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

    @classmethod
    def contradictions(cls, given: Mapping[str, Any]) -> Iterator[Problem]:
        yield from super().contradictions(given)
        keys = ("radius", "coordinates", "low", "high", "values")
        told = {key for key in keys if key in given}
        kinds = ({"coordinates", "low", "high"}, {"coordinates", "values"})
        if told not in kinds and not (told <= {"radius", "low", "high"} and "radius" in told):
            named = [f"'{key}'" for key in keys if key in told]
            yield (
                f"a trigger of {' and '.join(named)}" if named else "no trigger",
                "give radius; or coordinates with low and high; or coordinates with values",
            )

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


class FunctionalTable(TableOfProperty):
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
