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


@pytest.mark.parametrize(
    ("text", "found", "remedy"),
    [
        (GOOD.replace("learning_rate", "leaning_rate"), "[training] unknown key 'leaning_rate'",
         "use 'learning_rate'"),
        (with_line("data", "standardize = true"), "[data] unknown key 'standardize'",
         "use 'standardise'"),
        (with_line("model", "epochs = 3"), "[model] unknown key 'epochs'",
         "move 'epochs' to [training]"),
        (with_line("model", "zzz = 3"), "[model] unknown key 'zzz'", "the keys of [model] are"),
        (with_line("threat", "raduis = 3"), "[threat] unknown key 'raduis'", "use 'radius'"),
        (GOOD + "[certfy]\nwindow = 1\n", "unknown table 'certfy'", "use [certify]"),
        (GOOD + "[certify]\nwindows = 1\n", "[certify] unknown key 'windows'", "use 'window'"),
        ("seed = 1\n" + GOOD, "unknown key 'seed'", "the tables are data, model"),
        (GOOD + "[[property]]\nkind = 'loss'\n[[property]]\nkind = 'loss'\natleast = 1\n",
         "[[property]] number 2 unknown key 'atleast'", "use 'at_least'"),
        (with_line("training", "schedule = { kind = 'inverse_time', decy = 1.0 }"),
         "[training.schedule] unknown key 'decy'", "use 'decay'"),
        (GOOD.replace("'features'", "'labels'").replace('"features"', '"labels"')
         .replace("radius = 0.01", "coordinates = 1"),
         "[threat] key 'coordinates', which kind = 'labels' does not have", "drop 'coordinates'"),
        (GOOD.replace("0.5", '"fast"'), "[training] learning_rate = 'fast'",
         "learning_rate should be a valid number"),
        (GOOD.replace("0.5", "nan"), "[training] learning_rate = nan",
         "learning_rate should be a finite number"),
        (GOOD.replace("0.5", "-1"), "[training] learning_rate = -1",
         "learning_rate should be greater than 0"),
        (GOOD.replace("[threat]", "clip = 0\n[threat]"), "[training] clip = 0",
         "clip should be greater than or equal to 1e-100"),
        (GOOD.replace("budget = 1", "budget = 1.5"), "[threat] budget = 1.5",
         "budget should be a valid integer"),
        (GOOD.replace("0.01", "-0.01"), "[threat] radius = -0.01",
         "radius should be greater than or equal to 0 or a valid list"),
        (GOOD.replace("[2, 3, 2]", "[2, 0.5, 2]"), "[model] layers[1] = 0.5",
         "layers[1] should be a valid integer"),
        (GOOD.replace('"features"', '"pixels"'), "[threat] kind = 'pixels'",
         "give one of 'both', 'features', 'insertion'"),
        (GOOD.replace('kind = "features"', ""), "[threat] without the key 'kind'", "add 'kind'"),
        (GOOD.replace("learning_rate = 0.5", ""), "[training] without the key 'learning_rate'",
         "add 'learning_rate'"),
        (GOOD + "[certify]\nwindow = 0\n", "[certify] window = 0",
         "window should be greater than or equal to 1 or 'T'"),
        (GOOD + "[certify]\nrelaxation = 'crown'\n", "[certify] relaxation = 'crown'",
         "relaxation should be one of interval, zonotope, linear, lp, milp, qcqp, miqp, auto"),
        (GOOD + "[property]\nkind = 'loss'\n", "[[property]] = {'kind': 'loss'}",
         "[[property]] should be a list of tables"),
        (GOOD + "[[property]]\nkind = 'loss'\nat_least = 0\nat_most = 1\n",
         "[[property]] number 1 both 'at_least' and 'at_most'", "split it into two properties"),
        (GOOD.replace('path = "d.npz"', ""), "[data] neither 'name' nor 'path'",
         "give a built-in name"),
        (with_line("data", 'name = "iris"'), "[data] both 'name' and 'path'",
         "give a built-in name"),
        (GOOD.replace("layers = [2, 3, 2]", ""), "[model] neither 'layers' nor 'factory'",
         "give one of"),
        (with_line("model", 'factory = "m.py:make"'), "[model] 'layers' and 'factory'",
         "give one of"),
        (GOOD.replace("layers = [2, 3, 2]", 'factory = "m.py:make"\nbias = true'),
         "[model] bias beside 'factory', which builds the whole module", "drop bias"),
        (GOOD.replace("[model]\nlayers = [2, 3, 2]", ""), "no table [model]",
         "add the table [model]"),
        ("data = 3\n" + GOOD.replace("[data]", "[certify]").replace('path = "d.npz"', "")
         .replace("test_fraction = 0.25", ""), "[data] = 3", "[data] should be a table"),
        (GOOD.replace("[2, 3, 2]", "{ a = 1 }"), "[model] layers = {'a': 1}",
         "layers should be a valid list"),
        # Of several forms the nearest is judged.
        (with_line("training", "schedule = [0.0, 0.1]"), "[training] schedule[0] = 0.0",
         "schedule[0] should be greater than 0"),
        (with_line("training", "schedule = { kind = 'step', every = 0 }"),
         "[training] schedule.every = 0", "schedule.every should be greater than or equal to 1"),
        (with_line("training", "schedule = 'slow'"), "[training] schedule = 'slow'",
         "schedule should be a valid list or a table"),
        (with_line("training", "batches = [[0, -1]]"), "[training] batches[0][1] = -1",
         "batches[0][1] should be greater than or equal to 0"),
        (with_line("training", "batches = [[[0], [0, -1]]]"), "[training] batches[0][1][1] = -1",
         "batches[0][1][1] should be greater than or equal to 0"),
        (GOOD.replace("[2, 3, 2]", "[2]"), "[model] layers = [2]",
         "layers should be a list of at least 2 items"),
        (with_line("threat", "samples = []"), "[threat] samples = []",
         "samples should be a list of at least 1 item"),
        (with_line("training", "projection = [0, 1, 2]"), "[training] projection = [0, 1, 2]",
         "projection should be a list of at most 2 items"),
        (GOOD + "[[property]]\nkind = 'functional'\ncoefficients = {}\n",
         "[[property]] number 1 coefficients = {}",
         "coefficients should be a table of at least 1 item"),
        (with_line("training", "record = 'run.npz'"),
         "[training] 'learning_rate', 'loss' beside 'record'",
         "drop 'learning_rate', 'loss': the record holds all options"),
        # TOML grants whole numbers 64 bits.
        (with_line("model", "seed = 9223372036854775808"), "[model] seed is a whole number of 64 bits",
         "give one below 2^63, as TOML has them"),
        (with_line("training", "batches = [[0, 99999999999999999999]]"),
         "[training] batches[0][1] is a whole number of 67 bits",
         "give one below 2^63, as TOML has them"),
        (GOOD + f"[certify]\nwindow = 0x{'f' * 5000}\n",
         "[certify] window is a whole number of 20000 bits", "give one below 2^63, as TOML has them"),
    ],
)  # fmt: skip
def test_unknown_keys_and_wrong_values(tmp_path: Path, text: str, found: str, remedy: str) -> None:
    """Unknown keys name their table, and the nearest known key; values say what they should be."""
    error = failure(tmp_path, text)
    assert error.found == found
    assert error.remedy.startswith(remedy)
    assert len(error.problems) == 1
    assert "\n" not in str(error)
