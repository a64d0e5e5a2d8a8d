"""What does early exit save: mean latency by fitted thresholds, and images/s where samples leave?

    python bench/early_exit.py [--fit N] [--samples N] [--networks NAME...] [--json FILE]

On the shipped checkpoint, T = 8. Potentials (without labels) and thresholds (with them) are fitted
on the first test images, since no training images ship, and everything is reported on the last.
Times are medians of rounds that take turns, in one process; data are not in them.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from _shared import checkpoints, machine, records, tables

from cos_ext import SpikingNetwork, convert, data, early_exit, evaluate, fit_confidence, fit_v_init

TIMESTEPS, WITHIN = 8, 0.001
# What is converted. Static: potentials are then fitted for rho = 4.
NETWORKS: dict[str, dict[str, Any]] = {
    "static": {},
    "cos": {"rho": 8},
    "group-neurons": {"method": "group-neurons"},
}
ROUNDS = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fit", type=int, default=5000, help="fit on the first so many images")
    parser.add_argument("--potentials", type=int, default=2000, help="of them, for the potentials")
    parser.add_argument("--samples", type=int, default=5000, help="report on the last so many")
    parser.add_argument("--timed", type=int, default=400, help="of these, in one round of timing")
    parser.add_argument("--batch-size", type=int, default=100)
    parser.add_argument("--static", type=Path, help="a static network that was saved, or is now")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=[*NETWORKS])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    model, _ = checkpoints.load()
    images = data.fashion_mnist()
    if not 0 < options.fit <= len(images) - options.samples:
        parser.error(f"--fit and --samples must not share any of the {len(images)} images")
    seen, last = images.first(options.fit), slice(-options.samples, None)
    held_out = dataclasses.replace(images, images=images.images[last], labels=images.labels[last])
    found: dict[str, Any] = {}
    for name in options.networks:
        network = convert(model, timesteps=TIMESTEPS, **NETWORKS[name])
        if name == "static":
            network = potentials(network, model, seen, options)
        found[name] = rows(network, seen, held_out, options.batch_size)
        if name == "static":
            timed = held_out.first(options.timed)
            found["times"] = times(network, timed, found[name], options.batch_size)
    if options.json:
        command = machine.command_line("early_exit", sys.argv[1:])
        facts = {"command": command, "processor": machine.processor(), "torch": torch.__version__}
        facts["threads"] = torch.get_num_threads()
        sizes = {name: getattr(options, name) for name in ("fit", "potentials", "samples", "timed")}
        records.write(options.json, {**facts, **sizes, "batch_size": options.batch_size, **found})


def potentials(
    network: SpikingNetwork, model: Any, seen: data.ImageSet, options: argparse.Namespace
) -> SpikingNetwork:
    """With potentials of :func:`cos_ext.fit_v_init`, from the file where there is one."""
    from cos_ext import load_network

    if options.static is not None and options.static.exists():
        return load_network(options.static, model)
    few = seen.first(options.potentials)
    fit_v_init(network, few.batches(options.batch_size), rho=4, progress=False)
    if options.static is not None:
        network.save(options.static)
    return network


def rows(
    network: SpikingNetwork, seen: data.ImageSet, held_out: data.ImageSet, batch_size: int
) -> list[dict[str, Any]]:
    """For every family of thresholds and first step: the point that was picked, on other data."""
    seen_outputs, outputs = (Outputs(network, each, batch_size) for each in (seen, held_out))
    found = []
    print(tables.head(["family", "t0", "fit", "mean latency", "pipelined", "mean t", "drop"]))
    for first_step in (1, 2, 3):
        full = outputs.evaluate(first_step=first_step)
        for family in ("constant", "adafire", "by_step"):
            fit = seen_outputs.fit(family, first_step)
            picked = fit.pick(within=WITHIN)
            result = outputs.evaluate(first_step=first_step, stop=picked.stop)
            mean = result.mean_latency - network.watch_steps
            drop = 100 * (full.accuracy[-1] - result.accuracy[-1])
            latencies = (result.mean_latency, result.mean_pipeline_latency, mean)
            shown = [f"{value:.3f}" for value in latencies]
            cells = [family, first_step, f"{picked.mean_latency:.3f}", *shown, f"{drop:.2f}"]
            print(tables.row(cells), flush=True)
            row = {"family": family, "first_step": first_step, "drop_in_points": drop}
            row |= {"threshold": picked.stop.threshold, "mean_t": mean, "full": full.accuracy}
            found.append({**row, **plain(result)})
    return found


def plain(result: Any) -> dict[str, Any]:
    """An evaluation without what a run from recorded outputs does not tell."""
    told = result.to_dict()
    for name in ("spike_rate", "images_per_second", "metric", "metric_name", "top5"):
        told.pop(name)
    return told


class Outputs:
    """A network's outputs on a data set, computed once: it stands for the network there."""

    def __init__(self, network: SpikingNetwork, images: data.ImageSet, batch_size: int) -> None:
        self.network, self.batches = network, []
        with torch.no_grad():
            for x, labels in images.batches(batch_size):
                self.batches.append((network(x), labels))

    def evaluate(self, **options: Any) -> Any:
        return self._instead(
            lambda: evaluate(self.network, self.batches, progress=False, **options)
        )

    def fit(self, family: str, first_step: int) -> Any:
        options = {"family": family, "first_step": first_step, "points": 100, "progress": False}
        return self._instead(lambda: fit_confidence(self.network, self.batches, **options))

    def _instead(self, call: Callable[[], Any]) -> Any:
        self.network.forward = lambda outputs: outputs
        try:
            return call()
        finally:
            del self.network.forward


@torch.no_grad()
def times(
    network: SpikingNetwork, images: data.ImageSet, found: list[dict[str, Any]], batch_size: int
) -> list[dict[str, Any]]:
    """Images/s of all steps, and of runs that samples leave, by both kinds of convolutions."""
    from cos_ext import Confidence

    batches = [x for x, _ in images.batches(batch_size)]
    limits = next(row["threshold"] for row in found if row["family"] == "constant")
    stop = Confidence(limits)

    def run_by(convolution: str, every: int | None) -> Callable[[torch.Tensor], Any]:
        def run(x: torch.Tensor) -> Any:
            network.convolution = convolution
            if every is None:
                return network.rate(x)
            return early_exit(network, x, stop=stop, leave_every=every)

        return run

    runs: dict[str, Callable[[torch.Tensor], Any]] = {}
    for convolution in ("auto", "dense"):
        runs[f"{convolution}, all steps"] = run_by(convolution, None)
        for every in (1, 2):
            runs[f"{convolution}, leave_every={every}"] = run_by(convolution, every)
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS + 1):
        for name, run in runs.items():
            start = time.perf_counter()
            for x in batches:
                run(x)
            if turn:  # the first is for warming up
                seconds[name].append(time.perf_counter() - start)
    steps = torch.cat([early_exit(network, x, stop=stop).steps for x in batches])
    print(f"mean steps {steps.double().mean():.3f} at threshold {limits:.4f}")
    results = []
    for name, each in seconds.items():
        speeds = sorted(len(images) / second for second in each)
        middle = statistics.median(speeds)
        print(f"{name:28} {middle:8.1f} images/s, {speeds[0]:.1f} to {speeds[-1]:.1f}", flush=True)
        results.append({"run": name, "images_per_second": speeds})
    return results


if __name__ == "__main__":
    main()
