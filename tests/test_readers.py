"""Files as people keep them: read rightly, or refused with a cause and a remedy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import refused
from test_sources import MINUTES, household, medmnist, road

from milp_agt.data.dataset import Dataset, load_dataset
from milp_agt.errors import ConfigurationError, InvalidInputError
from milp_agt.runfile.networks import factory_network


def table(tmp_path: Path, text: str, name: str = "d.csv", **options: Any) -> Dataset:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_dataset(path, **{"test_fraction": 0, "target": "y", **options})


READ = {
    "semicolons": ("a;b;y\n1;2;0\n3;4;1\n", ""),
    "tabs": ("a\tb\ty\n1\t2\t0\n3\t4\t1\n", ""),
    "bars": ("a|b|y\n1|2|0\n3|4|1\n", ""),
    "the separator named by Excel": ("sep=;\na;b;y\n1;2;0\n3;4;1\n", ""),
    "quotes": ('"a","b","y"\n"1","2","0"\n"3","4","1"\n', ""),
    "lines of Windows": ("a,b,y\r\n1,2,0\r\n3,4,1\r\n", ""),
    "a mark of the byte order": ("\ufeffa,b,y\n1,2,0\n3,4,1\n", ""),
    "blanks around cells": ("a, b, y\n1, 2, 0\n 3 ,4 , 1\n", ""),
    "empty lines": ("a,b,y\n\n1,2,0\n\n3,4,1\n\n", ""),
    "an index of pandas": (",a,b,y\n0,1,2,0\n1,3,4,1\n", "column 1, which has no name and numbers"),
    "an index after a split": (
        ",a,b,y\n71,1,2,0\n8,3,4,1\n",
        "numbers the rows, was left out ('71'",
    ),
    "an index read twice": ("Unnamed: 0,a,b,y\n0,1,2,0\n1,3,4,1\n", "numbers the rows"),
    "a separator at the end": ("a,b,y,\n1,2,0,\n3,4,1,\n", "column 4, which is empty"),
    "truth values": ("a,b,c,y\n1,2,True,0\n3,4,FALSE,1\n", "column 'c' were read as 1 and 0"),
    "decimal commas": ("a;b;y\n1,0;2,0;0\n3,0;4,00;1\n", "decimal commas were read as points"),
    "quoted decimal commas": ('a,b,y\n"1,0",2,0\n"3,0",4,1\n', "decimal commas"),
}


@pytest.mark.parametrize("name", READ)
def test_tables_that_can_mean_one_thing_only(tmp_path: Path, name: str) -> None:
    text, note = READ[name]
    data = table(tmp_path, text)
    assert data.x_train[:, :2].tolist() == [[1, 2], [3, 4]]
    assert data.y_train.tolist() == [0, 1]
    assert data.feature_names[:2] == ("a", "b")
    assert any(note in each for each in data.notes) or not note
    if name == "truth values":
        assert data.x_train[:, 2].tolist() == [1, 0]


def test_utf16_and_packed_tables(tmp_path: Path) -> None:
    import gzip

    text = "a\tb\ty\n1\t2\t0\n3\t4\t1\n"
    (tmp_path / "d.txt").write_text(text, encoding="utf-16")
    (tmp_path / "d.tsv.gz").write_bytes(gzip.compress(text.encode()))
    for name in ("d.txt", "d.tsv.gz"):
        data = load_dataset(tmp_path / name, test_fraction=0, target="y")
        assert data.x_train.tolist() == [[1, 2], [3, 4]]


REFUSED = {
    "no header": ("5.1,3.5,0\n4.9,3.0,1\n", "looks like numbers: 5.1, 3.5, 0: no header?", "first line"),
    "no header, text last": ("5.1,3.5,setosa\n4.9,3,setosa\n", "looks like numbers", "first line"),
    "the header of scikit-learn": ("150,4,setosa,virginica\n5,3,1,0\n", "150, 4, setosa", "each column"),
    "two numbers from 0": ("0,1\n1,0\n", "no header?", "first line"),
    "a comment in front": ("# a,y\n1,0\n2,1\n", "behind '#'", "take the '#' off"),
    "decimal commas between commas": ("a,b,y\n0,5,1,5,0\n0,1,0,2,1\n", "5 cells in row 0 (line 2)", "0.25"),
    "thousands or decimals": ("a;y\n1,234;0\n5,678;1\n", "'1,234' in column 'a' of row 0", "point"),
    "commas and points": ("a;b;y\n1,5;2.5;0\n1,0;3.5;1\n", "'2.5' elsewhere", "point"),
    "two separators": ("a,b;y\n1,2;0\n3,4;1\n", "2 columns by commas or 2 columns by semicolons", "one"),
    "row names of R": ("a,b,y\nr1,1,2,0\nr2,3,4,1\n", "4 cells in row 0 (line 2)", "a name for every"),
    "a separator too many": ("a,y\n1,0,\n2,1,\n", "3 cells in row 0 (line 2)", "at the end of the line"),
    "quotes that stay open": ('a,y\n"1,0\n2,1\n', "cannot be read", "quotes that close"),
    "an index that repeats": (",a,y\n0,1,0\n0,2,1\n", "column 1 without a name", "name it"),
    "who a sample is": ("id,a,y\n17,1,0\n4,2,1\n", "a column 'id' with another value", "id='id'"),
    "PassengerId": ("PassengerId,a,y\n17,1,0\n4,2,1\n", "'PassengerId'", "id='PassengerId'"),
    "patient names": ("patient_id,a,y\nx,1,0\nz,2,1\n", "'patient_id'", "id='patient_id'"),
    "long numbers": ("a,y\n9007199254740993,0\n1,1\n", "more digits than float64", "id="),
    "digits with strokes": ("a,y\n1_000,0\n2,1\n", "'1_000' in 'a' of row 0 (line 2)", "plain numbers"),
    "percents": ("a,y\n5%,0\n2%,1\n", "'5%' in 'a'", "plain numbers"),
    "other digits": ("a,y\n١,0\n2,1\n", "text in the columns a", "numbers"),
    "too large": ("a,y\n1e999,0\n2,1\n", "1 infinite values, all in column 'a'", "drop"),
    "Excel's missing value": ("a,b,y\n1,#DIV/0!,0\n2,3,1\n", "all in column 'b', the first", "impute"),
    "an empty column": ("a,b,y\n1,,0\n2,,1\n", "2 missing values, all in column 'b'", "drop column 'b'"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tables_that_are_refused(tmp_path: Path, name: str) -> None:
    text, found, remedy = REFUSED[name]
    with refused("d.csv", found, remedy):
        table(tmp_path, text)


def test_what_was_taken_for_granted_is_said(tmp_path: Path) -> None:
    lines = "".join(f"{i + 1},{(-999, 2.5)[i % 2]},{i % 2}\n" for i in range(12))
    notes = " ".join(table(tmp_path, "time,a,y\n" + lines).notes)
    assert "column 'time' counts the rows, and is a feature" in notes
    assert "-999 and the like in column 'a' were read as numbers" in notes
    assert "names of columns" in " ".join(
        table(tmp_path, "0,1,2\n5,6,0\n7,8,1\n", target="2").notes
    )


HOURS = {"17:24:00": 17.4, "5:24:00 PM": 17.4, "12:30:00 AM": 0.5, "12:00 pm": 12.0, "7:06": 7.1}


@pytest.mark.parametrize("time", HOURS)
def test_times_of_the_day(tmp_path: Path, time: str) -> None:
    path = household(tmp_path, MINUTES.replace("17:24:00", time))
    data = load_dataset(path, test_fraction=0)
    angle = 2 * np.pi * HOURS[time] / 24
    assert np.allclose(data.x_train[0, 5:7], [np.sin(angle), np.cos(angle)], atol=1e-15)
    assert any("day/month/year" in note for note in data.notes)


def test_quoted_household_files(tmp_path: Path) -> None:
    lines = [";".join(f'"{c}"' for c in line.split(";")) for line in MINUTES.splitlines()]
    quoted = load_dataset(household(tmp_path, "\n".join(lines)), test_fraction=0)
    plain = load_dataset(household(tmp_path, MINUTES, "p.txt"), test_fraction=0)
    assert quoted.sha256 == plain.sha256


@pytest.mark.parametrize(
    ("old", "new", "found"),
    [
        ("17:24:00", "99:99:00", "'16/12/2006 99:99:00' in row 0 (line 2)"),
        ("17:24:00", "17:24:61", "17:24:61"),
        ("17:24:00", "17:24:00 PM", "17:24:00 PM"),
        ("17:24:00", "-1:24", "-1:24"),
        ("16/12/2006;17:24", "12/16/2006;17:24", "12/16/2006"),
        ("16/12/2006;17:24", "16/12/06;17:24", "16/12/06"),
        ("16/12/2006;17:25", "31/02/2007;17:25", "31/02/2007"),
        ("4.216", "4,216", "'4,216' in column 'Global_active_power'"),
        ("4.216", "4_216", "'4_216'"),
        ("4.216", "inf", "'inf'"),
        ("4.216;0.418", "4.216;0.418;1", "10 cells in row 0 (line 2), 9 columns"),
    ],
)
def test_household_cells_of_another_form(tmp_path: Path, old: str, new: str, found: str) -> None:
    path = household(tmp_path, MINUTES.replace(old, new))
    with refused("household", found):
        load_dataset(path)


@pytest.mark.parametrize(
    ("line", "found", "remedy"),
    [
        (
            "IMG/center_0.png,l,r,-0,2521,0,5,0,20,1",
            "10 cells in row 0 (line 1), 7 columns",
            "0.25",
        ),
        ("IMG/center_0.png,l,r,0.1,0,0", "6 cells in row 0 (line 1), 7 columns", "every line"),
        ("IMG/center_0.png,l,r,0.1,0,0,fast", "'fast' in column 'speed' of row 0", "plain digits"),
        ("IMG/center_0.png,l,r,0.1,0,nan,1", "'nan' in column 'brake' of row 0", "plain digits"),
        ("IMG/center_0.png;l;r;0.1;0;0;1", "1 cells in row 0 (line 1), 7 columns", "commas"),
    ],
)
def test_driving_logs_of_another_form(tmp_path: Path, line: str, found: str, remedy: str) -> None:
    folder = road(tmp_path, header=False)
    (folder / "driving_log.csv").write_text(line + "\n", encoding="utf-8")
    with refused("drive", found, remedy):
        load_dataset(folder, image_size=(4, 6))


def test_two_recordings_with_images_of_one_name(tmp_path: Path) -> None:
    folder = road(tmp_path, header=False)
    lines = [f"/run{k}/IMG/center_0.png,l,r,0.{k},0,0,1\n" for k in (1, 2)]
    (folder / "driving_log.csv").write_text("".join(lines), encoding="utf-8")
    with refused("drive", "one file alone: center_0.png", "names of their own"):
        load_dataset(folder, image_size=(4, 6))


@pytest.mark.parametrize(
    ("shape", "remedy"),
    [((12, 3, 28, 28), "np.moveaxis(train_images, 1, -1)"), ((12, 5, 4, 4), "transparency"),
     ((12, 8, 8, 8), "channels last"), ((12, 5, 4, 2), "channels last")],
)  # fmt: skip
def test_images_of_another_layout(tmp_path: Path, shape: tuple[int, ...], remedy: str) -> None:
    images = np.zeros(shape, np.uint8)
    path = medmnist(tmp_path, train_images=images, test_images=images[:6])
    with refused("octmnist", "last axis is neither 1 nor 3", remedy):
        load_dataset(path)


def test_arrays_of_a_file_that_are_not_used_are_named(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, X=np.eye(3), y=np.array([0, 1, 0]), weights=np.ones(3))
    assert "the arrays weights of the file were not read" in load_dataset(path).notes
    np.savez(path, X=np.eye(3), y=np.zeros(3), x_train=np.eye(2), y_train=np.zeros(2))
    with pytest.raises(InvalidInputError, match="both X, y and x_train"):
        load_dataset(path)
    np.savez(path, X=np.eye(3), y=np.eye(3)[[0, 1, 2]])
    with pytest.raises(InvalidInputError, match=r"argmax\(axis=1\)"):
        load_dataset(path, task="classification")


MASKED = np.ma.masked_equal(np.array([[1.0, -999.0], [2.0, 3.0]]), -999.0)
OWN = {
    "masked": (MASKED, "1 masked values, the first at (0, 1)"),
    "long numbers": (np.array([[1, 2**53 + 1], [1, 1]]), "float64 would round"),
    "a column of NaN": (np.array([[1.0, np.nan], [2.0, np.nan]]), "in column 1 of every sample"),
    "dates": (np.array([["2020-01-01"], ["2020-01-02"]], dtype="M8[D]"), "dates"),
    "text": (np.array([["a"], ["b"]]), "text"),
}


@pytest.mark.parametrize("name", OWN)
def test_arrays_that_lose_something(name: str) -> None:
    values, found = OWN[name]
    with refused(found=found):
        Dataset.of(values, np.array([0, 1]))


def test_data_frames_name_their_columns() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"age": [3.0, 4.0], "smoker": [True, False]})
    data = Dataset.of(frame, [0, 1])
    assert data.feature_names == ("age", "smoker")
    assert data.x_train.tolist() == [[3, 1], [4, 0]]
    with pytest.raises(InvalidInputError, match="columns smoker, age, a training part with age"):
        Dataset.of(frame, [0, 1], frame[["smoker", "age"]], [0, 1])
    frame["age"] = np.nan
    with pytest.raises(InvalidInputError, match="in column 'age' of every sample"):
        Dataset.of(frame, [0, 1])


def test_a_factory_file_that_is_a_script(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["milp-agt", "certify", "run.toml"])
    script = (
        "import argparse, torch\nfrom helper import WIDTH\nparser = argparse.ArgumentParser()\n"
    )
    make = "def make():\n    return torch.nn.Linear(WIDTH, 1).double()\n"
    (tmp_path / "helper.py").write_text("WIDTH = 3\n")
    (tmp_path / "m.py").write_text(script + "args = parser.parse_args()\n" + make)
    assert factory_network("m.py:make", tmp_path, 0).in_features == 3
    needed = "parser.add_argument('--data', required=True)\nargs = parser.parse_args()\n"
    (tmp_path / "m.py").write_text(script + needed + make)
    missing = "arguments are required: --data"
    with refused("m.py:make", missing, "__main__", kind=ConfigurationError) as error:
        factory_network("m.py:make", tmp_path, 0)
    assert "exit 2" in error.value.found
    assert capsys.readouterr().err == ""
