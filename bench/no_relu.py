"""How well do a vision transformer and a MobileNetV3 convert without retraining?

    python bench/no_relu.py train --net vit --data FOLDER --output FILE.safetensors
    python bench/no_relu.py convert --net vit --data FOLDER --weights FILE.safetensors \\
        [--samples N] [--calibration-images N] [--json FILE]

FOLDER holds Fashion-MNIST's four IDX files, or those of fashion_split.py --size 28. The networks,
their training and the settings that are tried are in _no_relu/. No time is measured.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from cos_ext import data, models
from cos_ext.training import train

sys.path.append(str(Path(__file__).parent))  # a test loads this file by its path
from _no_relu.networks import NETS
from _no_relu.study import study
from _no_relu.training import train_net
from _shared import records
from _shared import tables as markdown
from _shared.machine import command_line, facts

TIMES = (4, 8, 16, 32)


def _train(args: argparse.Namespace) -> None:
    model, found = train_net(
        args.net,
        data.fashion_mnist(args.data, train=True).first(args.images),
        data.fashion_mnist(args.data),
        epochs=args.epochs,
        rate=args.lr,
        batch_size=args.batch_size,
        seed=args.seed,
        progress=not args.quiet,
    )
    record = {"net": args.net, "command": command_line("no_relu", sys.argv[1:]), **found}
    train.save_checkpoint(model, args.output, record)
    print(f"{args.net}: test accuracy {found['test_accuracy']:.2%}; wrote {args.output}")


def tables(record: dict[str, Any]) -> str:
    """The record of a study in Markdown: the ANN, the choice of thresholds, the rows at t = T, and
    those of the longest T on their way there.
    """
    shares, rows = record["agreement"], record["rows"]
    lines = [f"ANN accuracy: {record['ann_accuracy']:.2%}", ""]
    methods = list(next(iter(shares.values())))
    lines.append(markdown.head(["neurons at", *methods]))
    for spikes, by_method in shares.items():
        lines.append(markdown.row([spikes, *(f"{100 * by_method[name]:.1f}" for name in methods)]))
    times = sorted({row["timesteps"] for row in rows})
    heads = ["neurons at", "levels", "emission", *markdown.steps(times, "T"), "spikes"]
    lines += ["", markdown.head(heads, (0, 2))]
    for head in dict.fromkeys(_head(row) for row in rows if row["rho"]):
        own = {row["timesteps"]: row for row in rows if row["rho"] and _head(row) == head}
        last = [f"{100 * own[t]['accuracy'][-1]:.1f}" if t in own else "" for t in times]
        lines.append(markdown.row([*head, *last, f"{own[min(own)]['spike_rate']:.3f}"]))
    steps = [1, 2, *times]
    lines += ["", markdown.head(["neurons at", "rho", "emission", *markdown.steps(steps)], (0, 2))]
    for row in rows:
        if row["timesteps"] == times[-1]:
            cells = markdown.percents(row["accuracy"], steps, 1)
            lines.append(markdown.row([row["spikes"], row["rho"], row["emission"], *cells]))
    return "\n".join(lines)


def _head(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["spikes"], row["levels"], row["emission"]


def _convert(args: argparse.Namespace) -> None:
    model = NETS[args.net]()
    models.load_weights(model, args.weights)
    model.eval().requires_grad_(False)
    held_out = data.fashion_mnist(args.data).first(args.samples)
    images = data.fashion_mnist(args.data, train=True).first(args.calibration_images)
    few = images.first(args.choice_images)
    record = study(model, images, few, held_out, args.times, args.processes, not args.quiet)
    print(
        f"{args.net}: {len(held_out)} held-out images, thresholds from {len(images)} training "
        f"images, chosen on {len(few)} of them"
    )
    print(tables(record))
    if args.json is not None:
        head = {
            "net": args.net,
            "command": command_line("no_relu", sys.argv[1:]),
            "samples": len(held_out),
            "calibration_images": len(images),
            "choice_images": len(few),
            **facts(("torch", "numpy")),
        }
        records.write(args.json, {**head, **record}, compact=("agreement", "rows"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    training = commands.add_parser("train", help="train one of the networks")
    training.set_defaults(run=_train)
    training.add_argument("--epochs", type=int, default=30)
    training.add_argument("--lr", type=float, default=2e-3, help="the peak (default 0.002)")
    training.add_argument("--batch-size", type=int, default=128)
    training.add_argument("--images", type=int, help="the first so many training images")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument(
        "--output", type=Path, required=True, help="the weights, .safetensors; JSON beside them"
    )
    conversion = commands.add_parser("convert", help="convert it and print the accuracies")
    conversion.set_defaults(run=_convert)
    conversion.add_argument("--weights", type=Path, required=True, help="what train wrote")
    conversion.add_argument(
        "--samples", type=int, default=1000, help="the first so many test images (default 1000)"
    )
    conversion.add_argument(
        "--calibration-images", type=int, default=500, help="the first so many training images"
    )
    conversion.add_argument(
        "--choice-images", type=int, default=200, help="of these, to choose thresholds on"
    )
    conversion.add_argument("--times", type=int, nargs="+", default=TIMES, metavar="T")
    conversion.add_argument("--processes", type=int, default=1, help="side by side (default 1)")
    conversion.add_argument("--json", type=Path, metavar="FILE", help="the results as JSON")
    for command in (training, conversion):
        command.add_argument("--net", choices=sorted(NETS), required=True)
        command.add_argument(
            "--data", type=Path, required=True, help="the folder of Fashion-MNIST's IDX files"
        )
        command.add_argument("--threads", type=int, default=1, help="of torch (default 1)")
        command.add_argument("--quiet", action="store_true", help="no progress")
    return parser


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    torch.set_num_threads(args.threads)
    args.run(args)
    return 0


if __name__ == "__main__":
    sys.exit(main())
