"""Neurons in one pass with the convolution by events before them: when that may be, and the pass.

A convolution hands on what it would compute, as `Pending`. What it computes is its own business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import functional as F
from .._functional.arguments import fits_neurons
from .._functional.checks import differentiates
from .._functional.events import layer
from .settings import Settings, watch_steps


class Pending(NamedTuple):
    """The currents that a convolution by events will give, which nobody needs but its neurons."""

    x: Tensor  # what the convolution reads
    convolution: tuple[Any, ...]  # the operator's arguments after x
    shape: tuple[int, ...]  # of the currents
    compute: Callable[[], Tensor]  # the currents

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype


class Neurons(Protocol):
    """What is asked of an IFNode."""

    pool: tuple[int, int] | None
    _settings: Settings

    def _fuses(self, x: Any, residual: Tensor | None) -> bool: ...
    def _operands(self, x: Tensor) -> dict[str, Tensor]: ...
    def _parameters_for(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


def spikes_or_currents(node: Neurons, x: Any, residual: Any) -> tuple[Tensor | None, Any]:
    """The spikes ``[T*B, ...]`` of what is pending; where there are none, the currents."""
    if not isinstance(x, Pending):
        return None, x
    spikes = _spikes(node, x, residual)
    return spikes, x.compute() if spikes is None else x


def _spikes(node: Neurons, pending: Pending, residual: Tensor | None) -> Tensor | None:
    """In one pass; None where these neurons, as they are set, need the currents or refuse them."""
    settings, x, shape = node._settings, pending.x, pending.shape
    steps, rho, pool = settings["timesteps"], watch_steps(settings), (0, 0)
    if steps is None or shape[0] % steps or settings["static_input"]:
        return None
    if not node._fuses(pending, residual):
        return None
    if node.pool is not None:
        pool = (shape[-2], shape[-1]) if node.pool == (0, 0) else node.pool
        if shape[-2] % pool[0] or shape[-1] % pool[1]:
            return None
    theta, v_init = node._parameters_for(x)
    operands: dict[str, Any] = node._operands(x)
    given = [theta, v_init, *operands.values()]
    if residual is not None:
        operands["residual"] = residual.unflatten(0, (steps, -1))
    tensors = [*given, *operands.values()]
    if differentiates(tensors) or any(tensor.device != x.device for tensor in tensors):
        return None
    if not all(fits_neurons(tensor.shape, shape[1:]) for tensor in given):
        return None
    F.check_values("v_threshold", theta, x.dtype)
    return layer(
        x,
        *pending.convolution,
        steps=steps,
        theta=theta,
        v_init=v_init,
        v_reset=settings["v_reset"],
        rho=rho,
        iterations=F.check_calibration(max(rho, 1), settings["iterations"]),
        emission=F.EMISSIONS.index(settings["emission"]),
        pool=pool,
        **operands,
    ).flatten(0, 1)
