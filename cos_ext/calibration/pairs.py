"""A network beside the ANN that it was made from, for fits that hold one against the other: their
checks, what the ANN has where the network has neurons, and a copy of the network to work on.

Nothing is fitted here.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .._batches import check_batches, device_of
from .._loops import inputs_on
from ..conversion.counterparts import Counterpart, check_ann, counterparts, traced_ann
from ..conversion.tracing import Traced
from ..network.network import SpikingNetwork
from ..neuron import IFNode

# What is done with the currents or the activations of a call site.
Note = Callable[[str, Tensor], None]


def check_network(network: object) -> None:
    """Validate that a network can be fitted.

    Raises:
        TypeError: it is no SpikingNetwork.
        ValueError: its execution is not "steps".
    """
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    if network.execution != "steps":
        raise ValueError(
            f"network must have execution 'steps' to be fitted, got {network.execution!r}"
        )


def check_settled(network: SpikingNetwork) -> None:
    """Validate that the potentials and neurons of a network can be set.

    Raises:
        ValueError: it is trainable, or neurons have hard reset.
    """
    if network.trainable:
        raise ValueError(
            "network must not be trainable, its v(0) are parameters: fine-tune it, or convert "
            "without trainable=True"
        )
    hard = [site for site, node in network.nodes().items() if node.v_reset is not None]
    if hard:
        raise ValueError(f"network must have neurons with soft reset, not so {hard}")


def check_unwatched(network: SpikingNetwork) -> None:
    """ValueError where neurons are calibrated for every sample."""
    if network.watch_steps:
        raise ValueError(
            "network must have rho = 0, since this stands instead of a calibration for every "
            f"sample, got layers that watch {network.watch_steps} steps; set network.rho = 0"
        )


def check_finite(site: str, fitted: Tensor) -> None:
    """ValueError where something that was fitted is NaN or infinite. Waits for the device."""
    if not fitted.isfinite().all():
        raise ValueError(
            f"batches must give finite currents and activations, what is fitted to those at "
            f"{site!r} is not finite in {fitted.dtype}"
        )


def known_sites(
    network: SpikingNetwork, traced: Traced, sites: Iterable[str]
) -> dict[str, Counterpart]:
    """What the neurons of these sites stand for in the ANN; ValueError where that is nothing."""
    known = counterparts(network, traced.sites)
    unknown = [site for site in sites if site not in known]
    if unknown:
        raise ValueError(f"ann has no activation that corresponds to the neurons at {unknown}")
    return {site: known[site] for site in sites}


@contextlib.contextmanager
def watched(
    traced: Traced,
    known: Mapping[str, Counterpart],
    *,
    currents: Note | None = None,
    activations: Note | None = None,
) -> Iterator[None]:
    """Inside, the ANN's currents and activations are noted by the network's sites, pooled where the
    neurons are. An activation that works in place may write over them afterwards.
    """
    handles: list[Any] = []

    def watch(site: str, activation: nn.Module, pool: nn.Module | None) -> None:
        def pooled(x: Tensor) -> Tensor:
            return x if pool is None else pool(x)

        def before(_: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            assert currents is not None
            currents(site, pooled(args[0] if args else next(iter(named.values()))))

        def after(_: nn.Module, args: tuple[Any, ...], a: Tensor) -> None:
            assert activations is not None
            activations(site, pooled(a))

        if currents is not None:
            handles.append(activation.register_forward_pre_hook(before, with_kwargs=True))
        if activations is not None:
            handles.append(activation.register_forward_hook(after))

    try:
        for site, (own, pool) in known.items():
            watch(site, traced.sites[own], pool)
        yield
    finally:
        for handle in handles:
            handle.remove()


def currents_of(node: IFNode, args: tuple[Tensor, ...]) -> Tensor:
    """What the neurons of a converted network see in a call, ``[T, B, *neurons]``."""
    x, steps = node._currents(*args)[0], node.timesteps
    assert steps is not None  # convert() sets it
    if node.static_input:
        return x.expand(steps, *x.shape)
    return x.unflatten(0, (steps, x.shape[0] // steps))


def channel_mean(x: Tensor) -> Tensor:
    """The mean of ``[B, C, ...]`` by channel, [C], in float64; of [B] over everything."""
    return x.mean([dim for dim in range(x.dim()) if dim != 1], dtype=torch.float64)


def by_channel(values: Tensor, x: Tensor) -> Tensor:
    """[C] as it broadcasts to ``[B, C, ...]``; a number as it is."""
    return values.view(-1, *[1] * (x.dim() - 2)) if values.dim() else values


class Pair:
    """A copy of a network, to be changed by a fit, beside the ANN. The network itself is unchanged
    until :meth:`finish`.

    Args:
        network: from :func:`cos_ext.convert`. The copy shares its weights.
        ann: the model that it was converted from.
        batches: only looked at.

    Attributes:
        copy: of the network.
        nodes: the copy's neurons by call site.

    Raises:
        TypeError, ValueError: as :func:`cos_ext.fit_step_bias` says.
    """

    def __init__(self, network: SpikingNetwork, ann: nn.Module, batches: Iterable[Any]) -> None:
        check_network(network)
        check_ann(ann)
        check_batches(batches)
        check_settled(network)
        self.network, self.traced = network, traced_ann(ann, network)
        self.copy = copy.deepcopy(network, {id(each): each for each in network.parameters()})
        self.copy.memory_limit = None  # hooks see whole batches
        self.nodes = self.copy.nodes()
        self.known = known_sites(self.copy, self.traced, self.nodes)

    def inputs(
        self, batches: Iterable[Any], *, title: str, progress: bool
    ) -> Iterator[list[Tensor]]:
        """The inputs of every batch, where the network is, in memory of their own."""
        return inputs_on(
            device_of(self.copy),
            batches,
            self.traced.inputs,
            title=title,
            progress=progress,
            copy=True,
        )

    def run_ann(self, inputs: list[Tensor]) -> None:
        """Run the ANN, for those who watch it."""
        self.traced.inputs.call(self.traced.module, [x.clone() for x in inputs])

    def run(self, inputs: list[Tensor]) -> None:
        """Run the copy step by step, for hooks on its neurons."""
        with self.copy._by_steps():
            self.copy(*inputs)

    def matching(self, site: str, theirs: torch.Size, ours: torch.Size) -> None:
        """ValueError unless the ANN's activation of a batch has the shape of the neurons."""
        if theirs != ours:
            raise ValueError(
                "ann must be the model that the network was converted from: its activation at "
                f"{site!r} has shape {tuple(theirs)}, the neurons {tuple(ours)}"
            )

    def finish(self, sites: Iterable[str], **settings: Any) -> None:
        """Give the network the copy's neurons and potentials at these sites, and these settings."""
        layers = dict(settings.pop("layers", self.network._layers))
        for site in sites:
            check_finite(site, self.nodes[site].v_init)
            layers[site] = {**layers.get(site, {}), "neuron": self.nodes[site].neuron}
        self.network._change(**settings, layers=layers)
        nodes = self.network.nodes()
        for site in sites:
            nodes[site].v_init = self.nodes[site].v_init
