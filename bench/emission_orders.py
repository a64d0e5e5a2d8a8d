"""Orders of a calibrated neuron's spikes that the kernels do not have, in plain torch, on the
shipped checkpoint.

    python bench/emission_orders.py [--rho 2 4 8] [--orders even block ...] [--timesteps 8]
    [--samples N] [--json FILE]

Prints accuracy by order, rho and step; measures no time. `--list` says what each order is. Not for
production.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from cos_ext import SpikingNetwork, convert, data, models
from cos_ext import functional as F
from cos_ext.cli import DEMO_CHECKPOINT
from cos_ext.neuron import IFNode

# An order: (x_seq [S, B, *neurons], θ, v(0), rho) -> who fires, bool [S, B, *neurons]. θ, v(0)
# broadcast to [*neurons].
Order = Callable[[Tensor, Tensor, Tensor, int], Tensor]
ORDERS: dict[str, Order] = {}
LEVELS = 8  # of the shipped checkpoint
TRAIN_IMAGES = "/usr/share/datasets/fashion-mnist"


def order(name: str) -> Callable[[Order], Order]:
    def enter(function: Order) -> Order:
        ORDERS[name] = function
        return function

    return enter


def desired(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """C* over the first rho steps, [B, *neurons], int32: N + ψ, as the kernels have it."""
    result = F.calibrate_v_init(x_seq[:rho], theta, v_init, rho=rho, iterations=0)
    return result.spike_count + result.offset_spikes


def spread(rate: Tensor, phase: Tensor | float, steps: int) -> Tensor:
    """n(t) = floor(rate t + phase), s(t) = n(t) - n(t-1) for t = 1..steps, bool [steps, ...]; 0 <=
    rate <= 1.
    """
    time = torch.arange(steps + 1, dtype=rate.dtype).view(-1, *[1] * rate.dim())
    return (rate * time + phase).floor().diff(dim=0) > 0


def by_phase(
    x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int, phase: Tensor | float
) -> Tensor:
    return spread(desired(x_seq, theta, v_init, rho) / rho, phase, len(x_seq))


def positions(x_seq: Tensor) -> Tensor:
    """The neurons of a sample numbered in logical order, [*neurons]."""
    shape = x_seq.shape[2:]
    return torch.arange(math.prod(shape)).view(shape)


def golden(x_seq: Tensor) -> Tensor:
    """A low-discrepancy phase by neuron, i / golden ratio modulo 1, in steps of 1/4096 so that sums
    are exact.
    """
    return (
        (positions(x_seq).double() * 0.6180339887498949).frac().mul(4096).floor().div(4096).float()
    )


def hashed(x_seq: Tensor) -> Tensor:
    """A pseudo-random phase by neuron (xorshift-multiply of its number), in steps of 1/4096."""
    number = positions(x_seq) + 1
    for _ in range(2):
        number = ((number ^ (number >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return ((number ^ (number >> 16)) & 4095) / 4096


for _name, _phase in (
    ("floor", 0.0),
    ("phase 1/4", 0.25),
    ("even", 0.5),
    ("phase 3/4", 0.75),
    ("ceil", 1 - 2.0**-12),
):

    def _emit(
        x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int, phase: float = _phase
    ) -> Tensor:
        return by_phase(x_seq, theta, v_init, rho, phase)

    _emit.__doc__ = f"n(t) = floor(C* t/rho + {_phase:.4g}); s(1) = [C* >= {1 - _phase:.4g} rho]"
    ORDERS[_name] = _emit


@order("golden")
def _golden(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """n(t) = floor(C* t/rho + phase), the phase by neuron: its number / golden ratio, modulo 1"""
    return by_phase(x_seq, theta, v_init, rho, golden(x_seq))


@order("golden by channel")
def _golden_channel(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """the same, the phase by channel"""
    channels = torch.arange(x_seq.shape[2]).view(-1, *[1] * (x_seq.dim() - 3))
    return by_phase(
        x_seq, theta, v_init, rho, (channels * 0.6180339887498949).frac().mul(4096).floor() / 4096
    )


@order("hashed")
def _hashed(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """the same, the phase pseudo-random by neuron"""
    return by_phase(x_seq, theta, v_init, rho, hashed(x_seq))


@order("remainder")
def _remainder(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """the same, the phase what C* leaves of the charge: (Σx + v(0))/θ modulo 1"""
    left = ((x_seq[:rho].sum(0) + v_init) / theta).frac()
    left = torch.where(left < 0, left + 1, left).mul(4096).floor().clamp(0, 4095) / 4096
    return by_phase(x_seq, theta, v_init, rho, left)


@order("front")
def _front(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """the C* spikes first, in every rho steps"""
    period = torch.arange(len(x_seq)).remainder(rho).view(-1, *[1] * (x_seq.dim() - 1))
    return period < desired(x_seq, theta, v_init, rho)


@order("mean")
def _mean(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """an IF neuron at the constant current mean(x(1..rho)) from v(0): n(t) = floor(r t + v(0)/θ), r
    not rounded
    """
    return spread((x_seq[:rho].mean(0) / theta).clamp(0, 1), v_init / theta, len(x_seq))


@order("mean, L levels")
def _mean_levels(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """the same with r rounded to the ANN's L levels; not exact over rho"""
    rate = x_seq[:rho].mean(0) / theta
    return spread((rate * LEVELS + v_init / theta).floor().div(LEVELS).clamp(0, 1), 0.5, len(x_seq))


def _carry(x_seq: Tensor, theta: Tensor, v: Tensor, count: Tensor) -> Tensor:
    """The potential after the inputs x_seq and `count` spikes: nothing is lost."""
    return v + x_seq.sum(0) - theta * count


def _then_running(keep: bool = True) -> Order:
    def emit(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
        first = F.cos_forward(
            x_seq[:rho], theta, v_init, rho=rho, emission="even", return_count=True
        )
        if len(x_seq) == rho:
            return first.spikes > 0
        v = _carry(x_seq[:rho], theta, v_init, first.spike_count)
        if not keep:
            v = v.clamp(min=torch.zeros(()), max=theta)
        return torch.cat([first.spikes, F.if_forward(x_seq[rho:], theta, v).spikes]) > 0

    return emit


def _blocks(
    phase: Callable[[Tensor], Tensor] | None = None, limits: tuple[float, float] | None = None
) -> Order:
    def emit(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
        spikes, v = [], v_init.expand(x_seq.shape[1:])
        for block in x_seq.split(rho):
            if phase is None:
                result = F.cos_forward(
                    block, theta, v, rho=len(block), emission="even", return_count=True
                )
                fires, count = result.spikes > 0, result.spike_count
            else:
                count = desired(block, theta, v, len(block))
                fires = spread(count / len(block), phase(x_seq), len(block))
            spikes.append(fires)
            v = _carry(block, theta, v, count)
            if limits is not None:
                v = v.clamp(min=limits[0] * theta, max=limits[1] * theta)
        return torch.cat(spikes)

    return emit


ORDERS["even, running"] = _then_running()
ORDERS[
    "even, running"
].__doc__ = "even for rho steps, then an IF neuron on its input from v(0) + Σ x(1..rho) - θ C*"
ORDERS["even, running, fresh"] = _then_running(keep=False)
ORDERS["even, running, fresh"].__doc__ = "the same, that potential clipped to [0, θ]"
ORDERS["block"] = _blocks()
ORDERS[
    "block"
].__doc__ = "plans again in every rho steps: C* of the block from v after the last one, emitted as even; v carried on"
ORDERS["block, fresh"] = _blocks(limits=(0, 1))
ORDERS["block, fresh"].__doc__ = "the same, the carried potential clipped to [0, θ]"
ORDERS["block, bounded"] = _blocks(limits=(-1, 2))
ORDERS["block, bounded"].__doc__ = "the same, the carried potential clipped to [-θ, 2θ]"
ORDERS["block, golden"] = _blocks(golden)
ORDERS["block, golden"].__doc__ = "block, with the phases of golden in every block"
ORDERS["block, hashed"] = _blocks(hashed)
ORDERS["block, hashed"].__doc__ = "block, with the phases of hashed in every block"


@order("smoothed")
def _smoothed(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """an IF neuron whose input is replaced, in every rho steps, by its mean over them; exact where
    v stays in [0, θ)
    """
    means = [block.mean(0).expand(block.shape) for block in x_seq.split(rho)]
    return F.if_forward(torch.cat(means), theta, v_init).spikes > 0


@order("look-ahead")
def _look_ahead(x_seq: Tensor, theta: Tensor, v_init: Tensor, rho: int) -> Tensor:
    """s(t) = [n(t-1) + 1 <= t mean(x(1..t+rho-1))/θ + v(0)/θ]: a plan made again at every step; not
    exact over rho
    """
    total, count, spikes = x_seq.cumsum(0), torch.zeros(x_seq.shape[1:]), []
    for t in range(1, len(x_seq) + 1):
        seen = min(t + rho - 1, len(x_seq))
        fires = (count + 1) * theta <= total[seen - 1] * (t / seen) + v_init
        count = count + fires
        spikes.append(fires)
    return torch.stack(spikes)


EXACT = [name for name in ORDERS if name not in ("mean, L levels", "smoothed", "look-ahead")]


def counted(name: str, rho: int) -> tuple[int, int]:
    """On random float64 inputs: the neurons whose count over rho steps is not C*, and how many
    there are.
    """
    x_seq = torch.randn(
        3 * rho, 50, 16, 8, 8, generator=torch.manual_seed(0), dtype=torch.float64
    ).add_(0.3)
    theta = torch.tensor(1.0, dtype=torch.float64)
    spikes = ORDERS[name](x_seq, theta, theta / 2, rho)
    wrong = spikes[:rho].sum(0) != desired(x_seq, theta, theta / 2, rho)
    return int(wrong.sum()), wrong.numel()


def install(network: SpikingNetwork, name: str) -> None:
    """Have every node emit in that order; a name that the kernels have (calibrated, exact) leaves
    the nodes to them.
    """
    for node in network.nodes().values():
        node.__dict__.pop("_simulate", None)
    network.emission, network.iterations = "calibrated", 1 if name == "calibrated" else None
    if name in ("calibrated", "exact"):
        return

    def attach(node: IFNode) -> None:
        def simulate(x_seq: Tensor, inplace: bool) -> Tensor:
            fires = ORDERS[name](x_seq, node.v_threshold, node.v_init, node.rho)
            return fires * node.v_threshold

        node._simulate = simulate

    for node in network.nodes().values():
        attach(node)


@torch.no_grad()
def first_steps(network: SpikingNetwork, names: list[str], batches: data.Batches) -> list[Tensor]:
    """The predictions [T, images] of orders that are exact over rho, for T <= rho, in one pass.

    What every layer but the last reads of another is a sum over rho steps, so that only the last
    layer's order matters.
    """
    install(network, "even")
    *_, last = network.nodes().values()

    def simulate(x_seq: Tensor, inplace: bool) -> Tensor:
        return (
            torch.cat(
                [ORDERS[name](x_seq, last.v_threshold, last.v_init, last.rho) for name in names], 1
            )
            * last.v_threshold
        )

    last._simulate = simulate
    steps = max(network.timesteps, network.rho)
    found = []
    for inputs, _ in batches:
        outputs = network.module(inputs).unflatten(0, (steps, len(names), len(inputs)))[
            : network.timesteps
        ]
        found.append(outputs.cumsum(0).argmax(-1).transpose(0, 1))
    return list(torch.cat(found, 2))


@torch.no_grad()
def match_means(ann: nn.Module, network: SpikingNetwork, images: Tensor) -> None:
    """v(0) by channel, layer after layer, so that the mean of θ C*/rho over `images` is the ANN's
    mean activation.

    The idea of matching means, with the bias instead of v(0): Li et al., "A free lunch from ANN",
    ICML 2021.
    """
    means: dict[str, Tensor] = {}

    def note(site: str) -> Callable:
        return lambda module, args, output: means.update(
            {site: output.mean([0, *range(2, output.dim())])}
        )

    nodes = network.nodes()
    hooks = [ann.get_submodule(site).register_forward_hook(note(site)) for site in nodes]
    ann(images)
    for hook in hooks:
        hook.remove()

    def attach(site: str, node: IFNode) -> None:
        def simulate(x_seq: Tensor, inplace: bool) -> Tensor:
            theta, rho = node.v_threshold, node.rho
            total = x_seq[:rho].sum(0)
            shape = (-1, *[1] * (total.dim() - 2))
            low, high = (
                torch.zeros(total.shape[1]).view(shape),
                torch.full((total.shape[1],), 1.0).view(shape),
            )
            for _ in range(10):
                middle = (low + high) / 2
                mean = (
                    (total / theta + middle).floor().clamp(0, rho).mean([0, *range(2, total.dim())])
                    * theta
                    / rho
                )
                less = (mean < means[site]).view(shape)
                low, high = torch.where(less, middle, low), torch.where(less, high, middle)
            node.v_init = (low + high) / 2 * theta
            return ORDERS["even"](x_seq, theta, node.v_init, rho) * theta

        node._simulate = simulate

    for site, node in nodes.items():
        attach(site, node)
    network(images)


@torch.no_grad()
def predictions(network: SpikingNetwork, batches: data.Batches) -> Tensor:
    """The class by the running sum of the outputs at t = 1..T, [T, images]."""
    return torch.cat([network(inputs).cumsum(0).argmax(-1) for inputs, _ in batches], 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rho", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--orders", nargs="+", default=["calibrated", "exact", *ORDERS])
    parser.add_argument("--timesteps", type=int, default=8)
    parser.add_argument(
        "--shown", type=int, nargs="+", default=[1, 2, 4, 8], help="the steps in the table"
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
    options = parser.parse_args()
    if options.first and options.against not in EXACT:
        parser.error(f"--against must be one of {EXACT} with --first, got {options.against!r}")
    if options.list:
        print("\n".join(f"{name:22s} {emit.__doc__}" for name, emit in ORDERS.items()))
        return
    if options.check:
        for name in ORDERS:
            found = "; ".join(
                "rho = {}: {} of {}".format(rho, *counted(name, rho)) for rho in options.rho
            )
            print(f"{name:22s} {found}")
        return
    unknown = sorted(set(options.orders) - {"calibrated", "exact", *ORDERS})
    if unknown:
        parser.error(f"--orders must be among {['calibrated', 'exact', *ORDERS]}, got {unknown}")
    record = json.loads(DEMO_CHECKPOINT.with_suffix(".json").read_text())
    model = models.resnet20(record["num_classes"], record["in_channels"], levels=record["levels"])
    models.load_weights(model, DEMO_CHECKPOINT)
    model.eval()
    if options.train:
        images = data.fashion_mnist(options.data, train=True)
        chosen = slice(len(images) - (options.samples or len(images)), None)
        images = data.ImageSet(
            images.images[chosen], images.labels[chosen], images.mean, images.std, 10
        )
    else:
        images = data.fashion_mnist().first(options.samples)
    shown = [
        t for t in options.shown if t <= (max(options.rho) if options.first else options.timesteps)
    ]
    print(
        f"{len(images)} {'training' if options.train else 'test'} images, resnet20, L = "
        f"{record['levels']}, v(0) = "
        f"{options.v0} θ, thresholds times {options.theta}, means matched on {options.match} images"
    )
    print(
        "+a -b: a images on which only the row's order is right, b on which only "
        f"{options.against!r} is, at that t"
    )
    compared = (1, shown[-1])
    heads = [f"t = {t}" for t in (*shown, *compared)]
    print("| rho | order | " + " | ".join(heads) + " |\n| ---: | --- |" + " ---: |" * len(heads))
    results = []
    for rho in options.rho:
        network = convert(model, timesteps=rho if options.first else options.timesteps, rho=rho)
        for node in network.nodes().values():
            node.v_threshold.mul_(options.theta)
            node.v_init = node.v_threshold * options.v0
        if options.match:
            training = data.fashion_mnist(options.data, train=True)
            match_means(model, network, training.normalise(training.images[: options.match]))
        planned = [name for name in options.orders if name in EXACT] if options.first else []
        together = (
            dict(zip(planned, first_steps(network, planned, images.batches(50)))) if planned else {}
        )
        reference = None
        for name in options.orders:
            if name in together:
                right = together[name] == images.labels
            else:
                install(network, name)
                right = predictions(network, images.batches(50)) == images.labels
            if name == options.against:
                reference = right
            accuracy = right.double().mean(1).tolist()
            row = {"rho": rho, "order": name, "accuracy": accuracy}
            cells = [f"{100 * accuracy[t - 1]:.2f}" if t <= len(right) else "" for t in shown]
            for t in (min(t, len(right)) for t in compared):
                if reference is None:  # it comes later in --orders, or not at all
                    cells.append("")
                    continue
                alone, other = right[t - 1] & ~reference[t - 1], reference[t - 1] & ~right[t - 1]
                row[f"against {options.against}, t = {t}"] = [int(alone.sum()), int(other.sum())]
                cells.append("+{} -{}".format(*row[f"against {options.against}, t = {t}"]))
            results.append(row)
            print(f"| {rho} | {name} | " + " | ".join(cells) + " |", flush=True)
    if options.json:
        settings = {
            key: value
            for key, value in vars(options).items()
            if key in ("v0", "theta", "match", "train")
        }
        options.json.write_text(
            json.dumps({"samples": len(images), **settings, "rows": results}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
