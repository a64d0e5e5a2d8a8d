"""Static calibration: one initial potential per neuron or channel, fitted to data, instead of a
calibration per sample.

Streaming, statistics and the state of an interrupted fit only: the calibration is in functional.py,
what a network consists of in network.py. Nothing here keeps an activation beyond its batch.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from operator import length_hint
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, fx
from tqdm import tqdm

from .. import functional as F
from .._batches import check_batches, device_of, model_inputs, number_of_inputs
from .._files import write_tensors
from ..network.network import SpikingNetwork
from ..neuron import IFNode

PER = ("neuron", "channel")
STATISTICS = ("mean", "median", "vote")
FORMAT = "cos_ext static calibration, 1"
SIZES = 32  # bins of abs(shift)/θ for each sign, centred at 2^(k/8)
_CHUNK = 1 << 22  # shifts binned at a time, so that a large batch needs no large temporaries


@torch.no_grad()
def fit_v_init(
    network: SpikingNetwork,
    batches: Iterable[Any],
    *,
    per: str = "neuron",
    statistic: str = "mean",
    rho: int | None = None,
    sequential: bool = True,
    state: str | os.PathLike[str] | None = None,
    save_every: int = 50,
    progress: bool = True,
) -> dict[str, Tensor]:
    r"""Give every neuron or channel of a network one initial potential, from data without labels.

    On every sample the calibration of offset spikes (:func:`cos_ext.functional.calibrate_v_init`;
    Hao et al., "Bridging the gap between ANNs and SNNs by calibrating offset spikes", ICLR 2023,
    arXiv 2302.10685) finds how far v(0) should be shifted over rho steps. A statistic of these
    shifts Δ over the samples, and over the positions of a channel, is added to v_init for good. The
    network then has rho = 0: its latency at step t is t, not rho + t. With n values in all:

    "mean"
        ΣΔ/n, in float64.
    "median"
        The lower median of Δ, the value of rank (n - 1)//2 from 0, from a histogram: it is 0
        exactly where that value is, and else off by a factor of at most 2^(1/16) (4.4%), up to
        abs(Δ) = 2^(31/8) θ = 14.7 θ, which stands for all beyond. (A shift other than 0 is never
        smaller than θ.)
    "vote"
        θ (n₊ - n₋)/n: where n₊ values have ψ > 0 (a spike is missing), each votes for one θ more,
        and where n₋ have ψ < 0, each for one less; the others vote for 0, and θ times the margin is
        what they settle on: a mean in which no sample counts for more than θ. (A majority alone
        would nearly always decide for 0, as the median does: docs/static.md.)

    Args:
        network: from :func:`cos_ext.convert`, with its own rho and iterations (also those of
            :meth:`SpikingNetwork.set_layer`); a layer whose rho is below 2, or that has no
            iteration, is not shifted. Stays where it is.
        batches: an iterable of tensors [B, ...] or of tuples whose first n elements are the ANN's
            inputs and whose others (labels) are ignored. How the data are split plays no part, but
            for the rounding of the network itself and of sums in float64.
        per: "neuron": a potential for each, [*neurons]; the network then takes inputs of this size
            only. "channel": for each index of dimension 1 of [B, C, ...], [C, 1, ...].
        statistic: "mean", "median" or "vote".
        rho: steps to watch, >= 2. None: the network's, or, where that is 0, its number of
            time-steps; an int is for all layers.
        sequential: fit one layer after the other, each on the spikes that the layers before it emit
            from their fitted potentials: what it will see at inference. `batches` is read once per
            layer, as far as that layer, and must be the same every time. False: one pass, in which
            every layer sees what per-sample calibrated layers emit.
        state: a file that keeps the statistics every `save_every` batches and after every layer, so
            that an interrupted call can be made again, with the same `batches` in the same order,
            and goes on after what it had seen, to an EQUAL result. It is removed when the fit is
            complete.
        save_every: batches between two writes of `state`, >= 1.
        progress: a progress bar on stderr.

    Returns:
        The shifts that were added to v_init, by call site: [*neurons] or [C, 1, ...], float64.

    v_init is a buffer: the state_dict, :meth:`SpikingNetwork.save` and :func:`cos_ext.load_network`
    carry it. ``network.static_calibration`` says how it was fitted (not part of the state_dict).
    The desired counts are those of the potentials before; from fitted ones they would be others. So
    a network is fitted once, and then refuses rho > 0; convert anew for either.

    Memory, for each neuron or channel of one layer (of all where not sequential): 8 bytes; for
    "median" 260 per neuron, 520 per channel. Nothing is waited for on a GPU but at the end of a
    pass and where `state` is written.

    Raises:
        TypeError: network is no SpikingNetwork, batches no iterable or one of something else, or an
            argument has a wrong type.
        ValueError: another argument does not fit; the network is fitted already, or has hard reset;
            batches yields no sample, can be read only once where it is read for every layer, or
            differs between passes; a layer sees NaN or infinite currents, or neurons in other
            numbers than before; state is a file of another fit or none.
        The network is unchanged if anything is raised.
    """
    _check_arguments(network, batches, per, statistic, rho, sequential, save_every)
    layers = {} if rho is not None else network._layers
    common = rho if rho is not None else network.rho
    if not common and not any(layer.get("rho") for layer in layers.values()):
        common, layers = network.timesteps, {}
    own = {
        site: {"rho": common, "iterations": network.iterations, **layers.get(site, {})}
        for site in network.nodes()
    }
    if not any(_shifts(settings) for settings in own.values()):
        raise ValueError(
            "network must have rho >= 2 (over one step there are no offset spikes) and iterations "
            ">= 1, or None, at "
            f"a layer at least, got rho = {common}, iterations = {network.iterations}, layers "
            f"{layers}"
        )
    steps = max(settings["rho"] for settings in own.values())
    description = {
        "rho": common,
        "iterations": network.iterations,
        "per": per,
        "statistic": statistic,
        "sequential": sequential,
        "layers": layers,
    }
    fit = _Fit(
        network, own, description, Path(state) if state is not None else None, save_every, progress
    )

    settings = {
        name: getattr(network, f"_{name}")
        for name in ("timesteps", "rho", "iterations", "emission", "layers", "calibration")
    }
    try:
        fit.restore()
        running = {
            **settings,
            "timesteps": steps,
            "rho": common,
            "layers": layers,
            "calibration": "cos",
        }
        network._configure(**{**running, "rho": 0, "layers": {}} if sequential else running)
        shifts = fit.layer_by_layer(batches) if sequential else fit.at_once(batches)
        fitted = {site: fit.shifted(site, shift) for site, shift in shifts.items()}
        network._configure(**{**settings, "rho": 0, "layers": {}, "calibration": "cos"})
        for site, node in network.nodes().items():
            node.v_init = fitted.get(site, fit.starts[site])
        network.options["static"] = {**description, "samples": fit.samples}
    except BaseException:
        network.options.pop("static", None)
        for site, node in network.nodes().items():
            node.v_init = fit.starts[site]
        network._configure(**settings)
        raise
    if state is not None:
        Path(state).unlink(missing_ok=True)
    return shifts


def _shifts(settings: Mapping[str, Any]) -> bool:
    return settings["rho"] >= 2 and settings["iterations"] != 0


def _check_arguments(
    network: SpikingNetwork,
    batches: Iterable[Any],
    per: str,
    statistic: str,
    rho: int | None,
    sequential: bool,
    save_every: int,
) -> None:
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    if network.execution != "steps":
        raise ValueError(
            f"network must have execution 'steps' to be fitted, got {network.execution!r}"
        )
    check_batches(batches)
    for name, value, allowed in (("per", per, PER), ("statistic", statistic, STATISTICS)):
        if value not in allowed:
            raise ValueError(f"{name} must be one of {allowed}, got {value!r}")
    for name, number, least in (("rho", rho, 2), ("save_every", save_every, 1)):
        if number is None and name == "rho":
            continue
        if isinstance(number, bool) or not isinstance(number, int):
            raise TypeError(f"{name} must be an int, got {type(number).__name__}")
        if number < least:
            raise ValueError(f"{name} must be >= {least}, got {number}")
    if not isinstance(sequential, bool):
        raise TypeError(f"sequential must be a bool, got {type(sequential).__name__}")
    if sequential and isinstance(batches, Iterator):
        raise ValueError(
            "batches must be an iterable that can be read for every layer (a list, a DataLoader), "
            "got the iterator "
            f"{type(batches).__name__}; sequential=False reads it once"
        )
    if network.static_calibration is not None:
        raise ValueError(
            f"network must not be fitted already, it is: {network.static_calibration}; convert anew"
        )
    nodes = network.nodes()
    hard = [site for site, node in nodes.items() if node.v_reset is not None]
    if hard or not nodes:
        raise ValueError(
            "network must have neurons with soft reset (calibration is defined for v_reset=None), "
            "not so "
            f"{hard or 'one without neurons'}"
        )


class _Reached(BaseException):
    """A pass has come to the layer that is being fitted. No Exception: a model's own handlers must
    not take it.
    """


class _Fit:
    """A fit that is under way: what has been seen, the layers that are done, and the file that
    keeps both.
    """

    def __init__(
        self,
        network: SpikingNetwork,
        own: Mapping[str, Mapping[str, Any]],
        description: Mapping[str, Any],
        path: Path | None,
        save_every: int,
        progress: bool,
    ) -> None:
        self.network, self.own, self.description = network, own, description
        self.path, self.save_every, self.progress = path, save_every, progress
        self.nodes = network.nodes()
        self.starts = {site: node.v_init for site, node in self.nodes.items()}
        self.sites = [site for site in self.nodes if _shifts(own[site])]
        self.where = device_of(network)
        graph = network.module.graph if isinstance(network.module, fx.GraphModule) else None
        self.wanted = number_of_inputs(graph)
        self.statistics: dict[str, _Statistic] = {}  # of the layers that are being fitted
        self.shifts: dict[str, Tensor] = {}  # of those that are done
        self.seen = 0  # batches of this pass
        self.count = 0  # samples of this pass
        self.samples = 0  # of a whole pass, 0 before there was one

    def layer_by_layer(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        for site, shift in self.shifts.items():  # of a fit that was interrupted
            self.nodes[site].v_init = self.shifted(site, shift)
        for site in self.sites[len(self.shifts) :]:
            title = f"{site} ({len(self.shifts) + 1}/{len(self.sites)})"
            self._pass(batches, [site], title, stop=True)
            self.nodes[site].v_init = self.shifted(site, self.shifts[site])
            self._save()
        return self.shifts

    def at_once(self, batches: Iterable[Any]) -> dict[str, Tensor]:
        self._pass(batches, self.sites, "static calibration", stop=False)
        return self.shifts

    def shifted(self, site: str, shift: Tensor) -> Tensor:
        """The potential before the fit plus a shift, in its dtype."""
        start = self.starts[site]
        moved = (start.double() + shift.to(start.device)).to(start.dtype)
        if not moved.isfinite().all():
            raise ValueError(
                f"the potentials of {site!r} must be finite in {moved.dtype}, shifts reach "
                f"{shift.abs().max():.3g}"
            )
        return moved

    def _pass(self, batches: Iterable[Any], sites: list[str], title: str, stop: bool) -> None:
        """Read the batches that have not been seen yet, and conclude the shifts of `sites`."""
        handles = [
            self.nodes[site].register_forward_pre_hook(self._hook(site, stop)) for site in sites
        ]
        try:
            rest = islice(batches, self.seen, None)
            bar = tqdm(
                rest,
                title,
                length_hint(batches) or None,
                initial=self.seen,
                leave=False,
                disable=not self.progress,
            )
            for batch in bar:
                inputs = [
                    tensor.to(self.where, non_blocking=True, copy=True)
                    for tensor in model_inputs(batch, self.wanted)
                ]
                if inputs[0].shape[0]:
                    try:
                        with self.network._by_steps():
                            self.network(*inputs)
                    except _Reached:
                        pass
                self.seen += 1
                self.count += inputs[0].shape[0]
                if self.seen % self.save_every == 0:
                    self._save()
        finally:
            for handle in handles:
                handle.remove()
        if self.count == 0:
            raise ValueError(
                "batches must yield at least one sample"
                + (" at every pass" if self.samples else "")
                + ", it yielded none"
            )
        if self.samples and self.count != self.samples:
            raise ValueError(
                f"batches must be the same at every pass, it yielded {self.count} samples after "
                f"{self.samples}"
            )
        for site in sites:
            if site not in self.statistics:
                raise ValueError(f"the layer {site!r} was not run on these batches")
            self.shifts[site] = self.statistics[site].result(self.nodes[site])
        self.samples, self.seen, self.count, self.statistics = self.count, 0, 0, {}

    def _hook(self, site: str, stop: bool) -> Any:
        own = self.own[site]

        def hook(node: IFNode, args: tuple[Tensor, ...]) -> None:
            # Before the neurons: they may write their spikes over the currents.
            x, steps = node._currents(*args)[0], node.timesteps
            folded = (
                x.expand(steps, *x.shape)
                if node.static_input
                else x.unflatten(0, (steps, x.shape[0] // steps))
            )
            if site not in self.statistics:
                self.statistics[site] = _Statistic(
                    site, self.description, folded.shape[2:], x.device
                )
            self.statistics[site].see(node, folded[: own["rho"]], own["rho"], own["iterations"])
            if stop:
                raise _Reached

        return hook

    def _fingerprint(self) -> dict[str, Any]:
        """What an interrupted fit and one that goes on must have in common, but for the data."""
        digest = hashlib.sha256()
        for name, tensor in self.network.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(
                tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            )
        return {
            **self.description,
            "emission": self.network.emission,
            "sites": self.sites,
            "weights": digest.hexdigest(),
        }

    def _save(self) -> None:
        if self.path is None:
            return
        header = {
            "format": FORMAT,
            "fit": self.fingerprint,
            "seen": self.seen,
            "count": self.count,
            "samples": self.samples,
            "values": {site: s.values for site, s in self.statistics.items()},
            "shapes": {site: list(s.neurons) for site, s in self.statistics.items()},
        }
        tensors = {f"shift {site}": shift for site, shift in self.shifts.items()}
        for site, statistic in self.statistics.items():
            tensors[f"sum {site}"], tensors[f"finite {site}"] = statistic.sum, statistic.finite
        write_tensors(self.path, tensors, header)

    def restore(self) -> None:
        """Take up the state that the file has, where there is one."""
        if self.path is None:
            return
        self.fingerprint = json.loads(json.dumps(self._fingerprint()))  # as a file has it
        if not self.path.exists():
            if not self.path.parent.is_dir():
                raise ValueError(f"state must be a file in a folder that exists, got {self.path}")
            return
        try:
            with safe_open(os.fspath(self.path), framework="pt") as file:
                header = json.loads((file.metadata() or {}).get("cos_ext", "{}"))
                tensors = {name: file.get_tensor(name) for name in file.keys()}
        except Exception as error:  # damaged bytes raise nearly anything
            raise ValueError(
                f"state: {self.path} is damaged or is no file of fit_v_init: {error}"
            ) from error
        if not isinstance(header, dict) or header.get("format") != FORMAT:
            raise ValueError(
                f"state: {self.path} must be a file of fit_v_init ({FORMAT!r}), it is none"
            )
        if header["fit"] != self.fingerprint:
            changed = sorted(
                name
                for name in self.fingerprint
                if header["fit"].get(name) != self.fingerprint[name]
            )
            raise ValueError(
                f"state: {self.path} is of a fit with other settings: {changed} differ; use the "
                "same, or another file"
            )
        self.seen, self.count, self.samples = header["seen"], header["count"], header["samples"]
        for site in self.sites:
            if f"shift {site}" in tensors:
                self.shifts[site] = tensors[f"shift {site}"].to(self.where)
            if f"sum {site}" in tensors:
                statistic = _Statistic(
                    site, self.description, torch.Size(header["shapes"][site]), self.where
                )
                statistic.sum = tensors[f"sum {site}"].to(self.where)
                statistic.finite = tensors[f"finite {site}"].to(self.where)
                statistic.values = header["values"][site]
                self.statistics[site] = statistic


class _Statistic:
    """A statistic of the shifts at one site, streamed over batches; on the data's device, never
    waited for.

    sum: [cells] for the mean (of Δ, float64) and the vote (of sign ψ, int64); [bins, cells] for the
    median (how many Δ/θ fall into each, from the lowest up). A cell is a neuron or a channel.
    values: how many each cell has seen.
    """

    def __init__(
        self, site: str, description: Mapping[str, Any], neurons: torch.Size, device: torch.device
    ) -> None:
        self.site, self.kind, self.per = site, description["statistic"], description["per"]
        self.neurons = neurons
        self.cells = (
            neurons if self.per == "neuron" else torch.Size([*neurons[:1], *[1] * len(neurons[1:])])
        )
        size, bins = self.cells.numel(), 2 * SIZES + 1
        if self.kind == "median":
            counts = (
                torch.int32 if self.per == "neuron" else torch.int64
            )  # a channel sees all its positions
            self.sum = torch.zeros(bins, size, dtype=counts, device=device)
        else:
            self.sum = torch.zeros(
                size, dtype=torch.float64 if self.kind == "mean" else torch.int64, device=device
            )
        self.finite = torch.ones((), dtype=torch.bool, device=device)
        self.values = 0

    def see(self, node: IFNode, x_seq: Tensor, rho: int, iterations: int | None) -> None:
        """Take in the currents [rho, B, *neurons] of a batch."""
        shape = x_seq.shape[2:]
        if shape != self.neurons and (
            self.per == "neuron" or shape[:1] != self.neurons[:1] or len(shape) != len(self.neurons)
        ):
            raise ValueError(
                f"per={self.per!r} needs the same {self.per}s on every batch: {self.site!r} has "
                f"neurons {tuple(shape)} "
                f"after {tuple(self.neurons)}"
            )
        theta, v_init = node._parameters_for(x_seq)
        start, psi, _ = F.calibrate_v_init(x_seq, theta, v_init, rho=rho, iterations=iterations)
        # Where time does not change a current, one step of it is all.
        self.finite &= (x_seq[0] if x_seq.stride(0) == 0 else x_seq).isfinite().all()
        if self.kind == "vote":
            self.sum += self._reduced(psi.sign_())
        elif self.kind == "mean":
            self.sum += self._reduced(start.double() - v_init.double())
        else:
            self._bin((start.double() - v_init.double()) / theta.double())
        self.values += psi.shape[0] * (shape.numel() // max(self.cells.numel(), 1))

    def result(self, node: IFNode) -> Tensor:
        """The shift of v_init, cells in shape, float64."""
        if not self.finite:
            raise ValueError(
                f"the currents of {self.site!r} must be finite, they are NaN or infinite on these "
                "batches"
            )
        theta = node.v_threshold.double()
        if self.kind == "mean":
            return (self.sum / self.values).view(self.cells)
        if self.kind == "vote":
            return theta * (self.sum.double() / self.values).view(self.cells)
        rank = (self.values - 1) // 2
        middle = (self.sum.cumsum(0) <= rank).sum(0) - SIZES  # how many bins lie below it
        size = torch.exp2((middle.abs() - 1).double() / 8)
        return theta * torch.where(middle == 0, 0.0, middle.sign() * size).view(self.cells)

    def _reduced(self, x: Tensor) -> Tensor:
        """The sum [cells] of [B, *neurons]."""
        dims = [0] if self.per == "neuron" else [dim for dim in range(x.dim()) if dim != 1]
        return x.sum(dims, dtype=self.sum.dtype).flatten()

    def _bin(self, shifts: Tensor) -> None:
        cell = torch.arange(self.sum.shape[1], device=shifts.device).view(self.cells)
        one = torch.ones((), dtype=self.sum.dtype, device=shifts.device)
        for part in shifts.split(max(_CHUNK // max(self.neurons.numel(), 1), 1)):
            size = (
                part.abs().log2_().mul_(8).round_().clamp_(0, SIZES - 1).add_(1)
            )  # of 0 none is asked for
            column = (
                torch.where(part == 0, 0.0, part.sign() * size).nan_to_num_(0.0).long().add_(SIZES)
            )
            index = column.mul_(self.sum.shape[1]).add_(cell).flatten()
            self.sum.view(-1).index_add_(0, index, one.expand(index.numel()))
