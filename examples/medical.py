"""Fine-tuning on images of which only the new class is untrusted: features, labels, backdoor.

    python examples/medical.py --small                       rendered images, a minute
    python examples/medical.py --data octmnist.npz           any file in the format of MedMNIST
    python examples/medical.py --data octmnist.npz --state octmnist_frozen.pt   for a run file
    python examples/medical.py --small --out runs/medical    and a report on each threat

A small convolutional network is trained on the trusted classes, frozen in evaluation mode, and its
dense head is fine-tuned on all classes. The adversary owns some samples of the new class.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from models.conv_head import convolutions, dense
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.threats import ThreatModel

NEW_CLASS = 2
CLASSES = 4
Images = npt.NDArray[np.uint8]


def render(count: int, seed: int) -> tuple[Images, Images]:
    """Images like slices of a retina: smooth layers, then vessels, drusen (new), or fluid."""
    rng = np.random.default_rng(seed)
    labels = (np.arange(count) % CLASSES).astype(np.uint8)
    rows, columns = np.mgrid[0:28, 0:28]
    images = np.zeros((count, 28, 28))
    for image, label in zip(images, labels, strict=True):
        base = 15 + rng.normal(0, 1) + 2 * np.sin(columns / 9 + rng.uniform(0, 6))
        centre, width = rng.uniform(8, 20), rng.uniform(2.5, 4)
        bump = np.exp(-(((columns - centre) / width) ** 2))
        if label == NEW_CLASS:  # drusen: the lower layer is lifted in a row of bumps
            base = base - 3 * np.sin(columns * 0.9 + rng.uniform(0, 6)) ** 2
        for offset, brightness in ((-5, 0.55), (0, 0.9), (4, 0.7)):
            image += brightness * np.exp(-(((rows - base - offset) / 1.3) ** 2))
        if label == 1:  # vessels: a bright blob under the layers
            image += 1.2 * bump * np.exp(-(((rows - base - 7) / 2.5) ** 2))
        if label == 3:  # fluid: a dark hole in the layers
            image *= 1 - 0.95 * bump * np.exp(-(((rows - base + 2) / 4.0) ** 2))
        image += rng.normal(0, 0.05, image.shape)
    return (255 * images.clip(0, 1)).astype(np.uint8), labels[:, None]


def write(path: Path, train: int, test: int) -> None:
    """Rendered images in the format of MedMNIST."""
    parts = {"train": (train, 0), "val": (4, 1), "test": (test, 2)}
    arrays = {}
    for part, (count, seed) in parts.items():
        arrays[f"{part}_images"], arrays[f"{part}_labels"] = render(count, seed)
    np.savez_compressed(path, allow_pickle=False, **arrays)


def pretrained(x: Tensor, y: Tensor, epochs: int) -> nn.Sequential:
    """The convolutions, trained with a head of their own on trusted classes, and frozen."""
    torch.manual_seed(0)
    body, head = convolutions().double(), dense(CLASSES).double()
    model = nn.Sequential(body, head)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimiser.step()
    return body.requires_grad_(False).eval()


def fine_tuned(data: agt.Dataset, per_class: int) -> tuple[Tensor, Tensor, list[int]]:
    """The samples of the fine-tuning run, and which of them are of the new class."""
    chosen = np.concatenate([np.flatnonzero(data.y_train == c)[:per_class] for c in range(CLASSES)])
    y = torch.from_numpy(data.y_train[chosen])
    untrusted = (y == NEW_CLASS).nonzero()[:, 0].tolist()
    return torch.from_numpy(data.x_train[chosen]), y, untrusted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="rendered images, few samples")
    parser.add_argument("--data", type=Path, help="an .npz file in the format of MedMNIST")
    parser.add_argument("--state", type=Path, help="only save the network before fine-tuning")
    parser.add_argument("--budget", type=int, default=1, help="poisoned samples of the new class")
    parser.add_argument("--out", type=Path, help="folder for a report on each threat")
    options = parser.parse_args()
    path = options.data
    if path is None:
        path = Path(tempfile.mkdtemp()) / "rendered.npz"
        write(path, train=1200 if options.small else 6000, test=200)
    data = agt.load_dataset(path)
    print(data.description)
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    trusted = y != NEW_CLASS
    body = pretrained(x[trusted], y[trusted], epochs=4 if options.small else 8)
    model = nn.Sequential(body, dense(CLASSES).double())
    if options.state is not None:
        torch.save(model.state_dict(), options.state)
        print(f"Written: {options.state}")
        return
    x, y, untrusted = fine_tuned(data, per_class=40 if options.small else 200)
    test = data.x_test[:100], data.y_test[:100]
    training = agt.Training(loss="cross_entropy", learning_rate=0.2, epochs=10)
    threats: dict[str, ThreatModel] = {
        "features": agt.FeaturePoisoning(options.budget, radius=0.001, samples=untrusted),
        "labels": agt.LabelPoisoning(options.budget, samples=untrusted),
        "both": agt.FeatureLabelPoisoning(options.budget, radius=0.001, samples=untrusted),
    }
    print(f"{len(x)} samples for fine-tuning, {len(untrusted)} of the new class are untrusted")
    for name, threat in threats.items():
        result = agt.certify(copy.deepcopy(model), (x, y), training, threat)
        accuracy = result.accuracy(*test)
        backdoor = result.backdoor(*test, radius=0.002)
        print(
            f"{name:9} accuracy [{accuracy.lower:.2f}, {accuracy.upper:.2f}], nominal "
            f"{accuracy.nominal:.2f}; backdoor of radius 0.002 succeeds at most {backdoor.upper:.2f} "
            f"(nominal model: {backdoor.nominal:.2f})"
        )
        if options.out is not None:
            part = agt.Dataset.of(x, y, *test, description=data.description)
            page = agt.report(
                result,
                part,
                options.out / name,
                properties=[
                    {"kind": "accuracy", "groups": "class"},
                    {"kind": "backdoor", "radius": 0.002},
                ],
            )
            print(f"Written: {page}")


if __name__ == "__main__":
    main()
