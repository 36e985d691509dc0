"""Clipping of per-sample gradients: nodes between the gradients of samples and their sums."""

from __future__ import annotations

from collections.abc import Mapping

from milp_agt.core.graph import Graph, Node
from milp_agt.core.rounding import FLOAT64, Precision
from milp_agt.errors import UnsupportedOperationError
from milp_agt.formulations.bilinear import Einsum
from milp_agt.formulations.clip import Clip
from milp_agt.formulations.clip_factor import ClipFactor, Shorten
from milp_agt.formulations.linear import Affine, Combine, Reshape
from milp_agt.formulations.squared_norm import SquaredNorm
from milp_agt.formulations.sum_samples import SumSamples
from milp_agt.training.training import Clipping


def clip_gradients(
    graph: Graph, gradients: Mapping[str, str], clipping: Clipping, precision: Precision = FLOAT64
) -> dict[str, str]:
    """Append nodes that clip the gradient of every sample; returns the names of the new sums.

    With ``g_i`` the gradients of sample i for all parameters together:

    * norm: ``g_i * min(1, clip / |g_i|_2)``, as in DP-SGD (Abadi et al. 2016, algorithm 1);
    * clamp: every coordinate of ``g_i`` to ``[-clip, clip]``.

    The inputs of the new sums are bounded by ``clip`` in every coordinate, whatever the data are.
    They have one entry for each sample and parameter, n x P in total, in three nodes. Linear bounds of
    them take about 200 MB per million entries and step of the window, and backward passes three to five
    times as long as without clipping, because coefficients differ between samples: 300 samples on 257
    parameters, 17 s per step on one core (4 s without). For much larger problems use intervals, which
    split the samples into chunks.
    """
    own = {name: per_sample(graph, graph[gradient]) for name, gradient in gradients.items()}
    if clipping.mode == "clamp":
        clip = Clip(-clipping.bound, clipping.bound)
        short = {n: graph.add(clip, g, name=f"{n}:clipped") for n, g in own.items()}
    else:
        short = _shortened(graph, own, clipping.bound, precision)
    return {n: graph.add(SumSamples(len(g.shape)), g).name for n, g in short.items()}


def _shortened(
    graph: Graph, own: Mapping[str, Node], bound: float, precision: Precision
) -> dict[str, Node]:
    ranks = tuple(len(g.shape) for g in own.values())
    square = graph.add(SquaredNorm(ranks), *own.values(), name="clip:squared_norm")
    factor = graph.add(ClipFactor(bound), square, name="clip:factor")
    # |g_j| min(1, clip / |g|) <= clip, up to the rounding of the norm, the root and the quotient.
    size = sum(g.signature.size for g in own.values())
    cap = bound * (1.0 + precision.gamma(4 * size + 64))
    short = {}
    for name, gradient in own.items():
        axes = "n" + "abcdef"[: len(gradient.shape)]
        op = Shorten(f"{axes},nz->{axes}", cap=cap)
        short[name] = graph.add(op, gradient, factor, name=f"{name}:clipped")
    return short


def per_sample(graph: Graph, node: Node) -> Node:
    """The node with a sample axis whose sum over the samples is ``node``.

    Operations after a sum in a gradient are linear, so they can be moved before the sum.
    """
    op = node.op
    if isinstance(op, SumSamples):
        return graph.inputs(node)[0]
    if isinstance(op, Combine) and op.constant is None:
        terms = [per_sample(graph, source) for source in graph.inputs(node)]
        return Combine.build(graph, list(zip(op.scales, terms, strict=True)))
    if isinstance(op, Reshape) or (isinstance(op, Affine) and op.bias is None):
        return graph.add(op, per_sample(graph, graph.inputs(node)[0]))
    if isinstance(op, Einsum):
        return _per_sample_product(graph, node, op)
    raise UnsupportedOperationError(
        f"The gradient '{node.name}' was to be taken apart sample by sample",
        f"operation '{op.key}' after the sum over the samples",
        "leave out clip= (or the threat Removal), or use layers whose weights enter linearly",
    )


def _per_sample_product(graph: Graph, node: Node, op: Einsum) -> Node:
    """A product of a sum with a node without a sample axis."""
    first, second = graph.inputs(node)
    a, b, out = op.letters
    if _has_sum(graph, first):
        return graph.add(Einsum(f"n{a},{b}->n{out}"), per_sample(graph, first), second)
    return graph.add(Einsum(f"{a},n{b}->n{out}"), first, per_sample(graph, second))


def _has_sum(graph: Graph, node: Node) -> bool:
    return any(isinstance(n.op, SumSamples) for n in graph.needed_for([node.name]))
