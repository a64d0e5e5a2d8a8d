"""Spike trains as snntorch's spikegen makes them, through models with this library's neurons.

snntorch is not imported: a train is a tensor with time first. Nothing is encoded here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..neuron import IFNode

__all__ = ["run"]


def run(model: nn.Module, spikes: Tensor) -> Tensor:
    """A model's outputs at every step of a spike train.

    Where the neurons have time folded into the batch (``IFNode(timesteps=T)``), so is the train's,
    and any layer stands between them. Where they have not, the model is called on the train as it
    is, as ``nn.Linear`` can be.

    Args:
        model: layers and :class:`cos_ext.IFNode`, none of them with ``static_input``.
        spikes: ``[T, B, ...]``, floating-point, from ``spikegen.rate``, ``latency`` or ``delta``,
            or ``[T, B, ...]`` currents.

    Returns:
        ``[T, B, ...]``, as snntorch's losses take it. Spikes are 0 or θ.

    Raises:
        TypeError: spikes is no floating-point tensor.
        ValueError: it lacks a batch, convert() made the model, a node has other timesteps, another
            step mode or a static input, or one of SpikingJelly's contract stands beside folded
            ones.
    """
    if not isinstance(spikes, Tensor) or not spikes.is_floating_point():
        got = spikes.dtype if isinstance(spikes, Tensor) else type(spikes).__name__
        raise TypeError(f"spikes must be a floating-point tensor, as spikegen returns, got {got}")
    if spikes.dim() < 2:
        raise ValueError(f"spikes must be [T, B, ...], got shape {tuple(spikes.shape)}")
    steps, batch = spikes.shape[:2]
    nodes = {name: node for name, node in model.named_modules() if isinstance(node, IFNode)}
    if any(node.in_network for node in nodes.values()):
        raise ValueError(
            "model was made by convert(), whose networks are given images [B, ...], not spike "
            "trains: call it on the images"
        )
    folded = any(node.timesteps and node.time == "batch" for node in nodes.values())
    wanted = {"timesteps": steps, "time": "batch", "static_input": False, "step_mode": "m"}
    for name, node in nodes.items():
        wrong = {
            "timesteps": node.timesteps not in ((steps,) if folded else (steps, None)),
            "time": folded and node.time != "batch",
            "static_input": node.static_input,
            "step_mode": node.step_mode != "m",
        }
        for setting in (setting for setting, is_wrong in wrong.items() if is_wrong):
            want = wanted[setting]
            raise ValueError(
                f"{name or 'the node'}.{setting} must be {want!r} for spikes of {steps} steps, got "
                f"{getattr(node, setting)!r}"
            )
    for name, module in model.named_modules():
        # Neurons with SpikingJelly's contract; its layers have a step mode, too.
        others = not isinstance(module, IFNode) and hasattr(module, "v_threshold")
        mode = getattr(module, "step_mode", None) if others else None
        if mode is not None and (folded or mode != "m"):
            raise ValueError(
                f"{name or 'the node'} takes "
                f"{'its first dimension for time' if mode == 'm' else 'its input for one step'}: "
                "its step_mode must be 'm', and every cos_ext.IFNode beside it needs "
                "timesteps=None or time='first'"
            )
    if not folded:
        return model(spikes)
    out: Tensor = model(spikes.flatten(0, 1))
    if out.shape[:1] != torch.Size([steps * batch]):
        raise ValueError(
            f"the model must return [T*B, ...], T*B = {steps * batch}, got {tuple(out.shape)}"
        )
    return out.unflatten(0, (steps, batch))
