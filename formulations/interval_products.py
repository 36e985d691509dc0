"""Boxes of einsums of two boxes: corner by corner, or as matrix products of ends."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from milp_agt.core.interval import CLEAN, Interval
from milp_agt.formulations.einsum import Letters, aligned, contracted, einsum, full_index, terms

# Scalar products (over all states) that are multiplied one by one at most.
EXACT_PRODUCTS_LIMIT = 2**25
# Products for each number of the operands and of the result from which matrix products are faster.
THICK = 4


def box_of_products(letters: Letters, a: Interval, b: Interval) -> Interval:
    """Box of ``einsum(a, b)`` up to rounding: exact but for what is too large (:func:`box_of_sums`)."""
    if b.lower is b.upper:
        return _times_points(letters, a, b.lower)
    if not torch.equal(b.lower[CLEAN], b.upper[CLEAN]):
        return box_of_sums(letters, a, b)
    if len(b.lower) == 1:
        return _times_points(letters, a, b.lower)
    # Data of clean samples are points, those of poisoned ones are not.
    rest = slice(1, None) if len(a.lower) > 1 else slice(None)
    clean = _times_points(letters, a.clean, b.lower[:1])
    others = box_of_sums(letters, a.each(lambda end: end[rest]), b.each(lambda end: end[1:]))
    return Interval.joined([clean, others])


def box_of_sums(letters: Letters, a: Interval, b: Interval) -> Interval:
    """Sums of the exact products; two bounds of them where those of either sign are too many.

    Products of numbers with a sign are matrix products of their ends (:func:`signed_sums`), so
    that only the others are multiplied one by one. Where these are too many, midpoint-radius
    products (Rump 1999) are the second bound.
    """
    if not contracted(letters):
        return corner_sums(letters, a, b)
    full = full_index(letters)
    shape = np.broadcast_shapes(
        *(aligned(own, full, x.lower).shape for own, x in zip(letters, (a, b), strict=False))
    )
    whole = int(np.prod(shape))
    result = whole // terms(letters, a.lower, b.lower)
    thin = whole < THICK * (a.lower.numel() + b.lower.numel() + result)
    if thin and whole <= EXACT_PRODUCTS_LIMIT:
        return corner_sums(letters, a, b)
    index = both_signs(letters, a, b)
    count = shape[0] * size_of(index)
    if whole <= EXACT_PRODUCTS_LIMIT and 2 * count > whole:
        return corner_sums(letters, a, b)
    sums = signed_sums(letters, a, b)
    if count <= EXACT_PRODUCTS_LIMIT:
        return without_excess(letters, sums, a, b, index)
    middle = midpoint_radius(letters, a, b)
    return Interval(
        torch.maximum(sums.lower, middle.lower), torch.minimum(sums.upper, middle.upper)
    )


def midpoint_radius(letters: Letters, a: Interval, b: Interval) -> Interval:
    """Sums of products around the product of the centres (Rump 1999)."""
    centre_a, centre_b = a.centre, b.centre
    radius_a, radius_b = _radius(a, centre_a), _radius(b, centre_b)
    middle = einsum(letters, centre_a, centre_b)
    radius = einsum(letters, centre_a.abs() + radius_a, radius_b) + einsum(
        letters, radius_a, centre_b.abs()
    )
    return Interval(middle - radius, middle + radius)


def _radius(box: Interval, centre: Tensor) -> Tensor:
    return torch.maximum(box.upper - centre, centre - box.lower)


def _times_points(letters: Letters, a: Interval, b: Tensor) -> Interval:
    """The exact products where the second operand is known."""
    if contracted(letters):
        above = b.clamp(min=0.0)
        below = b - above
        return Interval(
            einsum(letters, a.lower, above) + einsum(letters, a.upper, below),
            einsum(letters, a.upper, above) + einsum(letters, a.lower, below),
        )
    point = aligned(letters[1], letters[2], b)
    ends = (a.lower, a.upper)
    return Interval.spanning(aligned(letters[0], letters[2], end) * point for end in ends)


def corner_sums(letters: Letters, a: Interval, b: Interval) -> Interval:
    """Sums of the exact products, one by one."""
    full = full_index(letters)
    a, b = (x.each(partial(aligned, own, full)) for own, x in zip(letters, (a, b), strict=False))
    products, axes = corner_products(a, b), tuple(range(-len(contracted(letters)), 0))
    if not axes:
        return products
    return products.each(lambda ends: ends.sum(axes))


def corner_products(a: Interval, b: Interval) -> Interval:
    """Box of the products of numbers in boxes that fit for broadcasting."""
    first, second = a.lower * b.lower, a.lower * b.upper
    lower, upper = torch.minimum(first, second), torch.maximum(first, second)
    for corner in (torch.mul(a.upper, b.lower, out=first), torch.mul(a.upper, b.upper, out=second)):
        torch.minimum(lower, corner, out=lower)
        torch.maximum(upper, corner, out=upper)
    return Interval(lower, upper)


def signed_sums(letters: Letters, a: Interval, b: Interval) -> Interval:
    """Box of ``einsum(a, b)`` by matrix products of ends that are chosen by their signs.

    With ``x+ = max(x, 0)`` and ``x- = min(x, 0)`` the upper end of a product is

        a_u+ b_u+  +  a_l+ b_u-  +  a_u- b_l+  +  a_l- b_l-

    unless both numbers may have either sign: then it is the larger of ``a_u b_u`` and ``a_l b_l``, and
    not their sum. The lower end is that of ``-(-a) b``. :func:`without_excess` takes that sum back.
    """

    def upper(first: Interval) -> Tensor:
        above, below = first.upper.clamp(min=0.0), first.lower.clamp(max=0.0)
        found = einsum(letters, above, b.upper.clamp(min=0.0))
        found += einsum(letters, below, b.lower.clamp(max=0.0))
        found += einsum(letters, first.lower - below, b.upper.clamp(max=0.0))
        found += einsum(letters, first.upper - above, b.lower.clamp(min=0.0))
        return found

    return Interval(-upper(Interval(-a.upper, -a.lower)), upper(a))


def both_signs(letters: Letters, a: Interval, b: Interval) -> dict[str, Tensor]:
    """For each letter, the indices that pairs of numbers lie within of which both may have either sign."""
    masks = [((box.lower < 0) & (box.upper > 0)).any(0) for box in (a, b)]
    index: dict[str, Tensor] = {}
    for letter in dict.fromkeys((*contracted(letters), *letters[2])):
        found = torch.ones((), dtype=torch.bool, device=a.lower.device)
        for own, mask in zip(letters, masks, strict=False):
            if letter in own:
                found = found & mask.movedim(own.index(letter), 0).flatten(1).any(1)
        index[letter] = found.nonzero()[:, 0]
        masks = [
            mask.index_select(own.index(letter), index[letter]) if letter in own else mask
            for own, mask in zip(letters, masks, strict=False)
        ]
    return index


def without_excess(
    letters: Letters, sums: Interval, a: Interval, b: Interval, index: Mapping[str, Tensor]
) -> Interval:
    """Sums of products, made exact where numbers within an index may have either sign."""
    if not all(len(chosen) for chosen in index.values()):
        return sums
    parts = [_within(own, box, index) for own, box in zip(letters, (a, b), strict=False)]
    full = full_index(letters)
    low_a, high_a, low_b, high_b = (
        aligned(own, full, ends)
        for own, box in zip(letters, parts, strict=False)
        for ends in (box.lower, box.upper)
    )
    dims = list(range(len(letters[2]) - len(full), 0))
    at = tuple(
        index[x].reshape(-1, *[1] * (len(letters[2]) - 1 - j)) for j, x in enumerate(letters[2])
    )
    lower, upper = (ends.movedim(0, -1).clone() for ends in (sums.lower, sums.upper))
    below = torch.minimum(-high_a * low_b, -low_a * high_b).sum(dims)
    above = torch.minimum(high_a * high_b, low_a * low_b).sum(dims)
    lower[at] += below.movedim(0, -1)
    upper[at] -= above.movedim(0, -1)
    lower, upper = (ends.movedim(-1, 0).contiguous() for ends in (lower, upper))
    return Interval(lower, upper)


def size_of(index: Mapping[str, Tensor]) -> int:
    """How many pairs of numbers lie within an index."""
    return math.prod(len(chosen) for chosen in index.values())


def _within(own: str, box: Interval, index: Mapping[str, Tensor]) -> Interval:
    """The numbers within an index that may have either sign; others are 0."""
    for axis, letter in enumerate(own):
        box = box.each(partial(torch.index_select, dim=1 + axis, index=index[letter]))
    either = (box.lower < 0) & (box.upper > 0)
    return box.each(lambda end: torch.where(either, end, 0.0))
