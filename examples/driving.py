"""Steering from frames: PilotNet with frozen convolutions, angles (and frames) of one drive poisoned.

    python examples/driving.py --small                    rendered frames, a minute
    python examples/driving.py --log FOLDER               a folder with driving_log.csv and IMG/
    python examples/driving.py --small --radius 0.0039 --untrusted 1   pixels poisoned as well
    python examples/driving.py --log FOLDER --state pilotnet.pt   the network of a run file
    python examples/driving.py --small --out runs/driving         and a report with every frame

The convolutions and the first two dense layers are trained on one half of the log, which is trusted, and
frozen. The other dense layers go on training on the other half, of which one drive is untrusted.
Certified: an interval of the angle for every test frame, and a bound on the mean error.

Poisoned pixels: what they can do to the features is bounded once, through the frozen layers, by linear
forms from patches of the frame, layer by layer. On a network trained on rendered frames, whose features
have a mean size of 0.27, the boxes of the features of one frame had a mean width of at most 0.00012 at a
radius of 1e-5, 0.0012 at 1e-4, 0.013 at 1e-3 and 0.086 at one grey level, 1/255, where intervals had
0.39, 5.4, 57 and 320; that took about 40 CPU seconds for each frame that may be poisoned, so name few
(--untrusted). With one such frame, whose angle may move as well, all certified intervals of the angle are
0.0039 wide on average at 1/255 and 0.0063 at most, in 93 CPU seconds; where an interval is wider than the
range of all angles, the example says that it is vacuous.
"""

from __future__ import annotations

import argparse
import csv
import tempfile
from pathlib import Path

import numpy as np
import torch
from models.pilotnet import body as make_body
from models.pilotnet import head as make_head
from PIL import Image
from torch import Tensor, nn

import milp_agt as agt
from milp_agt.threats import ThreatModel

HEIGHT, WIDTH = 66, 200
ANGLE = 0.1
WHOLE_RANGE = 2.0  # steering angles lie in [-1, 1]


def render(folder: Path, count: int, seed: int = 0) -> None:
    """Frames of a road that bends, with the steering angle that follows it, as the simulator logs them."""
    rng = np.random.default_rng(seed)
    (folder / "IMG").mkdir(parents=True)
    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH]
    depth = ((rows - 24) / (HEIGHT - 24)).clip(0, None)  # 0 at the horizon, 1 at the car
    with (folder / "driving_log.csv").open("w", newline="", encoding="utf-8") as stream:
        log = csv.writer(stream)
        log.writerow(["center", "left", "right", "steering", "throttle", "brake", "speed"])
        for index in range(count):
            bend, shift = rng.uniform(-1, 1), rng.uniform(-0.3, 0.3)
            middle = WIDTH / 2 + 70 * bend * (1 - depth) ** 2 + 40 * shift * depth
            half = 6 + 70 * depth
            away = np.abs(columns - middle)
            sky = rows < 24
            image = np.empty((HEIGHT, WIDTH, 3))
            for channel, (above, grass, road) in enumerate(
                zip((0.55, 0.7, 0.9), (0.25, 0.45, 0.2), (0.35, 0.35, 0.37), strict=True)
            ):
                ground = np.where(away < half, road, grass)
                image[..., channel] = np.where(sky, above, ground)
            image[(np.abs(away - half) < 2 + 3 * depth) & ~sky] = 0.95
            image = (image * rng.uniform(0.8, 1.1) + rng.normal(0, 0.02, image.shape)).clip(0, 1)
            name = f"IMG/center_{index:05d}.png"
            Image.fromarray((255 * image).astype(np.uint8)).save(folder / name)
            log.writerow([name, "", "", f"{0.35 * bend + 0.2 * shift:.4f}", 0.3, 0, 20])


def pretrained(
    x: Tensor, y: Tensor, epochs: int, dense_layers: int
) -> tuple[nn.Sequential, nn.Sequential]:
    """The body, frozen after training on trusted frames, and the head that it trained with."""
    torch.manual_seed(0)
    body, head = make_body(dense_layers), make_head(dense_layers)
    model = nn.Sequential(body, head)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-3)
    x, y = x.float(), y.float()
    for epoch in range(epochs):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch))
        for batch in order.split(24):
            optimiser.zero_grad()
            nn.functional.mse_loss(model(x[batch])[:, 0], y[batch]).backward()
            optimiser.step()
    return body.double().requires_grad_(False).eval(), head.double()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--small", action="store_true", help="rendered frames, few of them")
    parser.add_argument("--log", type=Path, help="a folder with driving_log.csv and IMG/")
    parser.add_argument(
        "--budget", type=int, default=1, help="poisoned frames of the untrusted drive"
    )
    parser.add_argument(
        "--untrusted",
        type=int,
        default=16,
        help="frames of the untrusted drive, of which those are",
    )
    parser.add_argument(
        "--radius", type=float, default=0.0, help="move of every pixel too, in [0, 1]"
    )
    parser.add_argument("--state", type=Path, help="only save the network before the head trains")
    parser.add_argument("--steps", type=int, default=10, help="steps of the dense layers")
    parser.add_argument(
        "--out", type=Path, help="folder for a report, each frame with its interval"
    )
    options = parser.parse_args()
    folder = options.log
    if folder is None:
        folder = Path(tempfile.mkdtemp()) / "drive"
        render(folder, count=160 if options.small else 1000)
    data = agt.load_dataset(folder, test_fraction=0.1, image_size=(HEIGHT, WIDTH))
    print(data.description)
    x, y = torch.from_numpy(data.x_train), torch.from_numpy(data.y_train)
    half = len(x) // 2
    body, head = pretrained(x[:half], y[:half], 40 if options.small else 60, dense_layers=2)
    model = nn.Sequential(body, head)
    if options.state is not None:
        torch.save(model.state_dict(), options.state)
        print(f"Written: {options.state}")
        return
    untrusted = list(range(options.untrusted))
    training = agt.Training(loss="mse", learning_rate=0.02, epochs=options.steps)
    threat: ThreatModel = agt.LabelPoisoning(options.budget, radius=ANGLE, samples=untrusted)
    if options.radius > 0:
        threat = agt.FeatureLabelPoisoning(
            options.budget, radius=options.radius, label_radius=ANGLE, samples=untrusted
        )
    result = agt.certify(model, (x[half:], y[half:]), training, threat, inner_bounds="interval")
    angles = result.predictions(data.x_test)
    true = data.y_test[:, None]
    error = angles.largest_error(true)
    print(
        f"{len(x) - half} frames; {options.budget} of {options.untrusted} untrusted ones poisoned"
    )
    print(f"assumed of the poison: {threat.describe()}")
    print("frame   true angle   certified interval of the angle   nominal")
    for i in range(min(8, len(true))):
        low, high, middle = (float(a[i, 0]) for a in (angles.lower, angles.upper, angles.nominal))
        print(f"{i:5d}   {true[i, 0]:+10.3f}   [{low:+.4f}, {high:+.4f}]            {middle:+.4f}")
    vacuous = int(((angles.upper - angles.lower) >= WHOLE_RANGE).any(-1).sum())
    if vacuous:
        print(
            f"VACUOUS: for {vacuous} of {len(true)} frames the certified interval is wider than the range "
            "of all steering angles and says nothing; lower --radius"
        )
    nominal = float(np.abs(angles.nominal - true).mean())
    print(f"mean absolute error: at most {error.mean():.4f}, nominal {nominal:.4f}")
    if options.out is not None:
        x_test, y_test = data.x_test, data.y_test
        drive = agt.Dataset.of(x[half:], y[half:], x_test, y_test, description=data.description)
        print(f"Written: {agt.report(result, drive, options.out)}")


if __name__ == "__main__":
    main()
