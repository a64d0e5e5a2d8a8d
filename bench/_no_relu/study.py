"""Which settings of a conversion are tried, and what each of them answers, as a record.

Nothing is trained here, and no table is drawn.
"""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import cos_ext
from cos_ext.data import Batches, ImageSet
from cos_ext.training import train

METHODS: dict[str, dict[str, Any]] = {
    "max": {"method": "max"},
    "percentile 99.9": {"method": "percentile", "percentile": 99.9},
    "percentile 99": {"method": "percentile", "percentile": 99.0},
    "mse": {"method": "mse"},
    "mse, per channel": {"method": "mse", "per_channel": True},
}
SPIKES = ("activations", "inputs")
EMISSIONS = ("calibrated", "even")
LEVELS = 4  # of a step, up or down, where it is more than one
BATCH = 20


def spiking(
    model: nn.Module, images: ImageSet, method: str, levels: int = 1, **settings: Any
) -> cos_ext.SpikingNetwork:
    """A converted network; thresholds from all `images`, for its own T."""
    neuron = None if levels == 1 else cos_ext.Neuron(levels=(0, levels))
    thresholds = cos_ext.calibrate_thresholds(
        model,
        images.batches(BATCH),
        **METHODS[method],
        timesteps=settings["timesteps"],
        spikes=settings["spikes"],
        neuron=neuron,
        progress=False,
    )
    return cos_ext.convert(
        model,
        thresholds=thresholds,
        neuron=neuron,
        iterations=None,
        example_input=next(iter(images.batches(2)))[0],
        **settings,
    )


@torch.no_grad()
def answers(model: nn.Module, images: ImageSet) -> list[tuple[Tensor, Tensor]]:
    """Batches whose labels are the ANN's classes."""
    return [(x, model(x).argmax(1)) for x, _ in images.batches(BATCH)]


def tries(timesteps: int) -> Iterator[dict[str, Any]]:
    """The settings that thresholds are chosen by."""
    for spikes in SPIKES:
        for method in METHODS:
            yield {"spikes": spikes, "method": method, "timesteps": timesteps, "rho": timesteps}


def rows(times: Iterable[int], best: dict[str, str]) -> Iterator[dict[str, Any]]:
    """The settings to try on held-out images. best: the threshold method, by `spikes`."""
    times = list(times)
    for spikes in SPIKES:
        one = {"spikes": spikes, "method": best[spikes], "levels": 1}
        for emission in EMISSIONS[: 2 if spikes == "inputs" else 1]:
            for t in times:
                yield {**one, "timesteps": t, "rho": t, "emission": emission}
    inputs = {"spikes": "inputs", "method": best["inputs"], "emission": "calibrated"}
    yield {**inputs, "levels": 1, "timesteps": times[-1], "rho": 0}
    for t in times[:2]:
        yield {**inputs, "levels": LEVELS, "timesteps": t, "rho": t}


Task = tuple[nn.Module, ImageSet, Batches | list[tuple[Tensor, Tensor]], dict[str, Any]]


def _answered(task: Task) -> dict[str, Any]:
    model, images, batches, row = task
    network = spiking(model, images, **row)
    result = cos_ext.evaluate(network, batches, progress=False)
    return {**row, "spike_rate": result.spike_rate, "accuracy": list(result.accuracy)}


@contextmanager
def _workers(processes: int) -> Iterator[Callable[..., Iterable[dict[str, Any]]]]:
    """A map over so many processes, in order; rows do not know each other."""
    if processes == 1:
        yield map
        return
    spawn, threads = multiprocessing.get_context("spawn"), torch.get_num_threads()
    with ProcessPoolExecutor(processes, spawn, torch.set_num_threads, (threads,)) as pool:
        yield pool.map


def study(
    model: nn.Module,
    images: ImageSet,
    few: ImageSet,
    held_out: ImageSet,
    times: Iterable[int],
    processes: int = 1,
    progress: bool = False,
) -> dict[str, Any]:
    """The record: the ANN, how often every threshold method gives its class on `few` at
    t = T = rho = times[1], and every row.

    Thresholds are found and chosen on training images alone.
    """
    times, tested = list(times), held_out.batches(BATCH)
    agreement: dict[str, dict[str, float]] = {spikes: {} for spikes in SPIKES}
    done = []
    with _workers(processes) as each:
        wanted = answers(model, few)
        for row in each(_answered, ((model, images, wanted, t) for t in tries(times[1]))):
            agreement[row["spikes"]][row["method"]] = row["accuracy"][-1]
            _say(row, progress)
        best = {spikes: max(found, key=found.__getitem__) for spikes, found in agreement.items()}
        for row in each(_answered, ((model, images, tested, r) for r in rows(times, best))):
            done.append(row)
            _say(row, progress)
    ann = train.accuracy(model, tested)
    return {"ann_accuracy": ann, "chosen_at": times[1], "agreement": agreement, "rows": done}


def _say(row: dict[str, Any], progress: bool) -> None:
    if progress:
        settings = {key: value for key, value in row.items() if key != "accuracy"}
        print(f"{settings}: {row['accuracy'][-1]:.2%}", file=sys.stderr, flush=True)
