"""What can be run: the networks and sizes, the rows by name, and one case of all that.

Nothing is built or run here.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

# The shipped ResNet-20, and a checkpoint of one's own, on real images; the others have random
# weights and images.
SHIPPED, TRAINED = "shipped", "trained"
# The pairs of network and image size, and the images of a batch.
PAIRS = {
    (SHIPPED, 28): 32,
    (TRAINED, 32): 10,
    ("resnet20", 32): 50,
    ("vgg16", 32): 10,
    ("resnet34", 224): 1,
    ("vgg16", 224): 1,
}
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
FLOOR, ANN, PLAIN, PEER, COMPILED = "floor", "ANN", "plain", "SpikingJelly", "compiled"
# convert's arguments by row; "counts" is a simulator's shortcut to what "even" computes.
NETWORKS: dict[str, dict[str, Any]] = {
    f"{name}{', fused' if fuse else ''}": {**settings, "fuse": fuse}
    for name, settings in {
        "cos_ext": {"iterations": 1},
        "cos_ext, exact": {"iterations": None},
        "cos_ext, even": {"emission": "even"},
        "cos_ext, counts": {"emission": "even", "execution": "counts"},
    }.items()
    for fuse in (False, True)
}
DENSE = "cos_ext, fused, dense"  # the default with dense convolutions
CAPTURED = "cos_ext, fused, captured"  # the default as one CUDA graph
NETWORKS[DENSE] = NETWORKS[CAPTURED] = NETWORKS["cos_ext, fused"]
RIVALS = (PLAIN, PEER, COMPILED)
ROWS = (ANN, FLOOR, *NETWORKS, *RIVALS)


class Missing(Exception):
    """A row cannot be run here; the text says why."""


@dataclass(frozen=True)
class Case:
    """What is run: the hidden layers of `network` on images of size x size, max(timesteps, rho)
    steps.
    """

    network: str
    size: int
    timesteps: int
    rho: int
    batch: int
    device: str = "cpu"
    dtype: str = "float32"
    checkpoint: str = ""  # of the trained one, and the folder of its data
    data: str = ""

    @property
    def steps(self) -> int:
        return max(self.timesteps, self.rho)

    @property
    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def __str__(self) -> str:
        images = f"{self.batch} images of {self.size}x{self.size}"
        steps = f"T = {self.timesteps}, rho = {self.rho}"
        return f"{self.network}, {images}, {steps}, {self.dtype}, {self.device}"


def cases(options: argparse.Namespace) -> Iterator[Case]:
    """Those that the command's options ask for."""
    for (network, size), batch in PAIRS.items():
        if network not in options.networks or size not in options.sizes:
            continue
        own = network == TRAINED
        if own and (options.checkpoint is None or options.data is None):
            continue
        for rho in options.rho:
            for timesteps in options.timesteps:
                if timesteps >= 32 and size >= 224 and not options.full:
                    continue
                yield Case(
                    network,
                    size,
                    timesteps,
                    rho,
                    options.batch or batch,
                    options.device,
                    options.dtype,
                    str(options.checkpoint) if own else "",
                    str(options.data) if own else "",
                )
