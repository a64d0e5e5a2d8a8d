"""The table of demo and eval: an ANN beside its spiking network under several calibrations."""

from __future__ import annotations

import argparse
from pathlib import Path

from torch import nn

from .. import data
from .._build import build_info
from .._files import write_figure, write_json
from .._tables import table
from ..analysis.evaluation import Evaluation, evaluate
from ..conversion.pipeline import convert
from ..data import distributed
from ..network.network import SpikingNetwork
from ..training import train
from .options import batch_size, chosen_device, pyplot


def compare(
    args: argparse.Namespace, model: nn.Module, test_set: data.ImageSet | data.ImageFolder
) -> int:
    """Evaluate an ANN and its SNN under each calibration, and print one table. The model may be a
    spiking network already; then there is no ANN.
    """
    device, progress = chosen_device(args.device), not args.quiet
    model = model.to(device)
    batches = test_set.batches(batch_size(args, device), shard=distributed.whoami())
    if isinstance(model, SpikingNetwork):
        network, ann = model, None
        network.timesteps = args.timesteps
    else:
        network = convert(model, timesteps=args.timesteps, rho=args.rho)
        answers = distributed.gather(
            train.correct_answers(model, batches, device=device, progress=progress)
        )
        ann = sum(correct for correct, _ in answers) / max(sum(seen for _, seen in answers), 1)
    wanted = _calibrations(args)
    results: dict[str, Evaluation] = {}
    for name, (rho, iterations) in wanted.items():
        network.rho, network.iterations = rho, iterations
        results[name] = evaluate(network, batches, progress=progress, shard=False)
    times = sorted({t for t in (1, 2, 4, 8, 16, 32, 64) if t <= args.timesteps} | {args.timesteps})
    processes = distributed.whoami()[1]
    where = f"{processes} processes, {device.type}" if processes > 1 else device
    beside = "" if ann is None else f"; ANN accuracy {ann:.2%}"
    print(f"{len(test_set)} images on {where}{beside}\n")
    print(_table(results, times, {name: rho for name, (rho, _) in wanted.items()}))
    print("\nEach cell: accuracy (latency in time-steps, rho + t). Spikes: per neuron and step.")
    if args.json is not None:
        content = {
            "ann_accuracy": ann,
            "rho": args.rho,
            "timesteps": args.timesteps,
            "device": str(device),
            "results": {name: result.to_dict() for name, result in results.items()},
            "build": build_info(),
        }
        write_json(args.json, content)
    if args.plot is not None and distributed.whoami()[0] == 0:
        _plot(args.plot, ann, results)
    return 0


def _calibrations(args: argparse.Namespace) -> dict[str, tuple[int, int | None]]:
    """rho and iterations of the rows, by name."""
    given = [args.iterations] if args.iterations is not None else [] if args.exact else [1, 2]
    rows: dict[str, tuple[int, int | None]] = {"none": (0, 1)}
    rows |= {f"{k} iteration{'s' if k != 1 else ''}": (args.rho, k) for k in given}
    if args.exact or args.iterations is None:
        rows["exact"] = (args.rho, None)
    return rows


def _table(results: dict[str, Evaluation], times: list[int], rho: dict[str, int]) -> str:
    rows = [["calibration", "rho", *(f"t = {t}" for t in times), "images/s", "spikes"]]
    for name, result in results.items():
        cells = [f"{result.accuracy[t - 1]:.2%} ({result.latency[t - 1]})" for t in times]
        speed, spikes = f"{result.images_per_second:.0f}", f"{result.spike_rate:.4f}"
        rows.append([name, str(rho[name]), *cells, speed, spikes])
    return table(rows, left=(0,))


def _plot(path: Path, ann: float | None, results: dict[str, Evaluation]) -> None:
    figure, axes = pyplot().subplots(figsize=(6, 4), layout="constrained")
    if ann is not None:
        axes.axhline(100 * ann, color="black", linestyle="--", linewidth=1, label="ANN")
    for name, result in results.items():
        label = name if name == "none" else f"{name}, rho = {result.latency[0] - 1}"
        axes.plot(
            range(1, len(result.accuracy) + 1),
            [100 * a for a in result.accuracy],
            marker="o",
            markersize=3,
            label=label,
        )
    axes.set_xlabel("time-step t (latency rho + t)")
    axes.set_ylabel("accuracy (%)")
    axes.legend()
    write_figure(path, figure)
