"""How good are static potentials, by statistic, by neuron or channel, and by rho?

    python bench/static.py [--fit N] [--samples N] [--json FILE]

On the shipped checkpoint. Fits on the last test images (no training images ship with the package;
labels play no part) and evaluates on the first. Measures accuracy and never time.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from _shared import checkpoints, records, tables

from cos_ext import convert, data, evaluate, fit_v_init

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
    model, record = checkpoints.load()
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
    heads = ["rho", "potential", "statistic", *tables.steps(tables.SHOWN)]
    print(tables.head(heads, text=(1, 2)))
    rows = []
    for row in [None, *ROWS]:
        network = convert(model, timesteps=TIMESTEPS)
        names = [0, "θ/2", "none"]
        if row is not None:
            fit_v_init(network, seen.batches(50), progress=False, **row)
            statistic = row["statistic"] + ("" if row["sequential"] else ", in one pass")
            names = [row["rho"], f"per {row['per']}", statistic]
        accuracy = evaluate(network, held_out.batches(50), progress=False).accuracy
        rows.append({**(row or {"rho": 0}), "accuracy": accuracy})
        print(tables.row([*names, *tables.percents(accuracy)]), flush=True)
    if options.json:
        record = {"fit": options.fit, "samples": options.samples, "rows": rows}
        records.write(options.json, record)


if __name__ == "__main__":
    main()
