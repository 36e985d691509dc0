"""The model of a run: dense layers by size, or a module from a Python file; saved parameters."""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from torch import Tensor, nn

from milp_agt.errors import ConfigurationError, Problem
from milp_agt.training.layers.builder import activations

Shapes = Mapping[str, tuple[int, ...]]

# What puts a prefix in front of every name, and where the model is inside of it.
_WRAPPERS = {
    "module.": ("nn.DataParallel and DistributedDataParallel", "model.module"),
    "_orig_mod.": ("torch.compile", "model._orig_mod"),
    "module._orig_mod.": ("nn.DataParallel of torch.compile", "model.module._orig_mod"),
    "_orig_mod.module.": ("torch.compile of nn.DataParallel", "model._orig_mod.module"),
}
_SHOWN = 4


def dense_network(
    layers: list[int], activation: str, bias: bool, seed: int, feature_shape: tuple[int, ...]
) -> nn.Sequential:
    """Linear layers of the given sizes in float64, the activation between them.

    Initialised by torch's own rule from ``seed``; the global generator is left as it was. Samples
    of more than one axis, such as images, are flattened first.

    Raises:
        ConfigurationError: ``layers[0]`` is not the number of features.
    """
    features = math.prod(feature_shape)
    if layers[0] != features:
        raise ConfigurationError(
            f"Build a network with layers = {layers}",
            f"{features} features in the data, shape {feature_shape}",
            f"let layers begin with {features}",
        )
    modules: list[nn.Module] = [nn.Flatten()] if len(feature_shape) > 1 else []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for position, (inputs, outputs) in enumerate(itertools.pairwise(layers)):
            if position:
                modules.append(activations()[activation]())
            modules.append(nn.Linear(inputs, outputs, bias=bias, dtype=torch.float64))
    return nn.Sequential(*modules)


def factory_network(reference: str, folder: Path, seed: int) -> nn.Module:
    """The module returned by ``function()`` of ``"file.py:function"``, run with ``seed`` set.

    Parameters that are not float64 are converted, with a warning.

    Raises:
        ConfigurationError: no such file or function, an error inside it, or not a torch module.
    """

    def no(found: str, remedy: str) -> ConfigurationError:
        return ConfigurationError(f"Build the model with factory = '{reference}'", found, remedy)

    name, separator, function = reference.rpartition(":")
    if not separator or not name or not function:
        raise no("no 'file.py:function'", "name the file and the function")
    path = folder / name
    spec = importlib.util.spec_from_file_location(f"milp_agt_factory_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise no(f"no Python file at {path}", "give a path relative to the run file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    said = io.StringIO()
    try:
        with torch.random.fork_rng(devices=[]), _as_a_script(path, said):
            torch.manual_seed(seed)
            spec.loader.exec_module(module)
            make = getattr(module, function, None)
            built = make() if callable(make) else None
    except SystemExit as error:
        told = said.getvalue().strip().splitlines()
        raise no(
            f"{path.name} ends the program while it is read (exit {error.code})"
            + (f": {told[-1]:.200}" if told else ""),
            "put what a script does, arguments of the command line included, under "
            f"if __name__ == '__main__': so that '{function}' can be called without it",
        ) from error
    except Exception as error:
        remedy = f"correct {path.name}; '{function}' is called without arguments"
        raise no(f"{type(error).__name__}: {error}", remedy) from error
    finally:
        del sys.modules[spec.name]
    if make is None:
        raise no(f"no function '{function}' in {path}", "define it at the top level of the file")
    if not isinstance(built, nn.Module):
        found = f"an object of type {type(built).__name__}"
        raise no(found, "return a torch.nn.Module from the function")
    single = [name for name, value in built.named_parameters() if value.dtype != torch.float64]
    if single:
        _warn_of_float32(
            f"The parameters of factory = '{reference}' are not float64 ({single[0]} is not, for "
            "instance)"
        )
    return built.double()


def _warn_of_float32(found: str) -> None:
    line = f"{found}; they are converted, and the claim is about the float64 run."
    warnings.warn(line, UserWarning, stacklevel=3)


@contextmanager
def _as_a_script(path: Path, said: io.StringIO) -> Iterator[None]:
    """Read a file as ``python FILE`` would: no arguments of ours, its own folder to import from.

    What it writes to stderr goes to ``said``, and to stderr where it does not end the program.
    """
    arguments, folders = sys.argv, sys.path
    sys.argv, sys.path = [str(path)], [str(path.parent), *sys.path]
    try:
        with redirect_stderr(said):
            yield
        sys.stderr.write(said.getvalue())
    finally:
        sys.argv, sys.path = arguments, folders


def load_state(model: nn.Module, path: Path) -> None:
    """Copy a saved ``state_dict`` into ``model``; only tensors are read from the file.

    Raises:
        ConfigurationError: an unreadable file, or names and shapes other than the model's.
    """
    asked = f"Load the parameters in {path}"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise ConfigurationError(
            asked, "no such file", "give a path relative to the run file"
        ) from error
    except Exception as error:  # a broken file makes the reader raise almost anything
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigurationError(
            asked,
            f"a file that torch cannot load with weights_only ({first})",
            "write it with torch.save(model.state_dict(), path)",
        ) from error
    wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    if not _is_state(state):
        raise ConfigurationError(asked, *_no_state(state))
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != wanted:
        raise ConfigurationError(asked, *_difference(found, wanted))
    if any(value.dtype != torch.float64 for value in state.values()):
        _warn_of_float32(f"The parameters in {path.name} are not float64")
    model.load_state_dict(state)


def _is_state(saved: object) -> bool:
    """Whether this is a table of tensors by name."""
    return isinstance(saved, Mapping) and all(
        isinstance(name, str) and isinstance(value, Tensor) for name, value in saved.items()
    )


def _no_state(saved: object) -> Problem:
    """A file that holds something else: a checkpoint with the parameters inside, for instance."""
    found = f"an object of type {type(saved).__name__} that is not a state_dict"
    remedy = "write it with torch.save(model.state_dict(), path)"
    if isinstance(saved, Mapping):
        inside = [key for key, value in saved.items() if value and _is_state(value)]
        keys = ", ".join(repr(key) for key in saved)
        found = f"a table with the keys {keys}, which are no parameters"
        if inside:
            remedy = (
                "save the parameters alone: torch.save(checkpoint"
                f"[{inside[0]!r}], path), with checkpoint = torch.load(path)"
            )
    return found, remedy


def _difference(found: Shapes, wanted: Shapes) -> Problem:
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
