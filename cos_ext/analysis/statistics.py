"""Statistics of spiking layers, summed by the kernels while they simulate: reading the sums, and
collecting them over a data set.

What is counted, and how, is in csrc/core/statistics.h, and of general neurons in
_neuron/general_sums.py. The comparison with an ANN is in offsets.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from .._batches import check_batches, device_of
from .._files import write_json
from .._loops import inputs_on
from .._neuron.general_sums import span
from .._neuron.runs import Run, running
from .._ops import TALLIES
from .._tables import table
from ..network.network import SpikingNetwork
from ..network.reports import report
from ..network.settings import steady

# Of the sums of errors, in spikes (csrc/core/statistics.h).
CLIPPING_UNIT, QUANTISATION_UNIT = 2.0**-20, 2.0**-24


@dataclass(frozen=True)
class LayerStatistics:
    """What the neurons of a layer did, over all of them and all samples.

    The last three split the conversion error of the uncalibrated neuron over the first rho steps.
    They are means of absolute values in units of θ. Let u = Σx(t)/θ. A rectifier in an ANN would
    answer max(u, 0)/rho, the neuron answers N/rho. The three are those of Bu et al., "Optimal
    ANN-SNN conversion for high-accuracy and ultra-low-latency spiking neural networks", ICLR 2022,
    section 4. u is taken from the residual membrane potential: u = (v(rho) - v(0))/θ + N.

    Of general neurons, levels are counted as spikes, up or down, and of a ladder the rungs. C* lies
    in rho s_min, ..., rho s_max there (and in the bounds of the count): this takes the place of
    0, ..., rho. Where ψ is not defined (a ladder, prediction, a leak, silent steps, step_scale),
    the histogram is empty and the last three are None.

    Attributes:
        neurons: how many, one per neuron and sample.
        rho: steps that were watched.
        timesteps: steps that were emitted.
        offset_histogram: how many neurons have ψ = -rho, ..., rho before calibration; of general
            neurons rho (s_max - s_min) instead of rho.
        spikes: emitted in all.
        silent_share: the fraction of the neurons that emitted no spike.
        saturated_share: the fraction that emitted one at every step, or the most levels.
        clipping: (u - rho)/rho where u exceeds rho.
        quantisation: abs(clip(u, 0, rho) - C*)/rho, C* the desired count.
        unevenness: abs(ψ)/rho, the part that calibration removes.
        unbounded: how many neurons have a u that is NaN, or above the largest C* by more than 4096.
            Clipping and quantisation leave them out.
    """

    neurons: int
    rho: int
    timesteps: int
    offset_histogram: tuple[int, ...]
    spikes: int
    silent_share: float
    saturated_share: float
    clipping: float | None
    quantisation: float | None
    unevenness: float | None
    unbounded: int = 0

    @property
    def spike_rate(self) -> float:
        """Spikes, or levels, per neuron and step."""
        return self.spikes / max(self.neurons * self.timesteps, 1)

    @property
    def offset_share(self) -> float | None:
        """The fraction of the neurons with an offset spike, ψ ≠ 0; None where ψ is not defined."""
        if not self.offset_histogram:
            return None
        without = self.offset_histogram[len(self.offset_histogram) // 2]
        return 1 - without / max(self.neurons, 1)


def read_statistics(
    sums: Tensor, *, rho: int, timesteps: int, levels: int | None = 1
) -> LayerStatistics:
    """The ``statistics`` of :func:`cos_ext.functional.cos_forward`, or sums of several such, in
    words.

    Waits for the device.

    Args:
        sums: int64 [2 rho levels + 7].
        rho: steps that were watched, the same in all calls that gave the sums.
        timesteps: steps that were emitted, likewise.
        levels: s_max - s_min of the neurons; None where ψ is not defined: then sums are [7].

    Raises:
        ValueError: sums has another number of elements.
    """
    values, most = sums.tolist(), rho * (levels or 0)
    size = 2 * most + 1 + len(TALLIES)
    if len(values) != size:
        raise ValueError(f"sums must have {size} elements with rho = {rho}, got {len(values)}")
    histogram, named = tuple(values[: 2 * most + 1]), dict(zip(TALLIES, values[2 * most + 1 :]))
    neurons = sum(histogram)
    weight, bounded = max(neurons, 1), max(neurons - named["unbounded"], 1)
    errors: dict[str, float | None] = dict.fromkeys(("clipping", "quantisation", "unevenness"))
    if levels is not None:
        uneven = sum(abs(index - most) * count for index, count in enumerate(histogram))
        errors = {
            "clipping": named["clipping"] * CLIPPING_UNIT / (rho * bounded),
            "quantisation": named["quantisation"] * QUANTISATION_UNIT / (rho * bounded),
            "unevenness": uneven / (rho * weight),
        }
    return LayerStatistics(
        neurons=neurons,
        rho=rho,
        timesteps=timesteps,
        offset_histogram=() if levels is None else histogram,
        spikes=named["spikes"],
        silent_share=named["silent"] / weight,
        saturated_share=named["saturated"] / weight,
        unbounded=named["unbounded"],
        **errors,
    )


@dataclass(frozen=True)
class NetworkStatistics:
    """What :meth:`cos_ext.SpikingNetwork.statistics` collected. Prints as a table.

    Attributes:
        layers: by call site, in execution order.
        samples: how many were run.
    """

    layers: dict[str, LayerStatistics]
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """The statistics, and the rates and shares that follow from them, as numbers, strings,
        lists and dicts.
        """
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
        write_json(path, self.to_dict())

    def __str__(self) -> str:
        head = ["layer", "neurons", "spike rate", "silent", "saturated", "ψ ≠ 0"]
        rows = [[*head, "clipping", "quantisation", "unevenness"]]
        for site, s in self.layers.items():
            shares = (s.silent_share, s.saturated_share, s.offset_share)
            errors = (s.clipping, s.quantisation, s.unevenness)
            numbers = ["-" if share is None else f"{share:.2%}" for share in shares]
            numbers += ["-" if error is None else f"{error:.5f} θ" for error in errors]
            rows.append([site, str(s.neurons), f"{s.spike_rate:.4f}", *numbers])
        apart = {site: s.unbounded for site, s in self.layers.items() if s.unbounded}
        note = f"neurons with infinite, huge or NaN currents, left out of errors: {apart}\n"
        return (
            f"{table(rows, left=(0,))}\n{note if apart else ''}{self.samples} samples; ψ and "
            "errors are those before calibration, over each layer's own rho steps, or over all "
            "steps where it has none"
        )


@report("statistics")
@torch.no_grad()
def collect(
    network: SpikingNetwork, batches: Iterable[Any], *, progress: bool = True
) -> NetworkStatistics:
    """See :meth:`cos_ext.SpikingNetwork.statistics`."""
    check_batches(batches)
    nodes = network.nodes()
    wanted = network.inputs
    samples = 0
    with running(Run(statistics=True)) as run:
        data = inputs_on(device_of(network), batches, wanted, title="statistics", progress=progress)
        for inputs in steady(network, data):
            network(*inputs)
            samples += inputs[0].shape[0]
    layers = {
        site: read_statistics(
            run.sums[node],
            rho=node.watch_steps or node.timesteps,
            timesteps=node.timesteps,
            levels=span(node._settings),
        )
        for site, node in nodes.items()
    }
    return NetworkStatistics(layers, samples)
