"""Statistics of spiking layers, summed by the kernels while they simulate: reading the sums, and
collecting them over a data set.

What is counted, and how, is in csrc/core/statistics.h; the comparison with an ANN is in offsets.py.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .._batches import check_batches, device_of, model_inputs, number_of_inputs
from .._ops import TALLIES
from ..network.network import SpikingNetwork
from ..network.reports import report


ERROR_UNIT = 2.0**-24  # of the sums of errors, in spikes (csrc/core/statistics.h)


@dataclass(frozen=True)
class LayerStatistics:
    r"""What the neurons of a layer did, over all of them and all samples.

    neurons: how many, one per neuron and sample. rho, timesteps: the steps that were watched, and
    emitted. offset_histogram: how many have ψ = -rho, ..., rho before calibration. spikes: emitted
    in all; silent_share, saturated_share: the fractions that emitted none, and one at every step.

    The rest splits the conversion error of the uncalibrated neuron over the first rho steps, as
    means of absolute values in units of θ: with u = Σx(t)/θ, an ANN's rectifier would answer max(u,
    0)/rho, the neuron N/rho.

    clipping: (u - rho)/rho where u exceeds rho. quantisation: abs(clip(u, 0, rho) - C*)/rho.
    unevenness: abs(ψ)/rho, the part that calibration removes. (The three errors of Bu et al.,
    "Optimal ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks",
    ICLR 2022, section 4.) u is taken from the residual membrane potential, (v(rho) - v(0))/θ + N.
    """

    neurons: int
    rho: int
    timesteps: int
    offset_histogram: tuple[int, ...]
    spikes: int
    silent_share: float
    saturated_share: float
    clipping: float
    quantisation: float
    unevenness: float

    @property
    def spike_rate(self) -> float:
        """Spikes per neuron and step."""
        return self.spikes / max(self.neurons * self.timesteps, 1)

    @property
    def offset_share(self) -> float:
        """The fraction of the neurons with an offset spike, ψ ≠ 0."""
        return 1 - self.offset_histogram[self.rho] / max(self.neurons, 1)


def read_statistics(sums: Tensor, *, rho: int, timesteps: int) -> LayerStatistics:
    """The `statistics` of :func:`cos_ext.functional.cos_forward`, or sums of several such, in
    words. Waits for the device.

    Args:
        sums: int64 [2 rho + 6].
        rho, timesteps: of the calls that gave them; the same for all.
    """
    values = sums.tolist()
    if len(values) != 2 * rho + 1 + len(TALLIES):
        raise ValueError(
            f"sums must have {2 * rho + 1 + len(TALLIES)} elements with rho = {rho}, got "
            f"{len(values)}"
        )
    histogram, named = tuple(values[: 2 * rho + 1]), dict(zip(TALLIES, values[2 * rho + 1 :]))
    neurons = sum(histogram)
    weight = max(neurons, 1)
    uneven = sum(abs(index - rho) * count for index, count in enumerate(histogram))
    return LayerStatistics(
        neurons,
        rho,
        timesteps,
        histogram,
        named["spikes"],
        named["silent"] / weight,
        named["saturated"] / weight,
        named["clipping"] * ERROR_UNIT / (rho * weight),
        named["quantisation"] * ERROR_UNIT / (rho * weight),
        uneven / (rho * weight),
    )


@dataclass(frozen=True)
class NetworkStatistics:
    """What :meth:`SpikingNetwork.statistics` collected: layers by call site, in execution order.
    Prints as a table.
    """

    layers: dict[str, LayerStatistics]
    samples: int

    def to_dict(self) -> dict[str, Any]:
        derived = {
            site: {"spike_rate": s.spike_rate, "offset_share": s.offset_share}
            for site, s in self.layers.items()
        }
        return {
            "samples": self.samples,
            "layers": {site: {**asdict(s), **derived[site]} for site, s in self.layers.items()},
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=2) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        head = (
            "layer",
            "neurons",
            "spike rate",
            "silent",
            "saturated",
            "ψ ≠ 0",
            "clipping",
            "quantisation",
            "unevenness",
        )
        rows = [head]
        for site, s in self.layers.items():
            shares = (s.silent_share, s.saturated_share, s.offset_share)
            errors = (s.clipping, s.quantisation, s.unevenness)
            rows.append(
                (
                    site,
                    str(s.neurons),
                    f"{s.spike_rate:.4f}",
                    *(f"{share:.2%}" for share in shares),
                    *(f"{error:.5f} θ" for error in errors),
                )
            )
        widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
        lines = [
            "  ".join(
                cell.rjust(w) if i else cell.ljust(w)
                for i, (cell, w) in enumerate(zip(row, widths))
            )
            for row in rows
        ]
        return "\n".join(
            [
                *lines,
                f"{self.samples} samples; ψ and errors are those before calibration, over each "
                "layer's own rho "
                "steps, or over all steps where it has none",
            ]
        )


@report("statistics")
@torch.no_grad()
def collect(
    network: SpikingNetwork, batches: Iterable[Any], *, progress: bool = True
) -> NetworkStatistics:
    """See :meth:`SpikingNetwork.statistics`."""

    check_batches(batches)
    nodes = network.nodes()
    where = device_of(network)
    wanted = number_of_inputs(getattr(network.module, "graph", None))
    for node in nodes.values():
        node.statistics, node.keep_statistics = None, True
    samples = 0
    try:
        for batch in tqdm(batches, desc="statistics", disable=not progress, leave=False):
            inputs = [tensor.to(where, non_blocking=True) for tensor in model_inputs(batch, wanted)]
            if inputs[0].shape[0]:
                network(*inputs)
                samples += inputs[0].shape[0]
        if samples == 0:
            raise ValueError("batches must yield at least one sample, it yielded none")
        layers = {
            site: read_statistics(
                node.statistics, rho=node.watch_steps or node.timesteps, timesteps=node.timesteps
            )
            for site, node in nodes.items()
        }
    finally:
        for node in nodes.values():
            node.statistics, node.keep_statistics = None, False
    return NetworkStatistics(layers, samples)
