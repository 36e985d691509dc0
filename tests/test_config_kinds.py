"""[threat] and [[property]] of a run file."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from refusals import refused
from run_texts import DATA, certified, run_text

import milp_agt as agt
from milp_agt.errors import ConfigurationError
from milp_agt.properties.models import ReachableModels
from milp_agt.runfile.run_file import LoadedRun, load_config, table_types

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


KINDS = {
    "accuracy": "kind = 'accuracy'\nat_least = 0.0\ngroups = 'class'",
    "loss": "kind = 'loss'\nat_most = 100\non = 'train'",
    "stable": "kind = 'stable'\npositions = [0, 2]\ngroups = ['a', 'b']",
    "targeted": "kind = 'targeted'\nunsafe = [0, 2]\nat_most = 1.0",
    "targets": "kind = 'targeted'\ntargets = [0, [1, 2]]\npositions = [3, 1]",
    "ball": "kind = 'backdoor'\nradius = 0.1\ntarget = 2\nat_most = 1.0",
    "domain": "kind = 'backdoor'\nradius = [0.1, 0.0]\nlow = -10\nhigh = 10",
    "free": "kind = 'backdoor'\ncoordinates = [1]\nlow = -1\nhigh = [0.0, 1.0]",
    "patch": "kind = 'backdoor'\ncoordinates = [0]\nvalues = 3.0",
    "functional": "kind = 'functional'\ncoefficients = { '2.bias' = [1, -1, 0] }\nat_least = -99",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    y = np.arange(24) % 3
    np.savez(tmp_path / "d.npz", X=rng.normal(size=(24, 2)) + 2 * y[:, None], y=y)
    np.savez(tmp_path / "r.npz", X=rng.normal(size=(24, 2)), y=rng.normal(size=24))
    return tmp_path


def write(folder: Path, *properties: str, regression: bool = False) -> Path:
    text = run_text(
        data=DATA | ({"path": "r.npz"} if regression else {}),
        model={"layers": [2, 3, 1 if regression else 3]},
        training={"learning_rate": 0.2, "epochs": 3} | ({"loss": "mse"} if regression else {}),
        certify={"refute": "none"},
    )
    path = folder / "run.toml"
    path.write_text(text + "".join(f"[[property]]\n{p}\n" for p in properties), encoding="utf-8")
    return path


def test_every_kind_reaches_result_json_and_the_terminal(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = certified(write(folder, *KINDS.values()), "--points")
    out = capsys.readouterr().out
    by_name = {p["name"]: p for p in document["properties"]}
    assert list(by_name) == [
        "accuracy on test", "accuracy on test, class 0", "accuracy on test, class 1",
        "accuracy on test, class 2", "loss on train", "stable on test", "stable on test, group a",
        "stable on test, group b", "targeted (class [0, 2]) on test",
        "targeted (chosen classes) on test", "backdoor (radius 0.1, to class 2) on test",
        "backdoor (radius 0 to 0.1) on test", "backdoor (1 coordinate free) on test",
        "backdoor (1 coordinate patched) on test", "functional (2.bias) on parameters",
    ]  # fmt: skip
    for name, found in by_name.items():
        assert found["lower"] <= found["nominal"] <= found["upper"]
        assert name in out
        table = found["points"]
        assert (table is None) == bool(re.search(r"(test|train), | on parameters", name))
        if table is not None:
            assert f"{name}, point by point" in out
            # The worst mean of one poisoning is no worse than the mean of the worst of all.
            assert np.mean(table["lower"]) <= found["lower"] + 1e-12
            assert found["upper"] <= np.mean(table["upper"]) + 1e-12
    assert by_name["stable on test"]["points"]["position"] == [0, 2]
    assert by_name["stable on test"]["points"]["group"] == ["a", "b"]
    assert by_name["targeted (chosen classes) on test"]["points"]["position"] == [3, 1]
    assert by_name["accuracy on test"]["status"] == "PROVED"
    assert by_name["stable on test"]["status"] == "REPORTED"


def test_the_threshold_of_a_subgroup_counts(folder: Path) -> None:
    path = write(folder, "kind = 'accuracy'\ngroups = 'class'")
    document = certified(path)
    whole, *parts = (p["lower"] for p in document["properties"])
    worst = min(parts)
    assert worst < whole
    text = f"kind = 'accuracy'\ngroups = 'class'\nat_least = {whole}"
    document = certified(write(folder, text), code=1)
    assert document["properties"][0]["status"] == "PROVED"
    assert "OPEN" in {p["status"] for p in document["properties"][1:]}


@pytest.mark.parametrize(
    ("ends", "detail"),
    [("low = 0.0", "at least 0"), ("high = 0.5", "at most 0.5"), ("low = -1\nhigh = 1", "-1 to 1")],
)
def test_unsafe_outputs_of_a_regression(folder: Path, ends: str, detail: str) -> None:
    path = write(folder, f"kind = 'targeted'\n{ends}", "kind = 'loss'", regression=True)
    document = certified(path, "--quiet")
    found = document["properties"][0]
    assert found["detail"] == detail
    assert 0.0 <= found["lower"] <= found["upper"] <= 1.0


def test_every_kind_has_its_keys() -> None:
    assert {name for name in table_types() if name.startswith("property.")} == {
        f"property.{kind}"
        for kind in (
            *("accuracy", "collective", "loss", "stable"),
            *("targeted", "backdoor", "functional"),
        )
    }


WRONG = [
    ("kind = 'backdor'\nradius = 1", "kind = 'backdor'",
     "give one of 'accuracy', 'backdoor', 'collective'"),
    ("kind = 'backdoor'\nradus = 1", "unknown key 'radus'", "use 'radius'"),
    ("kind = 'accuracy'\nradius = 1", "key 'radius', which kind = 'accuracy' does not have",
     "drop 'radius'"),
    ("kind = 'backdoor'", "no trigger", "give radius"),
    ("kind = 'backdoor'\nradius = 1\nvalues = 2", "a trigger of 'radius' and 'values'",
     "coordinates with values"),
    ("kind = 'backdoor'\ncoordinates = [0]\nlow = 1", "'coordinates' and 'low'", "give radius"),
    ("kind = 'backdoor'\nradius = -1", "radius = -1", "greater than or equal to 0"),
    ("kind = 'backdoor'\nradius = nan", "radius = nan", "finite"),
    ("kind = 'targeted'", "no unsafe outputs", "unsafe = 1"),
    ("kind = 'targeted'\nunsafe = 1\nlow = 0", "'unsafe' beside 'low/high'", "give one of"),
    ("kind = 'functional'", "without the key 'coefficients'", "add 'coefficients'"),
    ("kind = 'accuracy'\npoints = []", "points = []", "at least 1 item"),
    ("kind = 'functional'\ncoefficients = {w = [1]}\non = 'test'", "key 'on'", "drop 'on'"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "found", "remedy"), WRONG)
def test_mistakes_in_the_file(folder: Path, text: str, found: str, remedy: str) -> None:
    with refused(found=found, remedy=remedy, kind=ConfigurationError):
        load_config(write(folder, text))


# One of each kind; what else a question refuses is tested with the question.
UNFIT = [
    ("kind = 'backdoor'\nradius = 1\ntarget = 3", "class of the model", "target 3", "0 to 2"),
    ("kind = 'targeted'\nunsafe = 3", "classes of the model", "[3", "0 to 2"),
    ("kind = 'accuracy'\npositions = [6]", "0..5", "position 6", "correct 'positions'"),
    ("kind = 'functional'\ncoefficients = {w = [1]}", "'w'", "0.weight", "state_dict"),
    ("kind = 'functional'\ncoefficients = {'2.bias' = [[1, 2], [3]]}", "nested lists",
     "inhomogeneous", "shape of the parameter"),
    ("kind = 'functional'\ncoefficients = {'2.bias' = [[1, 2, 3], [3, 2, 1]]}", "one functional",
     "2 rows", "split"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "asked", "found", "remedy"), UNFIT)
def test_what_cannot_be_answered_is_refused_before_any_work(
    folder: Path, text: str, asked: str, found: str, remedy: str
) -> None:
    config = load_config(write(folder, "kind = 'loss'", text))
    with refused(asked, found, remedy, kind=ConfigurationError) as error:
        config.build()
    assert "property 2" in error.value.asked


@pytest.mark.parametrize("kind", ["accuracy", "stable", "backdoor"])
def test_a_regression_has_no_classes(folder: Path, kind: str) -> None:
    extra = "\nradius = 0.1" if kind == "backdoor" else ""
    config = load_config(write(folder, f"kind = '{kind}'{extra}", regression=True))
    with pytest.raises(ConfigurationError, match="a regression"):
        config.build()


def test_checks_before_the_first_step_bound_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All kinds are checked by one pass of intervals; not one linear form of a test point is made."""

    def bounded(*_: object) -> None:
        raise AssertionError("a linear form was made before the first step")

    for name in ("rows_of", "_summed", "_bound_piece"):
        monkeypatch.setattr(ReachableModels, name, bounded)
    config = load_config(write(folder, *KINDS.values(), "kind = 'collective'"))
    assert len(config.build().properties) == len(KINDS) + 1
    ends = "kind = 'targeted'\nlow = 0.0"
    load_config(write(folder, ends, "kind = 'loss'", regression=True)).build()
