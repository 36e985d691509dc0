"""A pass through training for many cells at once, each from the step that it starts at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from time import monotonic

import torch
from torch import Tensor

from milp_agt.bounds.cells.cell import Cell, Cells
from milp_agt.bounds.cells.form import Form, States
from milp_agt.bounds.cells.moves import Moves, Phases
from milp_agt.bounds.cells.training_step import Passage
from milp_agt.bounds.step import NodeOrder, State, Step, step_at_points
from milp_agt.bounds.zonotope.layout import Layout
from milp_agt.core.graph import Node, evaluate
from milp_agt.core.interval import Interval
from milp_agt.core.rounding import TINY, gamma
from milp_agt.threats.poison import Poison
from milp_agt.training.tracing import FEATURES, StepGraph
from milp_agt.training.training import UpdateRule

# Cells whose coordinates reach beyond this are given up: a smaller cell is worth more.
WILD = 1e4
# Noise of more steps than this is reduced to as many columns as this many steps have, and a box.
STEPS_OF_NOISE, STEPS_KEPT = 12, 4
# A pass is given up once more phases are in doubt than this share, which shrinks by e for so many steps to
# come: doubt grows from step to step, and what its noise spoils stays spoilt.
CROWD, GROWTH = 0.5, 10.0
# Numbers of all coefficients of the forms of test points that are made at once.
NUMBERS = 2**22


@dataclass(frozen=True)
class Run:
    """A training run whose poisoned samples are known for each cell.

    Attributes:
        schedule: of the step graph.
        layout: of the coordinates of a state.
        poison: moves of the whole data set.
        moves: which of them are coordinates.
        steps: of the training, in order.
        start: box of the first state, (P,).
    """

    step_graph: StepGraph
    schedule: NodeOrder
    layout: Layout
    poison: Poison
    moves: Moves
    steps: Sequence[Step]
    start: Interval

    @staticmethod
    def of(
        step_graph: StepGraph,
        schedule: NodeOrder,
        start: State,
        poison: Poison,
        batches: Sequence[Tensor],
        updates: Sequence[UpdateRule],
    ) -> Run:
        """A run from the box ``start`` of its first state, parameters before velocities."""
        has_velocity = len(start) > len(step_graph.parameters)
        steps = tuple(
            Step.of_run(step_graph, poison, index, batch, update, has_velocity)
            for index, (batch, update) in enumerate(zip(batches, updates, strict=True))
        )
        layout, box = Layout.of(start, step_graph.parameters), Layout.box(start.values())
        moves = Moves.of(poison)
        return Run(step_graph, schedule, layout, poison, moves, steps, box)

    @cached_property
    def forward(self) -> tuple[Node, ...]:
        """The nodes of the network."""
        return self.step_graph.graph.needed_for([self.step_graph.output])

    def trained(self, samples: Tensor, moves: Tensor) -> dict[str, Tensor]:
        """The parameters of real trainings on the data sets of moves, (B, k) and (B, K)."""
        features, labels = self.moves.data(self.poison, samples, moves)
        count = len(samples)
        state = {
            name: self.start.centre[part].reshape(self.layout.shapes[name]).expand(count, *shape)
            for name, part in self.layout.slices.items()
            for shape in (self.layout.shapes[name],)
        }
        for step in self.steps:
            x, y = features[:, step.samples], labels[:, step.samples]
            state = step_at_points(self.step_graph, self.schedule, state, x, y, step.update)
        return state

    def outputs(self, state: Mapping[str, Tensor], inputs: Tensor) -> Tensor:
        """Outputs of trained models at inputs (n, *shape), (B, n, outputs)."""
        count = len(next(iter(state.values())))
        leaves = {**state, FEATURES: inputs.expand(count, *inputs.shape)}
        return evaluate(self.forward, leaves)[self.step_graph.output]

    def roots(self, samples: Tensor) -> Origins:
        """The whole cells of selections, (B, k), before the first step."""
        lower, upper = self.moves.ranges(samples)
        cells = [Cell.box(low, high) for low, high in zip(lower, upper, strict=True)]
        return self.begin(samples, cells)

    def begin(self, samples: Tensor, cells: Sequence[Cell]) -> Origins:
        """Cells before the first step, with no phase known."""
        centre = self.start.centre
        radius = torch.maximum(self.start.upper - centre, centre - self.start.lower)
        moved = torch.nextafter(radius, radius + 1.0) * (radius > 0.0)
        size, coordinates = len(centre), samples.shape[1] * self.moves.width
        noise = torch.diag(moved) if bool((moved > 0.0).any()) else centre.new_zeros(size, 0)
        count = len(samples)
        states = States(
            Cells.of(cells),
            samples,
            centre.expand(count, -1),
            centre.new_zeros(count, size, coordinates),
            noise.expand(count, -1, -1),
        )
        return Origins(0, states, Phases.none(centre.device))


@dataclass(frozen=True)
class Origins:
    """Cells that start at one step, with the phases that are known of them."""

    step: int
    states: States
    forced: Phases


@dataclass(frozen=True)
class Ambiguous:
    """Cells at the earliest step at which a phase is not known.

    Attributes:
        rows: of the batch.
        states: before that step.
        fresh: the new noise of that step, (b, P).
    """

    step: int
    rows: Tensor
    states: States
    fresh: Tensor


@dataclass(frozen=True)
class Passed:
    """What became of a batch of cells.

    Attributes:
        rows: the cells that got to the end, as rows of the batch; others are void, or were given up.
        states: their sets after the last step.
        void: cells of the batch that hold no run, (B,) bool: their phases contradict each other.
        ambiguous: the cells by the first step with a phase that is not known.
        doubtful: how many phases of all steps are not known, (B,).
        since: how the last state depends on that after the first step with a phase that is not known, for
            the cells that got to the end, (b, P, P).
    """

    rows: Tensor
    states: States
    void: Tensor
    ambiguous: tuple[Ambiguous, ...]
    doubtful: Tensor
    since: Tensor


def passed(run: Run, origins: Sequence[Origins], ends: float = math.inf) -> Passed | None:
    """Pass cells through training from where they start, which the batch is ordered by.

    None where a time of ``time.monotonic`` comes before the last step.
    """
    origins = sorted(origins, key=lambda o: o.step)
    total = sum(len(o.states) for o in origins)
    device = run.start.lower.device
    void = torch.zeros(total, dtype=torch.bool, device=device)
    seen = void.clone()
    unknown = torch.zeros(total, dtype=torch.int64, device=device)
    forced, known = Phases.none(device), 0
    rows = torch.zeros(0, dtype=torch.int64, device=device)
    states: States | None = None
    eye = torch.eye(run.layout.size, dtype=torch.float64, device=device)
    since = eye.expand(0, -1, -1)
    found: list[Ambiguous] = []
    waiting = list(origins)
    for step in run.steps:
        if monotonic() >= ends:
            return None
        while waiting and waiting[0].step == step.index:
            new = waiting.pop(0)
            own = replace(new.forced, cell=new.forced.cell + known)
            forced = Phases.cat([forced, own])
            rows = torch.cat([rows, torch.arange(known, known + len(new.states), device=device)])
            known += len(new.states)
            since = torch.cat([since, eye.expand(len(new.states), -1, -1)])
            none = states is None or not len(states)
            states = new.states if none or states is None else States.cat([states, new.states])
        if states is None or not len(states):
            continue
        passage = Passage(
            run.schedule, step, states, run.layout, run.moves, _renumbered(forced, rows, total)
        )
        after = passage.advanced()
        void[rows[passage.void]] = True
        doubtful = passage.ambiguous()
        count = torch.bincount(doubtful.cell, minlength=len(states))
        unknown[rows] += count
        first = (count > 0) & ~seen[rows]
        if bool(first.any()):
            at = first.nonzero()[:, 0]
            fresh = after.noise[at][:, :, -run.layout.size :].diagonal(dim1=1, dim2=2)
            found.append(Ambiguous(step.index, rows[at], states.take(at), fresh))
        since = torch.where(seen[rows][:, None, None], passage.jacobian @ since, eye)
        seen[rows[first]] = True
        reach = torch.maximum(*after.reach())
        good = (reach <= WILD).all(1) & torch.isfinite(after.centre).all(1) & ~passage.void
        left = len(run.steps) - 1 - step.index
        good &= count <= CROWD * math.exp(-left / GROWTH) * passage.phases
        if not bool(good.all()):
            keep = good.nonzero()[:, 0]
            after, rows, since = after.take(keep), rows[keep], since[keep]
        size = run.layout.size
        states = after.reduced(STEPS_OF_NOISE * size, STEPS_KEPT * size)
    assert states is not None
    return Passed(rows, states, void, tuple(found), unknown, since)


def _renumbered(forced: Phases, rows: Tensor, total: int) -> Phases:
    """The phases of the cells that are left, by their position among these."""
    if not len(forced):
        return forced
    position = torch.full((total,), -1, dtype=torch.int64, device=rows.device)
    position[rows] = torch.arange(len(rows), device=rows.device)
    cell = position[forced.cell]
    own = replace(forced, cell=cell)
    return own.take((cell >= 0).nonzero()[:, 0])


@dataclass(frozen=True)
class Bounded:
    """Bounds of forms of the outputs in each cell, and what they are made of.

    Attributes:
        box: (B, n, forms).
        on_state: coefficients on the parameters, (B, n * forms, p).
        on_moves: on the moves, (B, n * forms, K).
    """

    box: Interval
    on_state: Tensor
    on_moves: Tensor


def bounded_outputs(
    run: Run, states: States, inputs: Tensor, coefficients: Tensor, constant: Tensor
) -> Bounded:
    """Bounds of ``coefficients . f(x) + constant`` at inputs (n, *shape).

    Coefficients are (n, forms, outputs), the constant (n, forms).
    """
    widest = max(node.signature.size for node in run.forward if node.batched)
    per = max(1, NUMBERS // (len(states) * run.layout.parameters * widest))
    parts = [
        _bounded(run, states, inputs[part], coefficients[part], constant[part])
        for part in torch.arange(len(inputs), device=inputs.device).split(per)
    ]
    box = Interval(
        torch.cat([p.box.lower for p in parts], 1), torch.cat([p.box.upper for p in parts], 1)
    )
    return Bounded(
        box, torch.cat([p.on_state for p in parts], 1), torch.cat([p.on_moves for p in parts], 1)
    )


def _bounded(
    run: Run, states: States, inputs: Tensor, coefficients: Tensor, constant: Tensor
) -> Bounded:
    form = _outputs(run, states, inputs)

    def image(part: Tensor) -> Tensor:
        return torch.einsum("nfo,...no->...nf", coefficients, part)

    weights = coefficients.abs()
    size = torch.einsum("nfo,bno->bnf", weights, form.size) + constant.abs()
    error = gamma(16.0 * coefficients.shape[-1] + 64.0) * size + TINY
    asked = Form(
        image(form.centre) + constant,
        torch.einsum("nfo,bno->bnf", weights, form.radius) + error,
        size,
        torch.einsum("nfo,bno->bnf", weights, form.away) + error,
        None if form.on_state is None else form.on_state.map(image),
    )
    down, up = states.reach_of(asked)
    down, up = torch.minimum(down, asked.away), torch.minimum(up, asked.away)
    rounding = gamma(8) * (asked.centre.abs() + torch.maximum(down, up)) + TINY
    box = Interval(asked.centre - down, asked.centre + up).widen(rounding)
    rows = run.layout.parameters
    on_state = size.new_zeros(len(states), size[0].numel(), rows)
    if asked.on_state is not None:
        values = asked.on_state.values.expand(-1, *size.shape)
        on_state[..., asked.on_state.at] = values.flatten(2).permute(1, 2, 0)
    return Bounded(box, on_state, states.moves_of(asked))


def _outputs(run: Run, states: States, inputs: Tensor) -> Form:
    """The form of the outputs on inputs that nobody poisons."""
    order = NodeOrder(run.forward, (), (), ())
    last = run.steps[-1]
    clean = Poison.none(inputs, run.poison.labels[:1].expand(len(inputs), -1))
    nowhere = torch.full((len(inputs),), -1, dtype=torch.int64, device=inputs.device)
    step = replace(last, index=last.index + 1, samples=nowhere, poison=clean)
    passage = Passage(order, step, states, run.layout, run.moves, Phases.none(inputs.device))
    passage.leaves()
    for node in order.before:
        if node.name not in passage.forms:
            passage.take(node)
    return passage.forms[run.step_graph.output]


def bounded_state(run: Run, states: States, rows: Tensor) -> Bounded:
    """Bounds of ``rows . state``, (n, P), as forms (B, n, 1)."""
    count, size = len(states), run.layout.size
    centre = states.centre @ rows.T
    along = rows @ states.on_moves
    down, up = states.cells.reach(along)
    noise = (rows @ states.noise).abs().sum(-1)
    terms = (states.centre.abs() + states.terms()) @ rows.abs().T
    error = gamma(states.operations + 8.0 * size + 64.0) * terms + TINY
    box = Interval(centre - down - noise, centre + up + noise).widen(error)
    used = run.layout.parameters
    on_state = rows[:, :used].expand(count, -1, -1)
    return Bounded(Interval(box.lower[..., None], box.upper[..., None]), on_state, along)
