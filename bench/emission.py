"""Which emission is best at which step: the paper's, exact, even or front?

    python bench/emission.py [--samples N] [--json FILE]

The shipped checkpoint on the whole Fashion-MNIST test set. Measures accuracy and never time. The
orders themselves are in csrc/core/emission.h; those that no kernel has are emission_orders.py's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from _shared import checkpoints, records, tables

from cos_ext import convert, data, evaluate

TIMESTEPS = 8
EMISSIONS = {  # by the name in the table: emission and iterations
    "calibrated, 1 iteration": ("calibrated", 1),
    "calibrated, exact": ("calibrated", None),
    "even": ("even", 0),
    "front": ("front", 0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, help="the first so many test images (default: all)")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, record = checkpoints.load()
    images = data.fashion_mnist().first(options.samples)
    network = convert(model, timesteps=TIMESTEPS)
    rows = []
    print(f"{len(images)} images, resnet20, L = {record['levels']}")
    print(tables.head(["rho", "emission", *tables.steps(tables.SHOWN)], text=(1,)))
    for rho in (2, 4, 8):
        for name, (emission, iterations) in EMISSIONS.items():
            settings = {"rho": rho, "emission": emission, "iterations": iterations}
            for key, value in settings.items():
                setattr(network, key, value)
            accuracy = evaluate(network, images.batches(50), progress=False).accuracy
            rows.append({**settings, "accuracy": accuracy})
            print(tables.row([rho, name, *tables.percents(accuracy)]), flush=True)
    if options.json:
        records.write(options.json, {"samples": len(images), "rows": rows})


if __name__ == "__main__":
    main()
