"""fit_v_init, the static calibration: one initial potential per neuron or channel, fitted to data,
instead of a calibration per sample.

Here are its settings, and what it does to the network. The passes over the data are in
potential_fit.py, the statistics in shift_statistics.py, the calibration itself in functional.py.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .._batches import check_batches
from .._numbers import whole
from ..network.network import SpikingNetwork
from ..network.settings import check_one_level
from .potential_fit import Fit, shifts_potentials
from .shift_statistics import PER, STATISTICS


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
    """Give every neuron or channel of a network one initial potential, from data without labels.

    On every sample the calibration of offset spikes (:func:`cos_ext.functional.calibrate_v_init`;
    Hao et al., "Bridging the gap between ANNs and SNNs by calibrating offset spikes", ICLR 2023,
    arXiv 2302.10685) finds how far v(0) should be shifted over rho steps. A statistic of these
    shifts Δ over the samples, and over the positions of a channel, is added to v_init for good. The
    network then has rho = 0: its latency at step t is t, not rho + t. With n values in all:

    "mean"
        ΣΔ/n, in float64.
    "median"
        The lower median of Δ, the value of rank (n - 1)//2 from 0, from a histogram. It is 0
        exactly where that value is. Else it is off by a factor of at most 2^(1/16) (4.4%), up to
        abs(Δ) = 2^(31/8) θ = 14.7 θ, which stands for all beyond. (A shift other than 0 is never
        smaller than θ.)
    "vote"
        θ (n₊ - n₋)/n. The n₊ values with ψ > 0 (a spike is missing) each vote for one θ more, the
        n₋ with ψ < 0 for one less, and the others for 0. θ times the margin is what they settle on:
        a mean in which no sample counts for more than θ. (A majority alone would nearly always
        decide for 0, as the median does: docs/results/static.md.)

    v_init is a buffer: the state_dict, :meth:`cos_ext.SpikingNetwork.save` and
    :func:`cos_ext.load_network` carry it. ``network.static_calibration`` says how it was fitted
    (not part of the state_dict). The desired counts are those of the potentials before; from fitted
    ones they would be others. So a network is fitted once, and then refuses rho > 0; convert anew
    for either.

    Memory, for each neuron or channel of one layer (of all where not sequential): 8 bytes; for
    "median" 260 per neuron, 520 per channel. Nothing is waited for on a GPU but at the end of a
    pass and where ``state`` is written.

    Args:
        network: from :func:`cos_ext.convert`, with its own rho and iterations (also those of
            :meth:`cos_ext.SpikingNetwork.set_layer`). A layer whose rho is below 2, or that has no
            iteration, is not shifted. Stays where it is.
        batches: an iterable of tensors [B, ...] or of tuples whose first n elements are the ANN's
            inputs and whose others (labels) are ignored. How the data are split plays no part, but
            for the rounding of the network itself and of sums in float64.
        per: "neuron": a potential for each, ``[*neurons]``; the network then takes inputs of this
            size only. "channel": for each index of dimension 1 of [B, C, ...], [C, 1, ...].
        statistic: "mean", "median" or "vote".
        rho: steps to watch, >= 2. None: the network's, or, where that is 0, its number of
            time-steps; an int is for all layers.
        sequential: fit one layer after the other, each on the spikes that the layers before it emit
            from their fitted potentials: what it will see at inference. ``batches`` is read once
            per layer, as far as that layer, and must be the same every time. False: one pass, in
            which every layer sees what per-sample calibrated layers emit.
        state: a file that keeps the statistics every ``save_every`` batches and after every layer.
            An interrupted call can then be made again, with the same ``batches`` in the same order,
            and goes on after what it had seen, to an EQUAL result. The file is removed when the fit
            is complete.
        save_every: batches between two writes of ``state``, >= 1.
        progress: a progress bar on stderr.

    Returns:
        The shifts that were added to v_init, by call site: ``[*neurons]`` or [C, 1, ...], float64.

    Raises:
        TypeError: network is no SpikingNetwork, batches no iterable or one of something else, or an
            argument has a wrong type. The network is unchanged then, and also after the following.
        ValueError: another argument does not fit; the network is fitted already, or has hard reset;
            batches yields no sample, can be read only once where it is read for every layer, or
            differs between passes; a layer sees NaN or infinite currents, or neurons in other
            numbers than before; state is a file of another fit or none.
    """
    _check_arguments(network, batches, per, statistic, rho, sequential, save_every)
    if network.trainable:
        raise ValueError(
            "network must not be trainable, its v(0) are parameters: fine-tune it, or convert "
            "without trainable=True"
        )
    common, layers, own = _settings(network, rho)
    description = {
        "rho": common,
        "iterations": network.iterations,
        "per": per,
        "statistic": statistic,
        "sequential": sequential,
        "layers": layers,
    }
    path = Path(state) if state is not None else None
    fit = Fit(network, own, description, path, save_every, progress)

    names = ("timesteps", "rho", "iterations", "emission", "layers", "calibration")
    settings = {name: getattr(network, f"_{name}") for name in names}
    try:
        fit.restore()
        # Layer by layer, those that are done and the one that is fitted watch nothing.
        watching = {"rho": 0, "layers": {}} if sequential else {"rho": common, "layers": layers}
        steps = max(layer["rho"] for layer in own.values())
        network._configure(**{**settings, "timesteps": steps, "calibration": "cos", **watching})
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
    if path is not None:
        path.unlink(missing_ok=True)
    return shifts


def _settings(
    network: SpikingNetwork, rho: int | None
) -> tuple[int, dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """The rho to watch, the layers that have settings of their own, and the rho and iterations of
    every site. ValueError where no layer would be shifted.
    """
    layers = {} if rho is not None else network._layers
    common = network.rho if rho is None else whole("rho", rho)
    if not common and not any(layer.get("rho") for layer in layers.values()):
        common, layers = network.timesteps, {}
    own = {
        site: {"rho": common, "iterations": network.iterations, **layers.get(site, {})}
        for site in network.nodes()
    }
    if not any(shifts_potentials(settings) for settings in own.values()):
        raise ValueError(
            "network must have rho >= 2 (over one step there are no offset spikes) and iterations "
            f">= 1, or None, at a layer at least, got rho = {common}, iterations = "
            f"{network.iterations}, layers {layers}"
        )
    return common, layers, own


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
        whole(name, number, least)
    if not isinstance(sequential, bool):
        raise TypeError(f"sequential must be a bool, got {type(sequential).__name__}")
    if sequential and isinstance(batches, Iterator):
        raise ValueError(
            "batches must be an iterable that can be read for every layer (a list, a DataLoader), "
            f"got the iterator {type(batches).__name__}; sequential=False reads it once"
        )
    _check_network(network)


def _check_network(network: SpikingNetwork) -> None:
    if network.static_calibration is not None:
        raise ValueError(
            f"network must not be fitted already, it is: {network.static_calibration}; convert anew"
        )
    check_one_level(network, "fit_v_init")
    nodes = network.nodes()
    hard = [site for site, node in nodes.items() if node.v_reset is not None]
    if hard or not nodes:
        raise ValueError(
            "network must have neurons with soft reset (calibration is defined for v_reset=None), "
            f"not so {hard or 'one without neurons'}"
        )
