"""What a certificate states, from its files: the run, the threat, the claim, and the same in words. Whatever
does not fit together is rejected.

The words are made here, from the data; those in the certificate must be the same, so that they cannot say
more than what is checked.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from milp_agt.checker.boxes import Array, Box
from milp_agt.checker.files import Table
from milp_agt.checker.layers import ARITHMETICS, Layer, Poisoned, Problem, Rule, Samples

FORMAT = "milp-agt certificate 5"
CLASSES = ("cross_entropy", "bce", "hinge")
LOSSES = (*CLASSES, "mse")
KINDS = ("dense", "relu", "leaky_relu", "sigmoid", "tanh")
METHODS = ("interval", "listed", "affine")
ASKED = {
    "accuracy": "{ends} of {points} are classified right",
    "stable": "{ends} of {points} keep the class that is stored for them",
    "targeted": "{ends} of {points} get the class that is stored for them",
    "backdoor": "{ends} of {points} get another class than the one that is stored for them",
    "loss": "the mean loss on {points} lies {ends}",
}
PARTS = ("initial", "nominal", "lower", "upper")
# Of parameters: they stand in the words, and beside names that the checker makes itself (velocities).
PARAMETER = re.compile(r"[\w.-]{1,200}")
ASSUMPTIONS = (
    "The initial parameters, the order of the batches and the optimiser are fixed as they stand here.",
    "What was done to the data before (scaling, selection, splits) does not depend on data that the "
    "adversary touches; no early stopping or choice of models looks at poisoned data.",
    "The run is made of the operations of its layers, its loss and its optimiser, each rounded with a "
    "relative error of at most the unit roundoff, sums in any order; exp, log, tanh and sigmoid are off by "
    "at most 16 units.",
    "The numbers in the certificate are those of the run: hashes alone tie them to it.",
)


@dataclass(frozen=True)
class Question:
    """How many of some points (n, d) are classified as ``encoded`` (n, outputs) says, or the mean loss:
    between ``least`` and ``most``. Where points are ranges, those count in which some features are.
    """

    kind: str
    on: str
    x: Box
    encoded: Array
    least: float
    most: float
    at_least: float
    at_most: float


@dataclass(frozen=True)
class Statement:
    """All that is claimed, and of what.

    Attributes:
        initial, nominal, lower, upper: by parameter; the last two are the claimed box.
        choices: for method ``listed`` every label that a sample may have, (n, choices, outputs); None if
            samples are left out.
        not_covered: what the run was asked that this certificate does not say.
        flips: (step, number) of those that have ``multipliers``, for ``affine``, see steps.py.
        tree: nodes (kind, what, value), see proof.py; ``phases`` of a leaf: step, number, 1 (on) or -1.
        anew: whether the budget is one of every step, and not of the run.
        at_once: samples of a step that are taken at once, see steps.py; 0 for all.
    """

    problem: Problem
    samples: Samples
    poisoned: Poisoned
    method: str
    initial: Mapping[str, Array]
    nominal: Mapping[str, Array] = field(default_factory=dict)
    lower: Mapping[str, Array] = field(default_factory=dict)
    upper: Mapping[str, Array] = field(default_factory=dict)
    choices: Array | None = None
    questions: tuple[Question, ...] = ()
    not_covered: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    flips: Array = field(default_factory=partial(np.zeros, (0, 2), np.int64))
    multipliers: Array = field(default_factory=partial(np.zeros, 0))
    tree: Array | None = None
    anew: bool = False
    at_once: int = 0
    phases: tuple[tuple[int, int, float], ...] = ()


def words(given: Statement) -> tuple[str, ...]:
    """The claim in sentences."""
    problem, poisoned = given.problem, given.poisoned
    rule, rates = problem.rules[0], [r.rate for r in problem.rules]
    count = sum(values.size for values in given.initial.values())
    sizes = [len(batch) for batch in problem.batches]
    widths = [(given.upper[name] - low).reshape(-1) for name, low in given.lower.items()]
    run = (
        f"The run: {len(problem.batches)} steps of gradient descent on the mean {problem.loss} loss in "
        f"{problem.arithmetic.name}; {count} parameters, {len(poisoned.open)} samples, batches of "
        f"{min(sizes)} to {max(sizes)}, rates {min(rates):.9g} to {max(rates):.9g}, momentum "
        f"{rule.momentum:.9g}{' (Nesterov)' if rule.nesterov else ''}, weight decay {rule.decay:.9g}"
    )
    if rule.undecayed:
        run += f" on all but {', '.join(sorted(rule.undecayed))}"
    run += f", l1 {rule.l1:.9g}" if rule.l1 else ""
    run += f", clamped to {rule.projection}" if rule.projection else ""
    in_batches = given.method == "interval" or given.anew
    when = "in any batch" if in_batches else "once, for the whole run"
    lines = [
        f"{run}.",
        f"The adversary: at most {poisoned.budget} of {int(poisoned.open.sum())} samples poisoned "
        f"{when}: {_changes(given)}.",
        "The claim: every such run ends with all parameters inside the stored box, whose mean width is "
        f"{np.concatenate(widths).mean():.9g}.",
    ]
    for q in given.questions:
        ends, points = f"between {q.least:.9g} and {q.most:.9g}", f"{len(q.encoded)} {q.on} points"
        points += "" if q.x.is_point else ", for some features in the range of each,"
        what = ASKED[q.kind].format(ends=ends, points=points)
        lines.append(f"The claim: of every such model, {what}.")
    return tuple(lines)


def _changes(given: Statement) -> str:
    if given.method == "listed" and given.choices is None:
        return "left out of every batch, with means over the samples that stay"
    if given.choices is not None:
        return f"the label exchanged for one of {given.choices.shape[1]} stored for it"
    own = given.poisoned.samples
    pairs = (("feature", given.samples.x, own.x), ("label", given.samples.y, own.y))
    moves = [_reach(what, n, box, given.poisoned.open) for what, n, box in pairs]
    if given.poisoned.radius is not None:
        radii = given.poisoned.radius[given.poisoned.open]
        least, most = radii.min(initial=np.inf, where=radii > 0), radii.max(initial=0.0)
        moves[0] += (
            f", all features of a sample together by at most 1 in norm {given.poisoned.norm} over radii of "
            f"{least:.9g} to {most:.9g}"
        )
    return " and ".join(filter(None, moves)) or "nothing changed"


def _reach(what: str, nominal: Box, box: Box, open_: Array) -> str:
    """How far the samples that are open may move, and the least of that where it differs. Features move
    up and down, labels of classes one way.
    """
    ends = (box.hi - nominal.hi)[:, open_], (nominal.lo - box.lo)[:, open_]
    far = np.stack(ends) if what == "feature" else np.maximum(*ends)
    least, most = float(far.min(initial=np.inf)), float(far.max(initial=0.0))
    if not most:
        return ""
    if least >= most * (1.0 - 1e-6):
        return f"every {what} moved by at most {most:.9g}"
    return f"{what}s moved by at most {least:.9g} to {most:.9g}, as stored for each"


def state(claim: Table) -> Statement | tuple[str, ...]:
    """The statement; or, of a certificate that says so itself, what stands in the way of one.

    Raises:
        Rejected: a certificate that does not fit together, or whose words say something else.
    """
    found = read(claim)
    if not isinstance(found, tuple):
        other = claim.texts("words") != found.words
        claim.refuse(other, f".words: what follows from the data is {' '.join(found.words)}")
        other = claim.texts("assumptions") != ASSUMPTIONS
        claim.refuse(other, ".assumptions: they are not those of this checker")
        unused = sorted(set(claim.arrays) - claim.named)
        claim.refuse(bool(unused), f": nothing in it uses an array, {unused[:1]}")
    claim.finish()
    return found


def read(claim: Table) -> Statement | tuple[str, ...]:
    """The same without a look at the words."""
    form = claim.text("format")
    other = f": its format is {form!r:.60}, this checker reads '{FORMAT}'; certify the run again"
    claim.refuse(form != FORMAT, other)
    versions = claim.table("versions")
    for key in versions.values:
        versions.text(key)
    not_covered = claim.texts("not_covered")
    if not claim.has("method"):
        claim.refuse(not not_covered, ": neither a method nor what stands in its way")
        return not_covered
    method = claim.word("method", METHODS)
    arithmetic = ARITHMETICS[claim.word("arithmetic", ARITHMETICS)]
    layers, parameters = _model(claim.table("model"))
    loss = claim.word("loss", LOSSES)
    first, last = (parameters["initial"][layers[end].weight] for end in (0, -1))
    width, outputs = first.shape[1], last.shape[0]
    wrong = loss != "mse" and (loss == "cross_entropy") != (outputs > 1)
    claim.refuse(wrong, f".loss: {loss} on {outputs} outputs")
    data = claim.table("data")
    x = _points(data, "features", width)
    y = data.array("labels", (len(x), outputs))
    _encoded(data, loss, y)
    batches, rules = _training(claim.table("training"), len(x), parameters["initial"])
    problem = Problem(layers, loss, batches, rules, arithmetic)
    wrong = method == "affine" and (rules[0].l1 != 0 or rules[0].projection is not None)
    claim.refuse(wrong, ".method: affine forms have no rules for penalties and projections")
    threat = claim.table("threat")
    poisoned, choices = _threat(threat, x, y, method, loss)
    # What is chosen anew covers what is chosen once, with a budget for every batch.
    anew = (threat.text("counted"), threat.text("poisoned")) != ("once for the run", "once")
    at_once = claim.whole("at_once")
    wrong = at_once > 0 and (method != "affine" or not anew)
    claim.refuse(wrong, ".at_once: not for affine forms of moves that are chosen anew")
    more: dict[str, Any] = {}
    if claim.has("tree"):
        tree = more["tree"] = claim.array("tree")
        of_one = method == "affine" and poisoned.budget == 1 and not anew
        wrong = not of_one or tree.ndim != 2 or tree.shape[1] != 3
        claim.refuse(wrong, ".tree: no table of nodes, or not for affine forms and one sample")
    if claim.has("multipliers"):
        given = more["multipliers"] = multipliers_of(claim.array("multipliers", kind="u"))
        flips = more["flips"] = claim.array("flips", kind="i")
        wrong = method != "affine" or at_once > 0 or not np.isfinite(given).all()
        claim.refuse(wrong, ".multipliers: not finite, or not for affine forms of whole batches")
        late = flips.shape[1:] != (2,) or (flips[:, 0] >= len(batches)).any() or (flips < 0).any()
        claim.refuse(late, ".flips: no table of steps and numbers, or of steps that are not there")
    more["questions"] = tuple(_question(t, loss, x, y) for t in claim.tables("questions"))
    more |= {"choices": choices, "not_covered": not_covered, "anew": anew, "at_once": at_once}
    samples = Samples(Box.point(x[None]), Box.point(y[None]))
    found = Statement(problem, samples, poisoned, method, **more, **parameters)
    wrong = len(found.multipliers) != asked_for(found, found.flips)
    claim.refuse(wrong, ".multipliers: not as many as the flips need")
    return replace(found, words=words(found))


def asked_for(given: Statement, flips: Array) -> int:
    """How many multipliers some flips have: two for each parameter in each state after their step."""
    states = (len(given.problem.batches) - flips[:, 0]).sum()
    return 2 * sum(values.size for values in given.initial.values()) * int(states)


def multipliers_of(words: Array) -> Array:
    """Of words that hold the first 16 bits of numbers in binary32."""
    return (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64).reshape(-1)


def _model(table: Table) -> tuple[tuple[Layer, ...], dict[str, Any]]:
    """The layers, and the arrays of the parameters by what they are."""
    layers: list[Layer] = []
    arrays: dict[str, dict[str, Array]] = {kind: {} for kind in PARTS}
    own, width = table.table("parameters"), 0

    def taken(name: str, shape: tuple[int, ...] | None) -> tuple[int, ...]:
        """The shape of a parameter, whose arrays are read."""
        entry = own.table(name)
        own.refuse(not PARAMETER.fullmatch(name), f": {name!r:.60} is no plain name")
        own.refuse(name in arrays["initial"], ": a parameter that is used twice")
        for kind, found in arrays.items():
            found[name] = entry.array(kind, shape)
            shape = found[name].shape
        return found[name].shape

    for entry in table.tables("layers"):
        kind = entry.word("kind", KINDS)
        if kind != "dense":
            slope = entry.real("slope") if kind == "leaky_relu" else 0.0
            entry.refuse(not 0.0 <= slope <= 1.0, f": a slope of {slope}, where 0 to 1 are covered")
            layers.append(Layer(kind, slope=slope))
            continue
        layer = Layer(kind, entry.text("weight"), entry.text("bias") if entry.has("bias") else "")
        shape = taken(layer.weight, None)
        wrong = len(shape) != 2 or 0 in shape or width not in (0, shape[1])
        entry.refuse(wrong, f": a weight {shape} after {width} numbers")
        width = shape[0]
        if entry.has("bias"):
            taken(layer.bias, (width,))
        layers.append(layer)
    ends = [layers[end].kind for end in (0, -1)] if layers else []
    table.refuse(ends != ["dense"] * 2, ": a model begins and ends with a dense layer")
    return tuple(layers), arrays


def _points(table: Table, key: str, width: int) -> Array:
    """Some inputs (n, width) of the model."""
    x = table.array(key)
    wrong = x.ndim != 2 or x.shape[1] != width or not len(x)
    table.refuse(wrong, f".{key}: shape {x.shape} for a model of {width} inputs")
    return x


def _encoded(table: Table, loss: str, y: Array) -> None:
    """Classes: one 1 in each row, or a single column of 0 and 1."""
    sums = y.sum(-1) if y.shape[-1] > 1 else np.ones(y.shape[:-1])
    wrong = not (((y == 0) | (y == 1)).all() and (sums == 1).all())
    table.refuse(loss in CLASSES and wrong, ": labels that are no classes")


def _outside(ends: Array) -> Array:
    """Whether upper ends are those of classes, which may have been rounded outwards."""
    classes = np.rint(ends)
    return np.asarray((abs(classes) <= 1) & (classes <= ends) & (ends <= classes + 1e-6))


def _training(
    table: Table, samples: int, parameters: Mapping[str, Array]
) -> tuple[tuple[Array, ...], tuple[Rule, ...]]:
    sizes, order = (table.array(key, kind="i") for key in ("sizes", "order"))
    wrong: bool | np.bool = sizes.ndim != 1 or not len(sizes) or (sizes < 1).any()
    table.refuse(wrong or sizes.max() > samples, ".sizes: no steps, or batches of no such size")
    wrong = order.shape != (int(sizes.sum()),) or (order < 0).any() or (order >= samples).any()
    table.refuse(wrong, ".order: not the samples of these batches")
    batches = tuple(np.split(order, np.cumsum(sizes)[:-1]))
    wrong = any((np.diff(np.sort(batch)) == 0).any() for batch in batches)
    table.refuse(wrong, ".order: a sample that stands twice in a batch")
    rates, dampening = (table.array(key, sizes.shape) for key in ("rates", "dampening"))
    undecayed = frozenset(table.texts("undecayed"))
    projection = None
    if table.has("projection"):
        ends = table.table("projection")
        projection = ends.real("low"), ends.real("high")
    momentum, decay, l1 = (table.real(key) for key in ("momentum", "weight_decay", "l1"))
    one = Rule(0.0, momentum, decay, 0.0, table.flag("nesterov"), l1, projection, undecayed)
    dampened = bool((dampening != 0).any())
    wrong = (
        not undecayed <= set(parameters)
        or (rates < 0).any()
        or min(momentum, decay, l1) < 0
        or (projection is not None and projection[0] > projection[1])
        or (one.nesterov and dampened)
        or ((one.nesterov or dampened) and momentum == 0)
    )
    table.refuse(wrong, ": options that no optimiser takes together")
    pairs = zip(rates.tolist(), dampening.tolist(), strict=True)
    return batches, tuple(replace(one, rate=rate, dampening=tau) for rate, tau in pairs)


def _threat(
    table: Table, x: Array, y: Array, method: str, loss: str
) -> tuple[Poisoned, Array | None]:
    budget = table.whole("budget", 0, len(x))
    ways = 1 if method == "listed" else 2
    table.word("counted", ("once for the run", "in every batch")[:ways])
    table.word("poisoned", ("once", "anew in every step")[:ways])
    where = table.array("open", (len(x),), "u") != 0
    choices, ranges = None, [(x, x), (y, y)]
    if method != "listed":
        ranges = [_range(table, key, own) for key, own in (("features", x), ("labels", y))]
        outside = not (_outside(-ranges[1][0]) & _outside(ranges[1][1])).all()
        table.refuse(loss in CLASSES and outside, ".labels: ranges whose ends are no classes")
    elif not table.flag("removed"):
        choices = table.array("choices")
        fits = choices.ndim == 3 and (choices.shape[0], choices.shape[2]) == y.shape
        table.refuse(not fits, f".choices: {choices.shape} for labels {y.shape}")
        _encoded(table, loss, choices)
    own = Samples(*(Box(low[None], high[None]) for low, high in ranges))
    norm, radius = 0, None
    if method != "listed" and table.has("ball"):
        ball = table.table("ball")
        norm, radius = ball.whole("norm", 1, 2), ball.array("radius", x.shape)
        ball.refuse((radius < 0).any(), ": a radius below 0")
        still = (ranges[0][0] == x) & (ranges[0][1] == x)
        ball.refuse(not still[radius == 0].all(), ": features that move, and have no radius")
    return Poisoned(own, where, budget, norm, radius), choices


def _range(table: Table, key: str, values: Array) -> tuple[Array, Array]:
    """What poisoned samples may become: the values themselves, unless there is a range."""
    if not table.has(key):
        return values, values
    entry = table.table(key)
    low, high = (entry.array(end, values.shape) for end in ("lower", "upper"))
    outside = (low > values).any() or (high < values).any()
    entry.refuse(outside, ": ranges of poisoned samples that leave out their own values")
    return low, high


def _question(table: Table, loss: str, train_x: Array, train_y: Array) -> Question:
    kind = table.word("kind", ASKED)
    x = _points(table, "features", train_x.shape[1])
    encoded = table.array("labels", (len(x), train_y.shape[1]))
    _encoded(table, loss, encoded)
    table.refuse(loss not in CLASSES and kind != "loss", f": {kind} of a regression")
    ranges = table.has("upper")
    high = table.array("upper", x.shape) if ranges else x
    wrong = ranges and (kind not in ("backdoor", "targeted") or (high < x).any())
    table.refuse(
        wrong, ".upper: ranges upside down, or of features that do not move in such a question"
    )
    on = table.word("on", ("train", "test"))
    own = kind in ("stable", "targeted") or np.array_equal(encoded, train_y)
    other = on == "train" and not (own and not ranges and np.array_equal(x, train_x))
    table.refuse(other, ": points that are not those of the training data")
    least, most = (
        table.real(key) if kind == "loss" else float(table.whole(key, 0, len(x)))
        for key in ("least", "most")
    )
    none = (("at_least", -np.inf), ("at_most", np.inf))
    asked = [table.real(key) if table.has(key) else end for key, end in none]
    return Question(kind, on, Box(x, high), encoded, least, most, *asked)
