"""The offset-spike report: how far every layer's spike counts are from those of the ANN, before and
after calibration.

Measuring, printing and drawing only: the calibration is in functional.py, what a network consists
of in network.py. Nothing here keeps an activation beyond its batch or changes a model.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from tqdm import tqdm

from .. import functional as F
from .._batches import check_batches, device_of, model_inputs, number_of_inputs
from .._tables import percent as _percent
from .._tables import table as _table
from ..conversion.tracing import trace
from ..network.network import SpikingNetwork
from ..network.pooling import MaxPoolBefore
from ..neuron import IFNode

BEYOND = 4  # this and all beyond it share a column
OFFSETS = tuple(
    range(-BEYOND, BEYOND + 1)
)  # of a histogram; its ends hold what lies beyond them, too
SHARES = ("0", "±1", "±2", "±3", "beyond")


@dataclass(frozen=True)
class CountError:
    """Spike counts of a layer against desired ones, over all its neurons and all samples.

    mean_error: the mean of abs(count/rho - desired rate), in units of θ; equal_share: the fraction
    of the neurons whose count is the desired one.
    """

    mean_error: float
    equal_share: float


@dataclass(frozen=True)
class LayerOffsets:
    """One layer (call site) of an :class:`OffsetSpikeReport`.

    site: as in ``network.nodes()``. neurons: how many were looked at, one per neuron and sample.
    histograms: by stage, how many of them have ψ = -4 and less, -3, ..., 3, 4 and more
    (:data:`OFFSETS`). isolated, accumulated: see :func:`offset_spike_report`; None where no site of
    the ANN is known to correspond, which `note` then says.
    """

    site: str
    neurons: int
    histograms: dict[str, tuple[int, ...]]
    isolated: CountError | None
    accumulated: CountError | None
    note: str = ""

    def shares(self, stage: str) -> tuple[float, ...]:
        """The fractions of the neurons with ψ = 0, ±1, ±2, ±3 and abs(ψ) >= 4, at a stage such as
        "before".
        """
        counts = self.histograms[stage]
        folded = [counts[BEYOND]] + [
            counts[BEYOND - size] + counts[BEYOND + size] for size in range(1, BEYOND + 1)
        ]
        return tuple(count / max(self.neurons, 1) for count in folded)


@dataclass(frozen=True)
class OffsetSpikeReport:
    """What :func:`offset_spike_report` measured. Prints as two tables: offset spikes, and counts
    against the ANN's.

    layers: in execution order. stages: "before", "1 iteration", ..., "exact", the keys of the
    layers' histograms. samples: how many were run. rho: the steps over which counts were taken.
    network_timesteps, network_rho, network_iterations, network_emission, network_calibration: the
    network's settings.
    """

    layers: tuple[LayerOffsets, ...]
    stages: tuple[str, ...]
    samples: int
    rho: int
    network_timesteps: int
    network_rho: int
    network_iterations: int | None
    network_emission: str = "calibrated"
    network_calibration: str = "cos"

    @property
    def total(self) -> LayerOffsets:
        """All layers together, every neuron with the same weight; the comparisons over the layers
        that have one.
        """
        histograms = {
            stage: tuple(map(sum, zip(*(layer.histograms[stage] for layer in self.layers))))
            for stage in self.stages
        }
        neurons = sum(layer.neurons for layer in self.layers)
        return LayerOffsets(
            "all layers", neurons, histograms, self._mean("isolated"), self._mean("accumulated")
        )

    def _mean(self, name: str) -> CountError | None:
        found = [
            (layer.neurons, getattr(layer, name))
            for layer in self.layers
            if getattr(layer, name) is not None
        ]
        weight = sum(neurons for neurons, _ in found)
        if not weight:
            return None
        return CountError(
            sum(neurons * error.mean_error for neurons, error in found) / weight,
            sum(neurons * error.equal_share for neurons, error in found) / weight,
        )

    def to_dict(self) -> dict[str, Any]:
        """The report and what follows from it (shares, the total) as numbers, strings, lists and
        dicts.
        """

        def plain(layer: LayerOffsets) -> dict[str, Any]:
            histograms = {stage: list(counts) for stage, counts in layer.histograms.items()}
            return {
                **asdict(layer),
                "histograms": histograms,
                "shares": {s: list(layer.shares(s)) for s in self.stages},
            }

        return {
            "samples": self.samples,
            "rho": self.rho,
            "network_timesteps": self.network_timesteps,
            "network_rho": self.network_rho,
            "network_iterations": self.network_iterations,
            "network_emission": self.network_emission,
            "network_calibration": self.network_calibration,
            "stages": list(self.stages),
            "offsets": list(OFFSETS),
            "share_of": list(SHARES),
            "layers": [plain(layer) for layer in self.layers],
            "total": plain(self.total),
        }

    def to_json(self, path: str | os.PathLike[str]) -> None:
        """Write :meth:`to_dict` as JSON."""
        Path(path).write_text(
            json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )

    def to_csv(self, path: str | os.PathLike[str]) -> None:
        """Write one row per layer and stage: histogram, shares, and the layer's comparisons,
        repeated.
        """
        names = [f"psi_{psi:+d}" if psi else "psi_0" for psi in OFFSETS]
        names[0], names[-1] = f"psi_{-BEYOND}_or_less", f"psi_+{BEYOND}_or_more"
        compared = [
            f"{name}_{part}"
            for name in ("isolated", "accumulated")
            for part in ("mean_error", "equal_share")
        ]
        shares = ["share_0", *(f"share_{size}" for size in range(1, BEYOND)), "share_beyond"]
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["site", "stage", "neurons", *names, *shares, *compared, "note"])
            for layer in self.layers:
                errors: list[Any] = []
                for error in (layer.isolated, layer.accumulated):
                    errors += ["", ""] if error is None else [error.mean_error, error.equal_share]
                for stage in self.stages:
                    counts = layer.histograms[stage]
                    writer.writerow(
                        [
                            layer.site,
                            stage,
                            layer.neurons,
                            *counts,
                            *layer.shares(stage),
                            *errors,
                            layer.note,
                        ]
                    )

    def __str__(self) -> str:
        layers = [*self.layers, self.total]
        rows = [
            [
                "layer",
                "neurons",
                "calibration",
                *(f"ψ = {name}" if name == "0" else name for name in SHARES),
            ]
        ]
        for layer in layers:
            for index, stage in enumerate(self.stages):
                head = [layer.site, f"{layer.neurons}"] if index == 0 else ["", ""]
                rows.append([*head, stage, *(_percent(share) for share in layer.shares(stage))])
        counts = [["layer", "isolated: equal", "mean error", "accumulated: equal", "mean error"]]
        for layer in layers:
            cells: list[str] = []
            for error in (layer.isolated, layer.accumulated):
                cells += (
                    ["-", "-"]
                    if error is None
                    else [_percent(error.equal_share), f"{error.mean_error:.5f} θ"]
                )
            counts.append([layer.site, *cells])
        kind = (
            self.network_emission
            if self.network_emission != "calibrated"
            else "exact"
            if self.network_iterations is None
            else _iterations(self.network_iterations)
        )
        if self.network_calibration != "cos":
            kind = f'calibration "{self.network_calibration}"'
        settings = f"rho = {self.network_rho}, {kind}" if self.network_rho else "not calibrated"
        if self.network_calibration == "light":
            settings = kind
        notes = [f"{layer.site}: {layer.note}" for layer in self.layers if layer.note]
        return "\n".join(
            [
                f"Offset spikes ψ (desired minus actual count) over {self.rho} steps, "
                f"{self.samples} samples; each layer's",
                f"input is that of the running network (T = {self.network_timesteps}, {settings}), "
                "each row another",
                "calibration of the layer itself.",
                "",
                _table(rows, left=(0, 2)),
                "",
                f"Spike counts over {self.rho} steps against the ANN's. Isolated: the layer fed "
                "the ANN's own currents;",
                "accumulated: the running network.",
                "",
                _table(counts, left=(0,)),
                *(["", *notes] if notes else []),
            ]
        )

    def plot(self, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the shares of ψ = ±1, ±2, ±3 and beyond: a panel per stage, a stacked bar per layer.

        Args:
            path: where to save the figure as well; its suffix is the format. None: it is only
                returned.

        Returns:
            The matplotlib Figure.

        Raises:
            ImportError: matplotlib is missing.
        """
        try:
            from matplotlib import pyplot
        except ImportError as error:
            raise ImportError("plot needs matplotlib: pip install '.[plots]'") from error
        width, height = max(6.0, 2 + 0.3 * len(self.layers)), 1.5 * len(self.stages) + 1.5
        figure, panels = pyplot.subplots(
            len(self.stages),
            1,
            sharex=True,
            sharey=True,
            squeeze=False,
            figsize=(width, height),
            layout="constrained",
        )
        where, total = range(len(self.layers)), self.total
        colours = pyplot.get_cmap("viridis")([0.85, 0.6, 0.35, 0.05])
        for axes, stage in zip(panels[:, 0], self.stages):
            below = [0.0] * len(self.layers)
            for size, colour in enumerate(colours, 1):
                heights = [100 * layer.shares(stage)[size] for layer in self.layers]
                label = f"ψ = {SHARES[size]}" if size < BEYOND else "beyond"
                axes.bar(where, heights, bottom=below, color=colour, label=label)
                below = [low + more for low, more in zip(below, heights)]
            wrong = total.neurons - total.histograms[stage][BEYOND]
            share = _percent(wrong / max(total.neurons, 1))
            axes.set_title(
                f"{stage}: ψ ≠ 0 in {wrong} of {total.neurons} neurons ({share})",
                fontsize="medium",
                loc="left",
            )
            axes.set_ylabel("neurons (%)")
        figure.legend(
            *panels[0, 0].get_legend_handles_labels(), loc="outside lower center", ncols=BEYOND
        )
        panels[-1, 0].set_xticks(where, [layer.site for layer in self.layers], rotation=90)
        figure.suptitle(f"Offset spikes over rho = {self.rho} steps, {self.samples} samples")
        if path is not None:
            figure.savefig(path, dpi=150)
        return figure


@torch.no_grad()
def offset_spike_report(
    ann: nn.Module,
    network: SpikingNetwork,
    batches: Iterable[Any],
    *,
    iterations: int = 3,
    progress: bool = True,
) -> OffsetSpikeReport:
    r"""Offset spikes of every layer of a running network, and its spike counts against those of the
    ANN.

    The offset spike of a neuron on a sample is ψ = C* - N: with N the spikes of its first rho
    steps, and C* the count that its input over those steps asks for (Hao et al., "Bridging the gap
    between ANNs and SNNs by calibrating offset spikes", ICLR 2023, arXiv 2302.10685;
    :func:`cos_ext.functional.cos_forward`). Three things are measured:

    Offset spikes, before and after
        The network runs as it is configured. At every layer the input currents of the first rho
        steps are taken; the neurons are simulated on them from v_init ("before"), and from the
        potentials that k = 1..`iterations` iterations of the calibration, or as many as it takes
        ("exact"), give. ψ is C* minus the count that this simulation had; nothing is concluded from
        theory. What the layers before have emitted does not change between these stages.
    Counts, isolated
        The layer is fed the ANN's own currents z (the input of its activation), the same at every
        step, from v_init. Its count over rho steps is compared with what the activation quantised
        to rho levels has on z, rho·clip(floor(z·rho/θ + 1/2)/rho, 0, 1). With v_init = θ/2 these
        agree but for rounding: what is left over in a network comes from spikes arriving unevenly,
        and from what the layers before have accumulated. Calibration plays no part, having nothing
        to do on such currents.
    Counts, accumulated
        The spikes that the layer emitted over the first rho steps of the running network (all
        settings as they are) against the activation a of the ANN itself, run from the same images:
        the mean of abs(count/rho - a/θ), and the share of neurons with count = round(a·rho/θ),
        where a half (up to the rounding of a) rounds up, as in the quantised activation. QCFS
        activations have their own L levels. With L ≠ rho the two cannot agree everywhere, and a
        ReLU may exceed θ, which a count cannot follow.

    rho is the network's; for a network that watches nothing (no calibration) it is its number of
    time-steps. θ is the neurons' threshold. Where a max pooling was moved before the neurons
    (``max_pool="before"``), the ANN's currents and activations are pooled likewise.

    Args:
        ann: the model that the network was converted from, in the network's dtype. A copy of it
            runs, in eval mode, where the network is.
        network: from :func:`cos_ext.convert`; put in eval mode.
        batches: an iterable, read once, of tensors [B, ...] or of tuples whose first n elements are
            the ANN's inputs and whose others (labels) are ignored.
        iterations: the largest k, >= 0.
        progress: a progress bar on stderr.

    Memory: a histogram for each layer and stage and a spike count for each neuron of one batch,
    beside what the two models need. How the data are split into batches plays no part, but for the
    models' own rounding and that of sums in float64.

    Raises:
        TypeError: ann is no nn.Module, network no SpikingNetwork, batches no iterable or one of
            something else, iterations no int.
        ValueError: iterations < 0; batches yields no sample; ann has other activation call sites,
            shapes or another dtype than the network's; neurons have a hard reset, for which
            calibration is not defined.
    """
    _check_arguments(ann, network, batches, iterations)
    traced = trace(ann)
    if set(traced.sites) != set(network.options["sites"]):
        raise ValueError(
            f"ann must be the model that the network was converted from, with activations at "
            f"{list(network.options['sites'])}; it has {list(traced.sites)}"
        )
    network.eval()
    nodes, rho = network.nodes(), network.watch_steps or network.timesteps
    hard = [site for site, node in nodes.items() if node.v_reset is not None]
    if hard:
        raise ValueError(
            f"network must have soft reset (calibration is defined for v_reset=None), not so {hard}"
        )
    where = device_of(network)
    model = traced.module.to(where)
    ours, theirs = (
        next((p.dtype for p in m.parameters() if p.is_floating_point()), None)
        for m in (network, model)
    )
    if ours is not None and theirs is not None and ours != theirs:
        raise ValueError(f"ann must have the network's dtype {ours}, it has {theirs}")

    stages: dict[str, int | None] = {_stage(k): k for k in range(iterations + 1)} | {"exact": None}
    counterparts = _counterparts(network, traced.sites)
    layers = {
        site: _Layer(site, node, rho, stages, counterparts.get(site))
        for site, node in nodes.items()
    }
    handles = [handle for layer in layers.values() for handle in layer.watch(traced.sites)]
    wanted, samples = number_of_inputs(traced.graph), 0
    try:
        for batch in tqdm(batches, desc="offset spikes", disable=not progress, leave=False):
            inputs = [tensor.to(where, non_blocking=True) for tensor in model_inputs(batch, wanted)]
            if inputs[0].shape[0]:
                # Copies: an activation that works in place may be the first to read them. The
                # network first: where one of the two must be kept, a count is smaller than an
                # activation.
                with network._by_steps():
                    network(*(tensor.clone() for tensor in inputs))
                model(*(tensor.clone() for tensor in inputs))
                samples += inputs[0].shape[0]
    finally:
        for handle in handles:
            handle.remove()
    if samples == 0:
        raise ValueError("batches must yield at least one sample, it yielded none")
    found = tuple(layer.result() for layer in layers.values())
    return OffsetSpikeReport(
        found,
        tuple(stages),
        samples,
        rho,
        network.timesteps,
        network.watch_steps,
        network.iterations,
        network.emission,
        network.calibration,
    )


def _check_arguments(
    ann: nn.Module, network: SpikingNetwork, batches: Iterable[Any], iterations: int
) -> None:
    if not isinstance(ann, nn.Module):
        raise TypeError(f"ann must be an nn.Module, got {type(ann).__name__}")
    if isinstance(ann, SpikingNetwork):
        raise TypeError(
            "ann must be the model that the network was converted from, got a SpikingNetwork"
        )
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    check_batches(batches)
    if isinstance(iterations, bool) or not isinstance(iterations, int):
        raise TypeError(f"iterations must be an int, got {type(iterations).__name__}")
    if iterations < 0:
        raise ValueError(f"iterations must be >= 0, got {iterations}")


def _counterparts(
    network: SpikingNetwork, sites: Mapping[str, nn.Module]
) -> dict[str, tuple[str, nn.Module | None]]:
    """What the neurons of each site stand for: the ANN's site, and the max pooling after it that
    was moved before them.

    Neurons whose site the ANN lacks are those of another one again, pooled: recognised by reading
    the same currents.
    """
    nodes = network.nodes()
    if not isinstance(network.module, fx.GraphModule):
        return {site: (site, None) for site in nodes if site in sites}
    moved = {entry.site for entry in network.report.entries if entry.status == "moved"}
    currents: dict[str, fx.Node] = {}
    pools: dict[str, nn.Module] = {}
    for node in network.module.graph.nodes:
        if node.op == "call_module" and node.target in nodes:
            source = node.args[0]
            if source.op == "call_module" and source.target in moved:
                pool = network.module.get_submodule(source.target)
                pools[node.target] = pool.pool if isinstance(pool, MaxPoolBefore) else pool
                source = source.args[0]
            currents[node.target] = source
    found: dict[str, tuple[str, nn.Module | None]] = {}
    for site in nodes:
        same = (
            s
            for s in nodes
            if s in sites and site.startswith(f"{s}_") and currents[s] is currents[site]
        )
        own = site if site in sites else next(same, None)
        if own is not None:
            found[site] = (own, pools.get(site))
    return found


class _Sums:
    """Running sums of a comparison of counts [B, ...] with desired ones, on the data's device,
    never waited for.
    """

    def __init__(self) -> None:
        self.error: Tensor | float = 0.0
        self.equal: Tensor | int = 0
        self.neurons = 0

    def add(self, error: Tensor, equal: Tensor) -> None:
        self.error = self.error + error.sum(dtype=torch.float64)
        self.equal = self.equal + equal.sum()
        self.neurons += equal.numel()

    def result(self) -> CountError | None:
        if not self.neurons:
            return None
        return CountError(float(self.error) / self.neurons, int(self.equal) / self.neurons)


class _Layer:
    """What is measured at one site, by hooks on its neurons and on the ANN's activation."""

    def __init__(
        self,
        site: str,
        node: IFNode,
        rho: int,
        stages: Mapping[str, int | None],
        counterpart: tuple[str, nn.Module | None] | None,
    ) -> None:
        self.site, self.node, self.rho, self.stages, self.counterpart = (
            site,
            node,
            rho,
            stages,
            counterpart,
        )
        self.histograms: dict[str, Tensor] = {}
        self.isolated, self.accumulated = _Sums(), _Sums()
        self.count: Tensor | None = None  # [B, ...], of the batch that is running

    def watch(self, sites: Mapping[str, nn.Module]) -> list[Any]:
        # Before the neurons: they may write their spikes over the currents.
        handles = [
            self.node.register_forward_pre_hook(
                lambda _, args: self._offsets(self.node._currents(*args)[0])
            )
        ]
        if self.counterpart is not None:
            activation = sites[self.counterpart[0]]
            handles.append(
                self.node.register_forward_hook(lambda _, args, spikes: self._emitted(spikes))
            )
            # Before and after the activation: it, too, may work in place.
            handles.append(
                activation.register_forward_pre_hook(self._ann_currents, with_kwargs=True)
            )
            handles.append(
                activation.register_forward_hook(lambda _, args, a: self._ann_activations(a))
            )
        return handles

    def result(self) -> LayerOffsets:
        histograms = {
            stage: tuple(histogram.tolist()) for stage, histogram in self.histograms.items()
        }
        note = (
            ""
            if self.counterpart is not None
            else "no activation of the ANN corresponds to these neurons"
        )
        neurons = sum(histograms["before"])
        return LayerOffsets(
            self.site, neurons, histograms, self.isolated.result(), self.accumulated.result(), note
        )

    def _parameters(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """θ and v_init in a dtype that the operators take beside x."""
        state = F.state_dtype(x.dtype)
        return tuple(
            p if p.dtype in (x.dtype, state) else p.to(state)
            for p in (self.node.v_threshold, self.node.v_init)
        )

    def _offsets(self, x: Tensor) -> None:
        steps, rho = self.node.timesteps, self.rho
        x_seq = (
            x.expand(rho, *x.shape)
            if self.node.static_input
            else x.unflatten(0, (steps, x.shape[0] // steps))[:rho]
        )
        theta, v_init = self._parameters(x)
        for stage, k in self.stages.items():
            start, psi, count = F.calibrate_v_init(x_seq, theta, v_init, rho=rho, iterations=k)
            actual = F.if_forward(x_seq, theta, start, return_count=True).spike_count
            remaining = (count + psi - actual).clamp_(-BEYOND, BEYOND).add_(BEYOND)
            histogram = torch.bincount(remaining.flatten(), minlength=len(OFFSETS))
            self.histograms[stage] = (
                self.histograms[stage] + histogram if stage in self.histograms else histogram
            )

    def _emitted(self, spikes: Tensor) -> None:
        fired = (
            spikes.unflatten(0, (self.node.timesteps, spikes.shape[0] // self.node.timesteps))[
                : self.rho
            ]
            != 0
        )
        self.count = fired.sum(0, dtype=torch.uint8 if self.rho < 256 else torch.int32)

    def _ann_currents(self, _: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        z = self._pooled(args[0] if args else next(iter(kwargs.values())))
        theta, v_init = self._parameters(z)
        count = F.if_forward(
            z.expand(self.rho, *z.shape), theta, v_init, return_count=True
        ).spike_count
        wide = z.to(F.state_dtype(z.dtype))
        desired = (wide * self.rho / theta.to(wide.dtype) + 0.5).floor().clamp(0, self.rho)
        count = count.to(wide.dtype)
        self.isolated.add((count - desired).abs() / self.rho, count == desired)

    def _ann_activations(self, a: Tensor) -> None:
        a, count, self.count = self._pooled(a), self.count, None
        if a.shape != count.shape:
            raise ValueError(
                f"ann must be the model that the network was converted from: its activation at "
                f"{self.counterpart[0]!r} is {tuple(a.shape)}, the network's neurons are "
                f"{tuple(count.shape)}"
            )
        rate, count = a.double() / self.node.v_threshold.double(), count.double()
        # The rounding of a = level · θ: a level that is a half in exact arithmetic must not round
        # down.
        slack = 2 * torch.finfo(a.dtype).eps * (rate * self.rho).clamp(min=1)
        self.accumulated.add(
            (count / self.rho - rate).abs(), count == (rate * self.rho + 0.5 + slack).floor()
        )

    def _pooled(self, x: Tensor) -> Tensor:
        pool = self.counterpart[1]
        return x if pool is None else pool(x)


def _stage(k: int) -> str:
    return "before" if k == 0 else _iterations(k)


def _iterations(k: int) -> str:
    return f"{k} iteration{'s' if k != 1 else ''}"
