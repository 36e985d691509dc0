"""Products of boxes: corner by corner, and sums of them as matrix products of ends."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from milp_agt.core.interval import Interval

Letters = tuple[str, str, str]  # of two operands and of the result, without the axis of states


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
    not their sum. The lower end is that of ``-(-a) b``. :func:`either_sign` is the excess.
    """

    def upper(first: Interval) -> Tensor:
        above, below = first.upper.clamp(min=0.0), first.lower.clamp(max=0.0)
        found = _einsum(letters, above, b.upper.clamp(min=0.0))
        found += _einsum(letters, below, b.lower.clamp(max=0.0))
        found += _einsum(letters, first.lower - below, b.upper.clamp(max=0.0))
        found += _einsum(letters, first.upper - above, b.lower.clamp(min=0.0))
        return found

    return Interval(-upper(Interval(-a.upper, -a.lower)), upper(a))


def both_signs(letters: Letters, a: Interval, b: Interval) -> dict[str, Tensor]:
    """For each letter, the indices that pairs of numbers lie within of which both may have either sign."""
    masks = [((box.lower < 0) & (box.upper > 0)).any(0) for box in (a, b)]
    index: dict[str, Tensor] = {}
    for letter in dict.fromkeys((*_contracted(letters), *letters[2])):
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
    full = letters[2] + _contracted(letters)
    low_a, high_a, low_b, high_b = (
        _aligned(own, full, ends)
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
    lower, upper = box.lower, box.upper
    for axis, letter in enumerate(own):
        lower = lower.index_select(1 + axis, index[letter])
        upper = upper.index_select(1 + axis, index[letter])
    either = (lower < 0) & (upper > 0)
    return Interval(torch.where(either, lower, 0.0), torch.where(either, upper, 0.0))


def _aligned(own: str, full: str, ends: Tensor) -> Tensor:
    """(states, *own) as (states, *full), with axes of length 1 for the letters that are not there."""
    present = [x for x in full if x in own]
    ends = ends.permute(0, *(1 + own.index(x) for x in present))
    return ends.reshape(
        len(ends), *(ends.shape[1 + present.index(x)] if x in own else 1 for x in full)
    )


def _contracted(letters: Letters) -> str:
    a, b, out = letters
    return "".join(sorted(set(a + b) - set(out)))


def _einsum(letters: Letters, a: Tensor, b: Tensor) -> Tensor:
    first, second, out = letters
    return torch.einsum(f"...{first},...{second}->...{out}", a, b)
