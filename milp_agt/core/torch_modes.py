"""Modes of torch that the caller has switched on: grad modes do not matter, others are refused.

What the caller has set for float32 products is told to those who make some.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.overrides import _get_current_function_mode_stack
from torch.utils._device import DeviceContext
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from milp_agt.errors import UnsupportedOperationError


@contextmanager
def own_modes() -> Iterator[None]:
    """Inside, gradients are recorded, whatever ``no_grad`` or ``inference_mode`` stands around it.

    Also a decorator, as ``@own_modes()``.

    Raises:
        UnsupportedOperationError: autocast, or a mode or a default hook that changes what torch
            computes: the run was then not the one that is certified.
    """
    found = [
        f"autocast on '{device}', which computes in half precision"
        for device in ("cpu", "cuda")
        if torch.is_autocast_enabled(device)
    ]
    found += [
        f"the mode {type(mode).__name__}, which may change every operation"
        for mode in (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack())
        if not isinstance(mode, DeviceContext)
    ]
    if torch._C._autograd._top_saved_tensors_default_hooks(True) is not None:
        found.append("saved_tensors_hooks, which may change what gradients are computed from")
    if found:
        raise UnsupportedOperationError(
            "A run is certified and attacked as plain torch computes it",
            "; ".join(found),
            "leave the with-block (or the mode) before calling, and train without it",
        )
    with torch.inference_mode(False), torch.enable_grad():
        yield


@contextmanager
def threads(count: int | None) -> Iterator[None]:
    """Inside, torch has so many threads, as before where None; it has the caller's afterwards."""
    before = torch.get_num_threads()
    if count is not None:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def float32_products_are_exact() -> bool:
    """Whether torch multiplies the factors of float32 products on the processor as they are.

    It may be told to round them to TF32 or bfloat16 first; a setting that it cannot read back counts as that.
    """
    try:
        plain = torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # settings of the old and of the new kind side by side
        return False
    settings = (
        torch.backends,
        torch.backends.mkldnn,
        getattr(torch.backends.mkldnn, "matmul", None),
    )
    found = {getattr(each, "fp32_precision", "none") for each in settings}
    return plain and found <= {"ieee", "none"}
