"""Static calibration on the shipped checkpoint: accuracy at every step by statistic, potential per
neuron or channel, and rho.

    python bench/static.py [--fit N] [--samples N] [--json FILE]

Fits on the last test images (no training images ship with the package; labels play no part) and
evaluates on the first. Prints a table; measures accuracy and never time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

from cos_ext import convert, data, evaluate, fit_v_init, models
from cos_ext.cli import DEMO_CHECKPOINT

TIMESTEPS = 8
ROWS = [
    {"rho": 4, "per": per, "statistic": statistic, "sequential": True}
    for per in ("neuron", "channel")
    for statistic in ("mean", "median", "vote")
]
ROWS += [{"rho": rho, "per": "neuron", "statistic": "mean", "sequential": True} for rho in (2, 8)]
ROWS += [{"rho": 4, "per": "neuron", "statistic": "mean", "sequential": False}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", type=int, default=2000, help="fit on the last so many test images")
    parser.add_argument("--samples", type=int, default=5000, help="evaluate on the first so many")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    record = json.loads(DEMO_CHECKPOINT.with_suffix(".json").read_text())
    model = models.resnet20(record["num_classes"], record["in_channels"], levels=record["levels"])
    models.load_weights(model, DEMO_CHECKPOINT)
    images = data.fashion_mnist()
    if not 0 < options.fit <= len(images) - options.samples:
        parser.error(f"--fit and --samples must not share any of the {len(images)} images")
    seen = dataclasses.replace(
        images, images=images.images[-options.fit :], labels=images.labels[-options.fit :]
    )
    held_out = images.first(options.samples)
    print(
        f"fitted on {options.fit}, evaluated on {options.samples} other images, resnet20, L = "
        f"{record['levels']}"
    )
    print(
        "| rho | potential | statistic | t = 1 | t = 2 | t = 4 | t = 8 |\n| ---: | --- | --- |"
        + " ---: |" * 4
    )
    results = []
    for row in [None, *ROWS]:
        network = convert(model.eval(), timesteps=TIMESTEPS)
        if row is not None:
            fit_v_init(network, seen.batches(50), progress=False, **row)
        accuracy = evaluate(network, held_out.batches(50), progress=False).accuracy
        results.append({**(row or {"rho": 0}), "accuracy": accuracy})
        names = (
            f"{row['rho']} | per {row['per']} | {row['statistic']}"
            if row is not None
            else "0 | θ/2 | none"
        )
        names += "" if row is None or row["sequential"] else ", in one pass"
        cells = " | ".join(f"{100 * accuracy[t - 1]:.2f}" for t in (1, 2, 4, 8))
        print(f"| {names} | {cells} |", flush=True)
    if options.json:
        options.json.write_text(
            json.dumps({"fit": options.fit, "samples": options.samples, "rows": results}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
