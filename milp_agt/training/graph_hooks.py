"""Hooks on the nodes of torch's graph that put gradients into parameters.

Such a node lives as long as somebody holds it: its hooks act on every later backward pass. Torch lists
them nowhere; the garbage collector knows them.
"""

from __future__ import annotations

import gc
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge

_ALIVE = "milp_agt: alive"
Hooks = OrderedDict[int, Any]


def hooked_accumulators(parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    """Parameters on whose nodes hooks are, or may be: name, what was found, what to do.

    Of a node that Python alone holds the hooks can be seen. One that hangs on the graph of an earlier
    computation hides them; it is suspicious if there are hooks that nobody in Python holds.
    """
    with torch.inference_mode(False), torch.enable_grad():
        yield from _hooked(parameters)


def _hooked(parameters: Mapping[str, Tensor]) -> Iterator[tuple[str, str, str]]:
    hidden = []
    for name, parameter in parameters.items():
        if not parameter.requires_grad or not parameter.is_leaf or parameter.is_inference():
            continue  # has no node
        node: Any = get_gradient_edge(parameter).node
        own = parameter._backward_hooks or {}
        found = [t for t in _tables(gc.get_referents(node)) if t is not own]
        if found:
            hook = next(iter(found[0].values()))
            what = f"a hook on the node that takes its gradient, '{_called(hook)}'"
            yield name, what, "remove it, and train without it"
            continue
        # A node that nobody holds is made anew for every question.
        node.metadata[_ALIVE] = True
        del node
        again: Any = get_gradient_edge(parameter).node
        if again.metadata.pop(_ALIVE, False):
            hidden.append(name)
    loose = list(_loose()) if hidden else []
    if loose:
        yield (
            hidden[0],
            "an earlier computation whose graph hangs on it, and hooks on nodes of some graph, "
            f"'{_called(next(iter(loose[0].values())))}'",
            "delete what is left of earlier computations (del loss, output), and leave such hooks out",
        )


def _tables(objects: Iterable[object]) -> Iterator[Hooks]:
    """What looks like a table of hooks of torch."""
    for each in objects:
        if type(each) is OrderedDict and each and all(type(k) is int for k in each):
            yield each


def _loose() -> Iterator[Hooks]:
    """Tables of hooks that no object of Python holds, so that a node does."""
    tables = list(_tables(gc.get_objects()))
    for index in range(len(tables)):
        holders = [each for each in gc.get_referrers(tables[index]) if each is not tables]
        if not holders:
            yield tables[index]


def _called(hook: object) -> str:
    name = getattr(hook, "__qualname__", None) or type(hook).__name__
    return str(name).rpartition("<locals>.")[2]
