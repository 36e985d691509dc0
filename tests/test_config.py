"""RUN.toml: what is accepted is used, what is not accepted is named with the nearest known key."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import refused

from milp_agt.errors import ConfigurationError, InvalidInputError, MilpAgtError
from milp_agt.runfile.run_file import LoadedRun, RunConfig, load_config

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"

GOOD = """
[data]
path = "d.npz"
test_fraction = 0.25

[model]
layers = [2, 3, 2]

[training]
loss = "cross_entropy"
learning_rate = 0.5

[threat]
kind = "features"
budget = 1
radius = 0.01
"""


def load(tmp_path: Path, text: str) -> RunConfig:
    rng = np.random.default_rng(0)
    x, y = np.eye(2), np.array([0, 1])
    np.savez(tmp_path / "three.npz", x_train=x, y_train=y, x_test=x, y_test=y * 0 + 2)
    np.savez(tmp_path / "d.npz", X=rng.normal(size=(12, 2)), y=np.arange(12) % 2)
    path = tmp_path / "run.toml"
    path.write_text(text, encoding="utf-8")
    return load_config(path)


def build(tmp_path: Path, text: str) -> LoadedRun:
    return load(tmp_path, text).build()


def failure(tmp_path: Path, text: str) -> ConfigurationError:
    with pytest.raises(ConfigurationError) as error:
        load(tmp_path, text)
    assert str(tmp_path / "run.toml") in error.value.asked
    assert error.value.found
    assert error.value.remedy
    assert isinstance(error.value, InvalidInputError)
    assert isinstance(error.value, ValueError)
    return error.value


def test_minimal_file_builds(tmp_path: Path) -> None:
    run = build(tmp_path, GOOD)
    assert run.dataset.x_train.shape == (9, 2)
    assert [tuple(p.shape) for p in run.model.parameters()] == [(3, 2), (3,), (2, 3), (2,)]
    assert all(p.dtype == torch.float64 for p in run.model.parameters())
    assert (run.training.loss, run.training.learning_rate) == ("cross_entropy", 0.5)
    assert (run.threat.budget, run.threat.radius) == (1, 0.01)
    assert run.options.relaxation == "linear"
    assert run.properties == ()


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_examples_build(path: Path) -> None:
    pytest.importorskip("sklearn")
    run = load_config(path).build({"time_limit": 1e-3})
    assert len(run.dataset.x_test) > 0
    assert run.properties
    run.certify()  # in no time: its threat fits its data


@pytest.mark.parametrize(
    "path", sorted((EXAMPLES / "full").glob("*.toml")), ids=lambda path: path.stem
)
def test_full_sizes_are_valid_run_files(path: Path) -> None:
    """Their data are not shipped: they are read and checked, not built."""
    config = load_config(path)
    assert f"`{path.name}`" in (path.parent / "README.md").read_text("utf-8")
    assert (config.data.name is None) != (config.data.path is None)
    factory = config.model.factory
    assert factory is None or (path.parent / factory.split(":")[0]).is_file()


def with_line(table: str, line: str) -> str:
    """The good file with one more line in one of its tables."""
    return GOOD.replace(f"[{table}]", f"[{table}]\n{line}")


def test_removed_options_are_dropped_with_a_word(tmp_path: Path) -> None:
    older = 'selections = "charged"\nalpha_steps = 10\nalpha_every = 2\nstrengthening = { pieces = 2 }\n'
    with pytest.warns(UserWarning, match="has no effect: it was removed, ") as told:
        options = load(tmp_path, f"{GOOD}[certify]\n{older}").certify
    assert len(told) == 4
    assert dict(options) == dict(load(tmp_path, GOOD).certify)


def test_a_mark_of_the_byte_order_is_no_syntax_error(tmp_path: Path) -> None:
    """As editors on Windows put it in front of UTF-8."""
    (tmp_path / "run.toml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert load_config(tmp_path / "run.toml").model.layers == [2, 3, 2]


def test_unreadable_files(tmp_path: Path) -> None:
    assert "line 1" in failure(tmp_path, "a = = 1").found
    assert "not TOML" in failure(tmp_path, f"a = {'9' * 5000}").found
    with pytest.raises(ConfigurationError, match="No such file"):
        load_config(tmp_path / "absent.toml")
    with pytest.raises(ConfigurationError, match="directory"):
        load_config(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(ConfigurationError, match="not TOML"):
        load_config(tmp_path / "latin.toml")


def test_every_option_of_a_full_file_arrives(tmp_path: Path) -> None:
    run = build(
        tmp_path,
        """
[data]
path = "d.npz"
samples = 10
test_fraction = 0.0
seed = 3
standardise = true
[model]
layers = [2, 4, 4, 1]
activation = "tanh"
bias = false
seed = 5
[training]
loss = "bce"
learning_rate = 0.25
epochs = 2
batch_size = 4
shuffle_seed = 7
momentum = 0.9
nesterov = true
weight_decay = 0.01
schedule = { kind = "inverse_time", decay = 0.5, floor = 0.125 }
clip = 0.75
clip_mode = "clamp"
[threat]
kind = "both"
budget = 2
radius = [0.1, 0.2]
label_radius = 0.5
norm = "inf"
samples = [0, 3]
static = false
scope = "batch"
[certify]
relaxation = "lp"
window = "T"
program_window = 1
inner_bounds = "interval"
solver = "highs"
device = "cpu"
memory = "1GiB"
time_limit = 60
[[property]]
kind = "accuracy"
at_least = 0.5
on = "train"
[[property]]
kind = "loss"
at_most = 1
on = "train"
""",
    )
    assert len(run.dataset.x_train) == 10
    assert np.allclose(run.dataset.x_train.mean(axis=0), 0)
    assert [type(m).__name__ for m in run.model] == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
    assert all(m.bias is None for m in run.model if isinstance(m, torch.nn.Linear))
    training = run.training
    assert (training.epochs, training.batch_size, training.shuffle_seed) == (2, 4, 7)
    assert (training.momentum, training.nesterov, training.weight_decay) == (0.9, True, 0.01)
    assert (training.clip, training.clip_mode) == (0.75, "clamp")
    assert [rule.rate for rule in training.update_rules(3)] == pytest.approx(
        [0.25, 0.25 / 1.5, 0.125]
    )
    threat = run.threat
    assert np.array_equal(threat.radius, [0.1, 0.2])
    assert threat.label_radius == 0.5
    assert list(threat.samples) == [0, 3]
    assert (threat.budget, threat.static, threat.scope) == (2, False, "batch")
    options = run.options
    assert (options.relaxation, options.window, options.program_window) == ("lp", "T", 1)
    assert options.inner_bounds == "interval"
    assert (options.solver, options.memory, options.time_limit) == ("highs", "1GiB", 60)
    assert [(p.kind, p.at_least, p.at_most) for p in run.properties] == [
        ("accuracy", 0.5, None),
        ("loss", None, 1.0),
    ]


def test_recorded_batches_and_rates(tmp_path: Path) -> None:
    lines = "batches = [[0, 1], [2]]\nschedule = [0.5, 0.25]"
    training = build(tmp_path, with_line("training", lines)).training
    assert [list(b) for b in training.batch_order(9)] == [[0, 1], [2]]
    assert [rule.rate for rule in training.update_rules(2)] == [0.5, 0.25]


def test_seed_fixes_the_parameters_and_leaves_the_global_generator(tmp_path: Path) -> None:
    torch.manual_seed(11)
    state = torch.random.get_rng_state()
    first = build(tmp_path, GOOD).model.state_dict()
    assert torch.equal(state, torch.random.get_rng_state())
    again = build(tmp_path, GOOD).model.state_dict()
    other = build(tmp_path, with_line("model", "seed = 1")).model.state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_images_are_flattened(tmp_path: Path) -> None:
    path = tmp_path / "images.npz"
    np.savez(path, X=np.zeros((4, 3, 3)), y=np.array([0, 1, 0, 1]))
    text = GOOD.replace("d.npz", "images.npz").replace("[2, 3, 2]", "[9, 2]")
    model = build(tmp_path, text).model
    assert model(torch.zeros(4, 3, 3, dtype=torch.float64)).shape == (4, 2)


def test_state_file(tmp_path: Path) -> None:
    saved = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2))
    text = with_line("model", 'state = "state.pt"')
    torch.save(saved.state_dict(), tmp_path / "state.pt")
    with pytest.warns(UserWarning, match=r"state\.pt are not float64"):
        model = build(tmp_path, text).model
    assert torch.equal(model[0].weight, saved[0].weight.double())
    torch.save(saved.double().state_dict(), tmp_path / "state.pt")
    assert torch.equal(build(tmp_path, text).model[0].weight, saved[0].weight)


def test_bad_state_files(tmp_path: Path) -> None:
    text = with_line("model", 'state = "state.pt"')
    cases: list[tuple[Any, str, str]] = [
        ({"0.weight": torch.zeros(2, 2)}, "0.weight (2, 2) where the model has (3, 2)",
         "the architecture that was saved"),
        ([1, 2], "an object of type list that is not a state_dict", "torch.save"),
        (torch.nn.Linear(2, 3), "cannot load with weights_only", "torch.save"),
    ]  # fmt: skip
    for saved, found, remedy in cases:
        torch.save(saved, tmp_path / "state.pt")
        with refused("state.pt", found, remedy, kind=ConfigurationError):
            build(tmp_path, text)
    (tmp_path / "state.pt").write_bytes(b"junk")
    with pytest.raises(ConfigurationError, match="cannot load"):
        build(tmp_path, text)
    (tmp_path / "state.pt").unlink()
    with pytest.raises(ConfigurationError, match="no such file"):
        build(tmp_path, text)


FACTORY = GOOD.replace("layers = [2, 3, 2]", 'factory = "m.py:make"\nseed = 4')


def test_factory(tmp_path: Path) -> None:
    code = "from torch import nn\ndef make():\n    return nn.Sequential(nn.Linear(2, 2))"
    (tmp_path / "m.py").write_text(code)
    with pytest.warns(UserWarning, match="not float64"):
        assert build(tmp_path, FACTORY).model[0].weight.dtype == torch.float64
    (tmp_path / "m.py").write_text(code + ".double()")
    first, again = build(tmp_path, FACTORY).model, build(tmp_path, FACTORY).model
    assert torch.equal(first[0].weight, again[0].weight)


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("def made():\n    pass\n", "no function 'make'"),
        ("def make():\n    return 3\n", "an object of type int"),
        ("def make():\n    return 1 / 0\n", "ZeroDivisionError: division by zero"),
        ("def make(:\n", "SyntaxError"),
        ("make = 3\n", "an object of type NoneType"),
        (None, "no Python file at"),
    ],
)
def test_bad_factories(tmp_path: Path, code: str | None, found: str) -> None:
    if code is not None:
        (tmp_path / "m.py").write_text(code)
    with refused("m.py:make", found, kind=ConfigurationError):
        build(tmp_path, FACTORY)


def test_factory_without_a_function_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"no 'file\.py:function'"):
        build(tmp_path, FACTORY.replace("m.py:make", "m.py"))


@pytest.mark.parametrize(
    ("text", "asked", "found"),
    [
        (GOOD.replace("[2, 3, 2]", "[4, 3, 2]"), "layers = [4, 3, 2]", "2 features"),
        (GOOD.replace("d.npz", "absent.npz"), "absent.npz", "no file at"),
        (GOOD.replace("cross_entropy", "cross_entropie"), "cross_entropie", "no such loss"),
        (with_line("data", "noise = 0.1"), "d.npz", "only the generated set"),
        (
            GOOD.replace("cross_entropy", "mse") + "[[property]]\nkind = 'accuracy'\n",
            "property 1 (accuracy)",
            "loss 'mse', a regression",
        ),
        (
            GOOD.replace("d.npz", "three.npz").replace("test_fraction = 0.25", ""),
            "Test labels must be classes 0..1",
            "from 2 to 2",
        ),
        (
            GOOD.replace("0.25", "0.0") + "[[property]]\nkind = 'accuracy'\n",
            "property 1 (accuracy)",
            "without a test part",
        ),
    ],
)
def test_parts_that_do_not_fit(tmp_path: Path, text: str, asked: str, found: str) -> None:
    config = load(tmp_path, text)
    with refused(asked, found, kind=MilpAgtError):
        config.build()


def test_the_readable_form_in_a_result_is_the_file(tmp_path: Path) -> None:
    config = load(tmp_path, GOOD)
    dumped = config.model_dump(by_alias=True, exclude_unset=True, mode="json")
    assert dumped == tomllib.loads(GOOD)
