"""Boxes of the outputs of frozen layers, by backward passes to the input.

A unit of a convolution sees a patch of the image. The patches of all positions are treated as samples:
the same layers run on them, from a patch to one unit in each channel, so that backward passes have as
many elements as a patch instead of those of the image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from milp_agt.bounds.linear.backward import sample_forms
from milp_agt.bounds.linear.linearized_step import Intercepts, SampleChunk
from milp_agt.core.graph import Graph, Node
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.formulations.convolution import Convolution
from milp_agt.formulations.leaves import Features
from milp_agt.formulations.linear import Affine, Combine
from milp_agt.formulations.relu import Relu
from milp_agt.formulations.sigmoid import Sigmoid
from milp_agt.formulations.tanh import Tanh
from milp_agt.threats.poison import Poison
from milp_agt.threats.sets import Box
from milp_agt.training.tracing import FEATURES

ELEMENTWISE = (Relu, Sigmoid, Tanh)
# Elements of coefficients in one pass.
ELEMENTS_AT_ONCE = 2**24

Pair = tuple[int, int]


def walked(nodes: Sequence[Node], poison: Poison, boxes: Mapping[str, Interval]) -> Interval:
    """Linear bounds of the last of some nodes over the moves of each sample, (1, n, *shape).

    ``nodes`` begin with the features; ``boxes`` (1, n, *shape) are those of all nodes but the last.
    """
    output = nodes[-1]
    count, size = len(poison.features), output.signature.size
    planes = {node.name: node.op.relax(*(boxes[i] for i in node.inputs)) for node in nodes[1:]}
    offsets = {name: Intercepts.of(p, True, 1) for name, p in planes.items()}
    leaves = {FEATURES: boxes[FEATURES].magnitude.amax(0)}
    points = {FEATURES: poison.features.unsqueeze(0)}
    sample_chunk = SampleChunk(slice(0, count), poison, planes, offsets, leaves, points)
    unit = torch.eye(size, dtype=torch.float64, device=poison.features.device)
    unit = unit.reshape(size, 1, *output.shape).expand(size, count, *output.shape)
    forms = sample_forms(nodes, sample_chunk, output.name, torch.cat([unit, -unit]))
    assert forms.moves.features is not None
    worst_case = poison.support(forms.moves.features, None)
    terms = gamma(forms.operations + 4.0 * poison.features[0].numel() + 64)
    bound = (
        forms.constant[..., 0] - worst_case - 4.0 * terms * (forms.magnitude + worst_case) - TINY
    )
    low, high = bound.reshape(2, size, count).transpose(1, 2).reshape(2, count, size).unbind(0)
    shape = (1, count, *output.shape)
    return Interval(
        torch.nan_to_num(low, nan=-torch.inf).reshape(shape),
        torch.nan_to_num(-high, nan=torch.inf).reshape(shape),
    )


@dataclass(frozen=True)
class Patch:
    """The receptive field of one position of a convolution in the nodes before it.

    Attributes:
        nodes: from the features to the convolution, on images of the size of a patch.
        strides: distance between the patches of neighbouring positions, by node.
        positions: of the convolution.
    """

    nodes: tuple[Node, ...]
    strides: Mapping[str, Pair]
    positions: Pair

    @staticmethod
    def of(nodes: Sequence[Node]) -> Patch | None:
        """The receptive field of the last node, a convolution.

        None unless the nodes after the features are a chain of plain convolutions and elementwise
        functions.
        """
        size, stride = (1, 1), (1, 1)
        sizes, strides = {}, {}
        for node, before in zip(nodes[:0:-1], nodes[-2::-1], strict=True):
            sizes[node.name], strides[node.name] = size, stride
            if node.inputs != (before.name,):
                return None
            if isinstance(node.op, ELEMENTWISE):
                continue
            if not isinstance(node.op, Convolution) or not _is_plain(node.op):
                return None
            own = node.op.windows
            size = _pair(
                (n - 1) * s + k for n, s, k in zip(size, own.stride, own.size, strict=True)
            )
            stride = _pair(a * b for a, b in zip(stride, own.stride, strict=True))
        strides[FEATURES] = stride
        graph = Graph()
        last = graph.add(Features((nodes[0].shape[0], *size)), name=FEATURES)
        for node in nodes[1:]:
            op = node.op
            if isinstance(op, Convolution):
                image = (last.shape[0], *_pair(last.shape[1:]))
                op = replace(op, windows=replace(op.windows, image=image))
            last = graph.add(op, last, name=node.name)
        assert last.shape == (nodes[-1].shape[0], 1, 1)
        return Patch(tuple(graph), strides, _pair(nodes[-1].shape[1:]))

    @property
    def work(self) -> int:
        """Elements of coefficients for all units of one sample."""
        rows = 2 * self.nodes[-1].signature.size * math.prod(self.positions)
        return rows * sum(node.signature.size for node in self.nodes)

    def cut(self, name: str, images: Tensor) -> Tensor:
        """The patches of a node, (..., n, channels, height, width) to (..., n * positions, *patch)."""
        (node,) = (node for node in self.nodes if node.name == name)
        channels, height, width = node.shape
        down, right = self.strides[name]
        cut = images.unfold(-2, height, down).unfold(-2, width, right)
        assert cut.shape[-4:-2] == self.positions
        lead = images.dim() - 3
        order = (*range(lead), lead + 1, lead + 2, lead, lead + 3, lead + 4)
        cut = cut.permute(order)
        return cut.reshape(*images.shape[: lead - 1], -1, channels, height, width)

    def bounds(self, nominal: Tensor, boxes: Mapping[str, Interval]) -> Interval:
        """Boxes of all units over the box of the features, (1, n, channels, *positions)."""
        count = len(nominal) * math.prod(self.positions)
        points = self.cut(FEATURES, nominal)
        parts = {
            node.name: boxes[node.name].each(partial(self.cut, node.name))
            for node in self.nodes[:-1]
        }
        at_once = max(1, ELEMENTS_AT_ONCE * count // (self.work * len(nominal)))
        found = []
        for index in torch.arange(count, device=nominal.device).split(at_once):
            own = {
                n: box.each(partial(torch.index_select, dim=1, index=index))
                for n, box in parts.items()
            }
            found.append(walked(self.nodes, _moving(points[index], own[FEATURES]), own))
        shape = (1, len(nominal), *self.positions, self.nodes[-1].shape[0])

        def in_place(ends: Tensor) -> Tensor:
            return ends.reshape(shape).permute(0, 1, 4, 2, 3).contiguous()

        return Interval.joined(found, 1).each(in_place)


def refined(
    nodes: Sequence[Node], poison: Poison, boxes: Mapping[str, Interval], limit: int
) -> dict[str, Interval]:
    """Boxes of all nodes; inputs of nonlinear functions are also bounded by backward passes to the input.

    Layer by layer, because the relaxations of each layer need the boxes before it. ``limit`` is the most
    elements of coefficients per sample for one layer; layers beyond it keep their interval boxes.
    """
    found = {FEATURES: boxes[FEATURES]}
    chain, curved = True, False
    for number, node in enumerate(nodes[1:], 1):
        chain &= node.inputs == (nodes[number - 1].name,)
        box = node.op.interval(*(found[i] for i in node.inputs)).meet(
            boxes[node.name], f"'{node.name}' by intervals twice"
        )
        read = number + 1 < len(nodes) and isinstance(nodes[number + 1].op, ELEMENTWISE)
        if chain and curved and read and isinstance(node.op, (Affine, Combine, Convolution)):
            box = _refined(nodes[: number + 1], poison, found, box, limit)
        curved |= isinstance(node.op, ELEMENTWISE)
        found[node.name] = box
    return found


def _refined(
    nodes: Sequence[Node],
    poison: Poison,
    boxes: Mapping[str, Interval],
    box: Interval,
    limit: int,
) -> Interval:
    """The box of the last node, met with its linear bounds if these are cheap enough."""
    node = nodes[-1]
    what = f"'{node.name}' by intervals and by linear forms"
    patch = Patch.of(nodes)
    if patch is not None and patch.work <= limit:
        return box.meet(patch.bounds(poison.features, boxes), what)
    work = 2 * node.signature.size * sum(each.signature.size for each in nodes)
    if patch is None and work <= limit:
        return box.meet(walked(nodes, poison, boxes), what)
    return box


def moves_within(points: Tensor, box: Interval) -> Interval:
    """Moves of points (n, *shape) that reach all of a box (1, n, *shape), no move included."""
    infinity = torch.full_like(points, torch.inf)
    return Interval(
        torch.nextafter(box.lower[0] - points, -infinity).clamp(max=0.0),
        torch.nextafter(box.upper[0] - points, infinity).clamp(min=0.0),
    )


def _moving(points: Tensor, box: Interval) -> Poison:
    """Poisoned samples, each anywhere in its box."""
    moves = moves_within(points, box)
    return Poison(
        features=points,
        labels=points.new_zeros(len(points), 1),
        open=torch.ones(len(points), dtype=torch.bool, device=points.device),
        budget=len(points),
        static=True,
        per_batch=False,
        feature_moves=Box(moves.lower.flatten(1), moves.upper.flatten(1)),
    )


def _is_plain(op: Convolution) -> bool:
    return not op.transposed and op.windows.padding == (0, 0) and op.windows.dilation == (1, 1)


def _pair(values: Iterable[int]) -> Pair:
    first, second = values
    return first, second
