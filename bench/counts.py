"""One pass of the ANN, of the spiking network step by step, and of the same by counts: the shipped
ResNet-20, one batch.

    python bench/counts.py [--batch-size N] [--rho N] [--timesteps N] [--threads N] [--repeats N]
    [--compile] [--json FILE]

Measures time only. Rows are interleaved; a ratio is the median over the repeats of its row's time
to the fastest ANN's.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import statistics
import time
from pathlib import Path

import torch
from torch import fx, nn

from cos_ext import QCFS, convert, data, models
from cos_ext.cli import DEMO_CHECKPOINT
from cos_ext.conversion.fold import fold_batchnorms
from cos_ext.conversion.tracing import set_module, trace


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
    model = models.resnet20(10, 1)
    models.load_weights(model, DEMO_CHECKPOINT)
    model.eval().requires_grad_(False)
    images, _ = next(
        iter(data.fashion_mnist().first(options.batch_size).batches(options.batch_size))
    )

    # What an ANN's user would run: BatchNorm folded; and with ReLU in place instead of QCFS, the
    # cheapest activation there is.
    folded = trace(model)
    fold_batchnorms(folded.module, dict.fromkeys(folded.graph.nodes, 4))
    qcfs = fx.GraphModule(folded.module, folded.graph)
    relu = copy.deepcopy(qcfs)
    for site, module in folded.sites.items():
        assert isinstance(module, QCFS)
        set_module(relu, site, nn.ReLU(inplace=True))
    steps = convert(model, timesteps=options.timesteps, rho=options.rho, emission=options.emission)
    counts = copy.deepcopy(steps)
    counts.execution = "counts"
    rows = {
        "ANN, QCFS": model,
        "ANN, QCFS, folded": qcfs,
        "ANN, ReLU, folded": relu,
        "network, steps": steps,
        "network, counts": counts,
    }
    if options.compile:
        rows |= {
            f"{name}, compiled": torch.compile(rows[name])
            for name in (*list(rows)[:3], "network, counts")
        }

    times: dict[str, list[float]] = {name: [] for name in rows}
    with torch.inference_mode():
        for repeat in range(options.repeats + 1):
            for name, module in rows.items():
                start = time.perf_counter()
                module(images)
                if repeat:  # the first warms up
                    times[name].append(1e3 * (time.perf_counter() - start))
    best = min(
        (name for name in rows if name.startswith("ANN")),
        key=lambda name: statistics.median(times[name]),
    )
    print(
        f"{options.batch_size} images, rho = {options.rho}, T = {options.timesteps}, "
        f"{options.emission}, float32, "
        f"{options.threads} threads, {options.repeats} repeats, torch {torch.__version__}, "
        f"{platform.machine()}"
    )
    print(f"| | ms (least) | to {best} |\n| --- | ---: | ---: |")
    ratios = {
        name: statistics.median(a / b for a, b in zip(times[name], times[best])) for name in rows
    }
    for name in rows:
        print(
            f"| {name} | {statistics.median(times[name]):.1f} ({min(times[name]):.1f}) | "
            f"{ratios[name]:.2f} |"
        )
    if options.json:
        settings = {name: value for name, value in vars(options).items() if name != "json"}
        options.json.write_text(
            json.dumps(
                {"settings": settings, "torch": torch.__version__, "ms": times, "ratios": ratios},
                indent=1,
            )
            + "\n"
        )


if __name__ == "__main__":
    main()
