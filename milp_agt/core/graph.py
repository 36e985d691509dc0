"""The symbolic graph of a training step: a networkx DAG of named nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import networkx as nx

from milp_agt.errors import EncodingError

if TYPE_CHECKING:
    import torch

    from milp_agt.core.operation import Operation


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


class Graph:
    """A DAG of nodes in topological order; ``graph.nx`` is the networkx view of it.

    Nodes are added after their inputs, so the order of insertion is a topological order.
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
