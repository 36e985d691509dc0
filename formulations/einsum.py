"""Index letters of an einsum of two operands, one letter for each axis that is no state."""

from __future__ import annotations

import math

import torch
from torch import Tensor

Letters = tuple[str, str, str]  # of both operands and of the result


def contracted(letters: Letters) -> str:
    """Letters that are summed over, in alphabetical order."""
    a, b, out = letters
    return "".join(sorted(set(a + b) - set(out)))


def full_index(letters: Letters) -> str:
    """Letters of a scalar product: those of the result, then the contracted ones."""
    return letters[2] + contracted(letters)


def einsum(letters: Letters, a: Tensor, b: Tensor) -> Tensor:
    """``einsum(a, b)``; leading axes (states, many attacks at once) broadcast."""
    first, second, out = letters
    return torch.einsum(f"...{first},...{second}->...{out}", a, b)


def aligned(own: str, full: str, tensor: Tensor) -> Tensor:
    """(..., *own) as (..., *full), with axes of length 1 for the letters that are not there."""
    lead = tensor.dim() - len(own)
    present = [x for x in full if x in own]
    tensor = tensor.permute(*range(lead), *(lead + own.index(x) for x in present))
    for position, letter in enumerate(full):
        if letter not in own:
            tensor = tensor.unsqueeze(lead + position)
    return tensor


def terms(letters: Letters, a: Tensor, b: Tensor) -> int:
    """How many scalar products each number of the result is the sum of."""
    sizes: dict[str, int] = {}
    for own, operand in zip(letters, (a, b), strict=False):
        sizes |= zip(own, operand.shape[-len(own) :], strict=True)
    return math.prod(sizes[letter] for letter in contracted(letters))
