"""What an operation of the graph must say, once, at every level."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from milp_agt.core.cause import Cause
from milp_agt.core.graph import Graph, Node, Signature
from milp_agt.core.influence import Influence
from milp_agt.core.interval import Interval
from milp_agt.errors import UnsupportedOperationError

if TYPE_CHECKING:
    from milp_agt.core.encoder import Encoder
    from milp_agt.core.expression import Expression


class Pulling(Protocol):
    """The slopes of linear bounds of one node."""

    def pull(self, coefficients: Tensor, diagonal: bool = False) -> tuple[Tensor, ...]:
        """Coefficients on the inputs, one tensor for each: (rows, [samples or 1], *input shape).

        With ``diagonal`` there is one row for each pair of a first index and a sample: nothing is
        summed over the samples, and inputs without a sample axis get coefficients with one.
        """
        ...


class Relaxed(Pulling, Protocol):
    """Linear bounds of one node ``v`` in its inputs ``u_j``, valid on the ranges they were made for.

    For every row of coefficients ``c`` (rows first, then the axes of the node without its states)

        c . v  >=  sum_j pull_j(c) . u_j  +  max(c, 0) . lower[s]  +  min(c, 0) . upper[s]

    where ``s`` is the poisoning state of the sample. One slope serves all states; the offsets differ.

    Attributes:
        lower, upper: offsets, shape (states, [samples], *shape), rounding errors included; None
            where the operation is linear without a constant.
        magnitude: bound of ``|v|`` and of all terms that the right side adds up, without their
            coefficients, shape ([samples], *shape). The walk's own rounding is charged to it.
    """

    @property
    def lower(self) -> Tensor | None: ...

    @property
    def upper(self) -> Tensor | None: ...

    @property
    def magnitude(self) -> Tensor: ...


@runtime_checkable
class Narrowable(Pulling, Protocol):
    """Planes that can be cut down to some indices of one axis, where all other coefficients are 0."""

    def narrow(self, axis: int, index: Tensor) -> tuple[Pulling, tuple[int | None, ...]] | None:
        """Planes for coefficients on ``index`` along ``axis`` (from the right) alone.

        Also says along which axis the coefficients that :meth:`Relaxed.pull` returns for each input
        are cut down to the same indices; None for all of them. None: not possible.
        """
        ...


@dataclass(frozen=True, slots=True)
class FreeSlope:
    """A slope of linear bounds that may be any number: where it starts, and where better ones may lie.

    All three of the shape of the slope; ``lower == upper`` where no other slope could be better.
    """

    start: Tensor
    lower: Tensor
    upper: Tensor


class Operation(ABC):
    """One operation of the step graph; all its rules stand in one file of ``formulations/``.

    Values and ranges may carry any leading axes (states, many attacks at once); the sample axis, if
    any, comes right before the node's own axes.
    """

    key: ClassVar[str]
    exactness: ClassVar[str] = ""  # one line for the table: what is exact and what is relaxed
    cause: ClassVar[Cause] = Cause.ROUNDING  # what its planes lose
    has_influence: ClassVar[bool] = False  # whether :meth:`influence` and what follows it are there

    @abstractmethod
    def infer(self, *inputs: Signature) -> Signature:
        """Signature of the result; raises EncodingError where the inputs do not fit."""

    @abstractmethod
    def value(self, *inputs: Tensor) -> Tensor:
        """The exact function, evaluated in float64, differentiable by torch where it is."""

    @abstractmethod
    def interval(self, *inputs: Interval) -> Interval:
        """A box that holds ``fl(f(u))`` for all ``u`` in the boxes, however the run sums it up."""

    @abstractmethod
    def relax(self, *inputs: Interval) -> Relaxed:
        """Linear bounds that hold on the given ranges, with the default slopes."""

    def free_slopes(self, *inputs: Interval) -> tuple[FreeSlope, ...]:
        """The slopes of :meth:`relax` that may be chosen at will, as :meth:`relax_with` takes them.

        None for operations that are linear, or have planes without a choice.
        """
        return ()

    def relax_with(self, slopes: Sequence[Tensor], *inputs: Interval) -> Relaxed:
        """Linear bounds that hold on the given ranges, with any slopes.

        Slopes, and then offsets and magnitudes, may have a leading axis of rows: row r of the
        coefficients is bounded with its own planes. Offsets are differentiable by torch in the slopes.
        """
        return self.relax(*inputs)

    def influence(self, *inputs: Influence) -> Influence:
        """How far each poisoned sample can move the result, given how far it can move the inputs."""
        raise self._no_influence()

    def relax_influence(self, *inputs: Influence) -> Relaxed:
        """Linear bounds with default slopes, whose errors are charged to the samples that cause them.

        Offsets have a leading axis (1 + columns): those of the base, and those moved by one sample.
        """
        raise self._no_influence()

    def _no_influence(self) -> UnsupportedOperationError:
        return UnsupportedOperationError(
            f"Influences of single samples through operation '{self.key}' were asked for",
            "no such rule",
            "use selections='joint' or 'enumerated'",
        )

    @abstractmethod
    def encode(
        self, encoder: Encoder, inputs: tuple[Expression, ...], ranges: tuple[Interval, ...]
    ) -> Expression:
        """Columns and rows of a program that hold for the same values as :meth:`relax`."""

    def to(self, device: torch.device) -> Operation:
        """The same operation with its constant tensors on a device."""
        return self

    def vjp(
        self, graph: Graph, node: Node, cotangent: Node, wanted: tuple[bool, ...]
    ) -> tuple[Node | None, ...]:
        """Nodes for the vector-Jacobian products with the wanted inputs; None for the others."""
        raise UnsupportedOperationError(
            f"The gradient of operation '{self.key}' was asked for",
            f"node '{node.name}'",
            "operations without a vjp may only stand where no trainable parameter lies before them",
        )
