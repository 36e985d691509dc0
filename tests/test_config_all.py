"""All problems of a run file at once, on a line each, beside what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_config import GOOD, build, failure, with_line

from milp_agt.errors import ConfigurationError, InvalidInputError

EVERYWHERE = """
[data]
path = "absent.npz"
[model]
layrs = [2, 3, 2]
[training]
loss = "CrossEntropyLoss"
learning_rate = -0.5
nesterov = true
[threat]
kind = "features"
budget = 1
radius = [0.01, -1]
norm = 0
samples = [1]
classes = [0]
[certify]
window = 0
[[property]]
kind = "accuracy"
at_least = 90
at_most = 1
"""


def test_mistakes_in_every_table(tmp_path: Path) -> None:
    error = failure(tmp_path, EVERYWHERE)
    expected = {
        "[model] unknown key 'layrs'": "use 'layers'",
        "[training] learning_rate = -0.5": "learning_rate should be greater than 0",
        "[training] Loss 'CrossEntropyLoss' was asked for: no such loss": "give loss='cross_entropy'",
        "[training] Nesterov momentum was asked for: momentum = 0": "set momentum > 0",
        "[threat] radius[1] = -1": "radius[1] should be greater than or equal to 0",
        "[threat] 'samples' and 'classes'": "name the untrusted ones by one of them",
        "[threat] norm = 0 with coordinates = None": "norm = 0 needs coordinates, the count of features "
        "that may move; others have none",
        "[certify] window = 0": "window should be greater than or equal to 1 or 'T'",
        "[[property]] number 1 both 'at_least' and 'at_most'": "split it into two properties",
        "[[property]] number 1 at_least = 90 for a share, which lies between 0 and 1": "give at_least "
        "= 0.9, if 90 % is meant",
        "[data] path = 'absent.npz': no such file": "give a path relative to the run file",
    }
    assert dict(error.problems) == expected
    lines = str(error).splitlines()
    assert len(lines) == 1 + len(expected)
    for found, remedy in expected.items():
        assert f"  - Found: {found}. What to do: {remedy}." in lines


def test_what_fails_while_a_run_is_built(tmp_path: Path) -> None:
    text = GOOD.replace("[2, 3, 2]", "[3, 3, 2]").replace("cross_entropy", "BCELoss")
    text = text.replace("radius = 0.01", "radius = 0.01\nclasses = [7]")
    with pytest.raises(ConfigurationError) as error:
        build(tmp_path, text)
    assert [remedy for _, remedy in error.value.problems] == [
        "give loss='bce', which is on the logits, and take the last Sigmoid off the model",
        "let layers begin with 2",
        "name classes among [0, 1]",
    ]
    text = with_line("training", 'optimizer = "adam"').replace("d.npz", "absent.npz")
    text = text.replace("layers = [2, 3, 2]", 'factory = "absent.py:make"')
    with pytest.raises(ConfigurationError) as error:
        build(tmp_path, text)
    for words in ("'adam'", "absent.npz", "factory = 'absent.py:make': no such file"):
        assert words in str(error.value)


def test_all_properties_that_cannot_be_answered(tmp_path: Path) -> None:
    asked = "[[property]]\nkind = 'accuracy'\npoints = [99]\n[[property]]\nkind = 'stable'\n"
    asked += "[[property]]\nkind = 'targeted'\nunsafe = 5\n"
    with pytest.raises(ConfigurationError) as error:
        build(tmp_path, GOOD + asked)
    assert "property 1 (accuracy)" in str(error.value)
    assert "property 2" not in str(error.value)
    assert "property 3 (targeted)" in str(error.value)


def test_batches_by_epochs(tmp_path: Path) -> None:
    schedule = "schedule = { kind = 'step', every = 1, unit = 'epoch' }"
    run = build(tmp_path, with_line("training", f"batches = [[[0, 1], [2]], [[3]]]\n{schedule}"))
    assert [rule.rate for rule in run.training.update_rules(3)] == pytest.approx([0.5, 0.5, 0.05])
    with pytest.raises(InvalidInputError, match="which of them make an epoch"):
        build(tmp_path, with_line("training", f"batches = [[0, 1], [2]]\n{schedule}"))


@pytest.mark.parametrize(
    ("kind", "value", "remedy"),
    [
        ("accuracy", "at_least = 70", "give at_least = 0.7, if 70 % is meant"),
        ("stable", "at_least = 70.5", "give at_least = 0.705"),
        ("collective", "at_least = 1000", "give a number from 0 to 1"),
        ("backdoor", "radius = 0.1\nat_most = 5", "give at_most = 0.05"),
        ("targeted", "unsafe = 0\nat_most = -1", "give a number from 0 to 1"),
    ],
)
def test_thresholds_of_shares(tmp_path: Path, kind: str, value: str, remedy: str) -> None:
    error = failure(tmp_path, f"{GOOD}[[property]]\nkind = '{kind}'\n{value}\n")
    assert "for a share, which lies between 0 and 1" in error.found
    assert error.remedy.startswith(remedy)


def test_a_loss_may_be_at_most_70(tmp_path: Path) -> None:
    build(tmp_path, f"{GOOD}[[property]]\nkind = 'loss'\nat_most = 70\n")
