"""`train`: trains a QCFS network, and writes a checkpoint with a record beside it."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

import torch

from .. import data, models
from ..qcfs import NOISES
from ..training import train
from ..training.noise import set_noise
from ..training.state import beside, check_output
from .options import add_data_set, add_device, chosen_device, training_batches, training_set


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    training = commands.add_parser("train", help="train a QCFS network")
    training.set_defaults(run=run)
    training.add_argument("--arch", choices=sorted(models.ARCHITECTURES), default="resnet20")
    training.add_argument("--levels", type=int, default=8, help="QCFS levels L (default 8)")
    training.add_argument("--threshold", type=float, default=8.0, help="initial θ (default 8)")
    training.add_argument(
        "--stem", choices=("cifar", "imagenet"), help="default: the architecture's own"
    )
    training.add_argument("--epochs", type=int, default=300)
    training.add_argument("--lr", type=float, default=0.1, help="peak learning rate (default 0.1)")
    training.add_argument("--momentum", type=float, default=0.9)
    training.add_argument("--weight-decay", type=float, default=5e-4)
    training.add_argument("--label-smoothing", type=float, default=0.0)
    training.add_argument("--schedule", choices=train.SCHEDULES, default="cosine")
    training.add_argument("--precision", choices=sorted(train.PRECISIONS), default="float32")
    training.add_argument("--seed", type=int, default=0)
    training.add_argument(
        "--noise",
        choices=("none", *NOISES),
        default="none",
        help="of the QCFS activations while they train (default none)",
    )
    training.add_argument(
        "--noise-samples",
        type=int,
        default=1000,
        metavar="N",
        help="with --noise residual, the last N training images are held out to measure it "
        "(default 1000)",
    )
    training.add_argument("--batch-size", type=int, default=128)
    training.add_argument(
        "--output",
        type=Path,
        required=True,
        help="the checkpoint NAME.safetensors; NAME.json and NAME.state are written beside it",
    )
    training.add_argument(
        "--resume",
        action="store_true",
        help="go on from NAME.state if it is there, and of the same run",
    )
    add_data_set(training)
    add_device(training)


def run(args: argparse.Namespace) -> int:
    """Train, and write the checkpoint and its record."""
    check_output(args.output)
    device = chosen_device(args.device)
    config = train.TrainConfig(
        epochs=args.epochs,
        learning_rate=args.lr,
        momentum=args.momentum,
        weight_decay=args.weight_decay,
        label_smoothing=args.label_smoothing,
        schedule=args.schedule,
        precision=args.precision,
        seed=args.seed,
    )
    train_set = training_set(args)
    test_set = data.load(args.dataset, args.data, size=args.size)
    held_out = None
    if args.noise == "residual":
        train_set, held_out = _split(train_set, args.noise_samples)
    batches = training_batches(train_set, args.batch_size, args.seed)
    record = {
        "architecture": args.arch,
        "levels": args.levels,
        "num_classes": train_set.num_classes,
        "in_channels": 1 if args.dataset == "fashion-mnist" else 3,
        "stem": args.stem,
        "noise": args.noise,
    }
    torch.manual_seed(args.seed)
    stem = {"stem": args.stem} if args.stem else {}
    model = models.build(
        args.arch,
        record["num_classes"],
        record["in_channels"],
        levels=args.levels,
        threshold=args.threshold,
        **stem,
    )
    set_noise(model, None if args.noise == "none" else args.noise)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # not in torch's stub
    history = train.fit(
        model,
        batches,
        test_set.batches(args.batch_size),
        config,
        device=device,
        state_path=beside(args.output, ".state"),
        resume=args.resume,
        progress=not args.quiet,
        noise_batches=None if held_out is None else held_out.batches(args.batch_size),
    )
    record |= {
        "dataset": args.dataset,
        "test_accuracy": history[-1]["test_accuracy"],
        "seed": args.seed,
        "command": "python -m cos_ext " + shlex.join(sys.argv[1:]),
        "history": history,
    }
    train.save_checkpoint(model, args.output, record)
    print(
        f"test accuracy {history[-1]['test_accuracy']:.2%}; wrote {args.output} and "
        f"{beside(args.output, '.json')}"
    )
    return 0


def _split(images: object, held_out: int) -> tuple[data.ImageSet, data.ImageSet]:
    """The images to train on, and those that residual noise is measured on.

    Raises:
        ValueError: it is a folder, or too many are held out.
    """
    if not isinstance(images, data.ImageSet):
        raise ValueError(
            "--noise residual needs images in memory, got --dataset folder; call "
            "cos_ext.training.train.fit with noise_batches of your own"
        )
    if not 1 <= held_out < len(images):
        raise ValueError(
            f"--noise-samples must lie in 1..{len(images) - 1}, fewer than there are training "
            f"images, got {held_out}"
        )
    return images.split(held_out)
