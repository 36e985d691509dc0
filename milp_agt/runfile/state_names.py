"""Saved parameters that do not fit a model: why, and what to save instead."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from milp_agt.errors import Problem

Shapes = Mapping[str, tuple[int, ...]]

# What puts a prefix in front of every name, and where the model is inside of it.
_WRAPPERS = {
    "module.": ("nn.DataParallel and DistributedDataParallel", "model.module"),
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "module._orig_mod.": ("nn.DataParallel of torch.compile", "model.module._orig_mod"),
    "_orig_mod.module.": ("torch.compile of nn.DataParallel", "model._orig_mod.module"),
}
_SHOWN = 4


def is_state(saved: object) -> bool:
    """Whether this is a table of tensors by name."""
    return isinstance(saved, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in saved.items()
    )


def no_state(saved: object) -> Problem:
    """A file that holds something else: a checkpoint with the parameters inside, for instance."""
    found = f"an object of type {type(saved).__name__} that is not a state_dict"
    remedy = "write it with torch.save(model.state_dict(), path)"
    if isinstance(saved, Mapping):
        inside = [key for key, value in saved.items() if value and is_state(value)]
        keys = ", ".join(repr(key) for key in saved)
        found = f"a table with the keys {keys}, which are no parameters"
        if inside:
            remedy = (
                "save the parameters alone: torch.save(checkpoint"
                f"[{inside[0]!r}], path), with checkpoint = torch.load(path)"
            )
    return found, remedy


def difference(found: Shapes, wanted: Shapes) -> Problem:
    """How the names and shapes of a file differ from those of the model."""
    first = next(iter(found), "")
    for end in range(1, len(first)):
        prefix = first[:end]
        if not prefix.endswith("."):
            continue
        if {name.removeprefix(prefix): shape for name, shape in found.items()} == dict(wanted):
            by, inside = _WRAPPERS.get(prefix, ("a module around it", f"model.{prefix[:-1]}"))
            return (
                f"the parameters of the model with '{prefix}' in front of every name, as {by} puts it there",
                f"save the module inside: torch.save({inside}.state_dict(), path)",
            )
    special = _parametrised(found)
    if special is not None:
        return special
    if list(found.values()) == list(wanted.values()):
        renamed = [f"'{a}' for '{b}'" for a, b in zip(found, wanted, strict=True) if a != b]
        return (
            f"the shapes of the model in its order under other names: {_some(renamed)}",
            f"save them under the names of the model: torch.save(dict(zip({list(wanted)}, "
            "model.state_dict().values())), path)",
        )
    parts = [
        ("names that the model does not have", [n for n in found if n not in wanted]),
        ("no tensor for", [n for n in wanted if n not in found]),
        (
            "other shapes",
            [
                f"{name} {found[name]} where the model has {shape}"
                for name, shape in wanted.items()
                if name in found and found[name] != shape
            ],
        ),
    ]
    told = "; ".join(f"{what}: {_some(which)}" for what, which in parts if which)
    return told, "let [model] describe the architecture that was saved"


def _parametrised(names: Shapes) -> Problem | None:
    """Parameters of which the weights are computed."""
    for mark, by, remedy in (
        (".parametrizations.", "torch.nn.utils.parametrize", "parametrize.remove_parametrizations"),
        ("weight_g", "weight_norm", "remove_weight_norm"),
        ("weight_u", "spectral_norm", "remove_spectral_norm"),
        ("_mask", "torch.nn.utils.prune", "prune.remove"),
    ):
        marked = [name for name in names if mark in f".{name}"]
        if marked:
            return (
                f"parameters from which {by} computes the weights: {_some(marked)}",
                f"call torch.nn.utils.{remedy} on these layers, and save the model then",
            )
    return None


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
