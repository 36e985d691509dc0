"""Where the tensors of a loop come from: moved about, computed from others, or from the model.

A batch whose values were clamped, rounded, filtered or chosen inside the loop may be the batch of the
data set as given, and yet another one where the data are poisoned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

# Calls after which every number is one that was there before, in another place or precision.
_MOVES = frozenset(
    (
        "view",
        "view_as",
        "reshape",
        "reshape_as",
        "flatten",
        "unflatten",
        "squeeze",
        "unsqueeze",
        "ravel",
        "clone",
        "contiguous",
        "detach",
        "cpu",
        "cuda",
        "to",
        "type",
        "type_as",
        "float",
        "double",
        "long",
        "int",
        "half",
        "bool",
        "numel",
        "size",
        "stack",
        "cat",
        "concat",
        "concatenate",
        "hstack",
        "vstack",
        "split",
        "chunk",
        "tensor_split",
        "unbind",
        "__getitem__",
        "__iter__",
        "select",
        "index_select",
        "narrow",
        "take",
        "gather",
        "permute",
        "transpose",
        "movedim",
        "t",
        "swapaxes",
        "expand",
        "expand_as",
        "broadcast_to",
        "repeat",
        "tile",
        "flip",
        "roll",
        "pin_memory",
        "requires_grad_",
        "detach_",
        "as_tensor",
        "tensor",
        "__get__",
        "copy_",
        "__deepcopy__",
        "alias",
        "share_memory_",
        "default_collate",
    )
)
MODEL = "the model"
ROUNDED = "a conversion to fewer digits"


class Origins:
    """Follows tensors through the calls of a loop."""

    def __init__(self) -> None:
        self._computed_by = WeakTensorKeyDictionary()

    def follow(
        self, name: str, args: Sequence[Any], kwargs: dict[str, Any], result: object
    ) -> None:
        """A function of torch was called; what it gives (or changes) comes from what it was given."""
        results = list(tensors_in(result if result is not None else args[:1]))
        if not results:
            return
        given = list(tensors_in((*args, *kwargs.values())))
        origins = [self.of(each) for each in given]
        if MODEL in origins:
            origin: str | None = MODEL
        elif name in _MOVES:
            origin = next((each for each in origins if each is not None), None)
            if origin is None and any(_is_real(g) for g in given) and not _is_real(results[0]):
                origin = ROUNDED
        else:
            origin = f"{name}()" if given else None
        if origin is not None:
            for each in results:
                self._computed_by[each] = origin

    def of(self, tensor: Tensor) -> str | None:
        """The function that computed a tensor, or :data:`MODEL`; None if it was moved about at most."""
        if isinstance(tensor, nn.Parameter):
            return MODEL
        found: str | None = self._computed_by.get(tensor)
        return found


def _is_real(tensor: Tensor) -> bool:
    """Whether a tensor holds numbers of at least single precision."""
    return tensor.is_floating_point() and tensor.element_size() >= 4


def tensors_in(value: object) -> Iterator[Tensor]:
    """All tensors in lists and tuples inside one another."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from tensors_in(part)
