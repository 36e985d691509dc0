"""The entry point :func:`certify`: from a model, its data and its training to a result."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any

from torch import nn

from milp_agt.attacks import Attacker, Search
from milp_agt.attacks.refute import Refuter
from milp_agt.attacks.unrolled import Unrolled
from milp_agt.bounds.frozen import frozen_body
from milp_agt.certification import listing, planning
from milp_agt.certification.checkpoint import Checkpoint
from milp_agt.certification.fingerprint import fingerprint
from milp_agt.certification.listing import ListedRun
from milp_agt.certification.loop import BoundedRun
from milp_agt.certification.machine import slowness
from milp_agt.certification.options import CertifyOptions, options_of, takes_options
from milp_agt.certification.recorder import Recorder
from milp_agt.certification.result import Result
from milp_agt.certification.task import RunInProgress, Task
from milp_agt.certification.witnesses import Witnesses
from milp_agt.core.interval import Interval
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.remarks import Remarks
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.results import Limits
from milp_agt.core.rounding import FLOAT64, PRECISIONS
from milp_agt.core.torch_modes import own_modes, threads
from milp_agt.data import Dataset
from milp_agt.errors import InvalidInputError, SoundnessError
from milp_agt.recording import NominalCheck, RecordedRun, Recording, of_recording
from milp_agt.solvers import choose
from milp_agt.solvers.solver import Solver
from milp_agt.threats import ThreatModel
from milp_agt.threats.units import fitted_on_poison
from milp_agt.training import inputs
from milp_agt.training.exchanged import check_batches, with_exchanges
from milp_agt.training.groups import check_groups
from milp_agt.training.precision import check_float32, in_precision
from milp_agt.training.same_forward import check_forward
from milp_agt.training.tracing import trace
from milp_agt.training.training import Training

# Predictions of more than so many seconds are logged before the first step.
TOLD_FROM = 60.0
OnStep = Callable[[Result, int, int], None]


@takes_options()
@own_modes()
def certify(
    model: nn.Module | Recording | RecordedRun,
    data: tuple[inputs.ArrayLike, inputs.ArrayLike] | Dataset | ThreatModel,
    training: Training | None = None,
    threat: ThreatModel | None = None,
    *,
    initial: Mapping[str, tuple[inputs.ArrayLike, inputs.ArrayLike]] | None = None,
    on_step: OnStep | None = None,
    restriction: Restriction = UNRESTRICTED,
    recorder: Recorder | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    attack: bool | Search = False,
    solve_limits: Limits | None = None,
    begun: float | None = None,
    options: CertifyOptions | None = None,
    **changes: Any,
) -> Result:
    """Bound all parameters that training could reach under a threat model.

    Guarantee: the parameters of every training run in ``precision`` on data that the threat model admits
    lie in ``result.reachable``; what is assumed stands in ``result.assumptions``.

    Args:
        model: a torch module of supported layers; copied, never changed. Or a recorded run, which is
            called as ``certify(run, threat)``.
        data: features (n, *shape) and labels: classes (n,), or targets (n,) or (n, outputs). Or a
            :class:`milp_agt.Dataset`, whose training part is trained on: the threat then names samples by
            rows of the user's file (or by ids), radii may be in its units, and claim, suspects and
            attacks speak of these rows.
        training: the run.
        threat: what the adversary may change.
        initial: boxes of theta_0 by parameter name, where it is not a point.
        on_step: called with (result so far, finished steps, all steps) after every step.
        restriction: bound only the attacks that a node of branch and bound admits.
        recorder: receives the evidence for every bound.
        checkpoint: a folder in which the run is saved after every step. If it holds a checkpoint of
            this run, the run resumes from there, with bit-identical numbers on the same machine and
            number of threads; a checkpoint of another run is refused.
        attack: True, or the settings of a search: attack the run after bounding it, so that
            ``result.attack`` and ``result.sandwich`` show what an adversary really reaches (in
            float64, whose runs lie within the bounds of either precision).
        solve_limits: ``agt.Limits``, in place of the three ``solve_`` options.
        begun: the time of ``time.monotonic`` from which ``time_limit`` counts: now, unless given.
        options: all options below as one object; options given by name replace its values.

    Raises:
        InvalidInputError, InvalidThreatModelError, UnsupportedOperationError,
        SolverUnavailableError: see the message.
        SoundnessError, EncodingError: a bug; the run is stopped rather than certified.
    """
    begun = monotonic() if begun is None else begun
    model, given, training, threat, recorded = of_recording(model, data, training, threat)
    arrays, threat, origin = inputs.located(given, threat)
    inputs.check_run(model, arrays, training, threat)
    nominal_check = None if recorded is None else recorded.nominal_check()
    inputs.of_kind(attack, (bool, Search), "attack", "give True, or agt.attacks.Search(...)")
    inputs.of_kind(restriction, Restriction, "A restriction", "give a Restriction, or leave it out")
    if checkpoint is not None:
        inputs.of_kind(checkpoint, (str, Path, Checkpoint), "checkpoint", "give a folder")
    options = options_of(options, {"solve_limits": solve_limits, **changes})
    if on_step is not None:
        inputs.callable_of(on_step, "on_step", "give a function (result, step, steps), or None")
    if recorder is not None and not callable(getattr(recorder, "program", None)):
        raise InvalidInputError(
            "A recorder takes what bounds are made of",
            f"{type(recorder).__name__} {recorder!r:.60}",
            "give a MemoryRecorder(), or leave it out",
        )
    target = inputs.device_of(options.device)
    own = FLOAT64.name if recorded is None else recorded.dtype
    precision = PRECISIONS[options.precision or own]
    if precision == FLOAT64:
        inputs.warn_of_float32(model, arrays[0])
    features = inputs.features_of(arrays[0])
    shape = tuple(features.shape[1:])
    traced = trace(model, training.objective, shape, training.clipping, precision)
    check_forward(traced, model, features)
    check_groups(training.groups, traced.parameters)
    labels = inputs.labels_of(arrays[1], len(features), traced.loss, traced.outputs)
    raw = threat.bind(features, labels, traced.loss)
    check_batches(traced, training, raw)
    batches = training.batch_order(len(features))
    if precision == FLOAT64:
        step_graph = with_exchanges(traced, raw)
        head, poison, frozen_layers = frozen_body.split(step_graph, raw)
    else:
        check_float32(traced, training, features, labels, raw)
        step_graph = in_precision(traced, precision, max(map(len, batches)))
        head, poison, frozen_layers = step_graph, raw, Remarks()
    plan = planning.make_plan(
        head, batches, poison, training, options, restriction, given=raw.tensors
    )
    box = inputs.initial_box(step_graph, initial)
    solvers = _solvers(plan, options.solver)
    task = Task(
        traced=traced.to(target),
        step_graph=step_graph.to(target),
        head=head.to(target),
        raw=raw.to(target),
        poison=poison.to(target),
        training=training,
        options=options,
        restriction=restriction,
        initial={n: Interval(b.lower.to(target), b.upper.to(target)) for n, b in box.items()},
        claim=threat.describe(),
        caution=fitted_on_poison(threat, origin),
        origin=origin,
        begun=begun,
        remarks=frozen_layers,
    )
    listed, remarks = (None, Remarks()) if recorder is not None else listing.chosen(task, plan)
    unrolled: Unrolled | None = None
    refutes = options.refute != "none" and restriction == UNRESTRICTED
    if solvers or attack is not False or refutes:
        unrolled = Unrolled.of(task.traced, training, task.raw)
    listed_run = None if listed is None else ListedRun(task, plan, listed, remarks)

    def bounded() -> BoundedRun:
        """The run without a list."""
        _tell(plan, options.time_limit)
        witnesses = Witnesses(unrolled, restriction, task.initial) if unrolled and solvers else None
        whole = replace(task, remarks=task.remarks + remarks)
        run = BoundedRun(whole, plan, solvers, recorder or Recorder(), witnesses)
        if listed_run and listed_run.gave_up:
            run.notes.fall_back(listed_run.gave_up, limit=listed_run.out_of_time)
        return run

    run: RunInProgress = listed_run or bounded()
    keeper = (
        checkpoint
        if checkpoint is None or isinstance(checkpoint, Checkpoint)
        else Checkpoint(checkpoint)
    )
    if keeper is not None:
        identity = fingerprint(task, run.plan, solvers.get(plan.relaxation))
        stored = keeper.open(identity, target)
        if stored is not None:
            if recorder is not None:
                raise InvalidInputError(
                    "A recorder needs every step of a run",
                    f"a checkpoint after step {stored.step}, which keeps no evidence",
                    "leave out the recorder, or begin anew in another folder",
                )
            if isinstance(run, ListedRun) and not run.holds(stored):
                run.gave_up = "the list of data sets was left out before this run was interrupted"
                run = bounded()
            run.restore(stored)
    result = _finish(run, keeper, on_step)
    if result is None:
        result = _finish(bounded(), keeper, on_step)
        assert result is not None
    if recorded is not None and nominal_check is not None:
        result = _with_recording(result, nominal_check, recorded, restriction == UNRESTRICTED)
    if unrolled is None:
        return result
    search = (attack if isinstance(attack, Search) else Search()).within(result.models.seconds)
    attacker = Attacker(unrolled, search, restriction, origin)
    if refutes and attacker.has_moves:
        decider = Refuter.of(attacker, precision, task.claim, options.refute == "thorough")
        result = replace(result, decider=decider)
    if attack is False:
        return result
    with threads(1 if plan.single_thread else None):
        return result.attacked(attacker)


def _with_recording(
    result: Result, check: NominalCheck, recorded: RecordedRun, is_whole: bool
) -> Result:
    """The result of a recorded run: what was checked of it, and what is assumed besides.

    The user's own model, of a run in the certified precision, must lie in the reachable set where all
    admissible attacks are bounded, none among them (``is_whole``).
    """
    own = is_whole and result.precision == recorded.dtype
    if own and not result.reachable.contains(recorded.final):
        raise SoundnessError(
            "The model that a recorded run ended with must lie in its reachable set",
            f"{check}, and outside",
            "please report this run",
        )
    told = f"The claim is about the {result.precision} run of the recorded steps: {check}."
    assumptions = (*result.assumptions, told, *recorded.assumptions)
    return replace(result, nominal_check=check, assumptions=assumptions)


def _tell(plan: planning.Plan, time_limit: float | None) -> None:
    """Log the prediction of a run that takes long."""
    told = plan.seconds * slowness() if plan.seconds > TOLD_FROM / 4 else 0.0
    if told > TOLD_FROM and (time_limit is None or time_limit > TOLD_FROM):
        within = "" if time_limit is None else f", of which {time_limit:.3g} s are allowed"
        logging.getLogger("milp_agt").info(
            "predicted: about %.2g s for %d steps by '%s' over a window of %d%s. Less time: a shorter "
            "window, selections='joint', inner_bounds='interval', relaxation='interval', or a time_limit",
            told,
            plan.steps,
            plan.relaxation.value,
            plan.window,
            within,
        )


def _finish(run: RunInProgress, keeper: Checkpoint | None, on_step: OnStep | None) -> Result | None:
    """Bound all remaining steps, and save each before the next begins; None if a list was given up."""
    steps, one = run.plan.steps, 1 if run.plan.single_thread else None
    try:
        for index in range(len(run.records), steps):
            with threads(one):
                run.advance()
                if isinstance(run, ListedRun) and run.gave_up is not None:
                    return None
                if keeper is not None:
                    keeper.step(run.snapshot())
                result = None if on_step is None else run.result()
            if on_step is not None and result is not None:
                on_step(result, index + 1, steps)
    finally:
        if keeper is not None:
            keeper.flush()
    return run.result()


def _solvers(plan: planning.Plan, name: str | None) -> dict[Relaxation, Solver]:
    """A solver for each level that uses programs; by default, the first installed one."""
    if name is not None and not plan.relaxation.uses_programs and plan.asked != "auto":
        raise InvalidInputError(
            f"Solver '{name}' was asked for",
            f"relaxation '{plan.relaxation.value}', which solves nothing",
            "use relaxation 'lp' or 'milp', or leave the solver out",
        )
    levels = [level for level in plan.relaxation.chain() if level.uses_programs]
    return dict.fromkeys(levels, choose(name)) if levels else {}
