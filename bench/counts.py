"""How long does a pass by counts take, beside the same step by step and beside the ANN?

    python bench/counts.py [--batch-size N] [--rho N] [--timesteps N] [--threads N] [--repeats N]
        [--emission even|front] [--compile] [--json FILE]

One batch through the shipped ResNet-20. Measures time only, no accuracy. Rows are interleaved; a
ratio is the median over the repeats of its row's time to the fastest ANN's.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
from pathlib import Path

import torch
from _shared import checkpoints, records, tables
from _shared.timing import median_ratio
from torch import nn

from cos_ext import bench, convert, data


def contestants(model: nn.Module, options: argparse.Namespace) -> dict[str, nn.Module]:
    """What an ANN's user would run, also with ReLU instead of QCFS; then the networks."""
    steps = convert(model, timesteps=options.timesteps, rho=options.rho, emission=options.emission)
    counts = copy.deepcopy(steps)
    counts.execution = "counts"
    rows = {
        "ANN, QCFS": model,
        "ANN, QCFS, folded": checkpoints.folded(model),
        "ANN, ReLU, folded": checkpoints.folded(model, relu=True),
        "network, steps": steps,
        "network, counts": counts,
    }
    if options.compile:
        rows |= {
            f"{name}, compiled": torch.compile(row)
            for name, row in rows.items()
            if row is not steps
        }
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (
        ("batch-size", 32),
        ("rho", 8),
        ("timesteps", 8),
        ("threads", 2),
        ("repeats", 21),
    ):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--emission", choices=("even", "front"), default="even")
    parser.add_argument(
        "--compile", action="store_true", help="the ANN and the counts under torch.compile, too"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model, _ = checkpoints.load()
    rows = contestants(model.requires_grad_(False), options)
    images, _ = next(
        iter(data.fashion_mnist().first(options.batch_size).batches(options.batch_size))
    )
    calls = {name: lambda row=row: row(images) for name, row in rows.items()}
    with torch.inference_mode():
        times = bench.measure(calls, lambda: None, options.repeats)
    middle = {name: statistics.median(values) for name, values in times.items()}
    best = min((name for name in rows if name.startswith("ANN")), key=middle.get)
    ratios = {name: median_ratio(values, times[best]) for name, values in times.items()}
    print(
        f"{options.batch_size} images, rho = {options.rho}, T = {options.timesteps}, "
        f"{options.emission}, float32, "
        f"{options.threads} threads, {options.repeats} repeats, torch {torch.__version__}, "
        f"{platform.machine()}"
    )
    print(tables.head(["", "ms (least)", f"to {best}"]))
    for name, values in times.items():
        milliseconds = f"{1e3 * middle[name]:.1f} ({1e3 * min(values):.1f})"
        print(tables.row([name, milliseconds, f"{ratios[name]:.2f}"]))
    if options.json:
        record = {
            "settings": {key: value for key, value in vars(options).items() if key != "json"},
            "torch": torch.__version__,
            "ms": {name: [1e3 * seconds for seconds in values] for name, values in times.items()},
            "ratios": ratios,
        }
        records.write(options.json, record)


if __name__ == "__main__":
    main()
