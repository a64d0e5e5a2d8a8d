"""Options that several commands have, and what they stand for: a device, a batch size, a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import data, models
from .._ops import build_info
from ..data import distributed


def add_calibration(command: argparse.ArgumentParser) -> None:
    """The options of demo and eval: the calibrations to show, on which images, and where to."""
    # On a CPU, activations beyond malloc's reuse limit (32 MiB) would page-fault anew in every
    # layer.
    command.add_argument("--batch-size", type=int, help="default: 32 on a CPU, 256 on a GPU")
    command.add_argument(
        "--rho", type=int, default=4, help="steps to watch for calibration (default 4)"
    )
    command.add_argument("--timesteps", type=int, default=8, help="steps T to emit (default 8)")
    command.add_argument(
        "--iterations",
        type=int,
        metavar="K",
        help="show calibration with K iterations instead of 1 and 2",
    )
    command.add_argument(
        "--exact",
        action="store_true",
        help="show exact calibration; without either option all are shown",
    )
    command.add_argument("--samples", type=int, help="the first so many test images (default: all)")
    command.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="accuracy over time-steps as a figure (extra `plots`); with demo's --report, offset "
        "spikes per layer",
    )
    command.add_argument("--json", type=Path, metavar="FILE", help="the results as JSON")


def add_data_set(command: argparse.ArgumentParser) -> None:
    """The options that name a data set."""
    command.add_argument("--dataset", choices=data.DATASETS, default="fashion-mnist")
    command.add_argument("--data", type=Path, help="the folder (or archive) of the data set")
    command.add_argument(
        "--size", type=int, default=224, help="image size for --dataset folder (default 224)"
    )


def add_device(command: argparse.ArgumentParser) -> None:
    """Where to run, and whether to show progress."""
    command.add_argument(
        "--device",
        default=None,
        help="default: cuda where it and its kernels are there, else cpu",
    )
    command.add_argument("--quiet", action="store_true", help="no progress bars")


def chosen_device(name: str | None) -> torch.device:
    """The device of --device: cuda where it and its kernels are there if it was not given.

    Under torchrun a cuda device without a number is that of this process.

    Raises:
        ValueError: there is no such device, or it cannot be served.
    """
    if name is not None:
        try:
            device = torch.device(name)
        except RuntimeError as error:
            raise ValueError(f"--device: {error}") from error
        reason = build_info()["cuda_off"]
        if device.type == "cuda" and (reason is not None or not torch.cuda.is_available()):
            raise ValueError(f"--device {name}: {reason or 'torch finds no GPU'}")
    else:
        device = torch.device(
            "cuda" if torch.cuda.is_available() and build_info()["cuda"] else "cpu"
        )
    if str(device) == "cuda" and distributed.is_running():
        return distributed.local_gpu()
    return device


def batch_size(args: argparse.Namespace, device: torch.device) -> int:
    """That of --batch-size: 256 on a GPU and 32 elsewhere if it was not given."""
    default = 256 if device.type == "cuda" else 32
    return default if args.batch_size is None else args.batch_size


def read_record(checkpoint: Path) -> dict[str, Any]:
    """The JSON beside a checkpoint, which `train` writes: architecture, levels and so on.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON.
    """
    path = checkpoint.with_suffix(".json")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def build_model(record: dict[str, Any]) -> nn.Module:
    """The untrained model that a record describes.

    Its keys are architecture, num_classes, in_channels and levels; stem may be left out or None.
    """
    options = {"stem": record["stem"]} if record.get("stem") else {}
    return models.build(
        record["architecture"],
        record["num_classes"],
        record["in_channels"],
        levels=record["levels"],
        **options,
    )
