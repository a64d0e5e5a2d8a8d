"""`finetune`: trains a converted network as it spikes, and writes it with a record beside it."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable
from dataclasses import asdict, fields
from pathlib import Path

from .. import data, models
from .. import surrogate as surrogates
from ..conversion.pipeline import convert
from ..network.storage import is_saved_network
from ..training import train
from ..training.fine_tuning import FineTuneConfig, fine_tune
from ..training.state import beside, check_output, save_beside
from .options import (
    add_data_set,
    add_device,
    build_model,
    chosen_device,
    read_record,
    training_batches,
    training_set,
)

SURROGATES: dict[str, Callable[[], surrogates.Surrogate]] = {
    "atan": surrogates.ATan,
    "fastsigmoid": surrogates.FastSigmoid,
    "rectangle": surrogates.Rectangle,
    "sigmoid": surrogates.Sigmoid,
    "triangle": surrogates.Triangle,
}
BATCH_NORMS: dict[str, bool | str] = {"folded": True, "frozen": "frozen", "trained": False}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    tuning = commands.add_parser("finetune", help="train a converted network for a few time-steps")
    tuning.set_defaults(run=run)
    tuning.add_argument(
        "--checkpoint", type=Path, required=True, help="of `train`, with its JSON beside it"
    )
    tuning.add_argument("--timesteps", type=int, required=True, help="T, which is the latency")
    config = FineTuneConfig()
    for option, kind, default, text in (
        ("--epochs", int, config.epochs, "passes over the training images"),
        ("--lr", float, config.learning_rate, "peak learning rate of the weights"),
        ("--threshold-lr", float, config.threshold_lr, "of log θ, layer by layer"),
        ("--v-init-lr", float, config.v_init_lr, "of v(0)/θ, likewise"),
        ("--distillation", float, config.distillation, "weight of the ANN's answers in the loss"),
        ("--temperature", float, config.temperature, "of the ANN's answers"),
        ("--clip-norm", float, config.clip_norm, "largest norm of all gradients together"),
        ("--momentum", float, config.momentum, "of SGD"),
        ("--weight-decay", float, config.weight_decay, "of SGD"),
        ("--label-smoothing", float, config.label_smoothing, "of the loss"),
        ("--batch-size", int, 64, "images a step"),
        ("--seed", int, config.seed, "of the order and the augmentation"),
    ):
        tuning.add_argument(option, type=kind, default=default, help=f"{text} ({default})")
    tuning.add_argument(
        "--batchnorm", choices=sorted(BATCH_NORMS), default="frozen", help="default: frozen"
    )
    tuning.add_argument("--schedule", choices=train.SCHEDULES, default=config.schedule)
    tuning.add_argument("--precision", choices=sorted(train.PRECISIONS), default=config.precision)
    tuning.add_argument(
        "--surrogate", choices=sorted(SURROGATES), default="triangle", help="with its own alpha"
    )
    tuning.add_argument(
        "--output",
        type=Path,
        required=True,
        help="the network NAME.safetensors; NAME.json and NAME.state are written beside it",
    )
    tuning.add_argument(
        "--resume",
        action="store_true",
        help="go on from NAME.state if it is there, and of the same run",
    )
    add_data_set(tuning)
    add_device(tuning)


def run(args: argparse.Namespace) -> int:
    """Convert, fine-tune, and write the network and its record."""
    check_output(args.output)
    record = read_record(args.checkpoint)
    if is_saved_network(args.checkpoint):
        raise ValueError(f"--checkpoint must be of `train`, got {args.checkpoint} of `finetune`")
    if beside(args.output, "").resolve() == beside(args.checkpoint, "").resolve():
        raise ValueError(
            f"--output must have another name than --checkpoint, whose record it would replace, "
            f"got {args.output}"
        )
    names = {field.name for field in fields(FineTuneConfig)} - {"learning_rate"}
    settings = {name: getattr(args, name) for name in ("lr", *sorted(names))}
    train_set = training_set(args)
    test_set = data.load(args.dataset, args.data, size=args.size)
    classes = record.get("num_classes", train_set.num_classes)
    if classes != train_set.num_classes:
        raise ValueError(
            f"--dataset must have the {classes} classes of the checkpoint, got "
            f"{args.dataset} with {train_set.num_classes}"
        )
    model = build_model(record)
    models.load_weights(model, str(args.checkpoint))
    network = convert(
        model,
        timesteps=args.timesteps,
        trainable=True,
        fold_batchnorm=BATCH_NORMS[args.batchnorm],
    )
    result = fine_tune(
        network,
        training_batches(train_set, args.batch_size, args.seed),
        teacher=model if args.distillation else None,
        surrogate=SURROGATES[args.surrogate](),
        test_batches=test_set.batches(args.batch_size),
        device=chosen_device(args.device),
        state_path=beside(args.output, ".state"),
        resume=args.resume,
        progress=not args.quiet,
        **settings,
    )
    kept = ("architecture", "num_classes", "in_channels", "levels", "stem")
    content = {
        **{key: record.get(key) for key in kept},
        "dataset": args.dataset,
        "test_accuracy": result.accuracy,
        "command": "python -m cos_ext " + shlex.join(sys.argv[1:]),
        "fine_tuning": {
            **asdict(result),
            **settings,
            "surrogate": args.surrogate,
            "batchnorm": args.batchnorm,
        },
    }
    save_beside(args.output, content, network.save)
    print(result)
    print(f"wrote {args.output} and {beside(args.output, '.json')}")
    return 0
