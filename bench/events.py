"""When does a convolution by events pay, beside the dense library?

    python bench/events.py [--batch-size N] [--timesteps N] [--rho N] [--threads N] [--repeats N]

On real spikes: one batch of Fashion-MNIST through the shipped ResNet-20, every convolution of
spikes on the input that it has there, and then the network. On drawn ones: layers of other
networks at several densities. Measures time only, no accuracy. Rows are interleaved; a ratio is
the median over the repeats of the time by events to the dense one, both channels_last.
COS_EXT_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 takes AVX-512 away from both.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import torch
from _shared import checkpoints, machine, tables
from _shared.timing import interleaved, median_ratio, seconds_of
from torch import Tensor, nn

from cos_ext import SpikingNetwork, convert, data
from cos_ext.network.convolution import SpikeConv2d

# Channels, outputs, kernel, side: of VGG-16 at 32 x 32 and at 224 x 224 (its last), of MobileNetV2.
LAYERS = [
    (64, 64, 3, 32),
    (128, 128, 3, 16),
    (256, 256, 3, 8),
    (512, 512, 3, 4),
    (512, 512, 3, 14),
    (96, 24, 1, 28),
    (192, 64, 1, 14),
    (960, 160, 1, 7),
]
DENSITIES = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
HEAD = ("layer", "density", "dense, ms", "events, ms", "ratio")


def compared(dense: Callable[[], object], events: Callable[[], object], repeats: int) -> list[str]:
    """Both medians in ms, and the median ratio."""
    wall = partial(seconds_of, clock="wall")
    calls = {"dense": dense, "events": events}
    times = {k: v[1:] for k, v in interleaved(calls, repeats + 1, wall).items()}
    medians = [f"{statistics.median(times[name]) * 1e3:.2f}" for name in calls]
    return [*medians, f"{median_ratio(times['events'], times['dense']):.2f}"]


def one(module: SpikeConv2d, x: Tensor, repeats: int) -> list[str]:
    def run(by_events: bool) -> Tensor:
        module.by_events = by_events
        return module(x)

    return compared(lambda: run(False), lambda: run(True), repeats)


def inputs(network: SpikingNetwork, images: Tensor) -> dict[str, tuple[SpikeConv2d, Tensor]]:
    """What the convolutions of spikes are given."""
    seen: dict[str, tuple[SpikeConv2d, Tensor]] = {}
    handles = [
        module.register_forward_pre_hook(
            lambda m, args, name=name: seen.update({name: (m, args[0].clone())})
        )
        for name, module in network.module.named_modules()
        if isinstance(module, SpikeConv2d)
    ]
    network(images)
    for handle in handles:
        handle.remove()
    return seen


def drawn(
    channels: int, outputs: int, kernel: int, side: int, density: float, images: int
) -> tuple[SpikeConv2d, Tensor]:
    """A layer and spikes for it."""
    conv = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2).requires_grad_(False)
    conv = conv.to(memory_format=torch.channels_last)
    x = (torch.rand(images, channels, side, side) < density).float()
    return SpikeConv2d.of(conv), x.contiguous(memory_format=torch.channels_last)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    defaults = {"batch-size": 32, "timesteps": 8, "rho": 4, "threads": 2, "repeats": 11}
    for name, default in defaults.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine.facts(["torch"]))
    model, _ = checkpoints.load()
    network = convert(model, timesteps=options.timesteps, rho=options.rho)
    images, _ = next(iter(data.fashion_mnist().batches(options.batch_size)))
    with torch.no_grad():  # of inference tensors no weights are kept packed
        print(tables.head(HEAD))
        for name, (module, x) in inputs(network, images).items():
            size = f"{name}: {module.in_channels} -> {module.out_channels}"
            density = f"{(x != 0).float().mean():.2f}"
            print(tables.row((size, density, *one(module, x, options.repeats))))
        for layer in LAYERS:
            for density in DENSITIES:
                module, x = drawn(*layer, density, options.timesteps)
                size = "{} -> {}, {} x {}".format(*layer[:3], layer[2])
                print(
                    tables.row(
                        (f"{size}, side {layer[3]}", density, *one(module, x, options.repeats))
                    )
                )

        def whole(convolution: str) -> Tensor:
            network.convolution = convolution
            return network(images)

        for way in ("events", "auto"):
            row = compared(lambda: whole("dense"), lambda way=way: whole(way), options.repeats)
            print(tables.row((f"ResNet-20, {way}", "", *row)))


if __name__ == "__main__":
    main()
