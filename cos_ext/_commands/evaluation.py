"""`eval`: the table of demo for a checkpoint, an architecture and a data set of the user's."""

from __future__ import annotations

import argparse
from pathlib import Path

from .. import data, models
from ..conversion.loading import load_network
from ..network.storage import is_saved_network
from ..training.state import beside
from .compare import compare
from .options import add_calibration, add_data_set, add_device, build_model, read_record


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command and its options."""
    evaluation = commands.add_parser(
        "eval", help="the same for a checkpoint, an architecture and a data set of yours"
    )
    evaluation.set_defaults(run=run, shares_images=True)
    evaluation.add_argument(
        "--checkpoint",
        type=Path,
        required=True,
        help=".safetensors, of `finetune` too, or a weights-only state dict",
    )
    evaluation.add_argument(
        "--arch",
        choices=sorted(models.ARCHITECTURES),
        help="default: from the JSON beside the checkpoint",
    )
    evaluation.add_argument(
        "--levels", type=int, help="QCFS levels L; default: from the JSON beside the checkpoint"
    )
    evaluation.add_argument(
        "--stem",
        choices=("cifar", "imagenet"),
        help="default: from the JSON, or the architecture's own",
    )
    add_calibration(evaluation)
    add_data_set(evaluation)
    add_device(evaluation)


def run(args: argparse.Namespace) -> int:
    """Read the checkpoint and its record, and print the table."""
    if not args.checkpoint.is_file():
        raise FileNotFoundError(f"--checkpoint must name a file, got {str(args.checkpoint)!r}")
    test_set = data.load(args.dataset, args.data, size=args.size)
    beside_it = beside(args.checkpoint, ".json")
    record = read_record(args.checkpoint) if beside_it.exists() else {}
    record["num_classes"] = test_set.num_classes
    record["in_channels"] = 1 if args.dataset == "fashion-mnist" else 3
    for key, value in (("architecture", args.arch), ("levels", args.levels), ("stem", args.stem)):
        if value is not None:
            record[key] = value
        elif key not in record and key != "stem":
            raise ValueError(
                f"--{key.replace('architecture', 'arch')} is needed: there is no "
                f"{beside_it} beside the checkpoint"
            )
    model = build_model(record)
    title = f"{record['architecture']}, L = {record['levels']}"
    if is_saved_network(args.checkpoint):  # which `finetune` wrote
        model = load_network(args.checkpoint, model)
        title += f", fine-tuned at T = {model.timesteps}"
    else:
        models.load_weights(model, str(args.checkpoint))
    print(f"{title}, {args.dataset}")
    if args.samples is None:
        return compare(args, model, test_set)
    if not isinstance(test_set, data.ImageSet):
        raise ValueError(
            f"--samples is not for --dataset {args.dataset}: it is read image by image"
        )
    return compare(args, model, test_set.first(args.samples))
