"""Does COS beat the conversions that the paper compares it with, on one checkpoint?

    python bench/reproduce.py       # the shipped ResNet-20, Fashion-MNIST
    python bench/reproduce.py --dataset cifar100 --data DIR --checkpoint VGG16.pth \\
        --arch vgg16 --levels 4 --rho 4

Prints the paper's table at T = 1, 2, 4, 8. Measures accuracy and never time. A cell is accuracy in
percent (latency in time-steps: the steps watched, and then t). "Light" and "parallel, rho = T"
depend on T and are a network of their own in every column; all other rows are one run. No published
figure belongs here: docs/ holds them against these tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from cos_ext import QCFS, SpikingNetwork, build_info, convert, data, evaluate, fit_light, models
from cos_ext._commands.options import chosen_device
from cos_ext.training import train
from cos_ext.training.state import beside

sys.path.append(str(Path(__file__).parent))  # a test loads this file by its path
from _shared import checkpoints, records, tables
from _shared.machine import command_line

# The rows of every rho, by name: the network's settings.
WATCHING = {
    "COS, 0 iterations": {"calibration": "cos", "iterations": 0},
    "COS, 1 iteration": {"calibration": "cos", "iterations": 1},
    "COS, 2 iterations": {"calibration": "cos", "iterations": 2},
    "COS, exact": {"calibration": "cos", "iterations": None},
    "COS, emission even": {"calibration": "cos", "emission": "even"},
    "parallel = COS, emission front": {"calibration": "parallel"},
    "SRP": {"calibration": "srp"},
}
Images = data.ImageSet | data.ImageFolder
Cells = dict[int, tuple[float, int]]  # by T, accuracy and latency; 0 is none


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        return _run(args, sys.argv[1:] if argv is None else argv)
    except (ValueError, TypeError, FileNotFoundError, ImportError) as error:
        print(f"reproduce: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=checkpoints.DEMO_CHECKPOINT,
        help="one of cos_ext's, with its JSON beside it, or one of the authors' code; default: the "
        "shipped one",
    )
    parser.add_argument(
        "--arch", choices=sorted(models.ARCHITECTURES), help="needed without a JSON"
    )
    parser.add_argument("--levels", type=int, help="QCFS levels L; needed without a JSON")
    parser.add_argument("--dataset", choices=data.DATASETS, default="fashion-mnist")
    parser.add_argument(
        "--data", type=Path, help="folder or archive; folder: with val/ and, for light, train/"
    )
    parser.add_argument(
        "--size", type=int, default=224, help="image size for --dataset folder (default 224)"
    )
    parser.add_argument(
        "--rho",
        type=int,
        nargs="+",
        default=[4],
        help="steps to watch, a block of rows for each (default 4)",
    )
    parser.add_argument(
        "--timesteps",
        type=int,
        nargs="+",
        default=[1, 2, 4, 8],
        help="the columns (default 1 2 4 8)",
    )
    parser.add_argument(
        "--only-rho",
        action="store_true",
        help="leave out the rows without rho: none, light, parallel with rho = T",
    )
    parser.add_argument("--samples", type=int, help="evaluate on so many images (default: all)")
    parser.add_argument(
        "--fit-samples", type=int, default=128, help="images that light is fitted on (default 128)"
    )
    parser.add_argument("--batch-size", type=int, help="default: 32 on a CPU, 256 on a GPU")
    parser.add_argument(
        "--device", help="default: cuda where it and its kernels are there, else cpu"
    )
    parser.add_argument("--quiet", action="store_true", help="no progress bars")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the results as JSON")
    return parser


def _run(args: argparse.Namespace, argv: list[str]) -> int:
    _check(args)
    device, progress = chosen_device(args.device), not args.quiet
    batch_size = args.batch_size or (256 if device.type == "cuda" else 32)
    columns = sorted(set(args.timesteps))
    test = data.load(args.dataset, args.data, size=args.size)
    model, architecture, levels = _ann(args, test.num_classes)
    model = model.to(device).eval().requires_grad_(False)
    fit, evaluated, origin = split(args, test)
    batches, fit_batches = _batches(evaluated, batch_size), _batches(fit, batch_size)

    ann = train.accuracy(model, batches, device=device, progress=progress)
    print(
        f"{architecture}, L = {levels}, {args.dataset}: {len(evaluated)} images on {device}. Light "
        f"is fitted on {origin}."
    )
    print(f"Each cell: accuracy in percent (latency in time-steps). ANN: {100 * ann:.2f}\n")
    table = Table(columns)
    table.row("ANN", "-", dict.fromkeys(columns, (ann, 0)))
    network = convert(model, timesteps=columns[-1])

    def cells() -> Cells:
        result = evaluate(network, batches, progress=progress)
        return {
            t: (result.accuracy[t - 1], result.latency[t - 1])
            for t in columns
            if t <= network.timesteps
        }

    def light(t: int) -> tuple[float, int]:
        network.timesteps = t
        fit_light(network, model, fit_batches, progress=progress)
        return cells()[t]

    def parallel(t: int) -> tuple[float, int]:
        network.timesteps = t
        _set(network, {"rho": t, "calibration": "parallel"})
        return cells()[t]

    if not args.only_rho:
        _set(network, {"calibration": "none"})
        table.row("none", "-", cells())
        table.row("light, fitted for T", "-", {t: light(t) for t in columns})
        table.row("parallel, rho = T", "T", {t: parallel(t) for t in columns})
    network.timesteps = columns[-1]
    for rho in args.rho:
        for name, settings in WATCHING.items():
            _set(network, {"rho": rho, **settings})
            table.row(name, rho, cells())
    if args.json is not None:
        content = {
            "command": command_line("reproduce", argv),
            "architecture": architecture,
            "levels": levels,
            "dataset": args.dataset,
            "images": len(evaluated),
            "fitted_on": origin,
            "device": str(device),
            "ann_accuracy": ann,
            "rows": table.rows,
            "build": build_info(),
        }
        records.write(args.json, content)
    return 0


class Table:
    """Prints its rows as they come, and keeps them for the record."""

    def __init__(self, columns: list[int]) -> None:
        self.rows: list[dict[str, Any]] = []
        print(tables.head(["calibration", "rho", *tables.steps(columns, "T")]), flush=True)

    def row(self, name: str, rho: int | str, cells: Cells) -> None:
        shown = (
            f"{100 * accuracy:.2f}" + (f" ({latency})" if latency else "")
            for accuracy, latency in cells.values()
        )
        print(tables.row([name, rho, *shown]), flush=True)
        self.rows.append(
            {
                "calibration": name,
                "rho": rho,
                "accuracy": {t: accuracy for t, (accuracy, _) in cells.items()},
                "latency": {t: latency for t, (_, latency) in cells.items()},
            }
        )


def _check(args: argparse.Namespace) -> None:
    for name in ("rho", "timesteps", "samples", "fit_samples", "batch_size"):
        values = getattr(args, name)
        for value in values if isinstance(values, list) else [values]:
            if value is not None and value < 1:
                raise ValueError(f"--{name.replace('_', '-')} must be >= 1, got {value}")


def _set(network: SpikingNetwork, settings: dict[str, Any]) -> None:
    """The given settings; those that are not given are convert()'s defaults."""
    for name, value in {"rho": 0, "iterations": 1, "emission": "calibrated", **settings}.items():
        setattr(network, name, value)


def _ann(args: argparse.Namespace, num_classes: int) -> tuple[nn.Module, str, int]:
    """The ANN, its architecture's name and its levels."""
    beside_it = beside(args.checkpoint, ".json")
    if beside_it.exists():
        model, record = checkpoints.load(
            args.checkpoint,
            num_classes=num_classes,
            in_channels=1 if args.dataset == "fashion-mnist" else 3,
            architecture=args.arch,
            levels=args.levels,
        )
        return model, record["architecture"], record["levels"]
    if args.arch is None:
        raise ValueError(f"--arch is needed: there is no JSON beside {args.checkpoint}")
    model = models.load_qcfs_checkpoint(args.checkpoint, args.arch, levels=args.levels)
    levels = {module.levels for module in model.modules() if isinstance(module, QCFS)}
    return model, args.arch, levels.pop()


def split(args: argparse.Namespace, test: Images) -> tuple[Images | Subset, Images | Subset, str]:
    """The images that light is fitted on, those that every row is evaluated on, and where the
    former come from.
    """
    training = _training(args)
    order = _order(test) if isinstance(test, data.ImageFolder) else torch.arange(len(test))
    wanted = args.fit_samples
    if training is not None:
        if wanted > len(training):
            raise ValueError(
                f"--fit-samples must be at most {len(training)}, the training images, got {wanted}"
            )
        fit, rest = _pick(training, _order(training)[:wanted]), order
        origin = f"{wanted} training images"
    else:
        if wanted >= len(test):
            raise ValueError(
                f"--fit-samples must be less than {len(test)}, the test images, got {wanted}"
            )
        fit, rest = _pick(test, order[-wanted:]), order[:-wanted]
        which = "the last" if isinstance(test, data.ImageSet) else "a random"
        origin = (
            f"{which} {wanted} of the test images, on which no row is evaluated (there are no "
            "training images here)"
        )
    if args.samples is not None and args.samples > len(rest):
        raise ValueError(f"--samples must be at most {len(rest)}, got {args.samples}")
    return fit, _pick(test, rest[: args.samples]), origin


def _training(args: argparse.Namespace) -> Images | None:
    """The training images as they are, without augmentation; None where there are none."""
    if args.dataset == "folder":
        folder = args.data / "train"
        return data.ImageFolder(folder, size=args.size) if folder.is_dir() else None
    try:
        return data.load(args.dataset, args.data, train=True) if args.data is not None else None
    except FileNotFoundError:
        return None


def _order(images: Images) -> Tensor:
    """A fixed shuffle: image folders are sorted by class."""
    return torch.randperm(len(images), generator=torch.Generator().manual_seed(0))


def _pick(images: Images, indices: Tensor) -> data.ImageSet | Subset:
    if isinstance(images, data.ImageSet):
        return dataclasses.replace(
            images, images=images.images[indices], labels=images.labels[indices]
        )
    return Subset(images, indices.tolist())


def _batches(images: data.ImageSet | Subset, batch_size: int) -> Iterable[tuple[Tensor, Tensor]]:
    if isinstance(images, data.ImageSet):
        return images.batches(batch_size)
    return DataLoader(images, batch_size, num_workers=min(8, os.cpu_count() or 1))


if __name__ == "__main__":
    sys.exit(main())
