"""The sentences of a report: numbers of a result in plain words."""

from __future__ import annotations

from milp_agt.report.content import Content, Property
from milp_agt.tables import format_number

RELAXATIONS = {
    "interval": "a box for every quantity inside training; fast, and soon too wide",
    "linear": "straight-line bounds that are followed backwards through the steps of training",
    "lp": "a linear program for each parameter and step, solved to a proved bound",
    "milp": "the same with exact kinks of the network and exact choices of poisoned samples",
    "qcqp": "a program that keeps products exact",
    "miqp": "a program that keeps products, kinks and choices exact",
}


def verdict(content: Content) -> tuple[str, str]:
    """Status for the colour of the banner, and its headline."""
    states = {p.status for p in content.properties}
    if not content.document["complete"]:
        done, total = len(content.steps), content.document["total_steps"]
        return "open", f"Unfinished: bounds after {done} of {total} training steps"
    if "NOT PROVED" in states:
        return "open", "Not proved: something that was asked could not be certified"
    if "PROVED" in states:
        return "proved", "Proved: what was asked holds, whatever the adversary does"
    return "reported", "Bounds without a verdict: no threshold was asked for"


def caution(content: Content) -> str:
    """What a verdict does not say."""
    if any(p.status == "NOT PROVED" for p in content.properties):
        return (
            "Not proved does not mean broken: the truth lies between what real attacks reach and the "
            "certified bound. A tighter relaxation, a smaller budget or a smaller radius may close the "
            "gap."
        )
    return (
        "The certified numbers are worst cases over all admissible data sets, found by proof and not "
        "by trying attacks; no attack within the limits can do worse."
    )


def percent(share: float) -> str:
    """A share for people: 83.3 %, 100 %."""
    return f"{100 * share:.3g} %"


def shown(each: Property, value: float) -> str:
    """A value of a property for people."""
    return percent(value) if each.is_share else format_number(value, 4)


def headline(each: Property) -> str:
    """The number that counts: the worst case of the side that was asked for, or of both."""
    if each.at_most is not None or each.kind in ("loss", "targeted", "backdoor"):
        return f"at most {shown(each, each.upper)}"
    return f"at least {shown(each, each.lower)}"


def sentence(each: Property) -> str:
    """One property in plain words."""
    low, high = shown(each, each.lower), shown(each, each.upper)
    given = shown(each, each.nominal)
    part = each.name.rpartition(" on ")[2] or "test"
    if each.kind == "accuracy":
        text = (
            f"On the {part} data the model is right for at least {low} and at most {high} of the points, "
            f"whichever admissible data it was trained on; trained on the data as given it is {given}."
        )
    elif each.kind == "stable":
        text = f"For at least {low} of the {part} points no admissible poisoning changes the prediction."
    elif each.kind == "loss":
        text = (
            f"The mean loss on the {part} data lies between {low} and {high}; trained on the data as "
            f"given it is {given}."
        )
    elif each.kind in ("targeted", "backdoor"):
        text = (
            f"The {each.kind} attack succeeds on at most {high} of the {part} points; with the model "
            f"trained on the data as given it succeeds on {given}."
        )
    else:
        text = f"{each.name} lies between {low} and {high}; on the data as given it is {given}."
    if each.attacked is not None:
        text += f" The best attack that was tried reaches {shown(each, each.attacked)}."
    return text


def asked(each: Property) -> str:
    """The threshold in words; empty without one."""
    if each.at_least is not None:
        return f"asked for: at least {shown(each, each.at_least)}"
    if each.at_most is not None:
        return f"asked for: at most {shown(each, each.at_most)}"
    return "no threshold was asked for"
