"""``agt.record``: a training loop of the user's own, watched while it runs and written down."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from milp_agt.errors import InvalidInputError, MilpAgtError, UnsupportedOperationError
from milp_agt.recording import optimizer as optimizers
from milp_agt.recording.backward import largest_difference
from milp_agt.recording.hooks import hooks_of, hooks_of_optimizer, random_layers
from milp_agt.recording.loader import watch_loader
from milp_agt.recording.losses import LossCall, loss_of, shares_storage
from milp_agt.recording.passes import Forward, Pass, Twin, differs
from milp_agt.recording.places import place
from milp_agt.recording.rows import Rows, samples_of
from milp_agt.recording.run import RecordedRun, recorded_run
from milp_agt.recording.watch import Watch
from milp_agt.training.tracing import trace
from milp_agt.training.training import UpdateRule

LEAVE_OUT = "leave it out; penalties go into weight_decay= of the optimiser"


class Recording:
    """What ``with agt.record(...) as run`` gives: a run that is written down step by step.

    Nothing of the loop is changed, and what is watched is left as it was at the end of the block. The
    first thing by which the run differs from what can be certified is warned about and ends the
    watching; ``agt.certify`` then refuses the run, and says the same.

    Attributes:
        steps: how many steps were written down.
        problem: why the run cannot be certified, if it cannot.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        loss_fn: object,
        loader: object,
        values_only_logged: bool = False,
    ) -> None:
        self.problem: MilpAgtError | None = None
        self.deaf = True
        self.in_forward = False
        self._model, self._optimizer = model, optimizer
        self._values_only_logged = values_only_logged
        self._trained = optimizers.check(optimizer, model)
        self._dtype = _check_model(model, self._trained)
        self._key = loss_of(loss_fn)
        features, labels, varies = samples_of(loader)
        if varies:
            raise UnsupportedOperationError(
                "The samples of a recorded run must be fixed",
                "a data set that gives other values each time it is read (data augmentation)",
                "augment once, before training, and train on the result",
            )
        for found in self._hooks(frozenset()):
            raise differs(found, "remove it before the recording")
        self._loader = loader
        self._rows = Rows(features, labels)
        self._twin = Twin(model, self._rows, self._trained)
        self._trace_early(tuple(features.shape[1:]))
        self._reference = optimizers.Reference(self._parameters())
        self._batches: list[tuple[int, ...]] = []
        self._rules: list[UpdateRule] = []
        self._assumed: dict[str, None] = {}
        self._forwards: list[Forward] = []
        self._losses: list[LossCall] = []
        self._passes: list[tuple[Pass, dict[str, Tensor], dict[str, int]]] = []
        self._pending: UpdateRule | None = None
        self._undo: list[Callable[[], object]] = []
        self._own: frozenset[int] = frozenset()
        self._ended = False
        self._run: RecordedRun | None = None

    # The block -----------------------------------------------------------------------------------

    def __enter__(self) -> Recording:
        if self._ended or self._undo:
            raise InvalidInputError(
                "A recording is one block", "a second one", "call agt.record(...) again"
            )
        handles = (
            self._model.register_forward_pre_hook(self._before_forward),
            self._model.register_forward_hook(self._after_forward),
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        )
        self._own = frozenset(handle.id for handle in handles)
        self._undo = [handle.remove for handle in handles]
        self._undo.append(watch_loader(self._loader, self._rows.drew))
        self._undo.append(self._watch_plateau())
        watch = Watch(self)
        watch.__enter__()
        self._undo.append(lambda: watch.__exit__(None, None, None))
        self.deaf = False
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace_back: TracebackType | None,
    ) -> None:
        self.deaf, self._ended = True, True
        for undo in reversed(self._undo):
            undo()
        if error is not None and self.problem is None:
            self.problem = differs(
                f"a loop that ended with {type(error).__name__}: {error}",
                "record a loop that reaches its end",
            )
        elif self.problem is None:
            self._attempt(self._finish)
        self._forwards, self._losses, self._passes = [], [], []

    @property
    def steps(self) -> int:
        return len(self._batches)

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
                "A recorded run was to be certified",
                "a recording that has not ended",
                "leave the with-block first",
            )
        return self._run

    def _finish(self) -> None:
        if not self._batches:
            raise InvalidInputError(
                "A recorded run was to be certified",
                "no step of the optimiser",
                "put the whole training loop inside the with-block",
            )
        self._check_values("after the last step")
        graph = self._twin.step_graph
        assert graph is not None
        self._run = recorded_run(
            model=self._twin.initial,
            features=self._rows.features,
            labels=self._rows.labels,
            loss=graph.loss.key,
            batches=tuple(self._batches),
            rules=tuple(self._rules),
            final={n: v.detach().cpu().clone() for n, v in self._model.state_dict().items()},
            dtype=self._dtype,
            assumed=(*self._about_sampler(), *self._assumed),
        )

    def _about_sampler(self) -> tuple[str, ...]:
        sampler = getattr(self._loader, "sampler", None)
        batch_sampler = getattr(self._loader, "batch_sampler", None)
        usual = ("RandomSampler", "SequentialSampler", "BatchSampler", "NoneType")
        return tuple(
            f"The {name} draws the same samples whatever the data are."
            for name in dict.fromkeys(type(each).__name__ for each in (sampler, batch_sampler))
            if name not in usual
        )

    # Problems ------------------------------------------------------------------------------------

    def _attempt(self, check: Callable[[], object]) -> None:
        """Run a check; the first one that fails ends the watching."""
        if self.problem is not None:
            return
        try:
            check()
        except MilpAgtError as error:
            where = f"step {len(self._batches) + 1}: " if not self._ended else ""
            self.problem = type(error)(error.asked, f"{where}{error.found}", error.remedy)
            self.deaf = True
            warnings.warn(f"This run cannot be certified. {self.problem}", UserWarning, stacklevel=2)

    def _refuse(self, found: str, remedy: str) -> None:
        def fail() -> None:
            raise differs(found, remedy)

        self._attempt(fail)

    def _hooks(self, own: frozenset[int]) -> list[str]:
        return [*hooks_of(self._model, own), *hooks_of_optimizer(self._optimizer, own)]

    def _parameters(self) -> dict[str, Tensor]:
        return dict(self._model.named_parameters())

    def _gradients(self) -> dict[str, Tensor | None]:
        parameters = self._parameters()
        return {name: parameters[name].grad for name in self._trained}

    def _trace_early(self, shape: tuple[int, ...]) -> None:
        """Refuse layers without a rule before the loop begins; sizes may still be another's matter."""
        try:
            trace(self._twin.initial, self._key or "mse", shape)
        except InvalidInputError:
            return

    def _check_values(self, when: str) -> None:
        for name, parameter in self._parameters().items():
            if not torch.equal(parameter.detach(), self._reference.parameters[name]):
                raise differs(
                    f"other values of parameter '{name}' {when} than the last step left",
                    "initialise, load and change parameters before the recording, or after it",
                )

    # What the loop does --------------------------------------------------------------------------

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.in_forward = True

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self.in_forward = False
        if self.deaf or not isinstance(output, Tensor) or output.grad_fn is None:
            return
        if len(args) != 1 or not isinstance(args[0], Tensor):
            self._refuse("a model that is called with more than one tensor", "give it the features")
            return
        device = output.device.type
        hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        found = Forward(args[0], output, torch.is_autocast_enabled(device), hooked)
        self._forwards.append(found)

    def lost(self, call: LossCall) -> None:
        if isinstance(call.result, Tensor) and call.result.grad_fn is not None:
            self._losses.append(call)

    def backward(
        self, run: Callable[[], object], tensors: list[Tensor], options: dict[str, Any]
    ) -> object:
        found: list[Pass] = []

        def examine() -> None:
            found.append(self._examine(tensors, options))

        self._attempt(examine)
        result = run()
        if found:
            self._attempt(lambda: self._compare(found[0]))
        return result

    def _examine(self, tensors: list[Tensor], options: dict[str, Any]) -> Pass:
        given = [o for n, o in options.items() if n not in ("retain_graph", "tensors", "self")]
        if len(tensors) != 1 or any(o is not None and o is not False for o in given):
            raise differs("a backward pass with options of its own", "call loss.backward()")
        for hook in self._hooks(self._own):
            raise differs(hook, "remove it")
        for layer in random_layers(self._model):
            raise differs(layer, "switch it to evaluation mode, layer.eval(), or leave it out")
        self._check_values("before this step")
        earlier = [n for n, g in self._gradients().items() if g is not None and bool(g.any())]
        if self._passes or earlier:
            raise differs(
                "gradients of more than one backward pass in one step (gradient accumulation, or no "
                "zero_grad())",
                "take one step after each backward pass, on the batches joined, and clear gradients "
                "in between",
            )
        found = self._twin.examine(self._model, self._forwards, self._losses, tensors[0])
        assert self._twin.step_graph is not None
        key = self._twin.step_graph.loss.key
        if self._key is not None and key != self._key:
            raise differs(f"the loss '{key}', where agt.record was given '{self._key}'", "give it")
        return found

    def _compare(self, found: Pass) -> None:
        """The gradients that the backward pass left are those of the model alone."""
        left = self._gradients()
        missing = [name for name, gradient in left.items() if gradient is None]
        if missing:
            raise differs(f"no gradient of parameter '{missing[0]}'", "freeze it: requires_grad=False")
        kept = {n: g.detach().clone() for n, g in left.items() if g is not None}
        worst, apart, size = largest_difference(kept, found.gradients)
        eps = torch.finfo(next(iter(kept.values())).dtype).eps
        if not apart <= 1024 * eps * size:
            raise differs(
                f"a gradient of '{worst}' that differs by {apart:.3g} from the model's own (gradients are "
                f"up to {size:.3g}): a hook on a node of the graph, or an operation of another kind",
                LEAVE_OUT,
            )
        versions = {n: g._version for n, g in left.items() if g is not None}
        self._passes.append((found, kept, versions))

    def changed(self, how: str, tensors: list[Tensor], zeroed: bool, at: str) -> None:
        parameters = self._parameters()
        gradients = [g for g in (p.grad for p in parameters.values()) if g is not None]
        momenta = [
            s["momentum_buffer"]
            for s in self._optimizer.state.values()
            if s.get("momentum_buffer") is not None
        ]
        for tensor in tensors:
            for kind, watched in (
                ("parameters", list(parameters.values())),
                ("buffers of the model", list(self._model.buffers())),
                ("momentum buffers", momenta),
                ("gradients", [] if zeroed else gradients),
            ):
                if any(shares_storage(tensor, each) for each in watched):
                    remedy = LEAVE_OUT if kind == "gradients" else "do it before the recording"
                    self._refuse(f"{kind} that are changed by {how} ({at})", remedy)
                    return

    def hooked(self, at: str) -> None:
        self._refuse(f"a hook on a tensor ({at})", "leave it out")

    def looked_at_graph(self, at: str) -> None:
        self._refuse(
            f"a node of the gradient's graph that is taken in hand ({at}), on which hooks cannot be seen",
            "leave grad_fn out",
        )

    def compared(self, at: str) -> None:
        if self._values_only_logged:
            self._assumed[
                f"The comparison at {at.rpartition(' at ')[2]} decides neither the number of steps nor "
                "anything in them."
            ] = None
            return
        self._refuse(
            f"a number of the training is compared at {at}, which may stop it, skip a step or change one",
            "train for a fixed number of steps; if the comparison only logs or saves something, record "
            "with agt.record(..., values_only_logged=True)",
        )

    def read(self, at: str) -> None:
        self._refuse(
            f"a forward that reads the values of tensors ({at}), and may branch on them",
            "compute with tensors throughout",
        )

    def _watch_plateau(self) -> Callable[[], None]:
        plain = ReduceLROnPlateau.step

        def step(scheduler: ReduceLROnPlateau, *args: Any, **kwargs: Any) -> None:
            if scheduler.optimizer is self._optimizer:
                self._refuse(
                    f"a learning rate that follows the values of the loss (ReduceLROnPlateau, {place()})",
                    "use a schedule that is fixed beforehand, StepLR for instance",
                )
            plain(scheduler, *args, **kwargs)

        ReduceLROnPlateau.step = step  # type: ignore[method-assign]
        return lambda: setattr(ReduceLROnPlateau, "step", plain)

    # The step ------------------------------------------------------------------------------------

    def _before_step(
        self, optimizer: object, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self.problem is not None:
            return None
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is None:
            self._arrive()
            return None

        def watched_closure() -> object:
            self.deaf = self.problem is not None
            loss: object = closure()
            self._arrive()
            return loss

        self.deaf = True
        return args[:1], {**kwargs, "closure": watched_closure}

    def _arrive(self) -> None:
        """Gradients are complete, and the optimiser is about to use them."""
        self._attempt(self._check_step)
        self.deaf = True

    def _check_step(self) -> None:
        if len(self._passes) != 1:
            raise differs(
                "a step of the optimiser without a backward pass before it",
                "call loss.backward() once before each step",
            )
        if optimizers.check_names(self._optimizer, self._model) != self._trained:
            raise differs("other parameters in the optimiser", "keep them as they were")
        for hook in self._hooks(self._own):
            raise differs(hook, "remove it")
        found, kept, versions = self._passes[0]
        for name, gradient in self._gradients().items():
            same = gradient is not None and torch.equal(gradient, kept[name])
            if gradient is None or not same or gradient._version != versions[name]:
                raise differs(
                    f"a gradient of '{name}' that was changed between backward pass and step", LEAVE_OUT
                )
        self._check_values("before this step")
        self._pending = optimizers.rule_of(self._optimizer)

    def _after_step(self, optimizer: object, args: object, kwargs: object) -> None:
        self._attempt(self._check_update)
        self._forwards, self._losses, self._passes = [], [], []
        self.deaf = self.problem is not None

    def _check_update(self) -> None:
        if self._pending is None:
            raise differs("a step that was not seen to begin", "call optimizer.step()")
        found, kept, _ = self._passes[0]
        rule, parameters = self._pending, self._parameters()
        if self._rules and (rule.momentum > 0) != (self._rules[0].momentum > 0):
            raise differs("momentum that is switched on or off", "keep momentum above 0, or at 0")
        slack = self._reference.step(rule, kept)
        outside = self._reference.outside(parameters, slack)
        if outside is not None:
            raise differs(
                f"a step that moves '{outside[0]}' to values that are {outside[1]:.3g} off those of SGD",
                "use torch.optim.SGD as it is",
            )
        state = self._optimizer.state
        self._reference.accept(
            parameters,
            {n: state[parameters[n]].get("momentum_buffer") for n in self._trained},
        )
        self._pending = None
        self._rules.append(rule)
        self._batches.append(found.samples)


def _check_model(model: object, trained: tuple[str, ...]) -> str:
    """The precision of the model: float32 or float64."""
    assert isinstance(model, nn.Module)
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

    Written down are the initial parameters, the samples of every batch, and learning rate, momentum,
    weight decay and nesterov of every step as the optimiser has them. Every backward pass is held
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
        values_only_logged: True says that where the loop compares numbers that come from the training,
            nothing depends on it but what is printed or saved. It stands in the claim. By default such
            a comparison is refused: it may be an early stop.

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
