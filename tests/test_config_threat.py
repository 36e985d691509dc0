"""[threat]: every option of the threat models from a file, and one error for what contradicts."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

import milp_agt as agt
from milp_agt.errors import ConfigurationError
from milp_agt.runfile.run_file import LoadedRun, load_config

BASE = """
[data]
path = "d.npz"
[model]
layers = [5, 2]
[training]
loss = "{loss}"
learning_rate = 0.5
[certify]
relaxation = "interval"
[threat]
budget = 1
"""


def load(tmp_path: Path, threat: str, loss: str = "cross_entropy") -> LoadedRun:
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.random((8, 2)), rng.integers(0, 3, (8, 1)), np.eye(2)[[0, 1] * 4]], 1)
    y = np.arange(8) % 2 if loss == "cross_entropy" else rng.random((8, 2))
    np.savez(tmp_path / "d.npz", X=x, y=y)
    path = tmp_path / "run.toml"
    path.write_text(BASE.format(loss=loss) + threat, encoding="utf-8")
    return load_config(path).build()


FEATURES = {
    "norm": ("norm = 2", {"norm": 2}),
    "norm in words": ('norm = "1"', {"norm": "1"}),
    "norm 0": ("norm = 0\ncoordinates = 2", {"norm": 0, "coordinates": 2}),
    "radius of a feature": ("radius = [0.1, 0, 0, 0, 0]", {"radius": [0.1, 0, 0, 0, 0]}),
    "radius of an entry": (f"radius = {[[0.1] * 5] * 8}", {"radius": [[0.1] * 5] * 8}),
    "no radius": ("radius = inf\ndomain = [0, 3]", {"radius": math.inf, "domain": (0, 3)}),
    "domain": (f"domain = [{[0.0] * 5}, {[9.0] * 5}]", {"domain": ([0.0] * 5, [9.0] * 5)}),
    "integer": ("integer = [2]", {"integer": [2]}),
    "categorical": ("categorical = [[3, 4]]", {"categorical": [[3, 4]]}),
    "missing": ("missing = -1", {"missing": -1}),
    "missing column": ("missing = { 2 = 0.5 }", {"missing": {2: 0.5}}),
    "rows": ("rows = [[1, 1, 0, 0, 0]]\nrow_limits = [0.1]", {"rows": ([[1, 1, 0, 0, 0]], [0.1])}),
    "samples": (
        "samples = [1, 5]\nstatic = false\nscope = 'batch'",
        {"samples": [1, 5], "static": False, "scope": "batch"},
    ),
}


@pytest.mark.parametrize("name", FEATURES)
def test_moves_of_features(tmp_path: Path, name: str) -> None:
    text, options = FEATURES[name]
    text = text if "radius =" in text else text + "\nradius = 0.1"
    options = {"radius": 0.1, **options}
    run = load(tmp_path, "kind = 'features'\n" + text)
    assert run.threat == agt.FeaturePoisoning(1, **options)
    data = (run.dataset.x_train, run.dataset.y_train)
    result = agt.certify(run.model, data, run.training, run.threat, relaxation="interval")
    assert result.reachable.mean_width > 0
    run = load(tmp_path, "kind = 'both'\ntarget = 1\n" + text)
    assert run.threat == agt.FeatureLabelPoisoning(1, target=1, **options)


def test_moves_of_labels(tmp_path: Path) -> None:
    kind = "kind = 'labels'\n"
    assert load(tmp_path, kind + "target = 1").threat == agt.LabelPoisoning(1, target=1)
    assert load(tmp_path, kind + "target = [0, 1]").threat == agt.LabelPoisoning(1, target=[0, 1])
    moved = load(tmp_path, kind + "radius = [0.1, 0.2]\nnorm = 1", "mse").threat
    assert moved == agt.LabelPoisoning(1, [0.1, 0.2], norm=1)
    both = load(tmp_path, "kind = 'both'\nradius = 0\nlabel_radius = 1\nlabel_norm = 2", "mse")
    assert both.threat == agt.FeatureLabelPoisoning(1, 0, 1, label_norm=2)


def test_whole_samples(tmp_path: Path) -> None:
    found = load(tmp_path, "kind = 'removal'\nsamples = [0, 2]\nscope = 'batch'").threat
    assert found == agt.Removal(1, samples=[0, 2], scope="batch")
    assert load(tmp_path, "kind = 'insertion'").threat == agt.Insertion(1)
    found = load(tmp_path, "kind = 'substitution'\nstatic = false").threat
    assert found == agt.Substitution(1, static=False)


BAD = {
    "kind = 'removal'\nstatic = false": ("static', which kind = 'removal'", "drop 'static'"),
    "kind = 'insertion'\nsamples = [1]": ("kind = 'insertion'", "drop 'samples'"),
    "kind = 'features'\nradius = 1\nnorm = 3": ("norm = 3", "norm should be"),
    "kind = 'features'\nradius = nan": ("radius = nan", "greater than or equal to 0"),
    "kind = 'features'\nradius = [0.1, -1]": ("-1", "greater than or equal to 0"),
    "kind = 'features'\nradius = 1\nnorm = 0": ("norm = 0", "coordinates"),
    "kind = 'features'\nradius = 1\ncoordinates = 1": ("coordinates = 1", "norm = 0 needs"),
    "kind = 'features'\nradius = 1\nrows = [[1]]": ("'rows' alone", "row_limits"),
    "kind = 'both'\nradius = 1\nrow_limits = [1]": ("'row_limits' alone", "rows = [[...]"),
    "kind = 'features'\nradius = 1\nmissing = { x = 1 }": ("missing =", "{ column = value }"),
    "kind = 'features'\nradius = 1\ndomain = [1]": ("domain = [1]", "domain should"),
    "kind = 'features'\nradius = 1\nsamples = []": ("samples = []", "samples should"),
    "kind = 'features'\nradius = 1\ncoordinate = 1": ("unknown key 'coordinate'", "'coordinates'"),
    "kind = 'labels'\ntarget = -1": ("target = -1", "greater than or equal to 0"),
    "kind = 'labels'\ntarget = []": ("target = []", "target should"),
    "kind = 'labels'\nnorm = 0": ("norm = 0", "norm should be"),
    "kind = 'labels'\ndomain = [0, 1]": ("'domain', which kind = 'labels'", "drop 'domain'"),
}


@pytest.mark.parametrize("text", BAD)
def test_bad_threats_of_a_file(tmp_path: Path, text: str) -> None:
    found, remedy = BAD[text]
    with refused("run.toml", found, remedy, kind=ConfigurationError):
        load(tmp_path, text)


SEPARATE = """
[threat]
kind = "separate"
{shared}
[threat.features]
budget = 2
radius = 0.1
samples = [0, 1, 2]
categorical = [[3, 4]]
[threat.labels]
budget = 1
target = 1
{more}
"""


def load_separate(tmp_path: Path, shared: str = "", more: str = "") -> LoadedRun:
    text = BASE.replace("[threat]\nbudget = 1\n", SEPARATE)
    np.savez(tmp_path / "d.npz", X=np.eye(5)[[0, 1, 3, 3, 4, 4]], y=np.arange(6) % 2)
    path = tmp_path / "run.toml"
    text = text.format(loss="cross_entropy", shared=shared, more=more)
    path.write_text(text, encoding="utf-8")
    return load_config(path).build()


@pytest.mark.parametrize(
    ("shared", "options"),
    [("", {}), ('static = false\nscope = "batch"', {"static": False, "scope": "batch"})],
)
def test_two_budgets(shared: str, options: dict[str, object], tmp_path: Path) -> None:
    features = agt.FeaturePoisoning(2, 0.1, samples=[0, 1, 2], categorical=[[3, 4]], **options)
    labels = agt.LabelPoisoning(1, target=1, **options)
    assert load_separate(tmp_path, shared).threat == agt.SeparatePoisoning(features, labels)


@pytest.mark.parametrize(
    ("shared", "more", "words"),
    [
        ("budget = 1", "", ("[threat]", "kind = 'separate' does not have", "drop 'budget'")),
        ("", "static = true", ("[threat.labels]", "unknown key 'static'", "to [threat]")),
        ("", "targets = 1", ("[threat.labels]", "unknown key 'targets'", "use 'target'")),
        ("", 'norm = "0"', ("labels.norm", "'0'", "should be")),
    ],
)
def test_bad_tables_of_two_budgets(
    shared: str, more: str, words: tuple[str, ...], tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError) as refusal:
        load_separate(tmp_path, shared, more)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    "threat",
    [
        'kind = "labels"\nclasses = [1]',
        'kind = "features"\nradius = 0.1\nclasses = [1]',
        'kind = "both"\nradius = 0.1\nclasses = [1]',
        'kind = "removal"\nclasses = [1]',
    ],
)
def test_classes_name_their_samples(tmp_path: Path, threat: str) -> None:
    run = load(tmp_path, threat)
    expected = np.flatnonzero(run.dataset.y_train == 1).tolist()
    assert expected
    assert list(run.threat.positions) == expected


@pytest.mark.parametrize(
    ("threat", "loss", "found", "remedy"),
    [
        ('kind = "labels"\nclasses = [1]\nsamples = [0]', "cross_entropy", "'samples' and", "one"),
        ('kind = "labels"\nclasses = [0, 7]', "cross_entropy", "of class 7", "among [0, 1]"),
        ('kind = "features"\nradius = 0.1\nclasses = [0]', "mse", "real numbers", "samples ="),
    ],
)
def test_classes_that_name_nothing_are_refused(
    tmp_path: Path, threat: str, loss: str, found: str, remedy: str
) -> None:
    with refused(found=found, remedy=remedy, kind=ConfigurationError):
        load(tmp_path, threat, loss)
