"""What the page and the command say of a run file is what the tables are."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_texts import run_text

import milp_agt as agt
from milp_agt.attacks import Search
from milp_agt.cli import main
from milp_agt.core.option_table import Table
from milp_agt.core.program import Array, Program
from milp_agt.core.results import SolveResult
from milp_agt.runfile.reference import (
    ABSENT,
    REQUIRED,
    Option,
    json_schema,
    option_tables,
    section,
)
from milp_agt.runfile.run_file import RunConfig, table_types
from milp_agt.runfile.tables import CertifyTable, RecordTable
from milp_agt.solvers.highs import Highs

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TABLES = {table.name: table for table in option_tables()}


def all_tables(table: type[Table] = Table) -> Iterator[type[Table]]:
    for below in table.__subclasses__():
        yield below
        yield from all_tables(below)


def test_every_key_is_described_in_one_sentence() -> None:
    described = 0
    for table in set(all_tables()) - {RunConfig}:
        for key, field in table.model_fields.items():
            of_table = isinstance(field.annotation, type) and issubclass(field.annotation, Table)
            if of_table and not field.description:
                assert field.annotation.__doc__, f"{table.__name__}.{key}"
                continue
            # Keys that only read_properties has stand in the same tables.
            if key == "properties":
                continue
            assert field.description, f"{table.__name__}.{key} has no description"
            assert re.fullmatch(r"[^\n]*[^.]\.", field.description), field.description
            described += 1
    assert described > 100


@pytest.mark.parametrize("name", TABLES)
def test_every_table_says_what_it_is(name: str) -> None:
    table = TABLES[name]
    assert table.about.endswith(".")
    assert all(about.endswith(".") for about in table.kinds.values())
    assert all(set(option.kinds) <= set(table.kinds) for option in table.options)


def test_the_keys_are_those_that_errors_name() -> None:
    """Errors know the keys of each kind apart, as ``threat.KIND``."""
    named: dict[str, set[str]] = {}
    for table in TABLES.values():
        for kind in table.kinds or ("",):
            keys = {o.key for o in table.options if not o.kinds or kind in o.kinds}
            named[f"{table.name}.{kind}".rstrip(".")] = keys
    of_parts = {f"threat.{part}": named.pop(f"threat.{part}") for part in ("features", "labels")}
    known = {name: set(table.model_fields) for name, table in table_types().items()}
    known["training"] |= set(RecordTable.model_fields)
    for part in ("features", "labels"):
        assert known.pop(f"threat.separate.{part}") == of_parts[f"threat.{part}"]
    for part in ("features", "labels"):  # the kind and the table inside "separate" share a name
        table = TABLES["threat"]
        named[f"threat.{part}"] = {o.key for o in table.options if not o.kinds or part in o.kinds}
    assert named == known


def option(table: str, key: str, kind: str = "") -> Option:
    (found,) = [
        o
        for o in TABLES[table].options
        if o.key == key and (not kind or not o.kinds or kind in o.kinds)
    ]
    return found


@pytest.mark.parametrize(
    ("table", "key", "kind", "words"),
    [
        ("certify", "workers", "", "whole number >= 1"),
        ("certify", "window", "", 'whole number >= 1 or "T"'),
        ("certify", "inner_bounds", "", 'one of "interval", "linear"'),
        ("certify", "time_limit", "", "seconds >= 0"),
        ("certify", "memory", "", 'text such as "4GiB" or whole number >= 1'),
        ("certify", "attack", "", "true or false"),
        ("data", "test_fraction", "", "number >= 0 and < 1"),
        ("data", "image_size", "", "list of 2 whole numbers >= 1"),
        ("model", "layers", "", "list of 2 or more whole numbers >= 1"),
        (
            "training",
            "batches",
            "",
            "list of lists of whole numbers >= 0 or list of lists of lists of whole numbers >= 0",
        ),
        ("training", "schedule", "", "list of numbers > 0 or table [training.schedule]"),
        ("training.schedule", "floor", "cosine", "number >= 0"),
        ("threat", "norm", "labels", 'one of "inf", "2", "1", 2, 1'),
        ("threat", "norm", "both", 'one of "inf", "2", "1", "0", 2, 1, 0'),
        ("threat", "missing", "features", "number or table of numbers by name"),
        ("threat", "domain", "features", "list of 2 values, each number or list of numbers"),
        ("property", "groups", "loss", '"class" or list of values, each text or whole number'),
        ("property", "coefficients", "functional", "table of lists by name"),
    ],
)
def test_values_in_words(table: str, key: str, kind: str, words: str) -> None:
    assert option(table, key, kind).values == words


def test_names_come_from_the_registries() -> None:
    from milp_agt.formulations.loss import losses

    assert re.findall(r'"(\w+)"', option("training", "loss").values) == list(losses())
    assert re.findall(r'"(\w+)"', option("data", "name").values) == list(agt.data.dataset_names())


@pytest.mark.parametrize(("name", "made"), [("certify", CertifyTable()), ("attack", Search())])
def test_defaults_are_those_of_the_objects(name: str, made: object) -> None:
    shown = {o.key: o.default for o in TABLES[name].options}
    assert REQUIRED not in shown.values()
    for key, default in shown.items():
        value = getattr(made, key)
        if default == ABSENT:
            assert value is None or is_dataclass(value), key
        else:
            assert tomllib.loads(f"x = {default}")["x"] == value, key


def test_required_keys_are_those_that_a_file_must_have() -> None:
    assert {o.key for o in TABLES["training"].options if o.default == REQUIRED} == {
        "loss",
        "learning_rate",
    }
    assert option("threat", "radius", "features").default == REQUIRED
    assert option("threat", "radius", "labels").default == ABSENT


def test_text_is_as_wide_as_the_terminal() -> None:
    for table in TABLES.values():
        shown = section(table, 60)
        assert max(map(len, shown.splitlines())) <= 60
        assert all(f"\n- `{o.key}`: " in shown for o in table.options)


# The command


def test_options_prints_all_tables_or_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options"]) == 0
    everything = capsys.readouterr().out
    assert re.findall(r"^### `(.*)`$", everything, re.M) == [t.header for t in TABLES.values()]
    for asked in ("property", "[[property]]"):
        assert main(["options", asked]) == 0
        one = capsys.readouterr().out
        assert one.strip() in everything
        assert "; all kinds but functional." in " ".join(one.split())


@pytest.mark.parametrize(
    ("asked", "found", "remedy"),
    [
        ("certfy", "no such table", "did you mean 'certify'?"),
        ("[[properties]]", "no such table", "did you mean 'property'?"),
        (
            "zzz",
            "no such table",
            "choose from data, model, training, training.schedule, training.group, threat",
        ),
        ("workers", "a key of [certify]", "milp-agt options certify"),
    ],
)
def test_an_unknown_table_is_told_in_three_parts(
    asked: str, found: str, remedy: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["options", asked]) == 2
    err = capsys.readouterr().err
    assert f"Print the options of the table '{asked}'." in err
    assert f"Found: {found}." in err
    assert remedy in err.partition("What to do: ")[2]


def test_one_table_has_no_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "certify", "--schema"]) == 2
    assert "--schema: not allowed with argument TABLE" in capsys.readouterr().err


# The schema


@pytest.fixture(scope="module")
def check() -> Callable[[object], object]:
    """The schema as an editor uses it."""
    fastjsonschema = pytest.importorskip("fastjsonschema")
    checked: Callable[[object], object] = fastjsonschema.compile(json_schema(), use_default=False)
    return checked


def test_the_command_prints_the_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["options", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out) == json_schema()
    assert "null" not in json.dumps(json_schema())


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.toml")), ids=lambda path: path.stem)
def test_every_example_fits_the_schema(path: Path, check: Callable[[object], object]) -> None:
    check(tomllib.loads(path.read_text("utf-8")))


def test_the_file_of_the_page_fits_the_schema(check: Callable[[object], object]) -> None:
    (run,) = re.findall(r"```toml\n(.*?)```", (EXAMPLES / "RUNFILE.md").read_text("utf-8"), re.S)
    check(tomllib.loads(run))
    assert RunConfig.model_validate(tomllib.loads(run)).certify == CertifyTable()


@pytest.mark.parametrize(
    ("table", "key", "value"),
    [
        ("certify", "widnow", 1),
        ("certify", "window", 0),
        ("certify", "relaxation", "crown"),
        ("certify", "solve_gap", -0.5),
        ("training", "clip_mode", "absolute"),
        ("threat", "kind", "theft"),
        ("threat", "label_radius", 0.1),
        ("model", "layers", [2]),
    ],
)
def test_the_schema_refuses_what_the_tables_refuse(
    table: str, key: str, value: object, check: Callable[[object], object]
) -> None:
    run: dict[str, Any] = tomllib.loads((EXAMPLES / "iris.toml").read_text("utf-8"))
    check(run)
    run.setdefault(table, {})[key] = value
    with pytest.raises(ValueError):
        RunConfig.model_validate(run)
    with pytest.raises(ValueError):
        check(run)


# Limits of each solve

LIMITED = run_text(
    [{"kind": "accuracy", "on": "train"}],
    data={"path": "d.npz", "test_fraction": 0.0},
    model={"layers": [2, 1]},
    training={"loss": "bce", "epochs": 1},
    threat={"kind": "features", "budget": 1, "radius": 0.01},
)
LIMITED += '[certify]\nrelaxation = "lp"\nsolver = "highs"\n'


@pytest.mark.parametrize(
    ("line", "limits"),
    [
        ("", agt.Limits()),  # what certify() takes, too
        ("solve_time_limit = 7.5", agt.Limits(time=7.5)),
        ("solve_gap = 0.25", agt.Limits(gap=0.25)),
        ("solve_nodes = 3", agt.Limits(nodes=3)),
    ],
)
def test_each_limit_has_its_key(line: str, limits: agt.Limits) -> None:
    assert CertifyTable.model_validate(tomllib.loads(line)).solve_limits == limits


@pytest.mark.parametrize(
    "command",
    ["certify RUN --out out --no-report", "compare RUN --relaxations lp", "sweep RUN --budgets 1"],
)
def test_limits_of_a_file_reach_the_solver(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", X=rng.normal(size=(4, 2)), y=np.arange(4) % 2)
    asked = {"solve_time_limit": 7.5, "solve_gap": 0.25, "solve_nodes": 3}
    lines = "".join(f"{key} = {value}\n" for key, value in asked.items())
    (tmp_path / "run.toml").write_text(LIMITED + lines, encoding="utf-8")
    seen: set[agt.Limits] = set()
    opened = Highs.open

    @dataclasses.dataclass
    class Watched:
        inner: Any

        def minimise(self, objective: Array, limits: agt.Limits) -> SolveResult:
            seen.add(limits)
            found: SolveResult = self.inner.minimise(objective, limits)
            return found

        def close(self) -> None:
            self.inner.close()

    def watched(self: Highs, program: Program) -> Watched:
        return Watched(opened(self, program))

    monkeypatch.setattr(Highs, "open", watched)
    monkeypatch.chdir(tmp_path)
    assert main(command.replace("RUN", "run.toml").split()) == 0
    assert seen == {agt.Limits(time=7.5, gap=0.25, nodes=3)}
