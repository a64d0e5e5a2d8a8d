"""Neurons in one pass with the convolution by events before them, and spikes as bits: when that may
be, and the pass.

A convolution hands on what it would compute, as `Pending`. What it computes is its own business.
Who may hand on what, the run says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .. import functional as F
from .._functional.arguments import fits_neurons
from .._functional.checks import differentiates
from .._functional.events import Bits, Neurons, bits_of, layer, values_of
from .runs import active, frames_now
from .settings import Settings, folded_steps, is_general, watch_steps


class Pending(NamedTuple):
    """The currents that a convolution by events will give, which nobody needs but its neurons."""

    x: Tensor | Bits  # what the convolution reads
    convolution: tuple[Any, ...]  # the operator's arguments after x
    shape: tuple[int, ...]  # of the currents
    compute: Callable[[], Tensor]  # the currents

    @property
    def dtype(self) -> torch.dtype:
        return self.x.dtype


class Node(Protocol):
    """What is asked of an IFNode."""

    pool: tuple[int, int] | None
    _settings: Settings

    def _fuses(self, x: Any, residual: Any) -> bool: ...
    def _operands(self, x: Any) -> dict[str, Tensor]: ...
    def _parameters_for(self, x: Any) -> tuple[Tensor, Tensor]: ...


def sizes_of(shape: Sequence[int], pool: tuple[int, int]) -> tuple[int, int]:
    """The rows and columns of a node's windows in a plane ``[..., H, W]``."""
    return (shape[-2], shape[-1]) if pool == (0, 0) else pool


def spikes_or_currents(node: Node, x: Any, residual: Any) -> tuple[Any, Any, Any]:
    """The spikes ``[T*B, ...]`` of what is pending, and as bits where the run wants these; where
    there are none, the currents and the residual.
    """
    spikes, runs = None, active()
    wanted = bool(runs) and any(node in run.waiting for run in runs)
    if isinstance(x, Pending):
        spikes = _in_one_pass(node, x, residual, wanted)
        x = x.compute() if spikes is None else None
    if spikes is None and wanted and isinstance(x, Tensor):
        spikes = _bits(node, x, residual)
    return spikes, x, None if spikes is not None else values_of(residual)


def _in_one_pass(node: Node, pending: Pending, residual: Any, wanted: bool) -> Tensor | Bits | None:
    shape, steps, pool = pending.shape, folded_steps(node._settings), (0, 0)
    if steps is None or shape[0] % steps or node._settings["static_input"]:
        return None
    if node.pool is not None:
        pool = sizes_of(shape, node.pool)
        if shape[-2] % pool[0] or shape[-1] % pool[1]:
            return None
    neurons = _neurons(node, pending, residual)
    if neurons is None:
        return None
    to_bits = wanted and pool == (0, 0) and neurons.theta.numel() == 1
    return layer(pending.x, pending.convolution, neurons, steps, pool=pool, to_bits=to_bits)


def _bits(node: Node, x: Tensor, residual: Any) -> Bits | None:
    """Of currents that are there; None where the kernel does not give them, or refuses these."""
    steps = folded_steps(node._settings)
    static = node._settings["static_input"] and frames_now() is None
    if steps is None or node.pool is not None or (static and residual is not None):
        return None
    if type(x) is not Tensor or x.device.type != "cpu" or differentiates([x]):
        return None
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last) or not x.numel():
        return None
    neurons = _neurons(node, x, residual) if static or x.shape[0] % steps == 0 else None
    if neurons is None or neurons.theta.numel() != 1:
        return None
    return bits_of(x.expand(steps, *x.shape) if static else x.unflatten(0, (steps, -1)), neurons)


def _neurons(node: Node, x: Tensor | Pending, residual: Any) -> Neurons | None:
    """Those of a node; None where they, as they are set, take another way or refuse these."""
    general = is_general(node._settings)
    if general or x.dtype not in F.FLOAT_DTYPES or not node._fuses(x, residual):
        return None
    settings, rho = node._settings, watch_steps(node._settings)
    theta, v_init = node._parameters_for(x)
    operands: dict[str, Any] = node._operands(x)
    given = [theta, v_init, *operands.values()]
    tensors = [*given, residual] if isinstance(residual, Tensor) else given
    if differentiates(tensors) or any(tensor.device.type != "cpu" for tensor in tensors):
        return None
    if not all(fits_neurons(tensor.shape, x.shape[1:]) for tensor in given):
        return None
    return Neurons(
        theta,
        v_init,
        settings["v_reset"],
        rho,
        F.check_calibration(max(rho, 1), settings["iterations"]),
        F.EMISSIONS.index(settings["emission"]),
        residual=residual,
        **operands,
    )
