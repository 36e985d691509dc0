"""Einsum of two variable operands: products of activations, parameters, gradients and data."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from milp_agt.core.encoder import Encoder
from milp_agt.core.expression import Array, Expression, Expressions, Index
from milp_agt.core.graph import Graph, Node, Operation, Pulled, Signature, Wanted
from milp_agt.core.interval import CLEAN, Boxes, Interval, as_array
from milp_agt.core.rounding import TINY, Precision, gamma
from milp_agt.errors import EncodingError
from milp_agt.formulations.einsum import (
    BilinearPlanes,
    EndPlanes,
    Ends,
    Letters,
    aligned,
    contracted,
    einsum,
    full_index,
    terms,
)
from milp_agt.formulations.interval_products import box_of_products
from milp_agt.formulations.products import Products
from milp_agt.formulations.registry import register
from milp_agt.formulations.sum_samples import SumSamples


@register
@dataclass(frozen=True)
class Einsum(Operation):
    """``v = einsum(equation, a, b)``; the letter ``n`` is the sample axis, ``r`` is reserved.

    Sums over the samples are a node of their own, so ``n`` stands in the result whenever it stands
    in an operand. Every letter of the result stands in an operand, none twice.
    """

    equation: str
    key = "bilinear"
    rounds_in_run = True
    exactness = "McCormick envelopes; exact where an operand is a point"
    letters: Letters = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        operands, out = self.equation.split("->")
        a, b = operands.split(",")
        object.__setattr__(self, "letters", (a, b, out))
        if "n" in a + b and not out.startswith("n"):
            raise EncodingError(f"Einsum '{self.equation}' sums over samples", "", "use SumSamples")

    def infer(self, *inputs: Signature) -> Signature:
        sizes: dict[str, int] = {}
        for letters, signature in zip(self.letters[:2], inputs, strict=True):
            own = letters[1:] if signature.batched else letters
            if signature.batched != letters.startswith("n") or len(own) != len(signature.shape):
                raise EncodingError(f"Einsum '{self.equation}' does not fit", f"{inputs}")
            for letter, extent in zip(own, signature.shape, strict=True):
                if sizes.setdefault(letter, extent) != extent:
                    raise EncodingError(
                        f"Einsum '{self.equation}' needs one extent for '{letter}'",
                        f"{sizes[letter]} and {extent}",
                    )
        out = self.letters[2]
        return Signature(tuple(sizes[x] for x in out if x != "n"), out.startswith("n"))

    @property
    def contracted(self) -> str:
        return contracted(self.letters)

    @property
    def full_index(self) -> str:
        return full_index(self.letters)

    @property
    def is_outer(self) -> bool:
        """Whether every number of one operand of a sample meets every one of the other, in order."""
        a, b, out = self.letters
        own = a[1:] + b[1:]
        return a[:1] == b[:1] == "n" and out == "n" + own and len(set(own)) == len(own)

    def _einsum(self, a: Tensor, b: Tensor) -> Tensor:
        return einsum(self.letters, a, b)

    def _full(self, tensor: Tensor, operand: int) -> Tensor:
        """Align an operand with the full index."""
        return aligned(self.letters[operand], self.full_index, tensor)

    def value(self, *inputs: Tensor) -> Tensor:
        return self._einsum(*inputs)

    def summed_value(self, *inputs: Tensor) -> Tensor:
        """The value summed over the samples, without the value of each sample."""
        first, second, out = self.letters
        return torch.einsum(f"...{first},...{second}->...{out.removeprefix('n')}", *inputs)

    def _gamma(self, a: Tensor, b: Tensor) -> float:
        """Covers the run's own sum and ours: both have as many terms as the contracted index.

        Ours may add three numbers of the size of each term
        (:mod:`milp_agt.formulations.interval_products`: signed sums, and the excess).
        """
        return gamma(4 * terms(self.letters, a, b) + 32)

    def run_error(self, precision: Precision, *inputs: Interval) -> Tensor:
        """``gamma(terms)`` of the sums of absolute products, in any order; no fast matrix products."""
        a, b = (box.magnitude for box in inputs)
        factor = precision.gamma(terms(self.letters, a, b) + 1)
        return self._einsum(a, b) * factor + precision.tiny

    def interval(self, *inputs: Interval) -> Interval:
        a, b = inputs
        size = self._einsum(a.magnitude, b.magnitude)
        return box_of_products(self.letters, a, b).widen(
            size * self._gamma(a.lower, b.lower) + TINY
        )

    def relax(self, *inputs: Interval) -> BilinearPlanes:
        a, b = inputs
        centre_a, centre_b = a.centre[CLEAN], b.centre[CLEAN]
        away = (a.each(lambda end: end - centre_a), b.each(lambda end: end - centre_b))
        errors = box_of_products(self.letters, *away)
        middle = self._einsum(centre_a, centre_b)
        size = self._einsum(a.magnitude.amax(0), b.magnitude.amax(0))
        # |a b| + |p a| + |q b| + |a_c b_c| <= 4 max|a| max|b|
        slack = 4 * size * self._gamma(centre_a, centre_b) + TINY
        return BilinearPlanes(
            self.letters,
            centre_a,
            centre_b,
            errors.lower - middle - slack,
            errors.upper - middle + slack,
            4 * size,
        )

    def relax_at_ends(self, ends: Ends, first: int, *inputs: Interval) -> EndPlanes:
        """Planes for forms of single samples; operand ``first`` has no sample axis, the other one has."""
        w, h = inputs[first], inputs[1 - first]
        centre = w.centre[CLEAN]
        reach = torch.maximum(w.upper - centre, centre - w.lower).amax(0) * (1.0 + gamma(4))
        size = self._einsum(*(box.magnitude.amax(0) for box in inputs))
        letters = (self.letters[first], self.letters[1 - first], self.letters[2])
        low, high = h.lower.amin(0), h.upper.amax(0)
        # |w_c h| + |reach h| + |w h_0| + |w_c h_0| + |reach h_0| <= 6 max|w| max|h|
        slack = 6 * size * self._gamma(*(box.centre[CLEAN] for box in inputs)) + TINY
        return EndPlanes(ends, letters, first, centre, reach, low, high, slack, 6 * size)

    def vjp(self, graph: Graph, node: Node, cotangent: Node, wanted: Wanted) -> Pulled:
        a, b, out = self.letters
        first, second = graph.inputs(node)
        pulled: list[Node | None] = []
        roles = ((first, a, second, b), (second, b, first, a))
        for (target, letters, other, other_letters), want in zip(roles, wanted, strict=True):
            term = None
            if want:
                summed = node.batched and not letters.startswith("n")
                own = Einsum(f"{out},{other_letters}->{'n' * summed}{letters}")
                term = graph.add(own, cotangent, other)
                if summed:
                    term = graph.add(SumSamples(len(target.shape)), term)
            pulled.append(term)
        return tuple(pulled)

    def encode(self, encoder: Encoder, inputs: Expressions, ranges: Boxes) -> Expression:
        """Each scalar product by itself: exact where an operand is a point; the planes of the walk
        where one is a point unless its sample is poisoned; else a column with McCormick rows.
        """
        index_a, index_b, total = self._index(inputs[0].shape, inputs[1].shape)
        shape = _out_shape(self.letters, inputs[0].shape, inputs[1].shape)
        products = Products(
            encoder,
            (inputs[0], inputs[1]),
            (ranges[0], ranges[1]),
            (index_a, index_b),
            self.letters[2].startswith("n"),
        )
        return products.encode().apply(total, shape).plus_error(self._rounding(*ranges))

    def _rounding(self, a: Interval, b: Interval) -> Array:
        """Error of the run's sum and of the coefficients here, for each element of the result."""
        size = self._einsum(a.magnitude.amax(0), b.magnitude.amax(0))
        return as_array(size * self._gamma(a.lower, b.lower) + TINY)

    def _index(
        self, shape_a: tuple[int, ...], shape_b: tuple[int, ...]
    ) -> tuple[Index, Index, sp.csr_matrix]:
        """Flat indices of both operands over the full index, and the map that sums contracted terms."""
        flat_a = torch.arange(int(np.prod(shape_a))).reshape(shape_a)
        flat_b = torch.arange(int(np.prod(shape_b))).reshape(shape_b)
        first, second = torch.broadcast_tensors(self._full(flat_a, 0), self._full(flat_b, 1))
        each = terms(self.letters, flat_a, flat_b)
        total = sp.kron(sp.eye_array(first.numel() // each), np.ones((1, each)), format="csr")
        return first.reshape(-1).numpy(), second.reshape(-1).numpy(), sp.csr_matrix(total)


def _out_shape(
    letters: Letters, shape_a: tuple[int, ...], shape_b: tuple[int, ...]
) -> tuple[int, ...]:
    sizes = dict(zip(letters[0], shape_a, strict=True)) | dict(
        zip(letters[1], shape_b, strict=True)
    )
    return tuple(sizes[x] for x in letters[2])


def times(graph: Graph, first: Node, second: Node) -> Node:
    """Elementwise product of two nodes of one signature."""
    axes = "n" * first.batched + "abcdefg"[: len(first.shape)]
    return graph.add(Einsum(f"{axes},{axes}->{axes}"), first, second)
