"""Options that several commands have, and what they stand for: a device, a batch size, a model."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .. import data, models
from .._build import build_info
from .._files import check_target
from ..data import distributed
from ..training.state import beside

MOST_STEPS = 2**24  # what the kernels serve


def steps(text: str) -> int:
    """The type of options that count time-steps or iterations; what is least is the library's."""
    value = int(text)
    if value > MOST_STEPS:
        raise argparse.ArgumentTypeError(f"must be at most {MOST_STEPS}, got {text}")
    return value


def add_calibration(command: argparse.ArgumentParser) -> None:
    """The options of demo and eval: the calibrations to show, on which images, and where to."""
    # On a CPU, activations beyond malloc's reuse limit (32 MiB) would page-fault anew in every
    # layer.
    command.add_argument("--batch-size", type=int, help="default: 32 on a CPU, 256 on a GPU")
    command.add_argument(
        "--rho", type=steps, default=4, help="steps to watch for calibration (default 4)"
    )
    command.add_argument("--timesteps", type=steps, default=8, help="steps T to emit (default 8)")
    command.add_argument(
        "--iterations",
        type=steps,
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


def check_outputs(args: argparse.Namespace) -> None:
    """Find out before the work whether the files of --json and --plot can be written.

    Raises:
        OSError: one cannot.
        ImportError: --plot lacks matplotlib.
        ValueError: matplotlib does not know the format; or both are one file.
    """
    json_path, plot = getattr(args, "json", None), getattr(args, "plot", None)
    check_target(*(path for path in (json_path, plot) if path is not None))
    if plot is None:
        return
    pyplot()
    from matplotlib.backend_bases import FigureCanvasBase

    known = FigureCanvasBase.get_supported_filetypes()
    if plot.suffix and plot.suffix[1:].lower() not in known:
        raise ValueError(f"--plot {plot}: its suffix must be one of {', '.join(sorted(known))}")
    if json_path is not None and json_path.resolve() == plot.resolve():
        raise ValueError(f"--json and --plot must be two files, got {plot} for both")


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot as module
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install '.[plots]'") from error
    return module


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
        except RuntimeError:
            device = torch.device("meta")
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"--device must be cpu, cuda or cuda:N, got {name!r}")
        reason, found = build_info()["cuda_off"], torch.cuda.device_count()
        if device.type == "cuda" and (reason is not None or not found):
            raise ValueError(f"--device {name}: {reason or 'torch finds no GPU'}")
        if (device.index or 0) >= (found if device.type == "cuda" else 1):
            last = f"cuda:{found - 1}" if device.type == "cuda" else "cpu:0"
            raise ValueError(f"--device {name} is not there, the last one is {last}")
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


def training_set(args: argparse.Namespace) -> data.ImageSet | data.ImageFolder:
    """The training images that the options name.

    Raises:
        ValueError: there is no --data, and only the test images ship.
    """
    if args.dataset == "fashion-mnist" and args.data is None:
        raise ValueError(
            "--data must name the folder of Fashion-MNIST's training images: only the test images "
            "ship (bench/fashion_split.py makes a small training set of these)"
        )
    return data.load(args.dataset, args.data, train=True, size=args.size)


def training_batches(
    train_set: data.ImageSet | data.ImageFolder, batch_size: int, seed: int
) -> Any:
    """Whole batches in an order drawn anew for each epoch, augmented."""
    generator = torch.Generator().manual_seed(seed)
    options: dict[str, Any] = {"shuffle": True, "drop_last": True, "generator": generator}
    if isinstance(train_set, data.ImageSet):  # a folder knows by itself
        options["augment"] = True
    return train_set.batches(batch_size, **options)


def read_record(checkpoint: Path) -> dict[str, Any]:
    """The JSON beside a checkpoint, which `train` writes: architecture, levels and so on.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not JSON, or no object.
    """
    path = beside(checkpoint, ".json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError(f"{path} must hold an object, got {type(record).__name__}")
    return record


def build_model(record: dict[str, Any]) -> nn.Module:
    """The untrained model that a record describes.

    Its keys are architecture, num_classes, in_channels and levels; stem may be left out or None.

    Raises:
        ValueError: one is missing.
    """
    missing = sorted({"architecture", "num_classes", "in_channels", "levels"} - record.keys())
    if missing:
        raise ValueError(f"the record beside the checkpoint must have {', '.join(missing)}")
    options = {"stem": record["stem"]} if record.get("stem") else {}
    return models.build(
        record["architecture"],
        record["num_classes"],
        record["in_channels"],
        levels=record["levels"],
        **options,
    )
