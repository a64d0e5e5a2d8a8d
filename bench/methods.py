"""Which conversion method is best at 1, 2, 4 and 8 steps, and what does it pay in spikes?

    python bench/methods.py [--images N] [--rho RHO] [--only NAME...] [--json FILE]
    python bench/methods.py --draw FILE...

All methods of cos_ext.methods on the shipped ResNet-20 and the first N shipped test images of
Fashion-MNIST. What is fitted to data is fitted on the last 600, on which nothing is evaluated.
Measures accuracy and spikes, never time. --draw prints the table of records as Markdown.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

import cos_ext
from cos_ext import convert, data, evaluate
from cos_ext.methods import METHODS, Method, group_neurons

sys.path.append(str(Path(__file__).parent))
from _shared import checkpoints, records
from _shared.machine import command_line, facts

STEPS = (1, 2, 4, 8)
FITTED = 600
BATCH = 200
ROWS: list[tuple[str, Method]] = [
    *((name, method) for name, method in METHODS.items() if name != "group-neurons"),
    ("group-neurons, 2 members", group_neurons(2)),
    ("group-neurons, 4 members", group_neurons(4)),
]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=10_000 - FITTED)
    parser.add_argument("--rho", type=int, default=4, help="of the methods that watch (default 4)")
    parser.add_argument("--json", type=Path, help="write the record to this file, too")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows, by their names")
    parser.add_argument("--draw", type=Path, nargs="+", help="print the table of records, and end")
    options = parser.parse_args(argv)
    if options.draw:
        print(page([json.loads(path.read_text()) for path in options.draw]))
        return 0
    names = [name for name, _ in ROWS]
    if unknown := sorted(set(options.only or ()) - set(names)):
        parser.error(f"--only must name some of {names}, got {unknown}")
    if not 1 <= options.images <= 10_000 - FITTED:
        parser.error(f"--images must lie in 1..{10_000 - FITTED}")
    record: dict[str, Any] = {
        "command": command_line("methods", sys.argv[1:] if argv is None else argv),
        "machine": facts(("torch", "numpy")),
        "images": options.images,
        "rho": options.rho,
        "rows": [],
    }
    ann, _ = checkpoints.load()
    images = data.fashion_mnist(train=False)
    measured = DataLoader(Subset(images, range(options.images)), batch_size=BATCH)
    fitted = DataLoader(Subset(images, range(10_000 - FITTED, 10_000)), batch_size=BATCH)
    for name, method in ROWS:
        if options.only and name not in options.only:
            continue
        row = {"name": name, **_row(ann, method, options.rho, measured, fitted)}
        record["rows"].append(row)
        print(_line(row), flush=True)
        if options.json:
            records.write(options.json, record, compact=("rows",))
    return 0


def _row(
    ann: torch.nn.Module, method: Method, rho: int, measured: DataLoader, fitted: DataLoader
) -> dict[str, Any]:
    """Accuracy by T, and spikes by neuron and step at the last; one run where T plays no part."""
    watched = rho if method.watches else 0
    accuracy: dict[str, float] = {}
    spikes = 0.0
    for steps in STEPS if method.spreads or method.fit else STEPS[-1:]:
        network = convert(ann, timesteps=steps, rho=watched, method=method)
        if method.fit:
            cos_ext.fit(network, ann, fitted, progress=False)
        result = evaluate(network, measured, progress=False)
        own = (steps,) if method.spreads or method.fit else STEPS
        accuracy.update({str(t): result.accuracy[t - 1] for t in own})
        spikes = result.spike_rate
    settings = {"needs": method.needs, "latency": method.latency, "spikes": spikes}
    return {**settings, "accuracy": accuracy}


def _line(row: dict[str, Any]) -> str:
    cells = " ".join(f"{100 * row['accuracy'][str(t)]:6.2f}" for t in STEPS)
    return f"{row['name']:28} {cells}  {row['spikes']:.3f}"


def page(parts: list[dict[str, Any]]) -> str:
    """Records as one table in Markdown."""
    lines = [
        "| method | needs | latency at t | T = 1 | T = 2 | T = 4 | T = 8 | spikes |",
        "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rho, row in ((part["rho"], row) for part in parts for row in part["rows"]):
        latency = row["latency"].replace("rho", str(rho))
        cells = " | ".join(f"{100 * row['accuracy'][str(t)]:.2f}" for t in STEPS)
        lines.append(
            f"| {row['name']} | {row['needs']} | {latency} | {cells} | {row['spikes']:.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
