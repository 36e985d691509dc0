"""From the files of a certificate to what it states; whatever does not fit together is rejected."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from milp_agt.checker import affine
from milp_agt.checker.boxes import Array, Box
from milp_agt.checker.files import Certificate, Rejected, Table
from milp_agt.checker.layers import ARITHMETICS, Layer, Poisoned, Problem, Rule, Samples
from milp_agt.checker.statement import ASSUMPTIONS, Question, Statement, words

FORMAT = "milp-agt certificate 3"
CLASSES = ("cross_entropy", "bce", "hinge")
LOSSES = (*CLASSES, "mse")
KINDS = ("dense", "relu", "leaky_relu", "sigmoid", "tanh")
METHODS = ("interval", "listed", "affine")
PARTS = ("initial", "nominal", "lower", "upper")
# Of parameters: they stand in the words, and beside names that the checker makes itself (velocities).
PARAMETER = re.compile(r"[\w.-]{1,200}")


def state(certificate: Certificate) -> Statement | tuple[str, ...]:
    """The statement; or, of a certificate that says so itself, what stands in the way of one.

    Raises:
        Rejected: a certificate that does not fit together, or whose words say something else.
    """
    found = read(certificate)
    if isinstance(found, tuple):
        return found
    claim = certificate.claim
    if claim.texts("words") != found.words:
        raise Rejected(f"claim.words: what follows from the data is {' '.join(found.words)}")
    if claim.texts("assumptions") != ASSUMPTIONS:
        raise Rejected("claim.assumptions: they are not those of this checker")
    claim.finish()
    unused = sorted(set(certificate.arrays) - certificate.used)
    if unused:
        raise Rejected(f"{unused[0]}: an array that the claim does not use")
    return found


def read(certificate: Certificate) -> Statement | tuple[str, ...]:
    """The same without a look at the words."""
    claim = certificate.claim
    if claim.text("format") != FORMAT:
        raise Rejected(f"claim.format: {claim.text('format')!r:.60}; this checker reads {FORMAT!r}")
    versions = claim.table("versions")
    for key in versions.values:
        versions.text(key)
    not_covered = claim.texts("not_covered")
    if not claim.has("method"):
        claim.finish()
        if not not_covered:
            raise Rejected("claim: neither a method nor what stands in its way")
        return not_covered
    method = claim.word("method", METHODS)
    arithmetic = ARITHMETICS[claim.word("arithmetic", tuple(ARITHMETICS))]
    layers, parameters, width = _model(certificate, claim.table("model"))
    loss = claim.word("loss", LOSSES)
    outputs = parameters["initial"][layers[-1].weight].shape[0]
    if (loss == "cross_entropy") != (outputs > 1) and loss != "mse":
        raise Rejected(f"claim.loss: {loss} on {outputs} outputs")
    data = claim.table("data")
    x = certificate.array(data, "features")
    if x.ndim != 2 or x.shape[1] != width or not len(x):
        raise Rejected(f"claim.data: features of shape {x.shape} for a model of {width} inputs")
    y = certificate.array(data, "labels", (len(x), outputs))
    _encoded(loss, y, "claim.data.labels")
    data.finish()
    batches, rules = _training(certificate, claim.table("training"), len(x), parameters["initial"])
    threat = claim.table("threat")
    poisoned, choices = _threat(certificate, threat, x, y, method, loss)
    problem = Problem(layers, loss, batches, rules, arithmetic)
    if method == "affine" and not affine.covers(problem):
        raise Rejected("claim.method: affine forms have no rules for this run")
    tree = certificate.array(claim, "tree") if claim.has("tree") else None
    given = np.zeros(0)
    if claim.has("multipliers"):
        given = multipliers_of(certificate.array(claim, "multipliers", kind="u"))
        wrong = method != "affine" or not np.isfinite(given).all()
        claim.refuse(wrong, ".multipliers: not finite, or not for affine forms")
    anew = (threat.text("counted"), threat.text("poisoned")) != ("once for the run", "once")
    if tree is not None:
        of_one = method == "affine" and poisoned.budget == 1 and not anew
        if not of_one or tree.ndim != 2 or tree.shape[1] != 3:
            raise Rejected("claim.tree: no table of nodes, or not for affine forms and one sample")
    questions = tuple(_question(certificate, t, loss, x, y) for t in claim.tables("questions"))
    samples = Samples(Box.point(x[None]), Box.point(y[None]))
    removed = method == "listed" and choices is None
    what = samples, poisoned, choices, method, questions, not_covered
    # anew covers what is chosen once, with a budget for every batch
    found = Statement(problem, *what, (), removed, given, tree, anew, **parameters)
    return replace(found, words=words(found))


def multipliers_of(words: Array) -> Array:
    """Of words that hold the first 16 bits of numbers in binary32."""
    return (words.astype(np.uint32) << 16).view(np.float32).astype(np.float64).reshape(-1)


def _model(certificate: Certificate, table: Table) -> tuple[tuple[Layer, ...], dict[str, Any], int]:
    """The layers, the arrays of the parameters by what they are, and the number of inputs."""
    shapes: dict[str, tuple[int, ...]] = {}
    layers: list[Layer] = []
    width, first = 0, 0
    own = table.table("parameters")
    for entry in table.tables("layers"):
        kind = entry.word("kind", KINDS)
        if kind != "dense":
            slope = entry.real("slope") if kind == "leaky_relu" else 0.0
            entry.refuse(not 0.0 <= slope <= 1.0, f": a slope of {slope}, where 0 to 1 are covered")
            layers.append(Layer(kind, slope=slope))
        else:
            bias = entry.text("bias") if entry.has("bias") else ""
            layer = Layer(kind, entry.text("weight"), bias)
            for name in (layer.weight, bias)[: 1 + entry.has("bias")]:
                if not PARAMETER.fullmatch(name):
                    raise Rejected(f"{entry.where}: {name!r:.60} is no plain name of a parameter")
            weight = certificate.array(own.table(layer.weight), "initial")
            if weight.ndim != 2 or (width and weight.shape[1] != width) or not weight.size:
                raise Rejected(f"{entry.where}: a weight {weight.shape} after {width} numbers")
            first, width = first or weight.shape[1], weight.shape[0]
            new = {layer.weight: weight.shape, **({layer.bias: (width,)} if layer.bias else {})}
            if set(new) & set(shapes) or len(new) < 1 + bool(layer.bias):
                raise Rejected(f"{entry.where}: a parameter that is used twice")
            shapes |= new
            layers.append(layer)
        entry.finish()
    if not layers or layers[0].kind != "dense" or layers[-1].kind != "dense":
        raise Rejected(f"{table.where}: a model begins and ends with a dense layer")
    arrays: dict[str, dict[str, Array]] = {kind: {} for kind in PARTS}
    for name, shape in shapes.items():
        entry = own.table(name)
        for kind, found in arrays.items():
            found[name] = certificate.array(entry, kind, shape)
        entry.finish()
    own.finish()
    table.finish()
    return tuple(layers), arrays, first


def _encoded(loss: str, y: Array, where: str) -> None:
    """Classes: one 1 in each row, or a single column of 0 and 1."""
    sums = y.sum(-1) if y.shape[-1] > 1 else np.ones(y.shape[:-1])
    if loss in CLASSES and not (((y == 0) | (y == 1)).all() and (sums == 1).all()):
        raise Rejected(f"{where}: rows that are no class")


def _outside(ends: Array) -> Array:
    """Whether upper ends are those of classes, which may have been rounded outwards."""
    classes = np.rint(ends)
    found: Array = (abs(classes) <= 1) & (classes <= ends) & (ends <= classes + 1e-6)
    return found


def _training(
    certificate: Certificate, table: Table, samples: int, parameters: Mapping[str, Array]
) -> tuple[tuple[Array, ...], tuple[Rule, ...]]:
    sizes = certificate.array(table, "sizes", kind="i")
    order = certificate.array(table, "order", kind="i")
    if sizes.ndim != 1 or not len(sizes) or (sizes < 1).any() or (sizes > samples).any():
        raise Rejected(f"{table.where}.sizes: no steps, or batches empty or larger than the data")
    if order.shape != (int(sizes.sum()),) or (order < 0).any() or (order >= samples).any():
        raise Rejected(f"{table.where}.order: not the samples of these batches")
    batches = tuple(np.split(order, np.cumsum(sizes)[:-1]))
    if any(len(np.unique(batch)) < len(batch) for batch in batches):
        raise Rejected(f"{table.where}.order: a sample that stands twice in a batch")
    rates = certificate.array(table, "rates", sizes.shape)
    dampening = certificate.array(table, "dampening", sizes.shape)
    undecayed = frozenset(table.texts("undecayed"))
    projection = None
    if table.has("projection"):
        ends = table.table("projection")
        projection = ends.real("low"), ends.real("high")
        ends.finish()
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
    table.finish()
    pairs = zip(rates.tolist(), dampening.tolist(), strict=True)
    return batches, tuple(replace(one, rate=rate, dampening=tau) for rate, tau in pairs)


def _threat(
    certificate: Certificate, table: Table, x: Array, y: Array, method: str, loss: str
) -> tuple[Poisoned, Array | None]:
    budget = table.whole("budget", 0, len(x))
    ways = 1 if method == "listed" else 2
    table.word("counted", ("once for the run", "in every batch")[:ways])
    table.word("poisoned", ("once", "anew in every step")[:ways])
    where = certificate.array(table, "open", (len(x),), "u") != 0
    choices = None
    low, high, below, above = x, x, y, y
    if method == "listed" and not table.flag("removed"):
        choices = certificate.array(table, "choices")
        if choices.ndim != 3 or (choices.shape[0], choices.shape[2]) != y.shape:
            raise Rejected(f"{table.where}.choices: {choices.shape} for labels {y.shape}")
        _encoded(loss, choices, f"{table.where}.choices")
    elif method != "listed":
        if table.has("features"):
            low, high = _range(certificate, table.table("features"), x)
        if table.has("labels"):
            below, above = _range(certificate, table.table("labels"), y)
            if loss in CLASSES and not (_outside(-below) & _outside(above)).all():
                raise Rejected(f"{table.where}.labels: ranges whose ends are no classes")
    table.finish()
    samples = Samples(Box(low[None], high[None]), Box(below[None], above[None]))
    return Poisoned(samples, where, budget), choices


def _range(certificate: Certificate, table: Table, values: Array) -> tuple[Array, Array]:
    low, high = (certificate.array(table, end, values.shape) for end in ("lower", "upper"))
    if (low > values).any() or (high < values).any():
        raise Rejected(f"{table.where}: ranges of poisoned samples that leave out their own values")
    table.finish()
    return low, high


def _question(
    certificate: Certificate, table: Table, loss: str, train_x: Array, train_y: Array
) -> Question:
    width, outputs = train_x.shape[1], train_y.shape[1]
    kind = table.word("kind", ("accuracy", "stable", "loss"))
    x = certificate.array(table, "features")
    if x.ndim != 2 or x.shape[1] != width or not len(x):
        raise Rejected(f"{table.where}.features: shape {x.shape} for a model of {width} inputs")
    encoded = certificate.array(table, "labels", (len(x), outputs))
    _encoded(loss, encoded, f"{table.where}.labels")
    table.refuse(loss not in CLASSES and kind != "loss", f": {kind} of a regression")
    labels = encoded.argmax(-1) if outputs > 1 else encoded[:, 0].astype(np.int64)
    on = table.word("on", ("train", "test"))
    own = kind == "stable" or np.array_equal(encoded, train_y)
    if on == "train" and not (own and np.array_equal(x, train_x)):
        raise Rejected(f"{table.where}: points that are not those of the training data")
    least, most = (
        table.real(key) if kind == "loss" else float(table.whole(key, 0, len(x)))
        for key in ("least", "most")
    )
    asked = [table.real(key) if table.has(key) else None for key in ("at_least", "at_most")]
    table.finish()
    return Question(kind, on, x, labels, encoded, least, most, *asked)
