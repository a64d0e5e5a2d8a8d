"""Neurons in one pass with the convolution by events before them: when that may be, and the pass.

A convolution hands on what it would compute, as `Pending`. What it computes is its own business.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import functional as F
from .._functional.checks import differentiates
from .._functional.events import layer
from .settings import Settings, watch_steps
from .simulation import UNFUSED


class Pending(NamedTuple):
    """The currents that a convolution by events will give, which nobody needs but its neurons."""

    x: Tensor  # what the convolution reads
    convolution: tuple[Any, ...]  # the operator's arguments after x
    shape: tuple[int, ...]  # of the currents
    compute: Callable[[Tensor], Tensor]  # the currents from x


class Neurons(Protocol):
    """What is asked of an IFNode."""

    pool: tuple[int, int] | None
    _settings: Settings

    @property
    def apart(self) -> bool: ...
    def _operands(self, x: Tensor) -> dict[str, Tensor]: ...
    def _parameters_for(self, x: Tensor) -> tuple[Tensor, Tensor]: ...


def computed(x: Any) -> Tensor:
    """The currents themselves."""
    return x.compute(x.x) if isinstance(x, Pending) else x


def spikes_or_currents(node: Neurons, x: Any, residual: Any) -> tuple[Tensor | None, Any]:
    """The spikes ``[T*B, ...]`` of what is pending; where there are none, the currents."""
    spikes = _spikes(node, x, residual) if isinstance(x, Pending) else None
    return spikes, x if spikes is not None else computed(x)


def _spikes(node: Neurons, pending: Pending, residual: Tensor | None) -> Tensor | None:
    """In one pass; None where these neurons, as they are set, need the currents or refuse them."""
    settings, x, shape = node._settings, pending.x, pending.shape
    steps, rho, pool = settings["timesteps"], watch_steps(settings), (0, 0)
    if steps is None or steps > F.MAX_FUSED_STEPS or shape[0] % steps:
        return None
    if settings["static_input"] or settings["step_mode"] == "s":
        return None
    if settings["calibration"] in UNFUSED:
        return None
    if node.pool is not None:
        pool = (shape[-2], shape[-1]) if node.pool == (0, 0) else node.pool
        if shape[-2] % pool[0] or shape[-1] % pool[1]:
            return None
    theta, v_init = node._parameters_for(x)
    operands: dict[str, Any] = node._operands(x)
    given = [theta, v_init, *operands.values()]
    if residual is not None:
        if residual.shape != shape or residual.dtype != x.dtype:
            return None
        operands["residual"] = residual.unflatten(0, (steps, shape[0] // steps))
    tensors = [*given, *operands.values()]
    if differentiates(tensors) or any(tensor.device != x.device for tensor in tensors):
        return None
    if not all(_fits(tensor.shape, shape[1:]) for tensor in given):
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


def _fits(own: torch.Size, neurons: tuple[int, ...]) -> bool:
    """Whether a parameter broadcasts to the neurons."""
    pairs = zip(reversed(own), reversed(neurons))
    return len(own) <= len(neurons) and all(a in (1, b) for a, b in pairs)
