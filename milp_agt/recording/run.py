"""A recorded run as data: what ``certify`` and ``attack`` take in place of model, data and training."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from milp_agt.bounds.step import NodeOrder, step_at_points, velocity_of
from milp_agt.core.arguments import of_kind
from milp_agt.errors import InvalidInputError, UnsupportedOperationError
from milp_agt.formulations.loss import LossFunction, get_loss
from milp_agt.io.files import Archive
from milp_agt.training import inputs
from milp_agt.training.tracing import trace
from milp_agt.training.training import Batch, ParameterGroup, Training, UpdateRule

FILE = Archive(
    "A recorded run", 2, "give a file that run.save(path) wrote, or record again", "recorded run"
)
ASSUMED = (
    "The number and the order of the recorded steps, their samples and their learning rates do not depend "
    "on the values of the data: no early stopping, no sampling and no schedule looks at them.",
    "What code outside of torch does inside the loop (numpy on memory that it shares, functions of math and "
    "statistics, text made of numbers) depends on no value of the data or of the training.",
    "The samples are meant as the loader gives them: what data set, transforms and collate function do to "
    "raw values comes before the adversary.",
)


@dataclass(frozen=True)
class RecordedTraining(Training):
    """A training whose every step was read off an optimiser.

    Attributes:
        rules: the optimiser step of each recorded batch; the other options are those of the first.
    """

    rules: tuple[UpdateRule, ...] = field(default=(), repr=False)

    @staticmethod
    def of(
        loss: LossFunction, batches: Sequence[Sequence[int]], rules: Sequence[UpdateRule]
    ) -> RecordedTraining:
        """The training of these steps."""
        first = rules[0]
        return RecordedTraining(
            loss=loss.key,
            **loss.options,
            learning_rate=first.rate or next((r.rate for r in rules if r.rate), 1.0),
            batches=tuple(map(tuple, batches)),
            momentum=first.momentum,
            nesterov=first.nesterov,
            weight_decay=first.weight_decay,
            schedule=tuple(r.rate for r in rules),
            rules=tuple(rules),
        )

    def update_rules(self, steps: int) -> tuple[UpdateRule, ...]:
        return self.rules[:steps]

    @property
    def clips_total(self) -> bool:
        return any(rule.clip_total is not None for rule in self.rules)

    @property
    def has_momentum(self) -> bool:
        return any(rule.has_momentum for rule in self.rules)


@dataclass(frozen=True)
class NominalCheck:
    """How far a user's trained model is from the nominal run that is certified.

    Attributes:
        difference: largest distance of any parameter.
        parameter: whose distance it is.
        dtype: precision of the user's run, float32 or float64.
        tolerance: the largest distance that is taken for rounding: half of the digits of ``dtype``, of
            1 + the largest parameter.
    """

    difference: float
    parameter: str
    dtype: str
    tolerance: float

    @property
    def is_rounding(self) -> bool:
        """Whether both are one run up to rounding; every step was compared when it was recorded."""
        return self.difference <= self.tolerance

    def __str__(self) -> str:
        return f"your model is the nominal run up to {self.difference:.2g} ({self.dtype})"


@dataclass(frozen=True)
class RecordedRun:
    """One training run, as it was done.

    Attributes:
        model: with the initial parameters; those that no optimiser trained are frozen.
        features: (n, *shape), in the precision of the run.
        labels: classes (n,), or targets.
        training: loss, batches and the optimiser step of each of them.
        final: the trained model's ``state_dict``.
        dtype: "float32" or "float64", in which the run was done.
        assumed: what recording alone cannot know, in words.
    """

    model: nn.Module = field(repr=False)
    features: Tensor = field(repr=False)
    labels: Tensor = field(repr=False)
    training: RecordedTraining
    final: Mapping[str, Tensor] = field(repr=False)
    dtype: str
    assumed: tuple[str, ...] = ()

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """The training data as ``certify`` takes them: features in float64 and labels."""
        return self.features.double(), self.labels

    @property
    def initial(self) -> nn.Module:
        """A copy of the model at the start, in float64."""
        return copy.deepcopy(self.model).double()

    @property
    def batches(self) -> tuple[Batch, ...]:
        return self.training.batch_order(len(self.features))

    @property
    def assumptions(self) -> tuple[str, ...]:
        """What is assumed of this run and not modelled."""
        return (*ASSUMED, *self.assumed)

    def nominal(self) -> dict[str, Tensor]:
        """Parameters after the float64 run of the step graph on the data as given."""
        features, labels = self.data
        graph = trace(self.model, self.training.objective, tuple(features.shape[1:]))
        encoded = inputs.labels_of(labels, len(features), graph.loss, graph.outputs)
        order, batches = NodeOrder.of(graph), self.batches
        state: dict[str, Tensor] = dict(graph.initial)
        if self.training.has_momentum:
            state |= {velocity_of(n): torch.zeros_like(v) for n, v in graph.initial.items()}
        with torch.no_grad():
            for batch, rule in zip(batches, self.training.update_rules(len(batches)), strict=True):
                index = torch.from_numpy(batch)
                state = step_at_points(graph, order, state, features[index], encoded[index], rule)
        return {n: state[n] for n in graph.parameters}

    def nominal_check(self) -> NominalCheck:
        """The user's model beside the nominal run.

        Raises:
            UnsupportedOperationError: they differ by more than rounding.
        """
        nominal = self.nominal()
        apart = {n: float((v - self.final[n].double()).abs().max()) for n, v in nominal.items()}
        # NaN is the largest: a run that diverged is none.
        worst = max(apart, key=lambda n: apart[n] if apart[n] == apart[n] else float("inf"))
        size = 1.0 + max(float(v.abs().max()) for v in nominal.values())
        tolerance = float(torch.finfo(getattr(torch, self.dtype)).eps) ** 0.5 * size
        check = NominalCheck(apart[worst], worst, self.dtype, tolerance)
        if not check.is_rounding:
            raise UnsupportedOperationError(
                "The certified run must end in the user's own model",
                f"parameter '{worst}' is {apart[worst]:.3g} off after {len(self.batches)} steps, where "
                f"rounding in {self.dtype} may account for {tolerance:.1g}",
                "train in float64 (model.double()), with smaller rates, or for fewer steps: rounding has "
                "grown to another run",
            )
        return check

    def save(self, path: str | Path) -> None:
        """Write the run to one .npz file, for :func:`load_run` and ``record =`` in [training].

        Raises:
            InvalidInputError: no such folder, or one that takes no files.
        """
        batches = self.batches
        arrays = {
            "features": self.features.numpy(),
            "labels": self.labels.numpy(),
            "batches": np.concatenate(batches),
            "sizes": np.array([len(batch) for batch in batches]),
        }
        for prefix, state in (("initial:", self.model.state_dict()), ("final:", self.final)):
            arrays |= {prefix + name: value.cpu().numpy() for name, value in state.items()}
        about = {
            "loss": self.training.loss,
            "options": self.training.objective.options,
            "rules": [_plain(rule) for rule in self.training.rules],
            "dtype": self.dtype,
            "assumed": self.assumed,
            "trained": [n for n, p in self.model.named_parameters() if p.requires_grad],
        }
        FILE.write(Path(path), arrays, about)


def loss_in(path: str | Path) -> str:
    """Name of the loss of a saved run.

    Raises:
        InvalidInputError: a missing or damaged file, or another version of the format.
    """
    return str(FILE.read(Path(path))[1].get("loss"))


def load_run(path: str | Path, model: nn.Module) -> RecordedRun:
    """Read a run that :meth:`RecordedRun.save` wrote.

    Args:
        path: of the .npz file; the suffix may be left out.
        model: a module of the same architecture; it is copied, and its values do not matter.

    Raises:
        InvalidInputError: a missing or damaged file, another version of the format, or a model whose
            parameters have other names or shapes.
    """
    remedy = "give a module of the architecture that was recorded"
    of_kind(path, (str, Path), "The path of a recorded run", "give the path of the .npz file")
    of_kind(model, nn.Module, "The model", remedy)
    arrays, about = FILE.read(Path(path))
    asked = f"A recorded run was to be read from {path}"
    try:
        own = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        initial = _state(arrays, "initial:")
        found = {name: tuple(value.shape) for name, value in initial.items()}
        if own != found:
            raise InvalidInputError(
                asked,
                f"parameters {found}, where the model has {own}",
                "give the architecture that was recorded",
            )
        started = copy.deepcopy(model).to(getattr(torch, about["dtype"]))
        started.load_state_dict(initial)
        for name, parameter in started.named_parameters():
            parameter.requires_grad_(name in about["trained"])
        given = about["options"].items()
        options = {n: tuple(v) if isinstance(v, list) else v for n, v in given}
        batches = np.split(arrays["batches"], np.cumsum(arrays["sizes"])[:-1])
        training = RecordedTraining.of(
            get_loss(about["loss"]).configured(**options),
            [batch.tolist() for batch in batches],
            [_rule(rule) for rule in about["rules"]],
        )
        features, labels = (torch.from_numpy(arrays[name]) for name in ("features", "labels"))
        final, assumed = _state(arrays, "final:"), tuple(about["assumed"])
        return RecordedRun(started, features, labels, training, final, about["dtype"], assumed)
    except (KeyError, TypeError, AttributeError) as error:
        raise InvalidInputError(
            asked, f"contents that do not fit together: {error}", "save the run again"
        ) from None


def _plain(rule: UpdateRule) -> dict[str, Any]:
    groups = [(list(group.names), _plain(own)) for group, own in rule.groups]
    return asdict(replace(rule, groups=())) | {"groups": groups}


def _rule(about: Mapping[str, Any]) -> UpdateRule:
    """The inverse of :func:`_plain`."""
    groups = tuple((ParameterGroup(names), _rule(own)) for names, own in about["groups"])
    return UpdateRule(**{**about, "groups": groups})


def _state(arrays: Mapping[str, Any], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): torch.from_numpy(value)
        for name, value in arrays.items()
        if name.startswith(prefix)
    }
