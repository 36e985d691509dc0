"""Which samples carry the bound, and what it is made of."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, overload

import torch
from torch import Tensor

from milp_agt.bounds.adversary.enumerated import Enumerated
from milp_agt.bounds.forms import Forms
from milp_agt.bounds.linear.window_bounds import influence
from milp_agt.bounds.listed import ListedData
from milp_agt.bounds.passes import in_passes
from milp_agt.bounds.program import OutputForms
from milp_agt.bounds.zonotope import Cause, Charges, charges
from milp_agt.data.origin import Origin
from milp_agt.errors import InvalidInputError
from milp_agt.io.tables import format_number, format_table
from milp_agt.properties.models import ReachableModels
from milp_agt.properties.reached import Reached


@dataclass(frozen=True)
class Suspect:
    """A training sample and what it is worth to the adversary.

    Attributes:
        sample: its row in the file of the data set that was certified; its position in plain arrays.
        position: its position in the training part.
        id: who it is, where ``load_dataset(id=)`` says so; None elsewhere.
        width: mean over the trainable parameters, or over what a question bounds, of the width that the
            certificate grants to this sample alone. Listed data sets and enumerated selections: the hull
            of its cases and of the clean run. Bounded jointly: what the bounds of both ends owe to it if
            it is poisoned (``dev_i``), those of the zonotope if one is carried along.
        share: ``width`` divided by the width of :class:`Suspects`.
    """

    sample: int
    width: float
    share: float
    position: int
    id: str | None = None


@dataclass(frozen=True)
class Suspects(Sequence[Suspect]):
    """The samples that carry the bound, the heaviest first, and the width of the bound by cause.

    Attributes:
        samples: see :class:`Suspect`.
        width: mean width of the reachable set; of a question, of the bounds of its forms (margins, say).
        causes: mean over the trainable parameters, or forms, of what each cause adds to the width that
            the last zonotope proves, see :func:`milp_agt.bounds.zonotope.questions.charges`; None without
            one, and where selections or data sets are told apart.
    """

    samples: tuple[Suspect, ...]
    width: float
    causes: Mapping[Cause, float] | None

    @property
    def total(self) -> float | None:
        """The sum of the causes: the mean width that the zonotope proves by itself. ``width`` is less
        where boxes, linear forms, programs or trees prove more."""
        return None if self.causes is None else sum(self.causes.values())

    def __len__(self) -> int:
        return len(self.samples)

    @overload
    def __getitem__(self, index: int) -> Suspect: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Suspect, ...]: ...
    def __getitem__(self, index: int | slice) -> Suspect | tuple[Suspect, ...]:
        return self.samples[index]

    def __iter__(self) -> Iterator[Suspect]:
        return iter(self.samples)

    def to_dict(self) -> dict[str, Any]:
        """The same for a JSON document."""
        return {
            "samples": [asdict(each) for each in self.samples],
            "width": self.width,
            "causes": None if self.causes is None else {c.value: w for c, w in self.causes.items()},
            "total": self.total,
        }

    def __str__(self) -> str:
        """A table of the samples, and one of the causes."""
        rows = [
            (
                str(s.sample) if s.id is None else f"{s.sample} ({s.id})",
                format_number(s.width, 4),
                f"{s.share:.1%}",
            )
            for s in self.samples
        ]
        samples = format_table(("sample", "width alone", "of the whole"), rows)
        if self.causes is None:
            return samples
        whole = self.total or 1.0
        cells = [(c.value, format_number(w, 4), f"{w / whole:.1%}") for c, w in self.causes.items()]
        return f"{samples}\n\n{format_table(('cause', 'width', 'of the whole'), cells)}"


def suspects(
    models: ReachableModels,
    count: int,
    origin: Origin | None = None,
    forms: Sequence[OutputForms] | None = None,
) -> Suspects:
    """The ``count`` samples that carry the bound, the heaviest first; those that can do nothing are
    left out. Rows and ids are those of ``origin``.

    With ``forms`` of test points, widths are means over these forms, not over the parameters.

    Raises:
        InvalidInputError: a result without the steps that led to it (loaded, or interval bounds); forms,
            where no zonotope bounds all selections jointly, or forms of no point.
    """
    if not isinstance(count, int) or count < 0:
        raise InvalidInputError(
            "suspects() counts the samples that it names", f"{count!r}", "give a whole number >= 0"
        )
    if not all(r.keeps_forms or r.single_runs for r in models.reached):
        raise InvalidInputError(
            "Which samples carry the bound was asked",
            "a result that keeps no linear forms (loaded from a file, or relaxation 'interval')",
            "ask the result of certify(..., relaxation='linear') itself",
        )
    found, causes = _charges(models, forms), None
    if forms is not None and found is None:
        raise InvalidInputError(
            "Which samples carry the bounds of a question was asked",
            "no zonotope that bounds all selections jointly, or no point that the question counts",
            "ask the result of certify(..., relaxation='zonotope') itself, about one point or more",
        )
    if found is None:
        widths = torch.stack([_widths(models, reached) for reached in models.reached]).amax(0)
    else:  # each parameter, or form, has two ends
        widths = 2.0 * found.by_sample.mean(0)
        causes = {cause: 2.0 * float(part.mean()) for cause, part in found.by_cause.items()}
    if forms is None:
        boxes = [models.state[name] for name in models.step_graph.parameters]
    else:
        boxes = [models.bound(f) for f in forms]
    whole = torch.cat([box.width.flatten() for box in boxes])
    mean = float(whole.mean())
    order = widths.argsort(descending=True)[:count].tolist()
    heaviest = tuple(_suspect(i, float(widths[i]), mean, origin) for i in order if widths[i] > 0)
    return Suspects(heaviest, mean, causes)


def _suspect(position: int, width: float, mean: float, origin: Origin | None) -> Suspect:
    row = position if origin is None else int(origin.rows.train[position])
    known = None if origin is None or origin.ids is None else str(origin.ids.train[position])
    return Suspect(row, width, width / mean, position, known)


def _charges(models: ReachableModels, forms: Sequence[OutputForms] | None) -> Charges | None:
    """What both ends of all parameters, or of the forms of test points, are charged, where a zonotope
    bounds all selections jointly."""
    apart = any(r.single_runs or isinstance(r.adversary, Enumerated) for r in models.reached)
    if apart or len(models.carried) != 1:
        return None
    (reached,) = models.carried
    assert reached.forward is not None
    if forms is None:
        rows = models.on_parameters(reached, models.parameter_rows(reached))
        return charges(reached.forward, rows)
    parts = [f.part(part) for f in forms if len(f) for part in models.parts(f)]
    found = [_of_points(models, reached, part) for part in parts]
    return Charges.cat(found) if found else None


def _of_points(models: ReachableModels, reached: Reached, forms: OutputForms) -> Charges:
    """What both ends of forms are charged. They are no opposites: how far apart they are at the centre is
    what the prediction is charged."""
    assert reached.forward is not None
    rows = models.rows_of(reached, forms)
    found = charges(reached.forward, rows.coefficients)
    flat = [rows.coefficients[name].flatten(1) for name in reached.forward.layout.slices]
    at_centre = torch.cat(flat, 1) @ reached.forward.zonotope.centre + rows.constant[:, 0]
    # Of one end by itself this is no distance: the mean over all rows is what is asked for.
    return Charges(found.by_sample, {**found.by_cause, Cause.PREDICTION: -at_centre})


def _widths(models: ReachableModels, reached: Reached) -> Tensor:
    """The width that is granted to each sample, (N,): of the widest hull of the clean run with a case in
    which the sample is poisoned; where all are bounded jointly, what the bounds owe to it."""
    adversary, names = reached.adversary, models.step_graph.parameters
    if isinstance(adversary, (ListedData, Enumerated)):
        boxes = [reached.state[n] for n in names]
        low = torch.cat([box.lower.flatten(1) for box in boxes], 1)
        high = torch.cat([box.upper.flatten(1) for box in boxes], 1)
        if isinstance(adversary, ListedData):
            least = most = torch.cat([models.nominal[n].flatten() for n in names])
            everyone = torch.arange(len(models.poison.features), device=low.device)
            poisoned = adversary.choices.masks(adversary.part, everyone)
        else:  # case 0 is the clean run
            least, most, low, high = low[0], high[0], low[1:], high[1:]
            poisoned = (adversary.mask | adversary.label_mask)[1:]
        width = (torch.maximum(high, most) - torch.minimum(low, least)).mean(1)
        return (poisoned * width[:, None]).amax(0)
    rows = models.parameter_rows(reached)

    def worth(some: Tensor) -> Tensor:
        start = Forms.start(models.on_parameters(reached, rows[some]))
        return influence(models.schedule, reached.window, adversary, start).sum(0)

    pieces = in_passes(len(rows), models.rows_at_once(reached.window), worth)
    return torch.stack(pieces).sum(0) / (len(rows) // 2)
