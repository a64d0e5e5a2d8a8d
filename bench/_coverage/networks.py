"""What an entry of the lists is: how a network is made, and what it is called with.

Which networks there are is the lists' business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Input:
    """One input of one sample: normal noise, or numbers below `ids`, for embeddings."""

    shape: tuple[int, ...]
    ids: int = 0

    def sample(self, batch: int, generator: torch.Generator) -> Tensor:
        shape = (batch, *self.shape)
        if self.ids:
            return torch.randint(1, self.ids, shape, generator=generator)
        return torch.randn(shape, generator=generator, dtype=torch.float64)


@dataclass(frozen=True)
class Network:
    """An entry of a list.

    make: builds it, with random weights. inputs: by position, or by the names of forward's
    arguments. spikes: where its neurons are to stand, where convert() lets one choose. needs: the
    packages that it is made with.
    """

    name: str
    make: Callable[[], nn.Module]
    inputs: tuple[Input, ...] | Mapping[str, Input]
    spikes: str = "activations"
    needs: tuple[str, ...] = field(default=())

    def sample(self, batch: int, seed: int) -> Any:
        """A batch of random inputs: a tensor, a tuple of them, or a mapping."""
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self.inputs, Mapping):
            return {name: each.sample(batch, generator) for name, each in self.inputs.items()}
        tensors = tuple(each.sample(batch, generator) for each in self.inputs)
        return tensors[0] if len(tensors) == 1 else tensors


def call(module: Callable[..., Any], inputs: Any) -> Any:
    """A network's answer to what sample() gives."""
    if isinstance(inputs, Mapping):
        return module(**inputs)
    return module(*inputs) if isinstance(inputs, tuple) else module(inputs)


def image(size: int = 64, channels: int = 3) -> tuple[Input, ...]:
    return (Input((channels, size, size)),)
