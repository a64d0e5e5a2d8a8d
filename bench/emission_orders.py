"""Which order of a calibrated neuron's spikes would be best, of those that no kernel has?

    python bench/emission_orders.py [--rho 2 4 8] [--orders even block ...] [--timesteps 8]
        [--first] [--against ORDER] [--v0 V] [--theta F] [--match N] [--train] [--data FOLDER]
        [--samples N] [--json FILE]
    python bench/emission_orders.py --list
    python bench/emission_orders.py --check [--rho 2 4 8]

On the shipped checkpoint, in plain torch, not for production. Prints accuracy by order, rho and
step, and measures no time. `--list` says what each order is, `--check` whether it keeps the count.
Options and the table live here; an order lives in _emission_orders/orders.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from _emission_orders import networks
from _emission_orders.orders import EXACT, ORDERS, counted
from _shared import checkpoints, records, tables
from torch import Tensor, nn

from cos_ext import data

TRAIN_IMAGES = "/usr/share/datasets/fashion-mnist"
NAMES = [*networks.KERNELS, *ORDERS]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rho", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--orders", nargs="+", default=NAMES)
    parser.add_argument("--timesteps", type=int, default=8)
    parser.add_argument(
        "--shown", type=int, nargs="+", default=[*tables.SHOWN], help="the steps in the table"
    )
    parser.add_argument(
        "--first",
        action="store_true",
        help="T = rho, and the orders that are exact over rho in one pass",
    )
    parser.add_argument("--samples", type=int, help="the first so many images (default: all)")
    parser.add_argument(
        "--against",
        default="even",
        help="count the images on which an order wins and loses against this",
    )
    parser.add_argument("--v0", type=float, default=0.5, help="v(0) in units of θ, in every layer")
    parser.add_argument("--theta", type=float, default=1.0, help="a factor on every threshold")
    parser.add_argument(
        "--match",
        type=int,
        default=0,
        help="match means on so many training images first (v(0) by channel)",
    )
    parser.add_argument(
        "--train",
        action="store_true",
        help="evaluate on the last training images, to choose settings by",
    )
    parser.add_argument(
        "--data",
        default=TRAIN_IMAGES,
        help="the folder with the training images, for --match and --train",
    )
    parser.add_argument("--json", type=Path)
    parser.add_argument("--list", action="store_true", help="say what each order is")
    parser.add_argument(
        "--check",
        action="store_true",
        help="count the neurons whose count over rho is not C*, random inputs",
    )
    return parser


def _images(options: argparse.Namespace) -> data.ImageSet:
    if not options.train:
        return data.fashion_mnist().first(options.samples)
    images = data.fashion_mnist(options.data, train=True)
    chosen = slice(len(images) - (options.samples or len(images)), None)
    return data.ImageSet(images.images[chosen], images.labels[chosen], images.mean, images.std, 10)


def results(
    options: argparse.Namespace, model: nn.Module, images: data.ImageSet, rho: int
) -> Iterator[tuple[str, Tensor]]:
    """(order, where its predictions are right [T, images]) for every order that was asked for."""
    timesteps = rho if options.first else options.timesteps
    network = networks.network_of(model, timesteps, rho, options.theta, options.v0)
    if options.match:
        training = data.fashion_mnist(options.data, train=True)
        matched_on = training.normalise(training.images[: options.match])
        networks.match_means(model, network, matched_on)
    together: dict[str, Tensor] = {}
    planned = [name for name in options.orders if name in EXACT] if options.first else []
    if planned:
        found = networks.first_steps(network, planned, images.batches(50))
        together = dict(zip(planned, found))
    for name in options.orders:
        if name in together:
            predicted = together[name]
        else:
            networks.install(network, name)
            predicted = networks.predictions(network, images.batches(50))
        yield name, predicted == images.labels


def compare(right: Tensor, reference: Tensor, t: int) -> list[int]:
    """The images on which at t this one alone is right, and those on which the other one alone
    is.
    """
    t = min(t, len(right))
    alone, other = right[t - 1] & ~reference[t - 1], reference[t - 1] & ~right[t - 1]
    return [int(alone.sum()), int(other.sum())]


def study(
    options: argparse.Namespace, model: nn.Module, images: data.ImageSet
) -> list[dict[str, Any]]:
    """Prints the table, line by line as it comes, and returns its rows."""
    longest = max(options.rho) if options.first else options.timesteps
    shown = [t for t in options.shown if t <= longest]
    compared = (1, shown[-1])
    print(
        "+a -b: a images on which only the row's order is right, b on which only "
        f"{options.against!r} is, at that t"
    )
    print(tables.head(["rho", "order", *tables.steps((*shown, *compared))], text=(1,)))
    rows: list[dict[str, Any]] = []
    for rho in options.rho:
        reference = None
        for name, right in results(options, model, images, rho):
            if name == options.against:
                reference = right
            accuracy = right.double().mean(1).tolist()
            row = {"rho": rho, "order": name, "accuracy": accuracy}
            cells = [rho, name, *tables.percents(accuracy, shown)]
            for t in compared:
                if reference is None:  # it comes later in --orders, or not at all
                    cells.append("")
                    continue
                found = compare(right, reference, t)
                row[f"against {options.against}, t = {min(t, len(right))}"] = found
                cells.append("+{} -{}".format(*found))
            rows.append(row)
            print(tables.row(cells), flush=True)
    return rows


def main() -> None:
    parser = _parser()
    options = parser.parse_args()
    if options.first and options.against not in EXACT:
        parser.error(f"--against must be one of {EXACT} with --first, got {options.against!r}")
    if options.list:
        for name, emit in ORDERS.items():
            print(f"{name:22s} {' '.join(emit.__doc__.split())}")
        return
    if options.check:
        for name in ORDERS:
            found = [(rho, *counted(name, rho)) for rho in options.rho]
            said = "; ".join(f"rho = {rho}: {wrong} of {all_}" for rho, wrong, all_ in found)
            print(f"{name:22s} {said}")
        return
    unknown = sorted(set(options.orders) - set(NAMES))
    if unknown:
        parser.error(f"--orders must be among {NAMES}, got {unknown}")
    model, record = checkpoints.load()
    images = _images(options)
    print(
        f"{len(images)} {'training' if options.train else 'test'} images, resnet20, L = "
        f"{record['levels']}, v(0) = {options.v0} θ, thresholds times {options.theta}, means "
        f"matched on {options.match} images"
    )
    rows = study(options, model, images)
    if options.json:
        settings = {key: getattr(options, key) for key in ("match", "v0", "theta", "train")}
        records.write(options.json, {"samples": len(images), **settings, "rows": rows}, ("rows",))


if __name__ == "__main__":
    main()
