"""What neurons did, step by step, while a network ran: spikes, counts and potentials by call site.

Nothing is recorded unless it is asked for, and no more than may be kept. Sums over neurons that
need no memory are in analysis/statistics.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .. import functional as F
from .._numbers import whole
from ..neuron import IFNode
from .settings import Configured, check_steady

WHAT = ("spikes", "counts", "v")


class SiteRecord(NamedTuple):
    """What the neurons of one call site did; what was not asked for is None.

    * ``spikes``: bool ``[T, B, ...]``, at steps 1..T. Of neurons with a
      :class:`cos_ext.Neuron` of their own what they sent, in the dtype of their currents.
    * ``counts``: int32 ``[B, ...]``, the spikes of the T steps.
    * ``v``: the membrane potential after each step and its reset, ``[T, B, ...]``, in the state
      dtype (float64 for float64, else float32).
    """

    spikes: Tensor | None
    counts: Tensor | None
    v: Tensor | None


class Recording(Mapping[str, SiteRecord]):
    """What :meth:`cos_ext.SpikingNetwork.record` gives: a :class:`SiteRecord` by call site.

    Several calls of the network follow each other in the dimension of the batch. Tensors stay on
    the network's device.

    Raises:
        RuntimeError: a site is read, and the network has not run.
    """

    def __init__(
        self, network: Configured, sites: Iterable[str] | None, what: Iterable[str], max_bytes: int
    ) -> None:
        self._network = network
        self._what = _checked(what)
        self._sites = {node: site for site, node in _chosen(network, sites).items()}
        self._before = {node: self._fixed(node) for node in self._sites}
        self._most, self._bytes = whole("max_bytes", max_bytes, 1), 0
        self._chunks: dict[str, list[SiteRecord]] = {site: [] for site in self._sites.values()}
        if "v" in self._what:
            _check_potentials(self._sites)
        if "counts" in self._what:
            _check_counts(self._sites)

    def __getitem__(self, site: str) -> SiteRecord:
        if site not in self._chunks:
            raise KeyError(f"{site!r} is not recorded; those are {list(self._chunks)}")
        chunks = self._chunks[site]
        if not chunks:
            raise RuntimeError(
                f"nothing is recorded at {site!r}; run the network in this thread, inside the with "
                "statement"
            )
        return SiteRecord(*(None if c[0] is None else _joined(c) for c in zip(*chunks)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._chunks)

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def nbytes(self) -> int:
        """How much is kept."""
        return self._bytes

    # What neurons call (cos_ext._neuron.runs.Recorder).

    def wants(self, node: nn.Module) -> bool:
        return node in self._sites

    def note(self, node: nn.Module, x_seq: Tensor, spikes: Tensor) -> None:
        assert isinstance(node, IFNode)  # wants() knows no others
        check_steady(self._fixed(node), self._before[node])
        site, steps = self._sites[node], self._network.timesteps
        self._reserve(site, node, x_seq.shape[1:], x_seq.dtype)
        sent = spikes[:steps]
        fired = sent != 0
        self._chunks[site].append(
            SiteRecord(
                (fired if node.neuron is None else sent.clone())
                if "spikes" in self._what
                else None,
                fired.sum(0, dtype=torch.int32) if "counts" in self._what else None,
                potentials(node, x_seq, fired) if "v" in self._what else None,
            )
        )

    def _fixed(self, node: IFNode) -> tuple[Any, ...]:
        return self._network.timesteps, node._settings

    def _reserve(self, site: str, node: IFNode, shape: torch.Size, dtype: torch.dtype) -> None:
        steps, state = self._network.timesteps, F.state_dtype(dtype).itemsize
        of_spikes = steps if node.neuron is None else steps * dtype.itemsize
        each = {"spikes": of_spikes, "counts": 4, "v": steps * state}
        wanted = shape.numel() * sum(each[name] for name in self._what)
        if self._bytes + wanted > self._most:
            raise ValueError(
                f"max_bytes = {self._most} is too little: {self._bytes} bytes are recorded, and "
                f"{site!r} needs {wanted} more for {shape[0]} samples; record fewer sites, samples "
                "or quantities, or allow more"
            )
        self._bytes += wanted


@torch.no_grad()
def potentials(node: IFNode, x_seq: Tensor, fired: Tensor) -> Tensor:
    """v(1), ..., v(T) of neurons with soft reset, by the recurrence of the kernels.

    Args:
        node: the neurons.
        x_seq: their currents [S, B, ...], S >= T.
        fired: where they spiked, bool [T, B, ...].

    Returns:
        [T, B, ...] in the state dtype of x_seq.
    """
    state = F.state_dtype(x_seq.dtype)
    theta, v = node._parameters_for(x_seq)
    if node.watch_steps:
        v = F.calibrate_v_init(
            x_seq[: node.rho], theta, v, rho=node.rho, iterations=node.iterations
        ).v_init
    v, theta = v.to(state), theta.to(state)
    found = x_seq.new_empty(fired.shape, dtype=state)
    for t, spikes in enumerate(fired):
        m = v + x_seq[t].to(state)
        v = torch.where(spikes, m - theta, m, out=found[t])
    return found


def _joined(chunks: tuple[Tensor, ...]) -> Tensor:
    """Along the batch, which is the dimension before the neurons': of counts the first."""
    dim = 0 if chunks[0].dtype == torch.int32 else 1
    shapes = {(chunk.shape[:dim], chunk.shape[dim + 1 :]) for chunk in chunks}
    if len(shapes) > 1:
        raise ValueError(
            "all calls in one recording must have the same shapes of neurons, got "
            f"{[tuple(chunk.shape) for chunk in chunks]}; record each in a with statement of its "
            "own"
        )
    return torch.cat(chunks, dim) if len(chunks) > 1 else chunks[0]


def _checked(what: Iterable[str]) -> tuple[str, ...]:
    names = (what,) if isinstance(what, str) else tuple(what)
    if not names or any(name not in WHAT for name in names):
        raise ValueError(f"what must be one or more of {WHAT}, got {what!r}")
    return tuple(dict.fromkeys(names))


def _chosen(network: Configured, sites: Iterable[str] | None) -> dict[str, IFNode]:
    nodes = network.nodes()
    if sites is None:
        return nodes
    names = (sites,) if isinstance(sites, str) else tuple(sites)
    unknown = [name for name in names if name not in nodes]
    if unknown or not names:
        raise ValueError(
            f"sites must be call sites of the network, got {unknown or 'none'}; those are "
            f"{list(nodes)}"
        )
    return {name: nodes[name] for name in names}


def _check_counts(sites: Mapping[IFNode, str]) -> None:
    """ValueError where a step may have several spikes."""
    general = [site for node, site in sites.items() if node.neuron is not None]
    if general:
        raise ValueError(
            f'what may have "counts" only where a step has one spike; there are neurons of several '
            f"levels at {general}; record spikes, or take spike_rate of cos_ext.evaluate"
        )


def _check_potentials(sites: Mapping[IFNode, str]) -> None:
    """ValueError where spikes do not follow from a potential."""
    without = [
        site
        for node, site in sites.items()
        if node.neuron is not None
        or (node.watch_steps and (node.calibration != "cos" or node.emission != "calibrated"))
    ]
    if without:
        raise ValueError(
            'what may have "v" only where spikes follow from a potential: neurons of one level, '
            'with calibration "cos" and emission "calibrated", or without calibration; it is '
            "otherwise at "
            f"{without}"
        )
