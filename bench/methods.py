"""Which conversion method is best at 1, 2, 4 and 8 steps, and what does it pay for that?

    python bench/methods.py [--images N] [--costs N] [--rho RHO] [--only NAME...] [--json FILE]
    python bench/methods.py --draw FILE... [--figures FOLDER]

All methods of cos_ext.methods on the shipped ResNet-20 and the shipped test images of
Fashion-MNIST: accuracy on the first --images of them, and on the first --costs latency, levels sent
and energy. What is fitted to data is fitted on the last 600, on which nothing is evaluated. Never
measures time. --draw prints records as tables in Markdown, and draws the figures.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Subset

import cos_ext
from cos_ext import SpikingNetwork, convert, data, evaluate
from cos_ext.methods import METHODS, Method, group_neurons

sys.path.append(str(Path(__file__).parent))
from _methods.figures import draw
from _methods.table import STEPS, ann_of, joined, page
from _shared import checkpoints, records
from _shared.machine import ROOT, command_line, facts

FITTED = 600
BATCH = 200
AVERAGED = 10
FIGURES = ROOT / "docs" / "_static"
ROWS: list[tuple[str, Method]] = [
    *((name, method) for name, method in METHODS.items() if name != "group-neurons"),
    ("group-neurons, 2 members", group_neurons(2)),
    ("group-neurons, 4 members", group_neurons(4)),
    (
        "group-neurons, 4, calibrated",  # ours: offsets of levels, as "even" has them of spikes
        replace(group_neurons(4), latency="rho + t", settings={"emission": "even"}),
    ),
]


def main(argv: list[str] | None = None) -> int:
    options = _options(argv)
    if options.draw:
        parts = [json.loads(path.read_text()) for path in options.draw]
        rows = joined(parts)
        print(page(rows))
        for path in draw(rows, ann_of(parts), options.figures):
            print(path, file=sys.stderr)
        return 0
    record: dict[str, Any] = {
        "command": command_line("methods", sys.argv[1:] if argv is None else argv),
        "machine": facts(("torch", "numpy")),
        "images": options.images,
        "costs_of": options.costs,
        "rho": options.rho,
        "ann": {},
        "rows": [],
    }
    ann, _ = checkpoints.load()
    images = data.fashion_mnist(train=False)
    measured = DataLoader(Subset(images, range(options.images)), batch_size=BATCH)
    few = DataLoader(Subset(images, range(options.costs)), batch_size=BATCH)
    last = Subset(images, range(10_000 - FITTED, 10_000))
    if options.images:
        record["ann"]["accuracy"] = _ann_accuracy(ann, measured)
    for name, method in ROWS:
        if options.only and name not in options.only:
            continue
        row, joules = _row(ann, method, options.rho, measured, few, last)
        if joules:
            record["ann"]["microjoules"] = joules
        record["rows"].append({"name": name, **row})
        print(_line(name, row), flush=True)
        if options.json:
            records.write(options.json, record, compact=("rows",))
    return 0


def _options(argv: list[str] | None) -> argparse.Namespace:
    most = 10_000 - FITTED
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=most, help=f"for accuracy (default {most})")
    parser.add_argument("--costs", type=int, default=0, help="for costs (default 0: no costs)")
    parser.add_argument("--rho", type=int, default=4, help="of the methods that watch (default 4)")
    parser.add_argument("--json", type=Path, help="write the record to this file, too")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these rows, by their names")
    parser.add_argument("--draw", type=Path, nargs="+", help="tables and figures of these records")
    parser.add_argument("--figures", type=Path, default=FIGURES, help="where figures are written")
    options = parser.parse_args(argv)
    names = [name for name, _ in ROWS]
    if unknown := sorted(set(options.only or ()) - set(names)):
        parser.error(f"--only must name some of {names}, got {unknown}")
    for name in ("images", "costs"):
        if not 0 <= getattr(options, name) <= most:
            parser.error(f"--{name} must lie in 0..{most}")
    if not options.images + options.costs:
        parser.error("--images or --costs must be positive")
    return options


@torch.no_grad()
def _ann_accuracy(ann: torch.nn.Module, images: DataLoader) -> float:
    right = sum(int((ann(x).argmax(1) == y).sum()) for x, y in images)
    return right / len(images.dataset)  # type: ignore[arg-type]


def _row(
    ann: torch.nn.Module,
    method: Method,
    rho: int,
    measured: DataLoader,
    few: DataLoader,
    last: Subset,
) -> tuple[dict[str, Any], float]:
    """Accuracy and costs by T, and the ANN's energy. Accuracy takes one run where T plays no
    part.
    """
    watched = rho if method.watches else 0
    by_steps = bool(method.spreads or method.fit)
    row: dict[str, Any] = {"needs": method.needs, "latency": method.latency}
    accuracy: dict[str, float] = {}
    joules = 0.0
    for steps in STEPS:
        whole = bool(len(measured)) and (by_steps or steps == STEPS[-1])
        if not whole and not len(few):
            continue
        network = convert(ann, timesteps=steps, rho=watched, method=method)
        if method.fit:
            cos_ext.fit(network, ann, _fitted(method, last), progress=False)
        if whole:
            result = evaluate(network, measured, progress=False)
            own = (steps,) if by_steps else STEPS
            accuracy.update({str(t): result.accuracy[t - 1] for t in own})
            row.update(spikes=result.spike_rate, accuracy=accuracy)
        if len(few):
            costs, joules = _costs(network, few)
            row.setdefault("costs", {})[str(steps)] = costs
    return row, joules


def _costs(network: SpikingNetwork, few: DataLoader) -> tuple[dict[str, float | None], float]:
    """What an answer at T costs, and the ANN's energy: 0 with calibration 'srp', which the report
    refuses.
    """
    result = evaluate(network, few, progress=False)
    steps = max(network.timesteps, network.watch_steps)  # that hidden layers run
    costs: dict[str, float | None] = {
        "latency": result.latency[-1],
        "pipeline_latency": result.pipeline_latency[-1],
        "spikes": result.spike_rate * steps,
        "microjoules": None,
    }
    if network.calibration == "srp":
        return costs, 0.0
    report = network.energy_report(few, progress=False)
    costs["microjoules"] = 1e6 * report.snn_joules[-1]
    return costs, 1e6 * report.ann_joules


def _fitted(method: Method, images: Subset) -> Iterable[Any]:
    """What a method is fitted on: the images once, or for ψ and φ several times in small batches.

    Those are moving averages over batches with a momentum of 0.99, from 0 on.
    """
    if method.fit != "fit_rate_shift":
        return DataLoader(images, batch_size=BATCH)
    return chain.from_iterable(repeat(DataLoader(images, batch_size=BATCH // 10), AVERAGED))


def _line(name: str, row: dict[str, Any]) -> str:
    cells = ""
    for t in map(str, STEPS):
        cells += f" {100 * row['accuracy'][t]:6.2f}" if "accuracy" in row else ""
        cells += f" ({_shown(row['costs'][t])})" if "costs" in row else ""
    return f"{name:28}{cells}"


def _shown(costs: dict[str, float | None]) -> str:
    joules = costs["microjoules"]
    energy = "-" if joules is None else f"{joules:.1f} µJ"
    return f"{costs['latency']}, {costs['pipeline_latency']}, {costs['spikes']:.2f}, {energy}"


if __name__ == "__main__":
    sys.exit(main())
