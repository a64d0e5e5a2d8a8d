"""What can be measured: a case, its inputs, the grid of all cases, and what the rows are called.

Nothing is timed here.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

THETA = 1.0  # peers that emit 0 or 1 are then the same function
MIB = 2**20
LARGE = 64 * MIB  # from here on the targets of large layers hold
NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
MODES = ("default", "max-autotune-no-cudagraphs", "max-autotune")  # the last with CUDA graphs
LOOP, COMPILED, CALIBRATION, COMPILED_CALIBRATION = (
    "torch loop",
    "torch.compile",
    "torch calibration",
    "torch.compile calibration",
)
SJ_NODE, SJ_STATE, SJ_OLD = (
    "SpikingJelly 2 IFNode",
    "SpikingJelly 2, f32 state",
    "SpikingJelly 0.0.0.0.14",
)
BACK, LEARN, LEARN_LOOP, LEARN_SJ, LEARN_OLD = (
    "if_backward",
    "forwards and backwards",
    "torch loop, both ways",
    "SpikingJelly 2, both ways",
    "SpikingJelly 0.0.0.0.14 cupy, both ways",
)
QUANTISE, QUANTISE_BACK, QCFS_LEARN, QCFS_PLAIN, QCFS_COMPILED = (
    "qcfs",
    "qcfs_backward",
    "QCFS, both ways",
    "torch QCFS, both ways",
    "torch.compile QCFS, both ways",
)
OURS = ("copy", "if_forward", "cos_forward", BACK, LEARN, QUANTISE, QUANTISE_BACK, QCFS_LEARN)
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One input: x_seq [T, N] ("flat") or [T, B, C, H, W] ("nchw", "channels_last"), `elements` in
    all.
    """

    dtype: torch.dtype
    timesteps: int
    elements: int
    layout: str = "flat"
    per_channel: bool = False
    static: bool = False
    image: tuple[int, int, int] = (64, 32, 32)

    @property
    def size(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def floor(self) -> int:
        """Bytes read plus bytes written."""
        return self.size + (self.size // self.timesteps if self.static else self.size)

    def facts(self) -> Row:
        return {
            "dtype": NAMES[self.dtype],
            "timesteps": self.timesteps,
            "elements": self.elements,
            "mib": self.size / MIB,
            "layout": self.layout,
            "v_threshold": "per channel" if self.per_channel else "scalar",
            "static": self.static,
        }

    def __str__(self) -> str:
        extras = [self.layout] + ["per channel"] * self.per_channel + ["static"] * self.static
        size = f"2^{math.log2(self.elements):.0f}"
        return f"{NAMES[self.dtype]} T={self.timesteps} {size} {', '.join(extras)}"


class Inputs:
    """`count` random x_seq of a case, threshold included, and as many buffers of the same
    layout.
    """

    def __init__(self, case: Case, device: str, count: int) -> None:
        steps = 1 if case.static else case.timesteps
        channels = case.image[0]
        per_step = case.elements // case.timesteps
        shape = (
            (per_step,)
            if case.layout == "flat"
            else (per_step // math.prod(case.image), *case.image)
        )
        # Drawn one by one: all at once they would be random for a moment in twice the memory.
        self.x = [self._draw(case, (steps, *shape), device) for _ in range(count)]
        if case.static:
            self.x = [x.expand(case.timesteps, *x.shape[1:]) for x in self.x]
        self.theta: float | Tensor = THETA
        if case.per_channel:
            # In the state dtype, as IFNode keeps it: another one costs a conversion per call.
            self.theta = torch.rand(channels, 1, 1, device=device) * 0.5 + 0.75

    @staticmethod
    def _draw(case: Case, shape: tuple[int, ...], device: str) -> Tensor:
        x = torch.randn(shape, device=device, dtype=case.dtype).mul_(1.2).add_(0.35)
        if case.layout == "channels_last":
            x = x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, shape[:2])
        return x

    @functools.cached_property
    def buffers(self) -> list[Tensor]:
        return [torch.empty_like(x) for x in self.x]

    def refill(self) -> None:
        for buffer, x in zip(self.buffers, self.x):
            buffer.copy_(x)


class Grid(NamedTuple):
    """What is measured. base: log2 of the elements of the core; sizes: log2 of the others."""

    base: int
    dtypes: tuple[torch.dtype, ...]
    steps: tuple[int, ...]  # the most important first
    sizes: tuple[int, ...]
    image: tuple[int, int, int]
    small: tuple[tuple[torch.dtype, int, int], ...]  # (dtype, T, log2 of the elements)
    modes: tuple[str, ...]


def grid(device: str, quick: bool) -> Grid:
    single, half = torch.float32, torch.float16
    if device == "cuda" and not quick:
        return Grid(
            26,
            tuple(NAMES),
            (8, 4, 2, 1, 16, 32),
            tuple(range(16, 28)),
            (64, 32, 32),
            ((single, 8, 18), (half, 8, 19), (single, 4, 16)),
            MODES,
        )
    if device == "cuda":
        return Grid(22, tuple(NAMES), (8, 1), (16, 20), (64, 32, 32), ((single, 8, 18),), MODES[:1])
    base = 13 if quick else 18
    return Grid(
        base, tuple(NAMES), (8, 1), (base - 3,), (8, 4, 4), ((single, 8, base - 3),), MODES[:1]
    )
