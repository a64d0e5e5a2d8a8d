"""The order of the spikes on the shipped checkpoint: accuracy at every step by emission and rho, on
the whole test set.

    python bench/emission.py [--samples N] [--json FILE]

Prints a table; measures accuracy and never time. The orders themselves are in csrc/core/emission.h.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from cos_ext import convert, data, evaluate, models
from cos_ext.cli import DEMO_CHECKPOINT

TIMESTEPS = 8
ROWS = [
    (rho, emission, iterations)
    for rho in (2, 4, 8)
    for emission, iterations in (("calibrated", 1), ("calibrated", None), ("even", 0), ("front", 0))
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, help="the first so many test images (default: all)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = json.loads(DEMO_CHECKPOINT.with_suffix(".json").read_text())
    model = models.resnet20(record["num_classes"], record["in_channels"], levels=record["levels"])
    models.load_weights(model, DEMO_CHECKPOINT)
    images = data.fashion_mnist().first(options.samples)
    network = convert(model.eval(), timesteps=TIMESTEPS)
    results = []
    print(f"{len(images.labels)} images, resnet20, L = {record['levels']}")
    print(
        "| rho | emission | "
        + " | ".join(f"t = {t}" for t in (1, 2, 4, 8))
        + " |\n| ---: | --- |"
        + " ---: |" * 4
    )
    for rho, emission, iterations in ROWS:
        network.rho, network.emission, network.iterations = rho, emission, iterations
        accuracy = evaluate(network, images.batches(50), progress=False).accuracy
        results.append(
            {"rho": rho, "emission": emission, "iterations": iterations, "accuracy": accuracy}
        )
        name = (
            emission
            if emission != "calibrated"
            else f"calibrated, {'exact' if iterations is None else '1 iteration'}"
        )
        print(
            f"| {rho} | {name} | "
            + " | ".join(f"{100 * accuracy[t - 1]:.2f}" for t in (1, 2, 4, 8))
            + " |",
            flush=True,
        )
    if options.json:
        options.json.write_text(
            json.dumps({"samples": len(images.labels), "rows": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
