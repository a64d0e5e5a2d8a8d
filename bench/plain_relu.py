"""How well do plain-ReLU networks convert without retraining, by threshold method and max pooling?

    python bench/plain_relu.py train --net resnet20 --data FOLDER --epochs 8 \\
        --output FILE.safetensors
    python bench/plain_relu.py convert --net resnet20 --data FOLDER \\
        --weights FILE.safetensors [--samples N] [--calibration-images N] [--json FILE]

FOLDER holds Fashion-MNIST's four IDX files. The two networks, their short training and the tables
live here; conversion, thresholds and evaluation are cos_ext's, and no time is measured.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import sys
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import cos_ext
from cos_ext import data, models
from cos_ext.data import Batches
from cos_ext.training import train

sys.path.append(str(Path(__file__).parent))  # a test loads this file by its path
from _shared import records
from _shared import tables as markdown
from _shared.machine import command_line


class VGG(nn.Module):
    """Six 3x3 convolutions with BatchNorm and three MaxPool2d(2), 28x28 to 3x3, as torchvision's
    vgg builds them.
    """

    PLAN = (32, 32, "M", 64, 64, "M", 128, 128, "M")

    def __init__(self, num_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for item in self.PLAN:
            if item == "M":
                layers.append(nn.MaxPool2d(2))
            else:
                layers += [
                    nn.Conv2d(width, item, 3, padding=1),
                    nn.BatchNorm2d(item),
                    nn.ReLU(inplace=True),
                ]
                width = item
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(width * 3 * 3, 256), nn.ReLU(inplace=True), nn.Linear(256, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(torch.flatten(self.features(x), 1))


NETS = {
    "resnet20": lambda: models.resnet20(10, 1, activation=nn.ReLU),
    "vgg": lambda: VGG(10, 1),
}
POLICIES = {
    "resnet20": ("error",),
    "vgg": ("before", "spike", "avg"),
}  # values of convert(max_pool=...)
LEVELS = 8  # of the quantisation whose error "mse" minimises
# by the name in the tables: the arguments of calibrate_thresholds, and `passes` over the data if
# not one
METHODS = {
    "max": {"method": "max"},
    "percentile 99.9": {"method": "percentile", "percentile": 99.9},
    "mse": {"method": "mse", "timesteps": LEVELS},
    "balance, 1 pass": {"method": "balance"},
    "balance, 10 passes": {"method": "balance", "passes": 10},
    "percentile 99.9, per channel": {
        "method": "percentile",
        "percentile": 99.9,
        "per_channel": True,
    },
    "mse, per channel": {"method": "mse", "timesteps": LEVELS, "per_channel": True},
}
CALIBRATIONS = ((0, 1), (4, 1), (8, 1), (8, None))  # rho and iterations; rho = 0 is no calibration
TIMES = (1, 2, 4, 8, 16, 32)


def train_net(
    net: str,
    train_set: data.ImageSet,
    test_set: data.ImageSet,
    config: train.TrainConfig,
    batch_size: int,
    progress: bool = True,
) -> tuple[nn.Module, list[dict[str, float]]]:
    """A trained network and its history; images are cropped and mirrored at random."""
    torch.manual_seed(config.seed)
    model = NETS[net]().to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(config.seed)
    batches = train_set.batches(
        batch_size, shuffle=True, augment=True, drop_last=True, generator=generator
    )
    history = train.fit(model, batches, test_set.batches(batch_size), config, progress=progress)
    return model, history


def _train(args: argparse.Namespace) -> None:
    config = train.TrainConfig(
        epochs=args.epochs,
        learning_rate=args.lr,
        schedule="onecycle",
        precision=args.precision,
        seed=args.seed,
    )
    train_set, test_set = data.fashion_mnist(args.data, train=True), data.fashion_mnist(args.data)
    model, history = train_net(
        args.net, train_set, test_set, config, args.batch_size, not args.quiet
    )
    record = {
        "net": args.net,
        "command": command_line("plain_relu", sys.argv[1:]),
        "test_accuracy": history[-1]["test_accuracy"],
        "history": history,
    }
    train.save_checkpoint(model, args.output, record)
    print(f"{args.net}: test accuracy {history[-1]['test_accuracy']:.2%}; wrote {args.output}")


def with_average_pools(model: nn.Module) -> nn.Module:
    """A copy whose MaxPool2d are AvgPool2d: the ANN that convert(max_pool="avg") approximates."""
    model = copy.deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.MaxPool2d):
            model.set_submodule(
                name, nn.AvgPool2d(module.kernel_size, module.stride, module.padding)
            )
    return model


def study(
    model: nn.Module,
    policies: Iterable[str],
    calibration_batches: Batches,
    test_batches: Batches,
    methods: Mapping[str, Mapping[str, Any]] = METHODS,
    settings: Iterable[tuple[int, int | None]] = CALIBRATIONS,
    timesteps: int = TIMES[-1],
    progress: bool = False,
) -> dict[str, Any]:
    """Accuracies at t = 1..timesteps for every max-pool policy, threshold method and (rho,
    iterations), as a record.

    Thresholds come from `calibration_batches` and `model` as it was trained, once for all policies.
    Thresholds per channel and exact calibration are tried for the first policy only.
    """
    rows = []
    thresholds = {}
    for name, arguments in methods.items():
        arguments = dict(arguments)
        batches = itertools.chain.from_iterable(
            itertools.repeat(calibration_batches, arguments.pop("passes", 1))
        )
        thresholds[name] = cos_ext.calibrate_thresholds(
            model, batches, progress=progress, **arguments
        )
    example = next(iter(calibration_batches))[0][:4]
    for index, policy in enumerate(policies):
        for name, arguments in methods.items():
            if index and arguments.get("per_channel"):
                continue
            network = cos_ext.convert(
                model,
                timesteps=timesteps,
                thresholds=thresholds[name],
                max_pool=policy,
                example_input=example,
            )
            for rho, iterations in settings:
                if index and iterations is None:
                    continue
                network.rho, network.iterations = rho, iterations
                result = cos_ext.evaluate(network, test_batches, progress=progress)
                row = {
                    "max_pool": policy,
                    "method": name,
                    "rho": rho,
                    "iterations": iterations,
                    **result.to_dict(),
                }
                rows.append(row)
    record = {
        "ann_accuracy": train.accuracy(model, test_batches),
        "rows": rows,
        "thresholds": {
            name: {site: theta.tolist() for site, theta in found.items() if theta.numel() == 1}
            for name, found in thresholds.items()
        },
    }
    if "avg" in policies:
        record["ann_accuracy_with_average_pools"] = train.accuracy(
            with_average_pools(model), test_batches
        )
    return record


def tables(record: dict[str, Any]) -> str:
    """The record of :func:`study` in Markdown, one table for each max-pool policy."""
    lines = [f"ANN accuracy: {record['ann_accuracy']:.2%}"]
    if "ann_accuracy_with_average_pools" in record:
        lines.append(
            f"the same with average pools: {record['ann_accuracy_with_average_pools']:.2%}"
        )
    for policy in dict.fromkeys(row["max_pool"] for row in record["rows"]):
        rows = [row for row in record["rows"] if row["max_pool"] == policy]
        times = [t for t in TIMES if t <= len(rows[0]["accuracy"])]
        heads = ["thresholds", "rho", "iterations", *markdown.steps(times), "spikes"]
        lines += ["", f'max_pool="{policy}"', "", markdown.head(heads)]
        for row in rows:
            iterations = "exact" if row["iterations"] is None else row["iterations"]
            cells = [row["method"], row["rho"], iterations if row["rho"] else "-"]
            cells += [*markdown.percents(row["accuracy"], times, 1), f"{row['spike_rate']:.3f}"]
            lines.append(markdown.row(cells))
    return "\n".join(lines)


def _convert(args: argparse.Namespace) -> None:
    model = NETS[args.net]()
    models.load_weights(model, args.weights)
    model.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    test_set = data.fashion_mnist(args.data).first(args.samples)
    images = data.fashion_mnist(args.data, train=True).first(args.calibration_images)
    start = time.perf_counter()
    record = study(
        model,
        POLICIES[args.net],
        images.batches(10),
        test_set.batches(args.batch_size),
        progress=not args.quiet,
    )
    minutes = (time.perf_counter() - start) / 60
    print(
        f"{args.net}: {len(test_set)} test images, thresholds from {len(images)} training images, "
        f"{minutes:.1f} minutes"
    )
    print(tables(record))
    if args.json is not None:
        head = {
            "net": args.net,
            "samples": len(test_set),
            "calibration_images": len(images),
            "minutes": minutes,
            "batch_size": args.batch_size,
            "levels": LEVELS,
            "build": cos_ext.build_info(),
        }
        kept = ("max_pool", "method", "rho", "iterations", "accuracy", "spike_rate")
        rows = [{key: row[key] for key in kept} for row in record["rows"]]
        found = {**head, **record, "rows": rows}
        records.write(args.json, found, compact=found)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train a plain-ReLU network")
    training.set_defaults(run=_train)
    training.add_argument("--epochs", type=int, default=8)
    training.add_argument(
        "--lr", type=float, default=0.1, help="peak of the one-cycle schedule (default 0.1)"
    )
    training.add_argument("--batch-size", type=int, default=128)
    training.add_argument("--precision", choices=sorted(train.PRECISIONS), default="bfloat16")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument(
        "--output", type=Path, required=True, help="the weights, .safetensors; JSON beside them"
    )
    conversion = commands.add_parser(
        "convert", help="convert it by every threshold method and print the accuracies"
    )
    conversion.set_defaults(run=_convert)
    conversion.add_argument("--weights", type=Path, required=True, help="what train wrote")
    conversion.add_argument(
        "--samples", type=int, default=1000, help="the first so many test images (default 1000)"
    )
    conversion.add_argument(
        "--calibration-images", type=int, default=1000, help="the first so many training images"
    )
    conversion.add_argument("--batch-size", type=int, default=8)
    conversion.add_argument("--json", type=Path, metavar="FILE", help="the results as JSON")
    for command in (training, conversion):
        command.add_argument("--net", choices=sorted(NETS), required=True)
        command.add_argument(
            "--data", type=Path, required=True, help="the folder of Fashion-MNIST's IDX files"
        )
        command.add_argument("--quiet", action="store_true", help="no progress bars")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
