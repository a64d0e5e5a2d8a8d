"""The residual noise of QCFS activations: how far spiking neurons are from them, layer by layer.

The noise itself is drawn in qcfs.py. Nothing is trained here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._batches import check_batches, device_of
from .._loops import inputs_on
from .._neuron.runs import Run, running
from ..conversion.copying import copied
from ..conversion.counterparts import counterparts, traced_ann
from ..conversion.pipeline import convert
from ..qcfs import QCFS


def set_noise(model: nn.Module, noise: str | None) -> None:
    """Give all QCFS activations of a model this noise; see :class:`cos_ext.QCFS`.

    Raises:
        ValueError: there is no such noise.
    """
    for module in model.modules():
        if isinstance(module, QCFS):
            module.noise = noise


def check_noise(model: nn.Module, batches: Iterable[Any] | None) -> bool:
    """Whether an activation of the model has residual noise; that its σ can then be measured.

    Raises:
        ValueError: there are no batches for it.
        ConversionError: the model does not convert.
    """
    if not noisy(model):
        return False
    if batches is None:
        raise ValueError(
            "residual noise needs noise_batches, images held out of the training data; got None"
        )
    check_batches(batches)
    convert(model, timesteps=1)
    return True


@torch.no_grad()
def fit_noise(
    model: nn.Module,
    batches: Iterable[Any],
    timesteps: int = 4,
    *,
    progress: bool = False,
    **options: Any,
) -> dict[str, float]:
    """Set σ of the residual noise: how far the rates of spiking neurons are from the activations.

    The model, in eval mode, is converted to plain neurons (v_init = θ/2, no calibration). Both run
    on the same images. At every activation σ² is the variance, over the elements of a batch, of a
    minus the mean of the T spikes; of the batches, and of several calls of one module, the mean is
    taken (Huang et al. 2024, arXiv 2404.17456, where T = 4 and σ is renewed after each epoch).

    Take images that are neither trained on nor tested with.

    Args:
        model: with QCFS activations whose noise is "residual"; where it is, and in its mode, it
            stays.
        batches: an iterable, read once, of tensors [B, ...] or of tuples that begin with the
            model's inputs.
        timesteps: T >= 1.
        progress: a progress bar on stderr.
        options: of :func:`cos_ext.convert`, such as example_input or max_pool.

    Returns:
        σ by the activation's name.

    Raises:
        TypeError: model is no nn.Module, or batches no iterable of batches.
        ValueError: no activation of the model has residual noise, or batches yields no sample.
        ConversionError: the model does not convert.
    """
    check_batches(batches)
    own = copied(model)
    layers = noisy(own)
    if not layers:
        raise ValueError(
            'model must have QCFS activations with residual noise, such as QCFS(8, noise="residual"'
            "); it has none"
        )
    for name, layer in layers.items():
        vars(layer)["named"] = name  # the copies of a call site's activation keep it
    network = convert(own, timesteps=timesteps, **options).eval()
    traced = traced_ann(own, network)
    nodes = network.nodes()
    watches: dict[nn.Module, _Watch] = {}
    for site, (origin, pool) in counterparts(network, traced.sites).items():
        named = vars(traced.sites[origin]).get("named")
        if named is not None:
            watches[nodes[site]] = _Watch(named, traced.sites[origin], pool)
    handles = [watch.activation.register_forward_hook(watch.compare) for watch in watches.values()]
    wanted = traced.inputs
    try:
        for inputs in inputs_on(
            device_of(network), batches, wanted, title="noise", progress=progress
        ):
            # Copies: an activation that works in place may be the first to read them.
            with running(Run(recorder=_Rates(watches))):
                network(*(tensor.clone() for tensor in inputs))
            wanted.call(traced.module, [tensor.clone() for tensor in inputs])
    finally:
        for handle in handles:
            handle.remove()
    return {name: _set(module, name, watches.values()) for name, module in noisy(model).items()}


def noisy(model: nn.Module) -> dict[str, QCFS]:
    """The activations with residual noise, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, QCFS) and module.noise == "residual"
    }


def _set(module: QCFS, name: str, watches: Iterable[_Watch]) -> float:
    """σ from what was seen at the call sites of a module; what was never called stays as it is."""
    found = [variance for watch in watches if watch.named == name for variance in watch.variances]
    if found:
        module.noise_std.copy_(torch.stack(found).mean().sqrt())
    return float(module.noise_std)


class _Watch:
    """The variances of one call site, batch by batch. They stay on the device."""

    def __init__(self, named: str, activation: nn.Module, pool: nn.Module | None) -> None:
        self.named, self.activation, self.pool = named, activation, pool
        self.rates: list[Tensor] = []  # [B, ...], of the batch that is running, part by part
        self.variances: list[Tensor] = []

    def compare(self, _: nn.Module, inputs: tuple[Any, ...], a: Tensor) -> None:
        # The network ran before the ANN.
        rates, self.rates = torch.cat(self.rates), []
        a = a if self.pool is None else self.pool(a)
        self.variances.append((a - rates).double().var(correction=0))


class _Rates:
    """Hands the mean spikes of neurons to those who watch them."""

    def __init__(self, watches: Mapping[nn.Module, _Watch]) -> None:
        self.watches = watches

    def wants(self, node: nn.Module) -> bool:
        return node in self.watches

    def note(self, node: nn.Module, x_seq: Tensor, spikes: Tensor) -> None:
        self.watches[node].rates.append(spikes.mean(0))
