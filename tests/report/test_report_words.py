"""Words and colours of the report: they promise no more than the numbers, and can be read."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pages import copied, document, page, visible

from milp_agt import reports
from milp_agt.certification.chains import ENUMERATED
from milp_agt.certification.listing import LISTED
from milp_agt.cli import main
from milp_agt.core.relaxation import Relaxation
from milp_agt.formulations.loss import losses
from milp_agt.io.drawing import COLOURS
from milp_agt.reports import words
from milp_agt.reports.content import Property


@given(
    st.just(0.0) | st.floats(1e-300, 1) | st.integers(0, 60).map(lambda k: k / 60), st.booleans()
)
def test_words_never_promise_more_than_the_numbers(value: float, share: bool) -> None:
    kind = "accuracy" if share else "loss"
    each = Property(kind, kind, "test", None, value, value, value, None, None, "REPORTED")
    scale = 100.0 if share else 1.0
    low = float(words.at_least(each).removesuffix(" %"))
    high = float(words.at_most(each).removesuffix(" %"))
    assert low <= scale * value * (1 + 1e-12)
    assert high >= scale * value * (1 - 1e-12)
    assert high - low <= 1.1e-3 * scale * value + 1e-12


def test_every_chain_and_every_loss_has_words() -> None:
    levels = {level.value for level in Relaxation}
    assert set(words.RELAXATIONS) == levels | {ENUMERATED, LISTED}
    assert set(words.LOSSES) == set(losses())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("accuracy", "right for at least 25 % of the test points"),
        ("collective", "right for at least 25 % of the test points"),
        ("stable", "at least 25 % of the test points cannot be changed"),
        ("loss", "the mean loss on the test data is at most 0.75"),
        ("targeted", "at most 75 % of the test points can be pushed into unsafe outputs (class 1)"),
        ("backdoor", "a trigger (class 1) succeeds on at most 75 % of the test points"),
        ("functional", "0.weight is at least 0.25"),
    ],
)
def test_the_headline_names_the_side_that_is_asked_for(kind: str, said: str) -> None:
    name = "0.weight" if kind == "functional" else kind
    ends = 0.25, 0.5, 0.75
    each = Property(kind, name, "test", None, *ends, None, None, "REPORTED", detail="class 1")
    assert said in words.short(each)
    turned = dataclasses.replace(each, at_least=0.1) if "most" in said else None
    if turned is not None:
        assert "at least" in words.short(turned)


@pytest.mark.usefixtures("undrawn")
def test_a_trigger_is_one_of_the_things_that_the_adversary_may_do(
    classes: Path, tmp_path: Path
) -> None:
    assert "not the network, its training or the inputs" in visible(page(classes))
    properties = document(classes)["properties"]
    properties[0] |= {"kind": "backdoor", "at_least": None, "at_most": 1.0}
    folder = copied(classes, tmp_path / "out", properties=properties)
    assert main(["report", str(folder)]) == 0
    shown = visible(page(folder))
    assert "put a trigger into its inputs as well" in shown
    assert "not the network, its training or the inputs" not in shown


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_the_first_colours_differ_in_grey() -> None:
    first = sorted(luminance(color) for color in COLOURS[:2])
    assert (first[1] + 0.05) / (first[0] + 0.05) > 2


def test_words_in_colour_can_be_read_on_their_ground() -> None:
    """Contrast of at least 4.5, which WCAG 2.1 asks for small text; in grey as well."""
    style = (Path(reports.__file__).parent / "templates" / "style.css").read_text()
    named = dict(re.findall(r"--([a-z]+): (#[0-9A-Fa-f]{6});", style))
    for text in ("ink", "soft", "proved", "open", "reported"):
        for ground in ("ground", "panel"):
            light, dark = luminance(named[ground]), luminance(named[text])
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
