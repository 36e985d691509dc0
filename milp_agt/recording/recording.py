"""``agt.record``: a training loop of the user's own, watched while it runs and written down."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from milp_agt.data import Dataset
from milp_agt.errors import InvalidInputError, MilpAgtError, UnsupportedOperationError
from milp_agt.recording import optimizer as optimizers
from milp_agt.recording.loop import Loop
from milp_agt.recording.losses import loss_of
from milp_agt.recording.origins import tensors_in
from milp_agt.recording.passes import Twin, differs
from milp_agt.recording.rows import DataRows, samples_of, watch_loader
from milp_agt.recording.run import RecordedRun, RecordedTraining
from milp_agt.recording.watch import Watch, watch_threads
from milp_agt.threats import ThreatModel
from milp_agt.training.hidden_changes import hooked_accumulators
from milp_agt.training.tracing import trace
from milp_agt.training.training import Training

CERTIFIED = "A recorded run was to be certified"
Data = tuple[Any, Any] | Dataset


class Recording:
    """What ``with agt.record(...) as run`` gives: a run that is written down step by step.

    Nothing of the loop is changed, and what is watched is left as it was at the end of the block. The
    first thing by which the run differs from what can be certified is warned about and ends the
    watching; ``agt.certify`` then refuses the run, and says the same.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        loss_fn: object,
        loader: object,
        values_only_logged: bool = False,
    ) -> None:
        trained = optimizers.check(optimizer, model)
        self._dtype = _check_model(model, trained)
        key = loss_of(loss_fn)
        features, labels, varies = samples_of(loader)
        if varies:
            raise UnsupportedOperationError(
                "The samples of a recorded run must be fixed",
                "a data set that gives other values each time it is read (data augmentation)",
                "augment once, before training, and train on the result",
            )
        self._model, self._loader = model, loader
        self._rows = DataRows(features, labels)
        self._twin = Twin(model, self._rows, trained)
        self._loop = Loop(model, optimizer, self._twin, key, values_only_logged)
        self._loop.check_hooks()
        self._refuse_hooks()
        self._trace_early(key or "mse", tuple(features.shape[1:]))
        self._undo = ExitStack()
        self._began = False
        self._run: RecordedRun | None = None

    def __enter__(self) -> Recording:
        if self._began:
            raise InvalidInputError(
                "A recording is one block", "a second one", "call agt.record(...) again"
            )
        self._began = True
        data = getattr(self._loader, "dataset", self._loader)
        self._loop.origins.mark(tensors_in(getattr(data, "tensors", data)))
        self._undo.callback(watch_loader(self._loader, self._drew, self._loop.quiet))
        for undo in self._loop.begin():
            self._undo.callback(undo)
        watch = Watch(self._loop)
        self._undo.callback(watch_threads(watch))
        self._undo.enter_context(watch)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_back: TracebackType | None,
    ) -> None:
        self._undo.close()
        if error is None:
            self._loop.end(self._finish)
        else:
            self._loop.fail(
                f"a loop that ended with {type(error).__name__}: {error}",
                "record a loop that reaches its end",
            )

    def _drew(self, indices: Sequence[int] | None, batch: object) -> None:
        """The loader gave a batch."""
        self._loop.origins.mark(tensors_in(batch))
        if indices is not None:
            features = batch[0] if isinstance(batch, (tuple, list)) and batch else None
            self._rows.drew(indices, features)

    @property
    def problem(self) -> MilpAgtError | None:
        """Why the run cannot be certified, if it cannot."""
        return self._loop.problem

    @property
    def steps(self) -> int:
        """How many steps were written down."""
        return len(self._loop.batches)

    def finished(self) -> RecordedRun:
        """The run, as data.

        Raises:
            InvalidInputError: the block has not ended, or holds no step.
            UnsupportedOperationError: a run that cannot be certified.
        """
        if self.problem is not None:
            raise self.problem
        if self._run is None:
            raise InvalidInputError(
                CERTIFIED, "a recording that has not ended", "leave the with-block first"
            )
        return self._run

    def save(self, path: str | Path) -> None:
        """Write the finished run to a file; see :meth:`RecordedRun.save`."""
        self.finished().save(path)

    def _finish(self) -> None:
        if not self.steps:
            raise InvalidInputError(
                CERTIFIED,
                "no step of the optimiser",
                "put the whole training loop inside the with-block",
            )
        self._loop.check_values("after the last step")
        self._refuse_hooks()
        graph = self._twin.step_graph
        assert graph is not None
        self._run = RecordedRun(
            self._twin.initial,
            self._rows.features,
            self._rows.labels,
            RecordedTraining.of(graph.loss, self._loop.batches, self._loop.rules),
            {n: v.detach().cpu().clone() for n, v in self._model.state_dict().items()},
            self._dtype,
            (*self._about_sampler(), *self._loop.assumed),
        )

    def _refuse_hooks(self) -> None:
        for name, found, remedy in hooked_accumulators(dict(self._model.named_parameters())):
            raise differs(f"parameter '{name}': {found}", remedy)

    def _about_sampler(self) -> tuple[str, ...]:
        given = (getattr(self._loader, name, None) for name in ("sampler", "batch_sampler"))
        usual = ("RandomSampler", "SequentialSampler", "BatchSampler", "NoneType")
        return tuple(
            f"The {name} draws the same samples whatever the data are."
            for name in dict.fromkeys(type(each).__name__ for each in given)
            if name not in usual
        )

    def _trace_early(self, loss: str, shape: tuple[int, ...]) -> None:
        """Refuse layers without a rule before the loop begins; sizes may still be another's matter."""
        with suppress(InvalidInputError):
            trace(self._twin.initial, loss, shape)


def _check_model(model: nn.Module, trained: tuple[str, ...]) -> str:
    """The precision of the model: float32 or float64."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in model.parameters()}
    if len(kinds) != 1 or not kinds <= {"float32", "float64"}:
        raise UnsupportedOperationError(
            "A run was to be recorded with its model",
            f"parameters of type {', '.join(sorted(kinds)) or 'none'}",
            "train in float32 or float64 throughout",
        )
    if not trained:
        raise InvalidInputError(
            "A run was to be recorded with its optimiser",
            "no parameter of the model that it trains",
            "give it model.parameters()",
        )
    if torch.get_float32_matmul_precision() != "highest" and kinds == {"float32"}:
        raise UnsupportedOperationError(
            "A run in float32 was to be recorded",
            f"products of reduced precision ({torch.get_float32_matmul_precision()}: TF32 or bfloat16)",
            "call torch.set_float32_matmul_precision('highest')",
        )
    return kinds.pop()


def record(
    model: nn.Module,
    optimizer: torch.optim.SGD,
    loss_fn: object,
    loader: object,
    *,
    values_only_logged: bool = False,
) -> Recording:
    """Record a training loop of your own, to certify exactly that run.

        with agt.record(model, optimizer, loss_fn, loader) as run:
            ...  # the loop, unchanged
        result = agt.certify(run, threat)

    Written down are the initial parameters, the samples of every batch, the loss with its class weights and
    label smoothing, the norm of ``clip_grad_norm_``, and learning rate, momentum, dampening, weight decay and
    nesterov of every step and group as the optimiser has them. Every backward pass is held
    against that of the model alone (its operations one by one, and its gradients), every step against
    the formula of SGD, and every parameter against what the step before left. Whatever differs is named,
    with the step, in a warning and by ``agt.certify``, which refuses the run.

    Args:
        model: a module of supported layers, in float32 or float64.
        optimizer: a ``torch.optim.SGD`` that has taken no step.
        loss_fn: nn.CrossEntropyLoss, nn.BCEWithLogitsLoss, nn.MSELoss, one of their functions, or a
            function of your own that calls one.
        loader: the DataLoader (its order, workers and ``drop_last`` are recorded as they come), or the
            arrays ``(X, y)`` that the loop takes its batches from.
        values_only_logged: True says that where the loop compares numbers that come from the training, or
            takes them out of torch (numpy, ``tolist()``, ``float()``), nothing depends on it but what is
            printed or saved. It stands in the claim. By default such a thing is refused: it may be an
            early stop. Reading and formatting ``loss.item()`` is always fine.

    Raises:
        UnsupportedOperationError: an optimiser, a loss, a layer or a hook without a rule.
        InvalidInputError: objects that do not belong together, or an optimiser that has taken steps.
    """
    if not isinstance(model, nn.Module):
        raise InvalidInputError(
            "A run was to be recorded with its model",
            f"an object of type {type(model).__name__}",
            "give the torch.nn.Module",
        )
    return Recording(model, optimizer, loss_fn, loader, values_only_logged)


def of_recording(
    model: nn.Module | Recording | RecordedRun,
    data: Data | ThreatModel,
    training: Training | None,
    threat: ThreatModel | None,
) -> tuple[nn.Module, Data, Training, ThreatModel, RecordedRun | None]:
    """Model, data, training and threat of a call, and the recorded run that they came from, if any.

    Raises:
        InvalidInputError: ``(run, threat)`` with more arguments, or ``(model, data, ...)`` with fewer.
        UnsupportedOperationError: a recorded run that cannot be certified.
    """
    if isinstance(model, (Recording, RecordedRun)):
        given = [each for each in (data, training, threat) if each is not None]
        if len(given) != 1:
            raise InvalidInputError(
                "A recorded run comes with a threat alone",
                f"{len(given)} further arguments",
                "call it as certify(run, threat)",
            )
        run = model.finished() if isinstance(model, Recording) else model
        return run.initial, run.data, run.training, given[0], run  # type: ignore[return-value]
    return model, data, training, threat, None  # type: ignore[return-value]
