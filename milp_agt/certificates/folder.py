"""The folder ``certificate``: the claim of a result, with all that its check needs."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace as replaced
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from milp_agt.certificates.ascent import ascended
from milp_agt.certificates.asked import Asked, Files, question, questions_of
from milp_agt.certificates.covered import (
    CHECKED,
    PART,
    affordable,
    layers_of,
    leaves_of,
    listed,
    methods_of,
    missing,
    undecayed,
)
from milp_agt.certificates.growing import grown, safe
from milp_agt.certification.fingerprint import versions
from milp_agt.certification.result import Result
from milp_agt.certification.verdicts import Verdict
from milp_agt.checker.boxes import Unbounded
from milp_agt.checker.files import CLAIM, SEAL, Rejected, Table
from milp_agt.checker.proof import Reached, answer, reached
from milp_agt.checker.statement import ASSUMPTIONS, FORMAT, Statement, read
from milp_agt.core.relaxation import Relaxation
from milp_agt.core.rounding import FLOAT64
from milp_agt.errors import InvalidInputError
from milp_agt.io.files import replace
from milp_agt.runfile.run_file import LoadedRun
from milp_agt.threats.sets import Ball
from milp_agt.training.training import Training

Array = npt.NDArray[Any]

# A claim is looser than the bounds that it comes from, so that it does not hang on how they were rounded:
# by a share of each width, and by a share of the size of each number.
SLACK = {"float64": (2.0**-20, 2.0**-38), "float32": (2.0**-9, 2.0**-26)}
ROUNDING = (2.0**-8, 2.0**-30)  # by which the checker may go beyond a result, as shares of the same
# How close to a kink, or to a tie, a number may come before it counts as one that reaches it, as a share of
# one more than its size.
MARGIN = 2.0**-38
# Times the width of a result, up to which no other method is tried, and no multipliers are looked for.
NEAR, NEAR_ENOUGH = 1.02, 1.25
TIMES = 2.5  # what a check may take in that of certifying, where a tree needs many leaves
WIDEST = 4.0  # times the width of a result that a certificate may claim


@dataclass(frozen=True)
class _Given:
    """What a certificate is written from."""

    result: Result
    training: Training
    asked: Sequence[Asked]
    not_covered: Sequence[str]
    seconds: float
    trees: float  # seconds for trees


def write(
    folder: Path,
    run: LoadedRun,
    result: Result,
    verdicts: Sequence[Verdict],
    seconds: float | None = None,
) -> Path:
    """Write the certificate of a run file's result; see :func:`write_result`."""
    asked, not_covered = questions_of(run, result, verdicts)
    return write_result(folder, result, run.training, asked, not_covered, seconds)


def write_result(
    folder: Path,
    result: Result,
    training: Training,
    asked: Sequence[Asked] = (),
    not_covered: Sequence[str] = (),
    seconds: float | None = None,
) -> Path:
    """Write the certificate of a result, in place of one that is there.

    The claim is that of the result where the checker proves it. Where the result is tighter, by a
    relaxation that the checker has no rules for, the claim is what the checker proves; where that is more
    than ``WIDEST`` times as wide, the relaxation stands in the claim as not covered. Multipliers that make
    the bounds of the checker tighter are looked for where these are more than ``NEAR_ENOUGH`` times as wide.

    Args:
        folder: made if it is not there; arrays and claims of an earlier certificate in it are removed.
        training: that the result was certified with; of a recorded run its ``training``.
        asked: questions with their answers.
        not_covered: names of what was asked beside them.
        seconds: what is left of a time limit. The checker's own bounds are made here, too: methods that are
            predicted to take longer (or ``CHECKED`` seconds, in any case) are left out, and a claim that has
            none is not covered.

    Returns:
        The path of the claim.

    Raises:
        InvalidInputError: another training than that of the result.
    """
    order = training.batch_order(len(result.models.poison.open))
    if len(order) != result.total_steps:
        raise InvalidInputError(
            "A certificate is about the run of its result",
            f"a training of {len(order)} steps for a result of {result.total_steps}",
            "give the training that was certified (of a recorded run: run.training)",
        )
    folder.mkdir(parents=True, exist_ok=True)
    clear(folder)
    left = CHECKED if seconds is None else min(CHECKED, seconds)
    # A tree that grows asks about its leaves, and about what these were cut from.
    trees = _for_trees(result, asked) if seconds is None else left / 3.0
    given = _Given(result, training, asked, not_covered, left, trees)
    missed = missing(training, result)
    drafts = [] if missed else _drafts(given)
    if drafts:
        best = min(drafts, key=lambda draft: (-draft.points, draft.width))
        claim, arrays = best.claim, best.files.arrays
    else:
        claim, arrays = {"method": None}, {}
        late = left < CHECKED and "a proof in the time that the limit left"
        claim["not_covered"] = missed or [late or f"relaxation {result.relaxation}"]
    claim |= {"format": FORMAT, "versions": versions(), "files": {}}
    for name, values in arrays.items():
        data = _bytes(values)
        _put(folder / name, data)
        claim["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    text = (json.dumps(claim, indent=1, allow_nan=False) + "\n").encode()
    _put(folder / CLAIM, text)
    _put(folder / SEAL, f"{hashlib.sha256(text).hexdigest()}  {CLAIM}\n".encode())
    return folder / CLAIM


def _for_trees(result: Result, asked: Sequence[Asked]) -> float:
    """Seconds that a check of a tree may take: some times what certifying may have taken."""
    each = 0.0 if result.models.tree is None else result.models.tree.seconds
    spent = sum(step.seconds for step in result.steps) + each * len(asked)
    return max(CHECKED, TIMES * spent)


@dataclass
class _Draft:
    """A certificate by one method, the points that its questions prove, and the mean width of its box."""

    claim: dict[str, Any]
    files: Files
    points: float
    width: float
    is_whole: bool  # whether it proves all points that were certified


def _drafts(given: _Given) -> list[_Draft]:
    """By each method that proves a box of a useful width."""
    result = given.result
    trust = {step.relaxation for step in result.steps} == {Relaxation.INTERVAL.value}
    # Where rounding is most of a width, as it may be in float32, the checker may grant more of it.
    trust = trust and result.models.poison.whole is None and result.precision == FLOAT64.name
    methods = ("interval",) if trust else methods_of(result.models.poison)
    found: list[_Draft] = []
    for method in methods:
        for climb in (False, True):
            if (climb and method != "affine") or _suffices(found, result, climb):
                continue
            with suppress(Unbounded, Rejected):  # the checker proves nothing by this method
                found.append(_draft(given, method, trust=trust, climb=climb))
    return [draft for draft in found if draft.width <= WIDEST * result.reachable.mean_width]


def _suffices(found: Sequence[_Draft], result: Result, climb: bool) -> bool:
    """Whether some draft is so good that other methods, or multipliers, are not worth their time."""
    width = result.reachable.mean_width * (NEAR_ENOUGH if climb else NEAR)
    return any(
        draft.claim["tree"] is not None or (draft.is_whole and draft.width <= width)
        for draft in found
    )


def _draft(given: _Given, method: str, *, trust: bool, climb: bool) -> _Draft:
    """``trust``: the box of the result is the claim, but for rounding, for the checker to judge.
    ``climb``: with multipliers.
    """
    files, result = Files(), given.result
    claim = _claim(files, given, method)
    stated = _stated(claim, files)
    if method == "affine" and stated.anew and not affordable(stated, method, given.seconds):
        claim["at_once"] = PART
        stated = _stated(claim, files)
    if (climb and stated.at_once) or not affordable(stated, method, given.seconds):
        raise Unbounded("a check that would take long")
    cases: list[Reached] = []
    if climb:
        flips, words = ascended(_unsure(stated), given.seconds)
        claim["flips"] = files.add("flips", flips, np.int64)
        claim["multipliers"] = files.add("multipliers", words, np.uint16)
        stated = _stated(claim, files)
    elif method == "affine" and result.models.tree is not None:
        found = grown(_unsure(stated), leaves_of(stated, given.trees))
        if found is not None:
            tree, cases = found
            claim["tree"] = files.add("tree", tree)
            stated = _stated(claim, files)
    asked_for = sum(map(safe, stated.questions))
    cases = cases or reached(_unsure(stated))
    judged = reached(stated) if trust else cases
    for number, name in enumerate(claim["model"]["parameters"]):
        low, high = (result.reachable.lower[name], result.reachable.upper[name])
        proved, own = _ends(cases, name), _ends(judged, name)
        near = ROUNDING[0] * (high - low) + ROUNDING[1] * (1.0 + np.maximum(-low, high))
        near = near if trust else np.full_like(low, np.inf)
        low = np.where(own[0] >= low - near, np.minimum(low, proved[0]), low)
        high = np.where(own[1] <= high + near, np.maximum(high, proved[1]), high)
        low, high = _loosened(result.precision, low, high)
        files.add(f"lower_{number}", low)
        files.add(f"upper_{number}", high)
    for number, (table, asked) in enumerate(zip(claim["questions"], stated.questions, strict=True)):
        least, most = answer(number, cases)
        least, most = min(least, asked.least), max(most, asked.most)
        if asked.kind == "loss":
            ends = _loosened(result.precision, np.array(least), np.array(most))
            table |= {"least": float(ends[0]).hex(), "most": float(ends[1]).hex()}
        else:
            table |= {"least": int(least), "most": int(most)}
    stated = _stated(claim, files)
    claim |= {"words": list(stated.words), "assumptions": list(ASSUMPTIONS)}
    widths = [(stated.upper[n] - stated.lower[n]).reshape(-1) for n in stated.lower]
    points = sum(map(safe, stated.questions))
    width = float(np.concatenate(widths).mean())
    return _Draft(claim, files, points, width, points >= asked_for)


def _stated(claim: Mapping[str, Any], files: Files) -> Statement:
    values = {"format": FORMAT, "versions": {}, **claim}
    found = read(Table(values, "claim", files.arrays))
    assert isinstance(found, Statement)
    return found


def _ends(cases: Sequence[Reached], name: str) -> tuple[Array, Array]:
    """The box of a parameter that holds those of all cases."""
    low, high = ([getattr(case.boxes[name], end) for case in cases] for end in ("lo", "hi"))
    return np.concatenate(low).min(0), np.concatenate(high).max(0)


def _unsure(stated: Statement) -> Statement:
    """The same where what lies at a kink may lie beyond it."""
    numbers = replaced(stated.problem.arithmetic, margin=MARGIN)
    return replaced(stated, problem=replaced(stated.problem, arithmetic=numbers))


def _loosened(precision: str, low: Array, high: Array) -> tuple[Array, Array]:
    share = SLACK[precision]
    spare = share[0] * (high - low) + share[1] * (1.0 + np.maximum(np.abs(low), np.abs(high)))
    return low - spare, high + spare


def clear(folder: Path) -> None:
    """Remove an earlier certificate, the seal first: half of one is none."""
    for old in [folder / SEAL, folder / CLAIM, *folder.glob("*.npy")]:
        old.unlink(missing_ok=True)


def _put(path: Path, data: bytes) -> None:
    replace(path, lambda stream: stream.write(data))


def _bytes(values: Array) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, values, version=(1, 0), allow_pickle=False)
    return stream.getvalue()


def _claim(files: Files, given: _Given, method: str) -> dict[str, Any]:
    """The claim with the bounds of the result."""
    result = given.result
    graph, poison = result.models.step_graph, result.models.poison
    questions = [question(files, k, result, asked) for k, asked in enumerate(given.asked)]
    features = poison.features.cpu().numpy()
    return {
        "method": method,
        "not_covered": list(given.not_covered),
        "arithmetic": result.precision,
        "model": {"layers": layers_of(graph.model)[0], "parameters": _parameters(files, result)},
        "loss": graph.loss.key,
        "data": {
            "features": files.add("features", features.reshape(len(features), -1)),
            "labels": files.add("labels", poison.labels.cpu().numpy()),
        },
        "training": _training(files, given.training, len(features), graph.parameters),
        "threat": _threat(files, result, method),
        "questions": questions,
        "at_once": 0,
        "multipliers": None,
        "tree": None,
    }


def _parameters(files: Files, result: Result) -> dict[str, dict[str, str]]:
    initial = {n: v.cpu().numpy() for n, v in result.models.step_graph.initial.items()}
    own = result.reachable
    kinds = (
        ("initial", initial),
        ("nominal", own.nominal),
        ("lower", own.lower),
        ("upper", own.upper),
    )
    return {
        name: {kind: files.add(f"{kind}_{number}", values[name]) for kind, values in kinds}
        for number, name in enumerate(initial)
    }


def _training(
    files: Files, training: Training, samples: int, names: Sequence[str]
) -> dict[str, Any]:
    batches = training.batch_order(samples)
    rules = training.update_rules(len(batches))
    first = rules[0]
    ends = first.projection
    return {
        "sizes": files.add("sizes", [len(batch) for batch in batches], np.int64),
        "order": files.add("order", np.concatenate(batches), np.int64),
        "rates": files.add("rates", [rule.rate for rule in rules]),
        "dampening": files.add("dampening", [rule.dampening for rule in rules]),
        "momentum": first.momentum.hex(),
        "weight_decay": first.weight_decay.hex(),
        "undecayed": undecayed(rules[0], names),
        "nesterov": first.nesterov,
        "l1": first.l1.hex(),
        "projection": None if ends is None else {"low": ends[0].hex(), "high": ends[1].hex()},
    }


def _threat(files: Files, result: Result, method: str) -> dict[str, Any]:
    poison = result.models.poison
    open_ = torch.stack([quota.open for quota in poison.quotas]).cpu().numpy()
    found: dict[str, Any] = {
        "budget": min(sum(quota.budget for quota in poison.quotas), len(poison.open)),
        "counted": "in every batch" if poison.per_batch else "once for the run",
        "poisoned": "once" if poison.static else "anew in every step",
        "open": files.add("open", open_.any(0), np.uint8),
    }
    if method == "listed":
        ways = listed(poison)
        assert ways is not None
        removed, choices = ways
        return found | {
            "removed": removed,
            **({} if removed else {"choices": files.add("choices", choices)}),
        }
    moves, features = poison.feature_moves, poison.feature_box()
    for what, own, box, may in (
        ("features", moves, features, open_[0]),
        ("labels", poison.label_moves, poison.label_box(), open_[-1]),
    ):
        found[what] = None
        if own is not None and not poison.is_clean:
            ends = {
                side: np.where(may[:, None], *(e.cpu().numpy().reshape(len(may), -1) for e in pair))
                for side, pair in (
                    ("lower", (box.lower[-1], box.lower[0])),
                    ("upper", (box.upper[-1], box.upper[0])),
                )
            }
            found[what] = {side: files.add(f"{what}_{side}", end) for side, end in ends.items()}
    found["ball"] = None
    if isinstance(moves, Ball) and found["features"] is not None:
        # Moves are off by a unit of the poisoned features where the run adds them.
        radius = moves.radius.cpu().numpy()
        size = features.magnitude[-1].cpu().numpy().reshape(radius.shape)
        share = (2.0**-52 * size / np.where(radius > 0, radius, np.inf)).sum(-1, keepdims=True)
        radius = radius * (1.0 + 2.0**-40 + 2.0 * share)
        found["ball"] = {"norm": moves.order, "radius": files.add("radius", radius)}
    return found
