"""What a loop does, held against what the run is said to be: the first difference ends the watching."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from milp_agt.recording import optimizer as optimizers
from milp_agt.recording.backward import hooks_of_optimizer, largest_difference, random_layers
from milp_agt.recording.findings import Findings
from milp_agt.recording.losses import LossCall, shares_storage
from milp_agt.recording.origins import Origins
from milp_agt.recording.passes import Pass, RecordedForward, Twin, differs
from milp_agt.recording.places import place
from milp_agt.training.hidden_changes import hooks_on
from milp_agt.training.training import UpdateRule

LEAVE_OUT = "leave it out; penalties go into weight_decay= of the optimiser"

OUTSIDE = (
    "Batches that the loop takes from elsewhere than the loader or the tensors handed over (from arrays of "
    "numpy, for instance) are samples as they are: nothing clips, filters or orders them by their values."
)


class _Left(NamedTuple):
    """A backward pass with the gradients that it left, and how often each had been written by then."""

    found: Pass
    gradients: dict[str, Tensor]
    versions: dict[str, int]


class Loop(Findings):
    """Is told of everything that a loop does, and writes its steps down.

    Attributes:
        rules: what the optimiser did in each finished step.
        origins: where the tensors of the loop come from.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.SGD,
        twin: Twin,
        loss: str | None,
        values_only_logged: bool,
    ) -> None:
        super().__init__(values_only_logged)
        self.origins = Origins()
        self.rules: list[UpdateRule] = []
        self._model, self._optimizer, self._twin, self._key = model, optimizer, twin, loss
        self._own: frozenset[int] = frozenset()
        self._reference = optimizers.Reference(self._parameters())
        self._joined: tuple[int, ...] = ()
        self._pending: UpdateRule | None = None
        self._forget()

    def _forget(self) -> None:
        """What belongs to one step is of no use to the next."""
        self._forwards: list[RecordedForward] = []
        self._losses: list[LossCall] = []
        self._passes: list[_Left] = []
        self._clip: float | None = None

    def begin(self) -> list[Callable[[], object]]:
        """Listen from now on; returns what puts everything back."""
        handles = (
            self._model.register_forward_pre_hook(self._before_forward),
            self._model.register_forward_hook(self._after_forward),
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        )
        self._own = frozenset(handle.id for handle in handles)
        self.deaf = False
        return [self._watch_plateau(), *(handle.remove for handle in handles)]

    def end(self, check: Callable[[], object]) -> None:
        """Listen no longer, and check what is to be checked of the whole."""
        self.deaf = True
        self._forget()
        self.attempt(check, "")

    def fail(self, found: str, remedy: str) -> None:
        """The block was left by an error, which is not warned about: it goes on to the user."""
        self.deaf = True
        self._forget()
        self.problem = self.problem or differs(found, remedy)

    def check_hooks(self) -> None:
        """See that nobody but this recording listens to the model or its optimiser."""
        for each in hooks_on(self._model, self._own):
            raise differs(f"{each.place}: {each.found}", each.remedy)
        for hook in hooks_of_optimizer(self._optimizer, self._own):
            raise differs(hook, "remove it")

    def _parameters(self) -> dict[str, Tensor]:
        return dict(self._model.named_parameters())

    def _gradients(self) -> dict[str, Tensor | None]:
        parameters = self._parameters()
        return {name: parameters[name].grad for name in self._twin.trained}

    def _velocity(self) -> dict[str, Tensor | None]:
        parameters, state = self._parameters(), self._optimizer.state
        return {n: state[parameters[n]].get("momentum_buffer") for n in self._twin.trained}

    def check_values(self, when: str) -> None:
        """See that parameters are as the last step left them."""
        left, found = self._reference.parameters, self._parameters()
        if left.keys() != found.keys():
            raise differs(
                f"other parameters {when} than the last step left: {', '.join(sorted(found)):.120}",
                "wrap, add and remove layers before the recording, or after it",
            )
        for name, parameter in found.items():
            if not torch.equal(parameter.detach(), left[name]):
                raise differs(
                    f"other values of parameter '{name}' {when} than the last step left",
                    "initialise, load and change parameters before the recording, or after it",
                )

    def _before_forward(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.in_forward = True

    def _after_forward(self, module: nn.Module, args: tuple[Any, ...], output: object) -> None:
        self.in_forward = False
        if self.deaf or not isinstance(output, Tensor) or output.grad_fn is None:
            return
        if len(args) != 1 or not isinstance(args[0], Tensor):
            self.refuse("a model that is called with more than one tensor", "give it the features")
            return
        autocast = torch.is_autocast_enabled(output.device.type)
        hooked = torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
        self._forwards.append(RecordedForward(args[0], output, output.grad_fn, autocast, hooked))

    def lost(self, call: LossCall) -> None:
        """A loss was computed."""
        if call.node is not None:
            self._losses.append(call)

    def scaled(self, source: Tensor, factor: float, result: Tensor) -> None:
        """A tensor was multiplied by a number that is no tensor's."""
        for call in self._losses:
            if call.node is source.grad_fn:
                scale, scalings = call.scale * factor, call.scalings + 1
                self._losses.append(
                    replace(call, node=result.grad_fn, scale=scale, scalings=scalings)
                )
                return

    def backward(
        self, run: Callable[[], object], tensors: list[Tensor], options: dict[str, Any]
    ) -> object:
        """A backward pass is asked for; ``run`` takes it."""
        found: list[Pass] = []
        self.attempt(lambda: found.append(self._examine(tensors, options)))
        result = run()
        if found:
            self.attempt(lambda: self._compare(found[0]))
        return result

    def _examine(self, tensors: list[Tensor], options: dict[str, Any]) -> Pass:
        given = [o for n, o in options.items() if n not in ("retain_graph", "tensors", "self")]
        if len(tensors) != 1 or any(o is not None and o is not False for o in given):
            raise differs("a backward pass with options of its own", "call loss.backward()")
        self.check_hooks()
        for layer in random_layers(self._model):
            raise differs(layer, "switch it to evaluation mode, layer.eval(), or leave it out")
        self.check_values("before this step")
        self._check_earlier()
        found = self._twin.examine(
            self._model, self._forwards, self._losses, tensors[0], self.origins
        )
        assert self._twin.step_graph is not None
        if found.is_from_outside:
            self.assumed[OUTSIDE] = None
        key = self._twin.step_graph.loss.key
        if self._key is not None and key != self._key:
            raise differs(f"the loss '{key}', where agt.record was given '{self._key}'", "give it")
        return found

    def _check_earlier(self) -> None:
        """Gradients before a pass are none, or those that earlier passes of this step have left."""
        if not any(g is not None and bool(g.any()) for g in self._gradients().values()):
            self._passes, self._clip = [], None
        elif self._passes:
            self._check_gradients()
        else:
            raise differs(
                "gradients of more than one backward pass: those of an earlier step were not cleared",
                "call optimizer.zero_grad() after each step",
            )

    def _check_gradients(self) -> None:
        """Nothing has changed the gradients since the last backward pass."""
        last = self._passes[-1]
        for name, gradient in self._gradients().items():
            same = gradient is not None and torch.equal(gradient, last.gradients[name])
            if gradient is None or not same or gradient._version != last.versions[name]:
                raise differs(
                    f"a gradient of '{name}' that was changed between backward pass and step",
                    LEAVE_OUT,
                )

    def _compare(self, found: Pass) -> None:
        """The gradients that the backward pass left are those of the model alone."""
        left: dict[str, Tensor] = {}
        for name, gradient in self._gradients().items():
            if gradient is None:
                raise differs(
                    f"no gradient of parameter '{name}'", "freeze it: requires_grad=False"
                )
            left[name] = gradient
        kept = {name: gradient.detach().clone() for name, gradient in left.items()}
        expected = dict(found.gradients)
        if self._passes:
            expected = {n: g + self._passes[-1].gradients[n] for n, g in expected.items()}
        worst, apart, size = largest_difference(kept, expected)
        eps = torch.finfo(next(iter(kept.values())).dtype).eps
        if not apart <= 1024 * eps * size:
            raise differs(
                f"a gradient of '{worst}' that differs by {apart:.3g} from the model's own (gradients are "
                f"up to {size:.3g}): a hook on a node of the graph, or an operation of another kind",
                LEAVE_OUT,
            )
        self._passes.append(_Left(found, kept, {n: g._version for n, g in left.items()}))

    def changed(self, how: str, tensors: list[Tensor], zeroed: bool, at: str) -> None:
        """Tensors were changed in place, or given other contents."""
        parameters = list(self._parameters().values())
        momenta = [state.get("momentum_buffer") for state in self._optimizer.state.values()]
        watched: dict[str, list[Any]] = {
            "parameters": parameters,
            "buffers of the model": list(self._model.buffers()),
            "momentum buffers": momenta,
            "gradients": [] if zeroed else [p.grad for p in parameters],
        }
        for tensor in tensors:
            for kind, held in watched.items():
                if any(each is not None and shares_storage(tensor, each) for each in held):
                    if kind == "gradients" and self._is_clipping():
                        return
                    remedy = LEAVE_OUT if kind == "gradients" else "do it before the recording"
                    self.refuse(f"{kind} that are changed by {how} ({at})", remedy)
                    return

    def _is_clipping(self) -> bool:
        """Whether clip_grad_norm_ is what changes the gradients; it may once in a step."""
        found: list[float | None] = []
        parameters = self._parameters()
        trained = {name: parameters[name] for name in self._twin.trained}
        self.attempt(lambda: found.append(optimizers.running_clip(trained)))
        clip = found[0] if found else None
        if clip is None or (self._clip is not None and self._clip != clip):
            return self.problem is not None
        self._clip = clip
        return True

    def _watch_plateau(self) -> Callable[[], None]:
        plain = ReduceLROnPlateau.step

        def step(scheduler: ReduceLROnPlateau, *args: Any, **kwargs: Any) -> None:
            if scheduler.optimizer is self._optimizer:
                self.refuse(
                    f"a learning rate that follows the values of the loss (ReduceLROnPlateau, {place()})",
                    "use a schedule that is fixed beforehand, StepLR for instance",
                )
            plain(scheduler, *args, **kwargs)

        setattr(ReduceLROnPlateau, "step", step)  # noqa: B010
        return lambda: setattr(ReduceLROnPlateau, "step", plain)

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
        self.attempt(self._check_step)
        self.deaf = True

    def _check_step(self) -> None:
        if not self._passes:
            raise differs(
                "a step of the optimiser without a backward pass before it",
                "call loss.backward() once before each step",
            )
        self._joined = self._join()
        if optimizers.trained_names(self._optimizer, self._model) != self._twin.trained:
            raise differs("other parameters in the optimiser", "keep them as they were")
        self.check_hooks()
        if self._clip is None:
            self._check_gradients()
        else:
            last = self._passes[-1]
            clipped = optimizers.check_clipped(
                self._clip, last.gradients, self._gradients(), last.versions
            )
            self._passes[-1] = last._replace(gradients=clipped)
        self.check_values("before this step")
        replaced = self._reference.replaced(self._velocity())
        if replaced is not None:
            raise differs(
                f"a momentum buffer of '{replaced}' that was changed or replaced between two steps",
                "leave optimizer.state and load_state_dict() out of the loop",
            )
        rule = optimizers.rule_of(self._optimizer, self._model, not self.rules)
        self._pending = rule if self._clip is None else optimizers.clipping(rule, self._clip)

    def _join(self) -> tuple[int, ...]:
        """The samples of all backward passes of a step, whose sum must be the mean over them.

        Each pass gives ``scale`` times the mean over its own samples.
        """
        passes = [each.found for each in self._passes]
        joined = tuple(sample for each in passes for sample in each.samples)
        shares = [each.scale * len(joined) / len(each.samples) for each in passes]
        if any(abs(share - 1.0) > 1e-12 for share in shares):
            told = ", ".join(f"{each.scale:g} * mean of {len(each.samples)}" for each in passes)
            raise differs(
                f"a gradient that is no mean over samples (gradient accumulation, or a weight): {told}",
                "multiply the mean loss of each backward pass by its share of the samples of the step, and "
                "otherwise scale the learning rate",
            )
        if len(passes) > 1 and passes[0].weight is not None:
            raise differs(
                "class weights with several backward passes in one step, each divided by weights of its own",
                "take one backward pass in each step, or leave weight= out",
            )
        if len(set(joined)) != len(joined):
            raise differs("a sample that occurs twice in one step", "join distinct samples")
        if len(passes) > 1:
            told = "A step may join several backward passes; a batch is what one step is made of."
            self.assumed[told] = None
        return joined

    def _after_step(self, optimizer: object, args: object, kwargs: object) -> None:
        self.attempt(self._check_update)
        self._forget()
        self.deaf = self.problem is not None

    def _check_update(self) -> None:
        if self._pending is None:
            raise differs("a step that was not seen to begin", "call optimizer.step()")
        rule, parameters = self._pending, self._parameters()
        moving = {n: rule.of(n).momentum > 0 for n in self._twin.trained}
        if self.rules and moving != {n: self.rules[0].of(n).momentum > 0 for n in moving}:
            raise differs("momentum that is switched on or off", "keep momentum above 0, or at 0")
        slack = self._reference.step(rule, self._passes[-1].gradients)
        outside = self._reference.outside(parameters, slack)
        if outside is not None:
            raise differs(
                f"a step that moves '{outside[0]}' to values that are {outside[1]:.3g} off those of SGD",
                "use torch.optim.SGD as it is",
            )
        self._reference.accept(parameters, self._velocity())
        self._pending = None
        self.rules.append(rule)
        self.batches.append(self._joined)
