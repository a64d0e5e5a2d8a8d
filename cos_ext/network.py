"""The spiking network that convert() makes: settings, running it, saving it. Conversion and evaluation are elsewhere."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ._ops import build_info
from .neuron import IFNode
from .pooling import MaxPoolBefore
from .report import ConversionReport

FORMAT = "cos_ext spiking network, 1"


class TimeBroadcast(nn.Module):
    """Repeats a static tensor [B, ...] over time, [T*B, ...], where it meets a spiking one."""

    def __init__(self, timesteps: int = 1) -> None:
        super().__init__()
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0).expand(self.timesteps, *x.shape).flatten(0, 1)


class SpikingNetwork(nn.Module):
    """A converted network. Input: the ANN's, [B, ...]; output: [T, B, ...], one per time-step.

    `timesteps`, `rho` and `iterations` can be changed at any time. Hidden layers run max(timesteps, rho) steps. Everything
    before the first neurons runs once per image, not once per step. In eval mode, and no parameter requires a gradient.
    `report` lists what the conversion did. Neurons write over their input where nothing else reads it, so a hook that keeps
    the output of the layer before them must clone it.
    """

    def __init__(self, module: nn.Module, report: ConversionReport, timesteps: int, rho: int, iterations: int | None,
                 options: dict[str, Any]) -> None:  # fmt: skip
        super().__init__()
        self.module = module
        self.report = report
        self.options = options  # max_pool and fold_batchnorm of convert(), and the ANN's call sites: what save() needs
        self._configure(timesteps, rho, iterations)

    def _configure(self, timesteps: int, rho: int, iterations: int | None) -> None:
        steps = check_settings(timesteps, rho, iterations)  # first, so that a bad value leaves every node as it was
        for module in self.modules():
            if isinstance(module, IFNode):
                module.configure(timesteps=steps, rho=rho, iterations=iterations)
            elif isinstance(module, TimeBroadcast):
                module.timesteps = steps
            elif isinstance(module, MaxPoolBefore):
                module.timesteps, module.rho = steps, rho
        self._timesteps, self._rho, self._iterations = timesteps, rho, iterations

    @property
    def timesteps(self) -> int:
        return self._timesteps

    @property
    def rho(self) -> int:
        return self._rho

    @property
    def iterations(self) -> int | None:
        return self._iterations

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        self._configure(value, self._rho, self._iterations)

    @rho.setter
    def rho(self, value: int) -> None:
        self._configure(self._timesteps, value, self._iterations)

    @iterations.setter
    def iterations(self, value: int | None) -> None:
        self._configure(self._timesteps, self._rho, value)

    def nodes(self) -> dict[str, IFNode]:
        """The neurons by call site, in execution order."""
        root = self.module.model if isinstance(self.module, Walked) else self.module
        return {e.site: root.get_submodule(e.site) for e in self.report.entries if e.status == "converted"}

    def forward(self, *inputs: Tensor) -> Tensor:
        """The ANN's inputs, [B, ...] each, to per-step outputs [T, B, ...]."""
        batch = inputs[0].shape[0] if inputs else 0
        if any(x.shape[0] != batch for x in inputs):
            raise ValueError(f"inputs must have one batch size, got {[x.shape[0] for x in inputs]}")
        out = self.module(*inputs)
        return out.unflatten(0, (max(self._timesteps, self._rho), batch))[: self._timesteps]

    def rate(self, *inputs: Tensor) -> Tensor:
        """The mean over time of :meth:`forward`, [B, ...]."""
        return self(*inputs).mean(0)

    def save(self, path: str | Path) -> None:
        """Write the weights, thresholds and initial potentials as safetensors, with a JSON header in its metadata.

        The header has the format, cos_ext's version, timesteps, rho, iterations, the thresholds by call site (numbers, or
        the shape of a tensor), and convert()'s options. :func:`cos_ext.load_network` reads it beside the ANN's architecture.
        The file is complete or not there.
        """
        thetas = {site: node.v_threshold for site, node in self.nodes().items() if site in self.options["sites"]}
        thresholds = {site: theta.item() if theta.dim() == 0 else list(theta.shape) for site, theta in thetas.items()}
        header = {"format": FORMAT, "cos_ext": build_info()["cos_ext"], "timesteps": self._timesteps, "rho": self._rho,
                  "iterations": self._iterations, "thresholds": thresholds, "max_pool": self.options["max_pool"],
                  "fold_batchnorm": self.options["fold_batchnorm"]}  # fmt: skip
        tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in self.state_dict().items()}
        unfinished = Path(f"{path}.part")
        try:
            save_file(tensors, unfinished, metadata={"cos_ext": json.dumps(header)})
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


class Walked(nn.Module):
    """A model that could not be traced, its activations replaced: time is folded into the batch from its inputs on."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.broadcast = TimeBroadcast()

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.model(*(self.broadcast(x) for x in inputs))


def check_settings(timesteps: int, rho: int, iterations: int | None) -> int:
    """The steps that hidden layers run; TypeError or ValueError where the settings do not fit."""
    if isinstance(timesteps, bool) or not isinstance(timesteps, int):
        raise TypeError(f"timesteps must be an int, got {type(timesteps).__name__}")
    if timesteps < 1:
        raise ValueError(f"timesteps must be >= 1, got {timesteps}")
    steps = max(timesteps, rho) if isinstance(rho, int) else timesteps
    IFNode(timesteps=steps, rho=rho, iterations=iterations)  # knows what rho and iterations may be
    return steps


def as_inputs(example: Tensor | tuple[Tensor, ...] | list[Tensor]) -> tuple[Tensor, ...]:
    """One input or several as a tuple; TypeError for anything but tensors."""
    inputs = tuple(example) if isinstance(example, (tuple, list)) else (example,)
    wrong = [type(x).__name__ for x in inputs if not isinstance(x, torch.Tensor)]
    if wrong or not inputs:
        raise TypeError(
            f"example_input must be a tensor or a tuple of tensors, got {', '.join(wrong) or 'an empty tuple'}"
        )
    return inputs
