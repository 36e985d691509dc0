"""The result of a certification: reachable set, records, claim, and properties on demand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from milp_agt.attacks import Attack, Attacker, Envelope, Objective, ParameterSandwich, Sandwich
from milp_agt.certification import saved
from milp_agt.certification.boxes import narrowed, reachable_of
from milp_agt.certification.worth import BoxWorth
from milp_agt.core.arguments import callable_of, of_kind
from milp_agt.core.deadline import Deadline
from milp_agt.core.interval import Interval
from milp_agt.core.reachable import Bounds, ReachableSet, StepRecord
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.rounding import FLOAT64, PRECISIONS, Precision
from milp_agt.data.origin import Origin
from milp_agt.errors import InvalidInputError
from milp_agt.properties.decisions import Decider
from milp_agt.properties.models import ReachableModels, Watch
from milp_agt.properties.property_table import PickedPoints, TableOfPoints
from milp_agt.properties.questions import Questions
from milp_agt.properties.suspects import Suspects, suspects
from milp_agt.recording import NominalCheck
from milp_agt.training.precision import in_precision
from milp_agt.training.tracing import FEATURES, trace

PREPROCESSING = (
    "Preprocessing (scaling, feature selection, splits) was fitted on data that the adversary does "
    "not touch."
)
_GIVEN = (
    "The initial parameters, the order of the batches and the optimiser are fixed as given.",
    PREPROCESSING,
    "No early stopping or model selection looks at poisoned data.",
)
ASSUMPTIONS = (
    *_GIVEN,
    "Training runs in float64 with IEEE arithmetic, sums in any order, and elementary functions "
    "(exp, tanh, sigmoid) are accurate to 16 units in the last place; rounding is covered by the "
    "bounds under this assumption.",
)
ASSUMPTIONS_OF_FLOAT32 = (
    *_GIVEN,
    "Training and prediction run in float32 with IEEE arithmetic (underflow may go to zero): model, data, "
    "poisoned data and test inputs are float32 numbers, every product, sum and scalar of the optimiser "
    "(plain, foreach or fused) is rounded to float32 or better, sums come in any order, elementary "
    "functions (exp, log, tanh, sigmoid) are accurate to 16 units in the last place, and the gradient of "
    "the loss is that of torch's own function on the outputs. Kernels are deterministic, matrix "
    "products are sums of products (no TF32, bfloat16, mixed precision or fast algorithms such as "
    "Winograd's). Rounding is covered by the bounds under this assumption; nominal values are those of "
    "the float64 run, and losses in questions are exact functions of the float32 outputs.",
)

# What files keep besides boxes, records and the model, as it is.
TEXTS = ("total_steps", "relaxation", "limit_reached", "threat", "caution", "settings", "run")
LISTS = ("notes", "fallbacks", "assumptions")


@dataclass(frozen=True)
class Result(Questions):
    """The certificate of one training run.

    Attributes:
        reachable: a box that contains the parameters of every admissible run.
        steps: one record for each finished step.
        total_steps: steps of the whole run; fewer records mean that it was interrupted.
        relaxation: the requested level.
        notes: choices that the options left open; no bound is looser than requested because of them.
        fallbacks: where the run did less than requested, and why; never silent.
        limit_reached: True if a time or solve limit was reached.
        threat: what the adversary may do, in words.
        run: how the model was trained, in words: optimiser, batches, schedule and clipping.
        caution: what has to be known before the claim: of a scaler that was fitted on data that the
            adversary may change; empty where there is nothing.
        helps: settings that would prove more, as far as the run can tell; not kept by :meth:`save`.
        origin: rows, ids and units of the data set; None for plain arrays, and in a loaded result.
        assumptions: what is assumed and not modelled; of the arithmetic of ``precision``.
        decider: attacks what questions leave open; None where ``refute`` is "none", and in a loaded result.
        attack: what an adversary really reaches, if requested; not kept by :meth:`save`.
        settings: how the run was trained and bounded, as plain values for files.
        nominal_check: of a recorded run, how far the user's own model is from the nominal run.
    """

    reachable: ReachableSet
    steps: tuple[StepRecord, ...]
    total_steps: int
    relaxation: str
    fallbacks: tuple[str, ...]
    limit_reached: bool
    threat: str
    assumptions: tuple[str, ...] = ASSUMPTIONS
    models: ReachableModels = field(repr=False, kw_only=True)
    decider: Decider | None = field(default=None, repr=False, compare=False, kw_only=True)
    notes: tuple[str, ...] = field(default=(), kw_only=True)
    attack: Attack | None = field(default=None, repr=False, kw_only=True)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False, kw_only=True)
    run: str = field(default="", kw_only=True)
    caution: str = field(default="", kw_only=True)
    origin: Origin | None = field(default=None, repr=False, kw_only=True)
    helps: tuple[str, ...] = field(default=(), kw_only=True)
    nominal_check: NominalCheck | None = field(default=None, kw_only=True)

    @property
    def precision(self) -> str:
        """Of the run that is certified: "float64" or "float32"."""
        return self.models.step_graph.precision.name

    def watched(self, watch: Watch) -> Result:
        """A copy that reports progress: ``watch(done, total)`` per batch of test points of a question.

        Raises:
            InvalidInputError: a watch that is not callable.
        """
        callable_of(watch, "watch", "give a function (done, points)")
        return replace(self, models=replace(self.models, watch=watch))

    @property
    def claim(self) -> str:
        """The certificate in words."""
        count = self.models.step_graph.parameter_count
        run = f" The run: {self.run}." if self.run else ""
        lead = f"{self.caution} " if self.caution else ""
        single = "" if self.precision == FLOAT64.name else f" in {self.precision}"
        return (
            f"{lead}With {self.threat}, training{single} for {len(self.steps)} of {self.total_steps} "
            f"steps on the '{self.models.step_graph.loss.key}' loss ends with all {count} trainable "
            f"parameters inside the reachable set (mean width {self.reachable.mean_width:.4g}, max "
            f"{self.reachable.max_width:.4g}).{run}"
        )

    def attacked(self, attacker: Attacker) -> Result:
        """A copy with attacks on all parameters next to the reachable set.

        Raises:
            InvalidInputError: not an attacker.
            SoundnessError: an attack outside the reachable set.
        """
        of_kind(attacker, Attacker, "An attacker", "give the one of agt.attack(...).attacker")
        attack = attacker.attack(Envelope(), incumbents=self.models.incumbents)
        found = replace(self, attack=attack)
        assert found.sandwich is not None
        return found

    @property
    def worth(self) -> BoxWorth:
        """Until which step the boxes say something about the parameters, and what would help."""
        return BoxWorth.of(self.steps, self.reachable.mean_size, self.helps)

    @property
    def sandwich(self) -> ParameterSandwich | None:
        """Widths that attacks reached next to the certified ones; None without an attack."""
        return None if self.attack is None else ParameterSandwich.of(self.reachable, self.attack)

    def narrowed(self, seconds: float) -> Result:
        """A copy with a narrower reachable set, by trees of ``seconds`` at most. Questions keep their bounds.

        What the run carries as a zonotope is branched on samples and phases, each end by itself; selections
        that can be listed are then searched by cells until real trainings come near to every end.

        Raises:
            InvalidInputError: a result without a tree: of ``tree = 0``, before the last step, or loaded; or
                one with nothing to search.
        """
        return replace(self, reachable=narrowed(self.models, self.reachable, seconds))

    def against(self, objective: Objective, bounds: Bounds) -> Sandwich | None:
        """The bounds of a property next to what attacks on it reach; None without an attack.

        ``objective`` is the property in ``milp_agt.attacks``, for instance ``Accuracy(x, y)``.

        Raises:
            InvalidInputError: not an objective, or not bounds.
            SoundnessError: an attack outside the bounds.
        """
        of_kind(bounds, Bounds, "The bounds of a property", "give result.accuracy(x, y), say")
        if self.attack is None:
            return None
        reached = self.attack.towards(objective, self.models.incumbents)
        return Sandwich.of_property(bounds, reached, objective.two_sided)

    def suspects(
        self, count: int = 10, about: tuple[TableOfPoints, PickedPoints] | None = None
    ) -> Suspects:
        """The training samples with the largest share of the bound, largest first, and its width by cause.

        Of the whole set, or of what a question bounds at points (margins, say): both as in :meth:`ask`.
        The adversary, or the looseness of the bounds, has most to gain there: inspect these samples
        first, or trust them and leave them out of ``samples=``. ``print`` shows both as tables.
        Causes are given where a zonotope is carried along and selections are bounded jointly.

        Raises:
            InvalidInputError: a loaded result, or one by relaxation 'interval'; a question where no zonotope
                is carried along, or selections are told apart.
        """
        forms = None if about is None else self._question(*about).forms
        return suspects(self.models, count, self.origin, forms)

    def save(self, path: str | Path) -> None:
        """Write everything except the steps of the window to one .npz file (suffix added if missing).

        A loaded result bounds properties from the final box only, which may be looser.

        Raises:
            InvalidInputError: no such folder, or one that cannot be written.
        """
        of_kind(path, (str, Path), "The path of a result", "give the path of a file")
        if not Path(path).name:
            raise InvalidInputError("A result is saved under a name", f"{path!r}", "give a file")
        graph = self.models.step_graph
        arrays = {
            f"{end}:{name}": array
            for end in ("lower", "upper", "nominal")
            for name, array in getattr(self.reachable, end).items()
        }
        about = {
            "layers": saved.describe(graph.model),
            "loss": graph.loss.key,
            "precision": graph.precision.name,
            "feature_shape": list(graph.graph[FEATURES].shape),
            "steps": [asdict(record) for record in self.steps],
            **{name: getattr(self, name) for name in (*TEXTS, *LISTS)},
            "nominal_check": None if self.nominal_check is None else asdict(self.nominal_check),
        }
        saved.FILE.write(Path(path), arrays, about)


def assumptions_of(caution: str, precision: Precision) -> tuple[str, ...]:
    """What is assumed; the scaler that a caution names is not assumed to be out of reach."""
    assumed = ASSUMPTIONS if precision == FLOAT64 else ASSUMPTIONS_OF_FLOAT32
    if not caution:
        return assumed
    other = (
        "The means and deviations by which data were standardised stay as they are, although they were "
        "computed from samples that may be poisoned. All other preprocessing (feature selection, splits) "
        "was fitted on data that the adversary does not touch."
    )
    return tuple(other if text == PREPROCESSING else text for text in assumed)


def load(path: str | Path) -> Result:
    """Read a result written by :meth:`Result.save`; see there for what is not kept.

    Args:
        path: of the .npz file; the suffix may be omitted.

    Raises:
        InvalidInputError: a missing or damaged file, or another version of the format.
    """
    of_kind(path, (str, Path), "The path of a result", "give the path of the .npz file")
    arrays, about = saved.FILE.read(Path(path))
    try:
        return _restore(arrays, about)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InvalidInputError(
            f"A saved result was to be read from {path}",
            f"contents that do not fit together: {error}",
            "save the result again",
        ) from None


def _restore(arrays: Mapping[str, npt.NDArray[Any]], about: Mapping[str, Any]) -> Result:
    model = saved.rebuild(about["layers"])
    nominal = {n.partition(":")[2]: v for n, v in arrays.items() if n.startswith("nominal:")}
    model.load_state_dict({n: torch.from_numpy(v) for n, v in nominal.items()})
    # A loaded result takes no steps: that batches have one sample says nothing about its forward pass.
    step_graph = in_precision(
        trace(model, about["loss"], tuple(about["feature_shape"])),
        PRECISIONS[about.get("precision", FLOAT64.name)],
        batch=1,
    )
    state = {
        name: Interval(
            torch.from_numpy(arrays[f"lower:{name}"]).unsqueeze(0),
            torch.from_numpy(arrays[f"upper:{name}"]).unsqueeze(0),
        )
        for name in step_graph.parameters
    }
    about = {"notes": (), **about}
    kept: dict[str, Any] = {name: about[name] for name in TEXTS if name in about}
    kept |= {name: tuple(about[name]) for name in LISTS}
    check = about.get("nominal_check")
    return Result(
        reachable=reachable_of(step_graph, state, step_graph.initial),
        models=ReachableModels.in_box(step_graph, step_graph.initial, state),
        steps=tuple(StepRecord(**record) for record in about["steps"]),
        nominal_check=None if check is None else NominalCheck(**check),
        **kept,
    )


def untrained(model: nn.Module, loss: str, feature_shape: tuple[int, ...]) -> Result:
    """The result before the first step, to see which questions can be asked: it bounds nothing."""
    step_graph = trace(model, loss, feature_shape)
    models = ReachableModels.at(step_graph, step_graph.initial)
    models = replace(models, deadline=Deadline(-math.inf))  # intervals cost one pass
    return Result(
        reachable=reachable_of(step_graph, models.state, step_graph.initial),
        steps=(),
        total_steps=0,
        relaxation=Relaxation.INTERVAL.value,
        fallbacks=(),
        limit_reached=False,
        threat="no sample poisoned",
        models=models,
    )
