"""The symbolic graph of a training step: a networkx DAG of named nodes, and the interface of operations.

An operation defines its gradient as nodes of the same graph, so graph and operation share one file.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

import networkx as nx
import torch
from torch import Tensor

from milp_agt.core.interval import Boxes, Interval
from milp_agt.core.rounding import Precision
from milp_agt.errors import EncodingError, UnsupportedOperationError

Tensors = tuple[Tensor, ...]


class BackwardSlopes(Protocol):
    """The slopes of linear bounds of one node."""

    def backward(self, coefficients: Tensor, diagonal: bool = False) -> tuple[Tensor | None, ...]:
        """Coefficients on the inputs, one tensor each: (rows, [samples or 1], *input shape); None for an
        input without any.

        With ``diagonal`` each pair of a first index and a sample is a row: nothing is summed over the
        samples, and inputs without a sample axis get coefficients with one.
        """
        ...


class LinearBounds(BackwardSlopes, Protocol):
    """Linear bounds of one node ``v`` in its inputs ``u_j``, valid on the ranges they were made for.

    For every row of coefficients ``c`` (rows first, then the axes of the node without its states)

        c . v  >=  sum_j backward_j(c) . u_j  +  max(c, 0) . lower[s]  +  min(c, 0) . upper[s]

    where ``s`` is the poisoning state of the sample. All states share one slope; intercepts differ.

    Attributes:
        lower, upper: intercepts, shape (states, [samples], *shape), rounding errors included; None
            if the operation is linear without a constant.
        magnitude: bound of ``|v|`` and of all terms that the right side adds up, without their
            coefficients, shape ([samples], *shape). The rounding of backward passes grows with it.
    """

    @property
    def lower(self) -> Tensor | None: ...

    @property
    def upper(self) -> Tensor | None: ...

    @property
    def magnitude(self) -> Tensor: ...


@runtime_checkable
class NarrowableSlopes(BackwardSlopes, Protocol):
    """Planes that can be narrowed to some indices of one axis if all other coefficients are 0."""

    def narrow(
        self, axis: int, index: Tensor
    ) -> tuple[BackwardSlopes, tuple[int | None, ...]] | None:
        """Planes for coefficients on ``index`` along ``axis`` (counted from the right) only.

        Also returns, for each input, the axis along which the coefficients from :meth:`backward` are
        narrowed to the same indices; None if they are not. Returns None if narrowing is not possible.
        """
        ...


if TYPE_CHECKING:
    from milp_agt.core.encoder import Encoder
    from milp_agt.core.expression import Expression, Expressions


Carried = TypeVar("Carried")


@dataclass(frozen=True)
class Signature:
    """Shape of one value of a node, without the sample axis, and whether it has a sample axis."""

    shape: tuple[int, ...]
    batched: bool

    @property
    def size(self) -> int:
        size = 1
        for extent in self.shape:
            size *= extent
        return size


class Operation(ABC):
    """One operation of the step graph; all its rules are in one file of ``formulations/``.

    Values and ranges may carry any leading axes (states, many attacks at once); the sample axis, if
    any, comes right before the node's own axes.
    """

    key: ClassVar[str]
    exactness: ClassVar[str] = ""  # one line for the table: what is exact and what is relaxed

    @abstractmethod
    def infer(self, *inputs: Signature) -> Signature:
        """Signature of the result; raises EncodingError if the inputs do not fit."""

    @abstractmethod
    def value(self, *inputs: Tensor) -> Tensor:
        """The exact function, evaluated in float64; differentiable by torch wherever it is differentiable."""

    @abstractmethod
    def interval(self, *inputs: Interval) -> Interval:
        """A box that contains ``fl(f(u))`` for all ``u`` in the boxes, for any order of summation."""

    @abstractmethod
    def relax(self, *inputs: Interval) -> LinearBounds:
        """Linear bounds that hold on the given ranges, with the default slopes."""

    @abstractmethod
    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        """Columns and rows of a program that are valid for the same values as :meth:`relax`."""

    @property
    def rounds_in_run(self) -> bool | None:
        """Whether a run in reduced precision rounds the value; None where no bound of that is known.

        False for comparisons, copies and leaves: ``fl(f(u)) = f(u)`` whatever the precision.
        """
        return None

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """Bound of ``|fl(f(u)) - f(u)|`` for all ``u`` in the boxes, states and all, in a run of a precision.

        Sums come in any order, with or without fused products. The bound leaves room for one more
        operation of that precision at least, so that what float64 rounds here is covered, too. Only
        where :meth:`rounds_in_run`.
        """
        raise UnsupportedOperationError(
            f"The rounding of operation '{self.key}' in {precision.name} was asked for",
            "no bound of it",
            "certify the run in float64",
        )

    def to(self, device: torch.device) -> Self:
        """The same operation with its constant tensors on a device."""

        def moved(held: Any) -> Any:
            if isinstance(held, tuple) and any(isinstance(each, Tensor) for each in held):
                return tuple(map(moved, held))
            return held.to(device) if isinstance(held, (Tensor, Operation)) else held

        own: Any = self
        own_fields = fields(own) if is_dataclass(own) else ()
        held = [(each.name, getattr(own, each.name)) for each in own_fields if each.init]
        changed = {name: new for name, old in held if (new := moved(old)) is not old}
        return replace(own, **changed) if changed else self

    def vjp(self, graph: Graph, node: Node, cotangent: Node, wanted: Wanted) -> Pulled:
        """Nodes of the vector-Jacobian products for the wanted inputs; None for the others."""
        raise UnsupportedOperationError(
            f"The gradient of operation '{self.key}' was asked for",
            f"node '{node.name}'",
            "operations without a vjp may only stand where no trainable parameter lies before them",
        )


@dataclass(frozen=True)
class Node:
    """One operation applied to named inputs. Names are stable strings: certificates refer to them."""

    name: str
    op: Operation
    inputs: tuple[str, ...]
    signature: Signature
    batched_inputs: tuple[bool, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.signature.shape

    @property
    def batched(self) -> bool:
        return self.signature.batched


Wanted = tuple[bool, ...]  # of the inputs of a node
Pulled = tuple[Node | None, ...]  # to its inputs


class Graph:
    """A DAG of nodes in topological order; ``graph.nx`` is its networkx view.

    Nodes are added after their inputs, so insertion order is a topological order.
    """

    def __init__(self) -> None:
        self.nx: nx.DiGraph[str] = nx.DiGraph()
        self._nodes: dict[str, Node] = {}

    def add(self, op: Operation, *inputs: Node, name: str | None = None) -> Node:
        """Append a node and return it.

        Raises:
            EncodingError: a name that is taken, or an input that is not in this graph.
        """
        stem = name or "/".join([op.key, *(i.name for i in inputs[:1])])
        label, copies = stem, 1
        while name is None and label in self._nodes:
            copies += 1
            label = f"{stem}#{copies}"
        if label in self._nodes:
            raise EncodingError(f"A new node is named '{label}'", "a node of that name exists")
        for source in inputs:
            if self._nodes.get(source.name) is not source:
                raise EncodingError(
                    f"Node '{label}' reads '{source.name}'", "no such node in this graph"
                )
        node = Node(
            label,
            op,
            tuple(i.name for i in inputs),
            op.infer(*(i.signature for i in inputs)),
            tuple(i.batched for i in inputs),
        )
        self._nodes[label] = node
        self.nx.add_node(label, op=op.key, shape=node.shape, batched=node.batched)
        self.nx.add_edges_from((i.name, label) for i in inputs)
        return node

    def to(self, device: torch.device) -> Graph:
        """The same graph with the constants of its operations on another device."""
        moved = Graph()
        for node in self:
            moved.add(node.op.to(device), *(moved[name] for name in node.inputs), name=node.name)
        return moved

    def __getitem__(self, name: str) -> Node:
        return self._nodes[name]

    def __contains__(self, name: str) -> bool:
        return name in self._nodes

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __len__(self) -> int:
        return len(self._nodes)

    def inputs(self, node: Node) -> tuple[Node, ...]:
        return tuple(self._nodes[name] for name in node.inputs)

    def needed_for(self, outputs: Iterable[str]) -> tuple[Node, ...]:
        """The nodes that ``outputs`` depend on, themselves included, in topological order."""
        wanted: set[str] = set()
        for name in outputs:
            wanted |= {name} | nx.ancestors(self.nx, name)
        return tuple(node for node in self if node.name in wanted)


def evaluate(nodes: Iterable[Node], leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Values of ``nodes`` (in topological order) and of ``leaves``, by name.

    Parameters have shape (..., *shape), features and labels (..., samples, *shape), with the same
    leading axes.
    """
    return _carried(nodes, leaves, lambda op: op.value)


def boxes_of(nodes: Iterable[Node], leaves: Mapping[str, Interval]) -> dict[str, Interval]:
    """Boxes of ``nodes`` (in topological order) and of ``leaves``, by name: each from those of its inputs."""
    return _carried(nodes, leaves, lambda op: op.interval)


def _carried(
    nodes: Iterable[Node],
    leaves: Mapping[str, Carried],
    rule: Callable[[Operation], Callable[..., Carried]],
) -> dict[str, Carried]:
    known = dict(leaves)
    for node in nodes:
        if node.name not in known:
            known[node.name] = rule(node.op)(*(known[name] for name in node.inputs))
    return known
