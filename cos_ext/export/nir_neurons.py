"""Neurons as NIR has them, there and back: which can be carried, and by which numbers. Graphs are
made in nir_writing.py, and read in nir_reading.py.

A step of a neuron with hard reset and leak λ is m = λ v + x, and a spike where m >= θ. Euler's rule
with steps of dt makes of NIR's equations

    IF   m = v + dt r x                          λ = 1         gain = r dt
    LIF  m = v + dt/τ (v_leak - v + r x)         λ = 1 - dt/τ  gain = r dt/τ

and a spike where m > v_threshold: the number just below θ.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from .._numbers import real
from ..neuron import IFNode

CARRIED = {"leak", "emitted"}  # of a general neuron


def positive_step(dt: float) -> float:
    """dt as a float, or TypeError or ValueError."""
    dt = real("dt", dt)
    if not 0 < dt < math.inf:
        raise ValueError(f"dt must be positive and finite, got {dt}")
    return dt


def refusal(node: IFNode) -> str:
    """Why NIR has no neurons like these, or nothing."""
    neuron, described = node.neuron, {}
    if neuron is not None:
        described = {k: v for k, v in neuron.described.items() if k not in CARRIED}
        if neuron.step_bias is not None:
            described["step_bias"] = "a tensor"
    reasons = {
        f"it watches {node.watch_steps} steps (rho), NIR's neurons are not calibrated": bool(
            node.watch_steps
        ),
        'calibration "light" adds a current, for which NIR has no node': node.calibration
        == "light",
        "it is reset by subtraction, NIR's IF and LIF to a value: set v_reset of "
        "network.nodes()[site]": node.v_reset is None,
        "v(0) is not 0, where NIR's neurons start: set v_init of network.nodes()[site]": bool(
            node.v_init.any()
        ),
        'a scale or bias is fused into it: convert with fuse=True, not "bias", and with BatchNorm '
        "folded": node.in_scale is not None or node.in_bias is not None,
        f"NIR's IF and LIF send one level, up, and know no {', '.join(described)}": bool(described),
        "its leak is above 1, a τ of LIF would be negative": neuron is not None and neuron.leak > 1,
        "its v_reset is infinite": node.v_reset is not None and math.isinf(node.v_reset),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def written(
    node: IFNode, shape: tuple[int, ...], dtype: torch.dtype, dt: float
) -> tuple[Any, np.ndarray]:
    """The NIR node of neurons ``[*shape]`` that :func:`refusal` lets pass, for currents of a dtype,
    and the value of one of their spikes.
    """
    import nir

    theta, _ = node._parameters_for(torch.empty(0, dtype=dtype))
    own, neuron = _full(theta, shape, dtype), node.neuron
    values = {
        "v_threshold": np.nextafter(own, np.zeros_like(own)),
        "v_reset": np.full_like(own, node.v_reset),
    }
    emitted = None if neuron is None else neuron.emitted
    sent = own if emitted is None else _full(emitted, shape, dtype)
    leak = 1.0 if neuron is None else neuron.leak
    if leak == 1:
        return nir.IF(r=np.full_like(own, 1 / dt), **values), sent
    rest = np.full(shape, 1 / (1 - leak))  # float64, for a λ that comes back
    return nir.LIF(tau=rest * dt, r=rest, v_leak=np.zeros_like(own), **values), sent


class Read(NamedTuple):
    """What a NIR node says of neurons; θ and the gain are numbers or ``[*neurons]``."""

    theta: Tensor
    v_reset: float
    leak: float
    gain: Tensor  # of their input


def read(node: Any, dt: float, dtype: torch.dtype) -> Read | str:
    """Neurons of a nir.IF or nir.LIF, or why there are none like these."""
    rate: Any = node.r * dt
    leak: Any = np.ones(1)
    if type(node).__name__ == "LIF":
        if np.any(node.v_leak):
            return "its v_leak is not 0, which is a current at every step"
        leak, rate = 1 - dt / node.tau, rate / node.tau
    if not _alike(node.v_reset) or not _alike(leak):
        return "its neurons differ in v_reset or τ"
    if not 0 < leak.flat[0] <= 1:
        return f"its τ must be above dt = {dt}, got {node.tau.flat[0]}"
    below = torch.as_tensor(_one(node.v_threshold)).to(dtype)
    theta = torch.nextafter(below, torch.full_like(below, math.inf))
    if not (theta > 0).all():
        return "its v_threshold must not be negative"
    gain = torch.as_tensor(_one(rate)).to(torch.float64)
    # 1 but for the rounding of r and τ.
    gain = torch.where((gain - 1).abs() < 1e-6, 1.0, gain).to(dtype)
    return Read(theta, float(node.v_reset.flat[0]), float(leak.flat[0]), gain)


def array(tensor: Tensor) -> np.ndarray:
    """A tensor's values in NumPy."""
    return tensor.detach().cpu().contiguous().numpy()


def compressed(values: np.ndarray) -> Tensor:
    """A tensor of no dimensions where all values are one, else of all of them."""
    return torch.as_tensor(_one(values))


def _one(values: np.ndarray) -> np.ndarray:
    return np.asarray(values.flat[0]) if _alike(values) else values


def _alike(values: np.ndarray) -> bool:
    return bool(values.size) and bool((values == values.flat[0]).all())


def _full(value: float | Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> np.ndarray:
    return array(torch.as_tensor(value, dtype=dtype).expand(shape).clone())
