"""`demo`: the shipped network on the shipped images, as a table or as reports."""

from __future__ import annotations

import argparse

from torch import nn

from .. import data, models
from .._files import write_json
from ..analysis.offsets import offset_spike_report
from ..conversion.pipeline import convert
from ..models import DEMO_CHECKPOINT
from ..network.network import SpikingNetwork
from .compare import compare
from .options import (
    add_calibration,
    add_device,
    batch_size,
    build_model,
    chosen_device,
    read_record,
)

REPORT_SAMPLES = 200  # of --report and --energy, unless told otherwise


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    demo = commands.add_parser(
        "demo", help="convert the shipped ResNet-20 and show its accuracy at every time-step"
    )
    demo.set_defaults(run=run, shares_images=True)
    demo.add_argument(
        "--report",
        action="store_true",
        help="instead of accuracies: offset spikes per layer, before and after each iteration up "
        "to K (default 3), in the network calibrated with K iterations (default 1) or exactly; "
        f"default: the first {REPORT_SAMPLES} test images",
    )
    demo.add_argument(
        "--energy",
        action="store_true",
        help="instead of accuracies: operations, energy and latency per image of the network "
        "calibrated with K iterations (default 1) or exactly; "
        f"default: the first {REPORT_SAMPLES} test images",
    )
    add_calibration(demo)
    add_device(demo)


def run(args: argparse.Namespace) -> int:
    """Read the shipped network, and print what was asked for."""
    record = read_record(DEMO_CHECKPOINT)
    model = build_model(record)
    models.load_weights(model, str(DEMO_CHECKPOINT))
    print(
        f"{record['architecture']} with QCFS activations, L = {record['levels']}, Fashion-MNIST "
        "test set"
    )
    if not (args.report or args.energy):
        return compare(args, model, data.fashion_mnist().first(args.samples))
    samples = REPORT_SAMPLES if args.samples is None else args.samples
    return _reports(args, model, data.fashion_mnist().first(samples))


def _converted(args: argparse.Namespace, model: nn.Module) -> SpikingNetwork:
    own = 1 if args.iterations is None else args.iterations
    return convert(
        model.to(chosen_device(args.device)),
        timesteps=args.timesteps,
        rho=args.rho,
        iterations=None if args.exact else own,
    )


def _reports(args: argparse.Namespace, model: nn.Module, images: data.ImageSet) -> int:
    """Print one report or both of the network that the options describe."""
    if args.plot is not None and not args.report:
        raise ValueError("--plot draws accuracies or offset spikes; --energy has none")
    batches = images.batches(batch_size(args, chosen_device(args.device)))
    network, progress = _converted(args, model), not args.quiet
    contents = {}
    if args.report:
        steps = 3 if args.iterations is None else args.iterations
        offsets = offset_spike_report(model, network, batches, iterations=steps, progress=progress)
        print(f"\n{offsets}")
        contents["report"] = offsets.to_dict()
    if args.energy:
        energy = network.energy_report(batches, progress=progress)
        print(f"\n{energy}")
        contents["energy"] = energy.to_dict()
    if args.json is not None:
        write_json(args.json, contents if len(contents) > 1 else next(iter(contents.values())))
    if args.plot is not None:
        offsets.plot(args.plot)
    return 0
