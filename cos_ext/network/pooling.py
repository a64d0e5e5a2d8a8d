"""Max pooling of spikes and what can stand for it: pooling before the neurons, or averages. No
rules of conversion here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as TF

from ..neuron import IFNode

TORCH_MAX_POOLS = (
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
)
# The module of a function.
MAX_POOL_FUNCTIONS = {
    getattr(TF, f"{prefix}max_pool{d}d"): getattr(nn, f"{kind}MaxPool{d}d")
    for d in (1, 2, 3)
    for prefix, kind in (("", ""), ("adaptive_", "Adaptive"))
}


class MaxOver(nn.Module):
    """The maximum over whole dimensions of x [B, ...]: x.amax(dims)."""

    def __init__(self, dims: int | tuple[int, ...], keepdim: bool = False) -> None:
        super().__init__()
        self.dims = dims if isinstance(dims, tuple) else (dims,)
        self.keepdim = keepdim

    def forward(self, x: Tensor) -> Tensor:
        return x.amax(self.dims, self.keepdim)

    def extra_repr(self) -> str:
        return f"dims={self.dims}, keepdim={self.keepdim}"


MAX_POOLS = (*TORCH_MAX_POOLS, MaxOver)


class MeanOver(MaxOver):
    """The mean over the same dimensions."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims, self.keepdim)


class MaxPoolBefore(nn.Module):
    """Max pooling of the currents [T*B, C, *space] before the neurons, instead of their spikes
    after them.

    The largest of several rates belongs to the largest of several mean currents. So each window
    lets through, at every step, the current of the one position whose sum over the first rho steps
    is the largest: the sum over those steps is then the largest sum, and the calibrated count of
    the neuron after it the largest count, exactly. Without calibration (rho = 0) nothing is known
    in advance, and each step takes its own maximum, which overestimates.
    """

    def __init__(self, pool: nn.Module, site: str = "") -> None:
        super().__init__()
        self.pool = pool
        self.site = site  # of the neurons after it, whose rho it shares
        self.timesteps, self.rho = 1, 0

    def forward(self, x: Tensor) -> Tensor:
        if self.rho == 0 or self.timesteps == 1:
            return self.pool(x)
        steps = x.unflatten(0, (self.timesteps, x.shape[0] // self.timesteps))
        if isinstance(self.pool, MaxOver):
            return self._over(self.pool, steps)
        space = int(type(self.pool).__name__[-2])
        if (
            space == 2
            and x.dim() == 4
            and not x.is_contiguous()
            and x.is_contiguous(memory_format=torch.channels_last)
        ):
            # The results of mean and gather are contiguous in the order of their dimensions: with
            # the channels last they stay there.
            last = steps.permute(0, 1, 3, 4, 2)
            pooled, where = self._with_indices(last[: self.rho].mean(0).permute(0, 3, 1, 2))
            index = where.permute(0, 2, 3, 1).flatten(1, 2).expand(self.timesteps, -1, -1, -1)
            chosen = last.flatten(2, 3).gather(2, index).unflatten(2, pooled.shape[-2:])
            return chosen.permute(0, 1, 4, 2, 3).flatten(0, 1)
        pooled, where = self._with_indices(steps[: self.rho].mean(0))
        flat = steps.flatten(-space)  # [T, B, ..., positions], as the indices count them
        chosen = flat.gather(
            -1, where.flatten(-space).expand(self.timesteps, *[-1] * (flat.dim() - 1))
        )
        return chosen.unflatten(-1, pooled.shape[-space:]).flatten(0, 1)

    def _over(self, pool: MaxOver, steps: Tensor) -> Tensor:
        """The same choice over whole dimensions, of [T, B, ...]."""
        rank = steps.dim() - 1
        dims = sorted(dim % rank + 1 for dim in pool.dims)
        last = list(range(-len(dims), 0))
        flat = steps.movedim(dims, last).flatten(-len(dims))
        where = flat[: self.rho].mean(0).argmax(-1, keepdim=True)
        chosen = flat.gather(-1, where.expand(self.timesteps, *[-1] * where.dim())).squeeze(-1)
        for dim in dims if pool.keepdim else ():
            chosen = chosen.unsqueeze(dim)
        return chosen.flatten(0, 1)

    def _with_indices(self, x: Tensor) -> tuple[Tensor, Tensor]:
        kind, pool = type(self.pool).__name__, self.pool
        function = getattr(
            TF,
            {"MaxPool": "max_pool", "AdaptiveMaxPool": "adaptive_max_pool"}[kind[:-2]]
            + kind[-2:].lower(),
        )
        if kind.startswith("Adaptive"):
            return function(x, pool.output_size, return_indices=True)
        return function(
            x,
            pool.kernel_size,
            pool.stride,
            pool.padding,
            pool.dilation,
            pool.ceil_mode,
            return_indices=True,
        )


class PooledBefore(nn.Module):
    """An average pooling that the neurons before it do on the way out; it does it itself where they
    run apart.
    """

    def __init__(self, pool: nn.Module, neurons: IFNode) -> None:
        super().__init__()
        self.pool = pool
        self.before = (neurons,)  # in a tuple, so that they have one place in the tree of modules

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(x) if self.before[0].apart else x


def average_of(pool: nn.Module) -> nn.Module | str:
    """The average pooling over a max pooling's windows, or why there is none."""
    if isinstance(pool, MaxOver):
        return MeanOver(pool.dims, pool.keepdim)
    dims = type(pool).__name__[-2:].lower()
    if isinstance(pool, (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)):
        return getattr(nn, f"AdaptiveAvgPool{dims}")(pool.output_size)
    if pool.dilation not in (1, (1,), (1, 1), (1, 1, 1)):
        return "there is no average pooling with dilation"
    kwargs = {"ceil_mode": pool.ceil_mode, "count_include_pad": False}
    return getattr(nn, f"AvgPool{dims}")(pool.kernel_size, pool.stride, pool.padding, **kwargs)
