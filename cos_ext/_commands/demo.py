"""`demo`: the shipped network on the shipped images, as a table or as one of two reports."""

from __future__ import annotations

import argparse

from torch import nn

from .. import data, models
from ..analysis.offsets import offset_spike_report
from ..conversion.pipeline import convert
from ..models import DEMO_CHECKPOINT
from ..network.network import SpikingNetwork
from .compare import compare, pyplot
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
    if args.report and args.energy:
        raise ValueError("--report and --energy are two reports; ask for one at a time")
    if not (args.report or args.energy):
        return compare(args, model, data.fashion_mnist().first(args.samples))
    samples = REPORT_SAMPLES if args.samples is None else args.samples
    images = data.fashion_mnist().first(samples)
    return (_energy if args.energy else _offsets)(args, model, images)


def _converted(args: argparse.Namespace, model: nn.Module) -> SpikingNetwork:
    own = 1 if args.iterations is None else args.iterations
    return convert(
        model.to(chosen_device(args.device)),
        timesteps=args.timesteps,
        rho=args.rho,
        iterations=None if args.exact else own,
    )


def _offsets(args: argparse.Namespace, model: nn.Module, images: data.ImageSet) -> int:
    """Print the offset-spike report of the network that the options describe."""
    device = chosen_device(args.device)
    if args.plot is not None:
        pyplot()  # so that a missing matplotlib shows before the work
    network = _converted(args, model)
    report = offset_spike_report(
        model,
        network,
        images.batches(batch_size(args, device)),
        iterations=3 if args.iterations is None else args.iterations,
        progress=not args.quiet,
    )
    print(f"\n{report}")
    if args.json is not None:
        report.to_json(args.json)
    if args.plot is not None:
        report.plot(args.plot)
    return 0


def _energy(args: argparse.Namespace, model: nn.Module, images: data.ImageSet) -> int:
    """Print the energy report of the network that the options describe."""
    if args.plot is not None:
        raise ValueError("--plot draws accuracies or offset spikes; --energy has none")
    device = chosen_device(args.device)
    network = _converted(args, model)
    report = network.energy_report(
        images.batches(batch_size(args, device)), progress=not args.quiet
    )
    print(f"\n{report}")
    if args.json is not None:
        report.to_json(args.json)
    return 0
