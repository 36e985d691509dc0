"""The front door: from a model, its data and its training to a result."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from milp_agt.attacks import Attacker, Search
from milp_agt.attacks.unrolled import Unrolled
from milp_agt.bounds.frozen import frozen_body
from milp_agt.certification import planning
from milp_agt.certification.checkpoint import Checkpoint
from milp_agt.certification.fingerprint import fingerprint
from milp_agt.certification.loop import BoundedRun
from milp_agt.certification.recorder import NullRecorder, Recorder
from milp_agt.certification.result import Result
from milp_agt.certification.witnesses import Witnesses
from milp_agt.core.interval import Interval
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.restriction import UNRESTRICTED, Restriction
from milp_agt.core.results import Limits
from milp_agt.core.strengthening import DEFAULT, Strengthening
from milp_agt.errors import InvalidInputError
from milp_agt.recording import RecordedRun, Recording, of_recording
from milp_agt.solvers import Capability, choose
from milp_agt.solvers.solver import Solver
from milp_agt.threats import ThreatModel
from milp_agt.training import inputs
from milp_agt.training.exchanged import with_exchanges
from milp_agt.training.tracing import trace
from milp_agt.training.training import Batch, Training

OnStep = Callable[[Result, int, int], None]


def certify(
    model: nn.Module | Recording | RecordedRun,
    data: tuple[inputs.ArrayLike, inputs.ArrayLike] | ThreatModel,
    training: Training | None = None,
    threat: ThreatModel | None = None,
    *,
    relaxation: str = "linear",
    window: int | None = None,
    program_window: int | None = None,
    inner_bounds: str | None = None,
    selections: str | None = None,
    alpha_steps: int = 0,
    alpha_every: int | None = None,
    solver: str | None = None,
    device: str = "cpu",
    memory: str | int = "4GiB",
    time_limit: float | None = None,
    solve_limits: Limits | None = None,
    strengthening: Strengthening = DEFAULT,
    workers: int = 1,
    initial: Mapping[str, tuple[inputs.ArrayLike, inputs.ArrayLike]] | None = None,
    on_step: OnStep | None = None,
    restriction: Restriction = UNRESTRICTED,
    recorder: Recorder | None = None,
    checkpoint: str | Path | Checkpoint | None = None,
    attack: bool | Search = False,
) -> Result:
    """Bound all parameters that training could reach under a threat model.

    Guarantee: the parameters of every float64 training run on data that the threat model admits lie
    in ``result.reachable``; what is assumed stands in ``result.assumptions``.

    Args:
        model: a torch module of supported layers; copied, never changed. Or a recorded run, which is
            called as ``certify(run, threat)``.
        data: features (n, *shape) and labels: classes (n,), or targets (n,) or (n, outputs).
        training: the run.
        threat: what the adversary may change.
        relaxation: interval, linear, lp, milp, qcqp, miqp, or auto (the tightest whose predicted cost fits
            ``time_limit`` and ``memory``; what was picked and why stands in ``result.notes``).
        window: past steps that linear forms are walked through; None for all.
        program_window: steps in one program; None for ``window`` if that is given, else 1.
        inner_bounds: how the ranges inside a step are bounded in linear and above: "interval", "linear"
            (through the window, conditional on the sample being poisoned), or None, linear where its
            predicted cost is small.
        selections: "joint" bounds all choices of poisoned samples at once, "enumerated" carries a box for
            each choice beside it and takes the union, "charged" charges every error to the samples that
            can cause it, so that one choice has to pay for all (both linear and above; budgets for the
            data set); None enumerates where that is predicted to be cheap, else charges where that is.
        alpha_steps: moves by which the slopes of all linear bounds are optimised by gradient ascent, for
            each end of each parameter apart. The box by default slopes is carried beside, so that
            bounds never get looser. 0 for none; 10 to 30 are worth trying (linear and above).
        alpha_every: after how many training steps slopes are optimised, each time from those of the last
            time on; None for the end of the run alone, which is all that ``result.reachable`` and
            questions about the final model need.
        solver: back end of programs; None picks the first that is able to for each level.
        device: "cpu", "cuda" or "auto".
        memory: of the process; rows and samples are cut into pieces by it, and a fallback says where it
            cannot be kept.
        time_limit: seconds for the whole run. A level goes on as long as its next step is predicted to
            fit beside what the cheaper levels need for all steps that are left: programs end first,
            then optimised slopes and enumerated selections, then linear forms; intervals stay. The
            result says what ended. Refinements that are left to this function (``inner_bounds`` and
            ``selections`` None) are made where they are predicted to take less than a minute, or than
            half of the limit.
        solve_limits: limits of each solve of a program; None for a minute each (``agt.Limits()``).
        strengthening: what makes programs tighter than their plain encoding: tightened ranges
            (``obbt_seconds``), piecewise envelopes (``pieces``), and switches of rows.
        workers: processes that solve programs, by joblib; inside ``joblib.parallel_config`` its backend
            (dask, ray) spreads them over machines. What a worker that dies twice leaves open keeps the
            cheaper bound.
        initial: boxes of theta_0 by parameter name, where it is not a point.
        on_step: called with (result so far, finished steps, all steps) after every step.
        restriction: bound only the attacks that a node of branch and bound admits.
        recorder: receives what every bound was made of.
        checkpoint: a folder in which the run is kept after every step. Where it holds a checkpoint of
            this very run, the run goes on from there, to the same numbers bit for bit on the same
            machine with as many threads; of another run, it is refused.
        attack: True, or the settings of a search: when the bounds are done, attack the run as well, so
            that ``result.attack`` and ``result.sandwich`` say what an adversary really reaches.

    Raises:
        InvalidInputError, InvalidThreatModelError, UnsupportedOperationError,
        SolverUnavailableError: see the message.
        SoundnessError, EncodingError: a bug; the run is stopped rather than certified.
    """
    model, data, training, threat, recorded = of_recording(model, data, training, threat)
    inputs.check_run(model, data, training, threat)
    nominal_check = None if recorded is None else recorded.nominal_check()
    inputs.of_kind(attack, (bool, Search), "attack", "give True, or agt.attacks.Search(...)")
    inputs.of_kind(restriction, Restriction, "A restriction", "give a Restriction, or leave it out")
    inputs.of_kind(
        strengthening,
        Strengthening,
        "strengthening",
        "give agt.Strengthening(...), or leave it out",
    )
    _check_kinds(relaxation, inner_bounds, selections, solve_limits, checkpoint)
    if on_step is not None:
        inputs.callable_of(on_step, "on_step", "give a function (result, step, steps), or None")
    if recorder is not None and not callable(getattr(recorder, "program", None)):
        raise InvalidInputError(
            "A recorder takes what bounds are made of",
            f"{type(recorder).__name__} {recorder!r:.60}",
            "give a MemoryRecorder(), or leave it out",
        )
    target = inputs.device_of(device)
    inputs.warn_of_float32(model, data[0])
    features = inputs.features_of(data[0])
    traced = trace(model, training.loss, tuple(features.shape[1:]), training.clipping)
    labels = inputs.labels_of(data[1], len(features), traced.loss, traced.outputs)
    raw = threat.bind(features, labels, traced.loss)
    step_graph = with_exchanges(traced, raw)
    head, poison, frozen_layers = frozen_body.split(step_graph, raw)
    batches = training.batch_order(len(features))
    plan = planning.make_plan(
        head,
        batches,
        poison,
        training,
        relaxation,
        window,
        program_window,
        inner_bounds,
        selections,
        restriction,
        memory,
        time_limit,
        alpha_steps,
        alpha_every,
        given=raw.tensors,
    )
    initial_box = inputs.initial_box(step_graph, initial)
    solvers = _solvers(plan, solver)
    solve_limits = solve_limits or Limits()
    start = {n: Interval(b.lower.to(target), b.upper.to(target)) for n, b in initial_box.items()}
    unrolled: Unrolled | None = None
    if solvers or attack is not False:
        unrolled = Unrolled.of(traced.to(target), training, raw.to(target))
    run = BoundedRun(
        step_graph=step_graph.to(target),
        head=head.to(target),
        remarks=frozen_layers,
        training=training,
        poison=poison.to(target),
        plan=plan,
        solvers=solvers,
        initial=start,
        claim=threat.describe(),
        deadline=None if time_limit is None else time.monotonic() + time_limit,
        solve_limits=solve_limits,
        workers=_workers(workers),
        restriction=restriction,
        recorder=recorder or NullRecorder(),
        strengthening=strengthening,
        witnesses=Witnesses(unrolled, restriction, start) if unrolled and solvers else None,
    )
    keeper: Checkpoint | None = None
    if checkpoint is not None:
        keeper = checkpoint if isinstance(checkpoint, Checkpoint) else Checkpoint(checkpoint)
        stored = keeper.open(
            fingerprint(
                step_graph=step_graph,
                poison=poison,
                threat=threat.describe(),
                training=training,
                batches=batches,
                initial=initial_box,
                plan=plan,
                solver=solvers.get(plan.relaxation),
                limits=solve_limits,
                strengthening=strengthening,
                restriction=restriction,
                device=str(target),
            ),
            target,
        )
        if stored is not None:
            if recorder is not None:
                raise InvalidInputError(
                    "A recorder needs every step of a run",
                    f"a checkpoint after step {stored.step}, which keeps no evidence",
                    "leave out the recorder, or begin anew in another folder",
                )
            run.restore(stored, batches)
    result = _finish(run, batches, keeper, on_step)
    if recorded is not None and nominal_check is not None:
        told = (*result.assumptions, nominal_check.claim, *recorded.assumptions)
        result = replace(result, nominal_check=nominal_check, assumptions=told)
    if attack is False or unrolled is None:
        return result
    search = Search() if attack is True else attack
    with _threads(plan.single_thread):
        return result.attacked(Attacker(unrolled, search, restriction))


def _check_kinds(
    relaxation: object,
    inner_bounds: object,
    selections: object,
    solve_limits: object,
    checkpoint: object,
) -> None:
    """See that words are texts, limits are limits, and a checkpoint is a folder."""
    inputs.of_kind(relaxation, str, "relaxation", "choose 'linear', for instance")
    for name, word in (("inner_bounds", inner_bounds), ("selections", selections)):
        if word is not None:
            inputs.of_kind(word, str, name, f"give a word, or leave {name} out")
    if solve_limits is not None:
        inputs.of_kind(solve_limits, Limits, "solve_limits", "give agt.Limits(time=10.0), say")
    if checkpoint is not None:
        inputs.of_kind(checkpoint, (str, Path, Checkpoint), "checkpoint", "give a folder")


def _finish(
    run: BoundedRun, batches: Sequence[Batch], keeper: Checkpoint | None, on_step: OnStep | None
) -> Result:
    """Take all steps that are left, and keep each before the next begins."""
    try:
        for index in range(len(run.records), len(batches)):
            with _threads(run.plan.single_thread):
                run.advance(torch.from_numpy(batches[index]).to(run.poison.features.device))
            if keeper is not None:
                keeper.step(run.snapshot())
            if on_step is not None:
                on_step(run.result(), index + 1, len(batches))
    finally:
        if keeper is not None:
            keeper.flush()
    return run.result()


@contextmanager
def _threads(single: bool) -> Iterator[None]:
    """Small tensors on one thread; what the caller had set comes back."""
    before = torch.get_num_threads()
    if single:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _solvers(plan: planning.Plan, name: str | None) -> dict[Relaxation, Solver]:
    """A solver for each level of the chain that solves; unasked, the first that is able to."""
    if name is not None and not plan.relaxation.uses_programs and plan.asked != "auto":
        raise InvalidInputError(
            f"Solver '{name}' was asked for",
            f"relaxation '{plan.relaxation.value}', which solves nothing",
            "use relaxation 'lp' or 'milp', or leave the solver out",
        )
    return {
        level: choose(name, _needed(level))
        for level in plan.relaxation.chain()
        if level.uses_programs
    }


def _workers(count: int) -> int:
    inputs.of_kind(count, int, "workers", "give a whole number of processes")
    if count < 1:
        raise InvalidInputError(
            "Programs are solved by at least one worker", f"workers = {count}", "give workers=1"
        )
    return count


def _needed(level: Relaxation) -> Capability:
    needed = Capability.MIP if level.exact_phases else Capability.LP
    return needed | Capability.QCP if level.exact_products else needed
