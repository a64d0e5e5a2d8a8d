"""Evaluation of a spiking network at every time-step in one pass over the data. Conversion and data are elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .network import SpikingNetwork
from .neuron import IFNode


@dataclass(frozen=True)
class Evaluation:
    """Results at t = 1..T, from the running sum of the outputs. Prints as a table.

    accuracy, top5: fractions of the samples (top5 is None with five classes or fewer); latency: watch_steps + t time-steps;
    spike_rate: spikes per neuron and step, over all neurons; images_per_second: wall clock, data included.
    """

    accuracy: list[float]
    top5: list[float] | None
    samples: int
    latency: list[int]
    spike_rate: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        lines = ["   t  latency  accuracy" + ("     top5" if self.top5 else "")]
        for index, (accuracy, latency) in enumerate(zip(self.accuracy, self.latency)):
            top5 = f"  {self.top5[index]:7.2%}" if self.top5 else ""
            lines.append(f"{index + 1:4d}  {latency:7d}  {accuracy:8.2%}{top5}")
        lines.append(f"{self.samples} samples, {self.spike_rate:.4f} spikes per neuron and step, "
                     f"{self.images_per_second:.0f} images/s")  # fmt: skip
        return "\n".join(lines)


@torch.no_grad()
def evaluate(network: SpikingNetwork, loader: Iterable[tuple[Tensor, Tensor]], *, device: str | torch.device | None = None,
             progress: bool = True) -> Evaluation:  # fmt: skip
    """Accuracy of `network` at every time-step.

    Args:
        network: from :func:`cos_ext.convert`; put in eval mode, and moved to `device` where one is given.
        loader: an iterable of (inputs [B, ...], labels int64 [B]).
        device: where to compute; None: where the network is.
        progress: a progress bar on stderr.

    Raises:
        TypeError: network is not a SpikingNetwork.
        ValueError: the loader yields no sample, outputs are not [T, B, classes], or labels are not [B].
    """
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    if device is not None:
        network.to(device)
    network.eval()
    where = next((tensor.device for tensor in (*network.parameters(), *network.buffers())), torch.device("cpu"))
    nodes = [module for module in network.modules() if isinstance(module, IFNode)]
    correct: Tensor | int = 0
    correct5: Tensor | int | None = 0
    samples = 0
    for node in nodes:
        node.count_spikes, node.emitted = True, None
    start = time.perf_counter()
    try:
        for inputs, labels in tqdm(loader, desc="evaluate", disable=not progress, leave=False):
            inputs, labels = inputs.to(where, non_blocking=True), labels.to(where, non_blocking=True)
            outputs = network(inputs)
            if outputs.dim() != 3:
                raise ValueError(f"the network's outputs must be [T, B, classes], got {tuple(outputs.shape)}")
            if labels.shape != outputs.shape[1:2]:
                raise ValueError(f"labels must be [B] = {tuple(outputs.shape[1:2])}, got shape {tuple(labels.shape)}")
            totals = outputs.cumsum(0)
            correct = correct + (totals.argmax(-1) == labels).sum(1)
            if outputs.shape[-1] > 5:
                correct5 = correct5 + (totals.topk(5, -1).indices == labels[:, None]).any(-1).sum(1)
            else:
                correct5 = None
            samples += len(labels)
        emitted = [node.emitted for node in nodes if node.emitted is not None]
    finally:
        for node in nodes:
            node.count_spikes, node.emitted = False, None
    if samples == 0:
        raise ValueError("loader must yield at least one sample, it yielded none")
    accuracy = [count / samples for count in correct.tolist()]
    top5 = None if correct5 is None else [count / samples for count in correct5.tolist()]
    spikes, steps = sum(int(count) for count, _ in emitted), sum(count for _, count in emitted)
    seconds = time.perf_counter() - start
    return Evaluation(accuracy, top5, samples, [network.watch_steps + t for t in range(1, network.timesteps + 1)],
                      spikes / max(steps, 1), samples / seconds)  # fmt: skip
