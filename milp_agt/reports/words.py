"""The sentences of a report: numbers of a result in plain words."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from decimal import ROUND_CEILING, ROUND_FLOOR, ROUND_HALF_EVEN, Context, Decimal
from pathlib import Path

from milp_agt.io.tables import format_number
from milp_agt.reports.content import Content, Property

# What levels, causes of width, losses and terms are, in plain words.
_SAID = tomllib.loads((Path(__file__).parent / "templates" / "words.toml").read_text("utf-8"))
RELAXATIONS: Mapping[str, str] = _SAID["RELAXATIONS"]
CAUSES: Mapping[str, str] = _SAID["CAUSES"]
LOSSES: Mapping[str, str] = _SAID["LOSSES"]
GLOSSARY: Mapping[str, str] = _SAID["GLOSSARY"]


def verdict(content: Content) -> tuple[str, str]:
    """Status for the colour of the banner, and its headline."""
    states = {p.status for p in content.properties}
    if not content.document["complete"]:
        done, total = len(content.steps), content.document["total_steps"]
        return "open", f"Unfinished: bounds after {done} of {total} training steps"
    if "REFUTED" in states:
        first = next(p for p in content.properties if p.status == "REFUTED")
        return "refuted", f"Refuted: real poisoned data leave {first.name} short of what was asked"
    if "OPEN" in states:
        return "open", "Not proved: something that was asked could not be certified"
    if "PROVED" in states:
        proved = [p for p in content.wholes if p.status == "PROVED"]
        what = short(proved[0]) if len(proved) == 1 else f"all {len(proved)} thresholds are met"
        return "proved", f"Proved: {what}, whatever the adversary does within the limits below"
    if not content.wholes:
        return "reported", "Certified: a box around all parameters; nothing else was asked for"
    more = " (and what follows)" if len(content.wholes) > 1 else ""
    return "reported", f"Certified: {short(content.wholes[0])}{more}; no threshold was asked for"


def caution(content: Content) -> str:
    """What a verdict does not say."""
    hopeless = [
        p for p in content.properties if p.status in ("OPEN", "REFUTED") and not nominally(p)
    ]
    if hopeless:
        return (
            f"Even without an adversary the model misses what was asked ({hopeless[0].name}: "
            f"{shown(hopeless[0], hopeless[0].nominal)}, {asked(hopeless[0])}), so that no proof can "
            "reach it: train a better model or ask for less."
        )
    refuted = [p for p in content.properties if p.status == "REFUTED"]
    if refuted and refuted[0].worst is not None:
        return (
            f"A model trained on poisoned data within the limits below has {refuted[0].name} at "
            f"{shown(refuted[0], refuted[0].worst)} ({asked(refuted[0])}). The data are in the files that "
            "are named below; training on them shows it."
        )
    missed = [p for p in content.properties if p.status == "OPEN"]
    told = missed or content.wholes
    if told and all(p.is_share and p.lower == 0.0 and p.upper == 1.0 for p in told):
        return (
            "The bounds have grown so wide that they exclude nothing any more; see below at which step. "
            "That does not mean broken: a tighter relaxation, a wider window, fewer steps, a smaller "
            "budget or a smaller radius may give a proof."
        )
    if missed:
        return (
            "Not proved does not mean broken: the truth lies between what real attacks reach and the "
            "certified bound. A tighter relaxation, a smaller budget or a smaller radius may close the "
            "gap."
        )
    return (
        "The certified numbers are worst cases over all admissible data sets, found by proof and not "
        "by trying attacks: no attack within the limits can do worse."
    )


def nominally(each: Property) -> bool:
    """Whether the model trained on the data as given meets the threshold."""
    if each.at_least is not None:
        return each.nominal >= each.at_least
    return each.at_most is None or each.nominal <= each.at_most


def percent(share: float) -> str:
    """A share for people: 83.3 %, 100 %."""
    return f"{100 * share:.3g} %"


def shown(each: Property, value: float, rounding: str = ROUND_HALF_EVEN) -> str:
    """A value of a property for people, rounded so that what is said of it stays true."""
    if not math.isfinite(value):
        return str(value)
    # A share like 4 / 5 carries an error of its own as a float; 13 digits tell it from a real one.
    exact = Context(prec=13).plus(Decimal(value)) * 100 if each.is_share else Decimal(value)
    rounded = Context(prec=4, rounding=rounding).plus(exact)
    text = f"{float(rounded):.4g}"
    return f"{text} %" if each.is_share else text


def at_least(each: Property) -> str:
    """The certified lower end, rounded down."""
    return shown(each, each.lower, ROUND_FLOOR)


def at_most(each: Property) -> str:
    """The certified upper end, rounded up."""
    return shown(each, each.upper, ROUND_CEILING)


def between(each: Property) -> str:
    """Both certified ends, rounded outwards."""
    if each.lower == each.upper:
        return shown(each, each.lower)
    return f"between {at_least(each)} and {at_most(each)}"


def headline(each: Property) -> str:
    """The number that counts: the worst case of the side that was asked for, or of both."""
    table = each.table
    harm = not table.high_is_good and (table.is_share or table.least > -math.inf)
    if each.at_most is not None or (each.at_least is None and harm):
        return f"at most {at_most(each)}"
    return f"at least {at_least(each)}"


def short(each: Property) -> str:
    """The certified worst case as a clause."""
    other_side = each.at_most if each.table.high_is_good else each.at_least
    if each.table.in_short and other_side is None:
        return _filled(each.table.in_short, each)
    return f"{each.name} is {headline(each)}"


def _filled(text: str, each: Property) -> str:
    return text.format(
        name=each.name,
        low=at_least(each),
        high=at_most(each),
        given=shown(each, each.nominal),
        part="training" if each.on == "train" else each.on,
        detail=f" ({each.detail})" if each.detail else "",
    )


def counted(each: Property) -> str:
    """How many points are decided; empty where points are not judged."""
    if not each.counts:
        return ""
    told = {"PROVED": "proved", "REFUTED": "refuted", "OPEN": "open"}
    return ", ".join(f"{each.counts[word]} {name}" for word, name in told.items())


def network(content: Content) -> str:
    """The model in a sentence."""
    document = content.document
    layers = document["run"].get("model", {}).get("layers", ())
    names = document["parameters"]["by_name"]
    count = sum(math.prod(about["shape"]) for about in names.values())
    plain = isinstance(layers, list) and layers and all(isinstance(n, int) for n in layers)
    kind = f"A network of {' - '.join(map(str, layers))} units" if plain else "A network"
    return f"{kind} with {count} parameters that are trained, in {len(names)} arrays: {', '.join(names)}."


def limits(content: Content) -> str:
    """What the adversary may do."""
    text = f"Change the training data within these limits: {content.document['threat']}."
    threat, samples = (
        content.document["run"].get("threat", {}),
        content.document["data"]["train"][0],
    )
    budget = threat.get("budget") if threat.get("scope", "dataset") == "dataset" else None
    if isinstance(budget, int) and samples:
        text += f" The budget is {budget} of {samples} samples, {100.0 * budget / samples:.2g} %."
    if any(p.kind == "backdoor" for p in content.properties):
        return (
            f"{text} Later, when the model is used, put a trigger into its inputs as well, where a "
            "backdoor is asked about. Nothing else may be touched."
        )
    return (
        f"{text} Nothing else may be touched: not the network, its training or the inputs later on."
    )


def sentence(each: Property) -> str:
    """One property in plain words."""
    known = "{name} lies between {low} and {high}; on the data as given it is {given}."
    text = _filled(each.table.in_words or known, each)
    if each.table.where_exact and each.lower == each.upper:
        text = _filled(each.table.where_exact, each)
    if each.reached is not None:
        low, high = (shown(each, end) for end in each.reached)
        text += " Attacks that were really carried out "
        text += f"reach {low} to {high}." if low != high else "did not change it."
    return text


def number(value: object, digits: int = 6) -> str:
    """A number of a JSON file, which writes what is not finite as text."""
    return format_number(value, digits) if isinstance(value, (int, float)) else str(value)


def loss(content: Content) -> str:
    """What the loss of this run measures; empty where it is not asked for."""
    name = content.document["run"].get("training", {}).get("loss", "")
    if name not in LOSSES or all(p.kind != "loss" for p in content.properties):
        return ""
    text = f"The loss ({name}) measures {LOSSES[name]}, on average over the points; 0 is perfect."
    worst = next(p.upper for p in content.properties if p.kind == "loss")
    if name != "mse" or not 0 <= worst < math.inf:
        return text
    root = Context(prec=3, rounding=ROUND_CEILING).plus(Context(prec=20).sqrt(Decimal(worst)))
    return f"{text} Its root, here at most {float(root):.3g}, is in the units of the targets."


def asked(each: Property) -> str:
    """The threshold in words; empty without one."""
    if each.at_least is not None:
        return f"asked for: at least {shown(each, each.at_least)}"
    if each.at_most is not None:
        return f"asked for: at most {shown(each, each.at_most)}"
    return "no threshold was asked for"
