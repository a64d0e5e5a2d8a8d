"""The command line: python -m cos_ext {demo, train, eval, bench, info}. Parsing and printing
only.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from . import data, models
from ._ops import build_info
from .analysis.evaluation import Evaluation, evaluate
from .analysis.offsets import offset_spike_report
from .bench import run_bench
from .conversion.pipeline import convert
from .data import distributed
from .training import train

DEMO_CHECKPOINT = data.ASSETS / "resnet20-fashion-mnist.safetensors"
REPORT_SAMPLES = 200  # of `demo --report`, unless told otherwise


def main(argv: list[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    try:
        with _processes(args):
            return args.run(args)
    except (
        ValueError,
        TypeError,
        FileNotFoundError,
        ImportError,
        FloatingPointError,
        distributed.RemoteError,
    ) as error:
        print(f"cos_ext {args.command}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"cos_ext {args.command}: interrupted", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _processes(args: argparse.Namespace) -> Iterator[None]:
    """Under torchrun demo and eval share out the images; the first process alone prints and
    writes.
    """
    if args.run not in (_demo, _eval) or not distributed.launched():
        yield
        return
    if getattr(args, "report", False):
        raise ValueError("--report works in one process, got several")
    with distributed.started() as (rank, _), contextlib.ExitStack() as stack:
        if rank > 0:
            args.quiet, args.json = True, None
            stack.enter_context(
                contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w")))
            )
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cos_ext", description="ANN to SNN conversion by calibrating offset spikes"
    )
    commands = parser.add_subparsers(dest="command", required=True)

    demo = commands.add_parser(
        "demo", help="convert the shipped ResNet-20 and show its accuracy at every time-step"
    )
    demo.set_defaults(run=_demo)
    demo.add_argument(
        "--report",
        action="store_true",
        help="instead of accuracies: offset spikes per layer, before and after each iteration up "
        "to K (default 3), in the "
        "network calibrated with K iterations (default 1) or exactly; default: the first "
        f"{REPORT_SAMPLES} test images",
    )
    demo.add_argument(
        "--energy",
        action="store_true",
        help="instead of accuracies: operations, energy and latency per image of the network "
        "calibrated with K iterations "
        f"(default 1) or exactly; default: the first {REPORT_SAMPLES} test images",
    )
    evaluation = commands.add_parser(
        "eval", help="the same for a checkpoint, an architecture and a data set of yours"
    )
    evaluation.set_defaults(run=_eval)
    evaluation.add_argument(
        "--checkpoint", type=Path, required=True, help=".safetensors or a weights-only state dict"
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
    for command in (demo, evaluation):
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
        command.add_argument(
            "--samples", type=int, help="the first so many test images (default: all)"
        )
        command.add_argument(
            "--plot",
            type=Path,
            metavar="FILE",
            help="accuracy over time-steps as a figure (extra `plots`); with demo's --report, "
            "offset spikes per layer",
        )
        command.add_argument("--json", type=Path, metavar="FILE", help="the results as JSON")

    training = commands.add_parser("train", help="train a QCFS network")
    training.set_defaults(run=_train)
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
    training.add_argument("--batch-size", type=int, default=128)
    training.add_argument(
        "--output",
        type=Path,
        required=True,
        help="the checkpoint, .safetensors; a JSON is written beside it",
    )
    training.add_argument(
        "--resume", action="store_true", help="go on from OUTPUT.state if it is there"
    )
    for command in (evaluation, training):
        command.add_argument("--dataset", choices=data.DATASETS, default="fashion-mnist")
        command.add_argument("--data", type=Path, help="the folder (or archive) of the data set")
        command.add_argument(
            "--size", type=int, default=224, help="image size for --dataset folder (default 224)"
        )
    for command in (demo, evaluation, training):
        command.add_argument(
            "--device",
            default=None,
            help="default: cuda where it and its kernels are there, else cpu",
        )
        command.add_argument("--quiet", action="store_true", help="no progress bars")

    bench = commands.add_parser(
        "bench", help="kernels against copies and plain torch, side by side"
    )
    bench.set_defaults(run=_bench)
    bench.add_argument(
        "--mib",
        type=int,
        nargs="+",
        default=[128, 16],
        help="sizes of x_seq in MiB (default 128 16)",
    )
    bench.add_argument("--timesteps", type=int, nargs="+", default=[4, 8, 32])
    bench.add_argument("--rho", type=int, default=4)
    bench.add_argument("--threads", type=int, help="default: torch's")
    bench.add_argument("--repeats", type=int, default=15)
    bench.add_argument(
        "--compile",
        action="store_true",
        help="also torch.compile of the plain loop (compiles first)",
    )
    bench.add_argument("--json", type=Path, metavar="FILE", help="the results as JSON")

    info = commands.add_parser(
        "info", help="versions, CPU capability, CUDA architectures, and why CUDA is off"
    )
    info.set_defaults(run=_info)
    return parser


def _device(name: str | None) -> torch.device:
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
    if device.type == "cuda" and device.index is None and distributed.is_running():
        return distributed.local_gpu()
    return device


def _info(args: argparse.Namespace) -> int:
    for key, value in build_info().items():
        print(f"{key:18} {'-' if value in (None, '') else value}")
    return 0


def _bench(args: argparse.Namespace) -> int:
    run_bench(
        args.mib,
        args.timesteps,
        rho=args.rho,
        threads=args.threads,
        repeats=args.repeats,
        compiled=args.compile,
        json_path=args.json,
    )
    return 0


def _demo(args: argparse.Namespace) -> int:
    record = _record(DEMO_CHECKPOINT)
    model = _model(record)
    models.load_weights(model, DEMO_CHECKPOINT)
    print(
        f"{record['architecture']} with QCFS activations, L = {record['levels']}, Fashion-MNIST "
        "test set"
    )
    if args.report and args.energy:
        raise ValueError("--report and --energy are two reports; ask for one at a time")
    if args.report or args.energy:
        samples = REPORT_SAMPLES if args.samples is None else args.samples
        return (_energy if args.energy else _offsets)(
            args, model, data.fashion_mnist().first(samples)
        )
    return _compare(args, model, data.fashion_mnist().first(args.samples))


def _eval(args: argparse.Namespace) -> int:
    test_set = data.load(args.dataset, args.data, size=args.size)
    record = _record(args.checkpoint) if args.checkpoint.with_suffix(".json").exists() else {}
    record.update(
        {
            "num_classes": test_set.num_classes,
            "in_channels": 1 if args.dataset == "fashion-mnist" else 3,
        }
    )
    for key, value in (("architecture", args.arch), ("levels", args.levels), ("stem", args.stem)):
        if value is not None:
            record[key] = value
        elif key not in record and key != "stem":
            raise ValueError(
                f"--{key.replace('architecture', 'arch')} is needed: there is no JSON beside "
                f"{args.checkpoint}"
            )
    model = _model(record)
    models.load_weights(model, args.checkpoint)
    print(f"{record['architecture']}, L = {record['levels']}, {args.dataset}")
    if args.samples is not None:
        test_set = test_set.first(args.samples)
    return _compare(args, model, test_set)


def _record(checkpoint: Path) -> dict[str, Any]:
    path = checkpoint.with_suffix(".json")
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def _model(record: dict[str, Any]) -> torch.nn.Module:
    options = {"stem": record["stem"]} if record.get("stem") else {}
    return models.build(
        record["architecture"],
        record["num_classes"],
        record["in_channels"],
        levels=record["levels"],
        **options,
    )


def _offsets(args: argparse.Namespace, model: torch.nn.Module, images: data.ImageSet) -> int:
    """Print the offset-spike report of the network that the options describe."""
    device = _device(args.device)
    if args.plot is not None:
        _pyplot()  # so that a missing matplotlib shows before the work
    shown, own = (3, 1) if args.iterations is None else (args.iterations, args.iterations)
    network = convert(
        model.to(device),
        timesteps=args.timesteps,
        rho=args.rho,
        iterations=None if args.exact else own,
    )
    report = offset_spike_report(
        model,
        network,
        images.batches(_batch_size(args, device)),
        iterations=shown,
        progress=not args.quiet,
    )
    print(f"\n{report}")
    if args.json is not None:
        report.to_json(args.json)
    if args.plot is not None:
        report.plot(args.plot)
    return 0


def _energy(args: argparse.Namespace, model: torch.nn.Module, images: data.ImageSet) -> int:
    """Print the energy report of the network that the options describe."""
    if args.plot is not None:
        raise ValueError("--plot draws accuracies or offset spikes; --energy has none")
    device, own = _device(args.device), 1 if args.iterations is None else args.iterations
    network = convert(
        model.to(device),
        timesteps=args.timesteps,
        rho=args.rho,
        iterations=None if args.exact else own,
    )
    report = network.energy_report(
        images.batches(_batch_size(args, device)), progress=not args.quiet
    )
    print(f"\n{report}")
    if args.json is not None:
        report.to_json(args.json)
    return 0


def _batch_size(args: argparse.Namespace, device: torch.device) -> int:
    default = 256 if device.type == "cuda" else 32
    return default if args.batch_size is None else args.batch_size


def _compare(
    args: argparse.Namespace, model: torch.nn.Module, test_set: data.ImageSet | data.ImageFolder
) -> int:
    """Evaluate the ANN and the SNN under each calibration, and print one table."""
    device, progress = _device(args.device), not args.quiet
    if args.plot is not None:
        _pyplot()  # so that a missing matplotlib shows before the work
    network = convert(model.to(device), timesteps=args.timesteps, rho=args.rho)
    batches = test_set.batches(_batch_size(args, device), shard=distributed.whoami())
    answers = distributed.gather(
        train.correct_answers(model, batches, device=device, progress=progress)
    )
    ann = sum(correct for correct, _ in answers) / max(sum(seen for _, seen in answers), 1)
    wanted: list[tuple[str, int, int | None]] = [("none", 0, 1)]
    given = [args.iterations] if args.iterations is not None else [] if args.exact else [1, 2]
    wanted += [(f"{k} iteration{'s' if k != 1 else ''}", args.rho, k) for k in given]
    if args.exact or args.iterations is None:
        wanted.append(("exact", args.rho, None))
    results: dict[str, Evaluation] = {}
    for name, rho, iterations in wanted:
        network.rho, network.iterations = rho, iterations
        results[name] = evaluate(network, batches, progress=progress, shard=False)
    times = sorted({t for t in (1, 2, 4, 8, 16, 32, 64) if t <= args.timesteps} | {args.timesteps})
    where = f"{len(answers)} processes, {device.type}" if len(answers) > 1 else device
    print(f"{len(test_set)} images on {where}; ANN accuracy {ann:.2%}\n")
    print(_table(results, times, {name: rho for name, rho, _ in wanted}))
    print("\nEach cell: accuracy (latency in time-steps, rho + t). Spikes: per neuron and step.")
    if args.json is not None:
        content = {
            "ann_accuracy": ann,
            "rho": args.rho,
            "timesteps": args.timesteps,
            "device": str(device),
            "results": {name: result.to_dict() for name, result in results.items()},
            "build": build_info(),
        }
        args.json.write_text(json.dumps(content, indent=2) + "\n")
    if args.plot is not None and distributed.whoami()[0] == 0:
        _plot(args.plot, ann, results)
    return 0


def _table(results: dict[str, Evaluation], times: list[int], rho: dict[str, int]) -> str:
    rows = [["calibration", "rho", *(f"t = {t}" for t in times), "images/s", "spikes"]]
    for name, result in results.items():
        cells = [f"{result.accuracy[t - 1]:.2%} ({result.latency[t - 1]})" for t in times]
        rows.append(
            [
                name,
                str(rho[name]),
                *cells,
                f"{result.images_per_second:.0f}",
                f"{result.spike_rate:.4f}",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as pyplot
    except ImportError as error:
        raise ImportError("--plot needs matplotlib: pip install 'cos_ext[plots]'") from error
    return pyplot


def _plot(path: Path, ann: float, results: dict[str, Evaluation]) -> None:
    pyplot = _pyplot()
    figure, axes = pyplot.subplots(figsize=(6, 4), layout="constrained")
    axes.axhline(100 * ann, color="black", linestyle="--", linewidth=1, label="ANN")
    for name, result in results.items():
        label = name if name == "none" else f"{name}, rho = {result.latency[0] - 1}"
        axes.plot(
            range(1, len(result.accuracy) + 1),
            [100 * a for a in result.accuracy],
            marker="o",
            markersize=3,
            label=label,
        )
    axes.set_xlabel("time-step t (latency rho + t)")
    axes.set_ylabel("accuracy (%)")
    axes.legend()
    figure.savefig(path, dpi=150)


def _train(args: argparse.Namespace) -> int:
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
    train_set = data.load(args.dataset, args.data, train=True, size=args.size)
    test_set = data.load(args.dataset, args.data, size=args.size)
    generator = torch.Generator().manual_seed(args.seed)
    augmentation = {} if args.dataset == "folder" else {"augment": True}
    batches = train_set.batches(
        args.batch_size, shuffle=True, drop_last=True, generator=generator, **augmentation
    )
    record = {
        "architecture": args.arch,
        "levels": args.levels,
        "num_classes": train_set.num_classes,
        "in_channels": 1 if args.dataset == "fashion-mnist" else 3,
        "stem": args.stem,
    }
    torch.manual_seed(args.seed)
    options = {"stem": args.stem} if args.stem else {}
    model = models.build(
        args.arch,
        record["num_classes"],
        record["in_channels"],
        levels=args.levels,
        threshold=args.threshold,
        **options,
    )
    model = model.to(memory_format=torch.channels_last)
    history = train.fit(
        model,
        batches,
        test_set.batches(args.batch_size),
        config,
        device=_device(args.device),
        state_path=args.output.with_suffix(".state"),
        resume=args.resume,
        progress=not args.quiet,
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
        f"{args.output.with_suffix('.json')}"
    )
    return 0
