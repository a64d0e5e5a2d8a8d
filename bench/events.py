"""When does a convolution by events pay, beside the dense library and torch.sparse?

    python bench/events.py [--batch-size N] [--timesteps N] [--rho N] [--threads N] [--repeats N]
        [--kinds KIND ...] [--json FILE]  measures, and adds the run to the runs in a file
    python bench/events.py --from FILE  draws the runs in a file as the picture of the docs

On real spikes: one batch of Fashion-MNIST through the shipped ResNet-20, every convolution of
spikes on the input that it has there. On drawn ones: layers of other networks at several densities.
Small layers between two others, which hand spikes on as bits. Then whole networks, whose thresholds
are scaled for other densities. Measures time only, no
accuracy. Rows are interleaved; a ratio is the median over the repeats of the time by events to the
dense one, both channels_last. torch.sparse multiplies the unfolded input, as a CSR matrix that is
there already; brainevent, where it is installed with numba, the same as a BinaryArray.
COS_EXT_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 takes AVX-512 away from both.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _shared import checkpoints, machine, records, tables
from _shared.timing import interleaved, median_ratio, seconds_of
from torch import Tensor, nn

from cos_ext import QCFS, SpikingNetwork, calibrate_thresholds, convert, data, models
from cos_ext.network.convolution import OfSpikes, SpikeConv2d, SpikeLinear, layers

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "_static" / "events.svg"
# Channels, outputs, kernel, side: of ResNet-20, of VGG-16 at 32 x 32 and at 224 x 224 (its last),
# of MobileNetV2.
LAYERS = [
    (16, 16, 3, 28),
    (32, 32, 3, 14),
    (64, 64, 3, 32),
    (128, 128, 3, 16),
    (256, 256, 3, 8),
    (512, 512, 3, 4),
    (512, 512, 3, 14),
    (960, 160, 1, 7),
    (192, 64, 1, 14),
    (96, 24, 1, 28),
    (32, 16, 1, 28),
]
LINEAR = [(512, 512), (4096, 4096), (25088, 4096)]  # inputs, outputs; "auto" leaves the last dense
# Channels, outputs, kernel, side, groups: what decides which groups go by events.
GROUPS = [
    (64, 64, 3, 28, 2),
    (128, 128, 3, 14, 4),
    (32, 32, 3, 28, 2),
    (64, 64, 3, 28, 4),
    (32, 32, 3, 28, 4),
    (256, 256, 3, 14, 8),
    (256, 256, 3, 14, 32),
    (96, 96, 3, 14, 96),
]
# Channels, outputs, kernel, stride, side: what decides how few weights "auto" runs by events.
SMALL = [
    (16, 16, 1, 1, 28),
    (16, 32, 1, 2, 28),
    (32, 16, 1, 1, 28),
    (8, 8, 3, 1, 28),
    (12, 12, 3, 1, 28),
    (16, 96, 1, 1, 28),
    (96, 16, 1, 1, 14),
]
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
FACTORS = (4.0, 2.0, 1.0, 0.5, 0.25)  # of the thresholds
KINDS = ("real", "layers", "groups", "linear", "small", "networks")
TIMES = ("dense_ms", "events_ms", "sparse_ms", "brainevent_ms")
HEAD = ("what", "density", *(name.replace("_", ", ") for name in TIMES), "events / dense")


def compared(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Medians in ms, and the median ratio of events to dense."""
    wall = partial(seconds_of, clock="wall")
    times = {k: v[1:] for k, v in interleaved(calls, repeats + 1, wall).items()}
    medians = {f"{name}_ms": statistics.median(own) * 1e3 for name, own in times.items()}
    return {**medians, "ratio": median_ratio(times["events"], times["dense"])}


def one(module: OfSpikes, x: Tensor, repeats: int, sparse: bool = False) -> dict[str, float]:
    """A layer on its input."""

    def run(by_events: bool) -> Tensor:
        module.by_events = by_events
        return module(x)

    calls: dict[str, Callable[[], object]] = {
        "dense": lambda: run(False),
        "events": lambda: run(True),
    }
    if sparse and isinstance(module, SpikeConv2d):
        kernel, padding = module.kernel_size, module.padding
        assert not isinstance(padding, str)  # it would not be one of spikes
        rows = nn.functional.unfold(x, kernel, padding=padding).transpose(1, 2).flatten(0, 1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that sparse CSR is in beta
            matrix, weight = rows.to_sparse_csr(), module.weight.flatten(1).t().contiguous()
        calls["sparse"] = lambda: matrix @ weight
        calls |= brainevent(rows, weight)
    return compared(calls, repeats)


def brainevent(rows: Tensor, weight: Tensor) -> dict[str, Callable[[], object]]:
    """The product by brainevent's operator for binary events, compiled; nothing without it."""
    try:
        import jax
        from brainevent import BinaryArray
    except ImportError:
        return {}
    events, dense = jax.numpy.asarray((rows != 0).numpy()), jax.numpy.asarray(weight.numpy())
    product = jax.jit(lambda events, dense: BinaryArray(events) @ dense)
    return {"brainevent": lambda: jax.block_until_ready(product(events, dense))}


def inputs(network: SpikingNetwork, images: Tensor) -> dict[str, tuple[OfSpikes, Tensor]]:
    """What the layers of spikes are given."""
    seen: dict[str, tuple[OfSpikes, Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda m, args, name=name: seen.update({name: (m, args[0].clone())})
        )
        for name, module in layers(network.module).items()
    ]
    network(images)
    for handle in handles:
        handle.remove()
    return seen


def density(x: Tensor) -> float:
    return (x != 0).float().mean().item()


def drawn(
    channels: int, outputs: int, kernel: int, side: int, share: float, images: int, groups: int = 1
) -> tuple[OfSpikes, Tensor]:
    """A layer and spikes for it."""
    conv = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2, groups=groups)
    conv = conv.requires_grad_(False).to(memory_format=torch.channels_last)
    x = (torch.rand(images, channels, side, side) < share).float()
    return SpikeConv2d.of(conv), x.contiguous(memory_format=torch.channels_last)


def between(
    channels: int, outputs: int, kernel: int, stride: int, side: int, options: argparse.Namespace
) -> dict[str, float]:
    """A network of three convolutions by events, the middle one also dense. The difference is that
    of the middle one; the ratio that of the whole.
    """
    torch.manual_seed(0)
    middle = nn.Conv2d(channels, outputs, kernel, stride, kernel // 2)
    model = nn.Sequential(
        *(nn.Conv2d(3, channels, 3, padding=1), QCFS(8, 2.0), middle, QCFS(8, 0.7)),
        *(nn.Conv2d(outputs, 16, 3, padding=1), QCFS(8, 0.5)),
    )
    network = convert(model, timesteps=options.timesteps, rho=options.rho)
    network.convolution = "events"
    dense = copy.deepcopy(network)
    dense.set_layer("2", convolution="dense")
    images = torch.randn(options.batch_size, 3, side, side)
    calls = {"dense": lambda: dense(images), "events": lambda: network(images)}
    found = density(inputs(network, images)["2"][1])
    return {"density": found, **compared(calls, options.repeats)}


def whole(options: argparse.Namespace) -> Iterator[tuple[str, SpikingNetwork, Tensor]]:
    """Networks: the shipped one on real images, VGG-16 with random weights and images."""
    settings = {"timesteps": options.timesteps, "rho": options.rho}
    images, _ = next(iter(data.fashion_mnist().batches(options.batch_size)))
    yield "ResNet-20, shipped", convert(checkpoints.load()[0], **settings), images
    torch.manual_seed(0)
    vgg = models.build("vgg16", 10, stem="cifar", activation=nn.ReLU).eval().requires_grad_(False)
    images = torch.randn(8, 3, 32, 32)
    thresholds = calibrate_thresholds(
        vgg, [images[:4]], method="percentile", percentile=99.0, progress=False
    )
    yield "VGG-16, 32x32", convert(vgg, thresholds=thresholds, **settings), images


def scaled(network: SpikingNetwork, factor: float) -> SpikingNetwork:
    """Higher thresholds fire less."""
    other = copy.deepcopy(network)
    for node in other.nodes().values():
        node.v_threshold *= factor
        node.v_init *= factor
    return other


def both(network: SpikingNetwork, images: Tensor, repeats: int) -> dict[str, float]:
    found = [density(x) for _, x in inputs(network, images).values()]
    dense = copy.deepcopy(network)  # each keeps its packed weights
    dense.convolution = "dense"
    calls = {"dense": lambda: dense(images), "events": lambda: network(images)}
    return {"density": statistics.mean(found), **compared(calls, repeats)}


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """A record of all rows; prints them."""
    print(machine.facts(["torch"]))
    record: dict[str, Any] = {"facts": machine.facts(["torch"]), "threads": options.threads}
    record |= {kind: [] for kind in KINDS}
    print(tables.head(HEAD))

    def note(kind: str, what: str, row: dict[str, float]) -> None:
        record[kind].append({"what": what, **row})
        cells = [f"{row[time]:.2f}" if time in row else "" for time in TIMES]
        print(
            tables.row((what, f"{row['density']:.2f}", *cells, f"{row['ratio']:.2f}")), flush=True
        )

    repeats = options.repeats
    networks = list(whole(options))
    _, network, images = networks[0]
    wanted = options.kinds
    for name, (module, x) in inputs(network, images).items() if "real" in wanted else ():
        what = f"{name}: {module.in_channels} -> {module.out_channels}"
        note("real", what, {"density": density(x), **one(module, x, repeats)})
    for layer in LAYERS if "layers" in wanted else ():
        for share in DENSITIES:
            module, x = drawn(*layer, share, options.timesteps)
            what = "{} -> {}, {} x {}, side {}".format(*layer[:3], *layer[2:])
            note("layers", what, {"density": share, **one(module, x, repeats, sparse=True)})
    for *layer, groups in GROUPS if "groups" in wanted else ():
        for share in (0.05, 0.1, 0.2):
            module, x = drawn(*layer, share, 4 * options.timesteps, groups)
            what = "{} -> {}, {} x {}, side {}, groups {}".format(*layer[:3], *layer[2:], groups)
            note("groups", what, {"density": share, **one(module, x, repeats)})
    for features, outputs in LINEAR if "linear" in wanted else ():
        linear = SpikeLinear.of(nn.Linear(features, outputs).requires_grad_(False))
        for share in DENSITIES:
            x = (torch.rand(10 * options.timesteps, features) < share).float()
            row = {"density": share, **one(linear, x, repeats)}
            note("linear", f"linear, {features} -> {outputs}", row)
    for small in SMALL if "small" in wanted else ():
        what = "{} -> {}, {} x {}, stride {}, side {}".format(*small[:3], *small[2:])
        note("small", what, between(*small, options))
    for name, network, images in networks if "networks" in wanted else ():
        for factor in FACTORS:
            what = f"{name}, thresholds x {factor:g}"
            note("networks", what, both(scaled(network, factor), images, repeats))
    return record


def lines(rows: list[dict[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    """Density and ratio, by layer or network."""
    found: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        name = row["what"].partition(", thresholds")[0]
        found.setdefault(name, []).append((row["density"], row["ratio"]))
    return {name: sorted(points) for name, points in found.items()}


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """Time by events to dense time against density; a panel for the layers of each run, and one for
    networks.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("the picture needs matplotlib: pip install '.[plots]'") from error
    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "cos_ext"
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(
        1, len(runs) + 1, figsize=(13, 4.8), sharey=True, layout="constrained"
    )
    colours = pyplot.get_cmap("tab20").colors
    for run, axes, style in zip(runs, panels, ("o-", "^--")):
        isa = run["facts"]["build"]["cpu_capability"]
        for index, (name, points) in enumerate(lines(run["layers"]).items()):
            axes.plot(*zip(*points), style, color=colours[index], ms=4, label=name)
        axes.set_title(f"layers, drawn spikes, {isa}")
        for index, (name, points) in enumerate(lines(run["networks"]).items()):
            label = f"{name}, {isa}"
            panels[-1].plot(*zip(*points), style, color=f"C{index}", ms=4, label=label)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    panels[-1].set_title("whole networks")
    panels[-1].legend(loc="upper left")
    for axes in panels:
        axes.axhline(1, color="black", linestyle=":", linewidth=1.5)
        axes.set(xlabel="share of inputs that are not 0", xlim=(0, 0.52), ylim=(0, 1.7))
        axes.grid(color="0.92")
    panels[0].set_ylabel("time by events / dense time")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {"batch-size": 32, "timesteps": 8, "rho": 4, "threads": 2, "repeats": 11}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="these rows only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="add this run to a file")
    parser.add_argument("--from", dest="record", type=Path, metavar="FILE", help="draw this file")
    parser.add_argument("--plot", type=Path, metavar="FILE", default=PICTURE)
    options = parser.parse_args()
    if options.record is not None:
        runs = json.loads(options.record.read_text())["runs"]
        draw([run for run in runs if run["layers"]], options.plot)
        return
    torch.set_num_threads(options.threads)
    with torch.no_grad():
        record = measure(options)
    if options.json is not None:
        earlier = json.loads(options.json.read_text())["runs"] if options.json.exists() else []
        records.write(options.json, {"runs": [*earlier, record]})


if __name__ == "__main__":
    main()
