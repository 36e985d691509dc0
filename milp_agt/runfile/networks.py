"""The model of a run: dense layers by size, or a module from a Python file; saved parameters."""

from __future__ import annotations

import importlib.util
import io
import itertools
import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import torch
from torch import nn

from milp_agt.errors import ConfigurationError
from milp_agt.runfile.state_names import difference, is_state, no_state
from milp_agt.training.layers.builder import activations


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
    asked = f"Build the model with factory = '{reference}'"
    name, separator, function = reference.rpartition(":")
    if not separator or not name or not function:
        raise ConfigurationError(asked, "no 'file.py:function'", "name the file and the function")
    path = folder / name
    spec = importlib.util.spec_from_file_location(f"milp_agt_factory_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ConfigurationError(
            asked, f"no Python file at {path}", "give a path relative to the run file"
        )
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
        raise ConfigurationError(
            asked,
            f"{path.name} ends the program while it is read (exit {error.code})"
            + (f": {told[-1]:.200}" if told else ""),
            "put what a script does, arguments of the command line included, under "
            f"if __name__ == '__main__': so that '{function}' can be called without it",
        ) from error
    except Exception as error:
        raise ConfigurationError(
            asked,
            f"{type(error).__name__}: {error}",
            f"correct {path.name}; '{function}' is called without arguments",
        ) from error
    finally:
        del sys.modules[spec.name]
    if make is None:
        raise ConfigurationError(
            asked, f"no function '{function}' in {path}", "define it at the top level of the file"
        )
    if not isinstance(built, nn.Module):
        raise ConfigurationError(
            asked,
            f"an object of type {type(built).__name__}",
            "return a torch.nn.Module from the function",
        )
    single = [name for name, value in built.named_parameters() if value.dtype != torch.float64]
    if single:
        warnings.warn(
            f"The parameters of factory = '{reference}' are not float64 ({single[0]} is not, for "
            "instance); they are converted, and the claim is about the float64 run.",
            UserWarning,
            stacklevel=2,
        )
    return built.double()


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
    if not is_state(state):
        raise ConfigurationError(asked, *no_state(state))
    found = {name: tuple(value.shape) for name, value in state.items()}
    if found != wanted:
        raise ConfigurationError(asked, *difference(found, wanted))
    if any(value.dtype != torch.float64 for value in state.values()):
        warnings.warn(
            f"The parameters in {path.name} are not float64; they are converted, and the claim is "
            "about the float64 run.",
            UserWarning,
            stacklevel=2,
        )
    model.load_state_dict(state)
