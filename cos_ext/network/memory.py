"""How much memory a network's forward needs, and running it on parts of the batch within a limit.
No arithmetic of neurons here.

The need is found by a dry run on fake tensors, which have shapes and storages and no data: an
operator's outputs are added when it makes them, and taken off when the last tensor on them dies, as
in the run itself. What a kernel takes for itself while it runs is not in it, nor the allocator's
rounding: a workspace of cuDNN, or of oneDNN, which copies a contiguous input of a convolution (one
more activation; a channels_last one it reads as it is).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from .._batches import device_of
from .._neuron import runs
from .._neuron.runs import Run, active, frames_now, rehearsing, steps_now
from .._numbers import whole
from .front import MIXES, mixes_samples
from .layout import empty_like
from .modules import twin
from .outputs import Flat
from .settings import Configured

AUTO_BYTES = 16 * 2**20
"""memory_limit="auto" keeps the largest activation at or below this on a CPU. From 32 MiB on,
malloc (glibc) maps and unmaps every tensor anew, whose pages then fault one by one; at 16 MiB they
also stay in the caches of most servers."""


class Need(NamedTuple):
    """Bytes of what a forward allocates: at most alive at once, the largest tensor's, and the
    output's.
    """

    peak: int
    largest: int
    output: int


def check_limit(value: int | str | None) -> int | str | None:
    """A memory_limit, validated: None, "auto", or a positive number of bytes."""
    if value is None or (isinstance(value, str) and value == "auto"):
        return value
    return whole("memory_limit", value, 1, or_=' (bytes), "auto" or None')


class _Live(TorchDispatchMode):
    """Adds up the storages that operators make, and takes them off when they die."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.known = {
            id(t.untyped_storage()): t.untyped_storage() for t in known
        }  # held, so that no id is used again
        self.live: dict[int, int] = {}
        self.now = self.peak = self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in pytree.tree_leaves(out):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        if key in self.known or key in self.live:
            return
        self.live[key] = size
        self.now += size
        self.peak, self.largest = max(self.peak, self.now), max(self.largest, size)
        weakref.finalize(storage, self._remove, key).atexit = False

    def _remove(self, key: int) -> None:
        self.now -= self.live.pop(key)


def need(
    network: Configured,
    inputs: tuple[Tensor, ...],
    batch: int,
    key: tuple[Any, ...] | None = None,
) -> Need:
    """What `network` allocates for `batch` samples like `inputs`, all at once. Remembered, until a
    setting changes.

    The inputs' shapes, dtypes and memory formats matter, not their values; they may be on the meta
    device. `key` is theirs, if known.

    Raises:
        RuntimeError: the dry run fails where a run does not: control flow that depends on values.
    """
    key = (batch, key or _key(network, inputs))
    if key not in network._needs:
        with _disable_current_modes():
            network._needs[key] = _dry_run(network, inputs, batch, device_of(network))
    return network._needs[key]


def _key(network: Configured, inputs: tuple[Tensor, ...]) -> tuple[Any, ...]:
    """All that a need depends on but the batch, the weights' dtypes and the network's settings,
    whose changes clear what is known.
    """
    asked = tuple(
        (run.apart, run.keeps, run.counts, run.statistics) for run in map(Run.like, active())
    )
    extra = (asked, network._counts_first(), steps_now(0), frames_now())
    kind = device_of(network).type
    autocast = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
    return *((x.shape[1:], x.dtype, _order(x)) for x in inputs), extra, autocast


def _order(x: Tensor) -> tuple[int, ...]:
    """The dimensions after the batch from the outermost in memory to the innermost: the memory
    format.
    """
    return tuple(sorted(range(1, x.dim()), key=lambda d: (-x.stride()[d], d)))


@torch.no_grad()
def _dry_run(
    network: Configured, inputs: tuple[Tensor, ...], batch: int, place: torch.device
) -> Need:
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    # Of a copy whose weights have no data.
    twins = {
        id(tensor): mode.from_tensor(tensor)
        for tensor in (*network.parameters(), *network.buffers())
    }
    bare = cast(Configured, twin(network, twins))
    with mode, rehearsing():
        fakes = [
            torch.empty_strided(
                (batch, *x.shape[1:]), _strides(x, batch), dtype=x.dtype, device=place
            )
            for x in inputs
        ]
        with _Live([*twins.values(), *fakes]) as live:
            try:
                out = bare._whole(*fakes)
            except Exception as error:
                raise RuntimeError(
                    f"the memory of {type(network.module).__name__} cannot be estimated for inputs "
                    f"{[(batch, *x.shape[1:]) for x in inputs]}: {error}"
                ) from error
            sizes = (out[n].numel() * out[n].element_size() for n in network.outputs.timed)
            return Need(live.peak, live.largest, sum(sizes))


def _strides(x: Tensor, batch: int) -> list[int]:
    """Of a dense tensor of `batch` samples in the memory format of x."""
    strides, stride = [0] * x.dim(), 1
    for d in reversed(_order(x)):
        strides[d], stride = stride, stride * x.shape[d]
    strides[0] = stride
    return strides


def hooked(network: nn.Module) -> bool:
    """Whether a module inside has hooks, which see what the settings do to the run: parts of the
    batch, fused layers, tensors that are written over.
    """
    return any(runs.hooked(module) for module in network.modules() if module is not network)


def parts(network: Configured, inputs: tuple[Tensor, ...]) -> int:
    """Into how many parts of the batch the network's memory_limit splits `inputs`.

    Raises:
        ValueError: one sample alone needs more than the limit; or samples are not computed by
            themselves.
        RuntimeError: as for :func:`need`; not with "auto", which then splits nothing.
    """
    limit, batch = network.memory_limit, inputs[0].shape[0] if inputs else 0
    if limit is None or batch == 0:
        return 1
    if limit == "auto" and (batch == 1 or not _may_gain(network, inputs) or hooked(network)):
        return 1
    key = _key(network, inputs)
    if (batch, limit, key) not in network._needs:
        count = _planned(network, inputs, limit, batch, key)
        if count > 1 and mixes_samples(network, inputs):
            if limit != "auto":
                raise ValueError(f'memory_limit must be None or "auto": {MIXES}')
            count = 1
        network._needs[batch, limit, key] = count
    return network._needs[batch, limit, key]


def _planned(
    network: Configured,
    inputs: tuple[Tensor, ...],
    limit: int | str,
    batch: int,
    key: tuple[Any, ...],
) -> int:
    if limit == "auto":
        try:
            return (
                _few(batch, AUTO_BYTES, lambda size: need(network, inputs, size, key).largest)
                or batch
            )
        except RuntimeError:
            return 1

    def wanted(size: int) -> int:
        own = need(network, inputs, size, key)
        # The output of the whole batch is there from the first part on, beside what a part needs.
        return own.peak + (own.output // size * batch if size < batch else 0)

    count = _few(batch, int(limit), wanted)
    if count is None:
        raise ValueError(
            f"memory_limit must be at least {wanted(1)} bytes for inputs "
            f"{[tuple(x.shape) for x in inputs]}, what one "
            f"sample at a time needs, got {limit}"
        )
    return count


def _few(batch: int, limit: int, wanted: Callable[[int], int]) -> int | None:
    """How many parts of a batch, equal to within one sample, want at most `limit` each; None: not
    even single samples.

    A tensor's size is affine in the batch, hence `wanted`, a maximum of sums of sizes, convex: the
    chord lies above it.
    """
    if (most := wanted(batch)) <= limit:
        return 1
    if batch == 1 or (least := wanted(1)) > limit:
        return None
    size = 1 + (limit - least) * (batch - 1) // (most - least)
    count = -(-batch // size)
    while (
        wanted(size := -(-batch // count)) > limit and size > 1
    ):  # a model whose sizes are not affine
        count = -(-batch // (size - 1))
    return count


def _may_gain(network: Configured, inputs: tuple[Tensor, ...]) -> bool:
    """Whether "auto" should look closer: on plain CPU tensors, where the most channels at the
    input's size pass the bound.
    """
    if any(
        type(x) is not Tensor
        or x.device.type != "cpu"
        or torch._C._functorch.is_functorch_wrapped_tensor(x)
        for x in inputs
    ):
        return False
    widest = max((p.shape[0] for p in network.parameters() if p.dim() > 1), default=1)
    steps = 1 if network._counts_first() else steps_now(network._steps)
    elements = max(x.shape[0] * math.prod(x.shape[2:]) * widest for x in inputs)
    return elements * steps * max((x.element_size() for x in inputs), default=4) > AUTO_BYTES


def run(network: Configured, inputs: tuple[Tensor, ...], count: int) -> Flat:
    """The network's leaves [T, B, ...], computed on `count` parts of the batch, one after the
    other.
    """
    found: Flat = ()
    start, batch = 0, inputs[0].shape[0]
    for part in zip(*(x.tensor_split(count) for x in inputs)):
        pieces = network._whole(*part)
        if start == 0:
            found = network.outputs.each(
                lambda x: empty_like(x, (x.shape[0], batch, *x.shape[2:])), pieces
            )
        for number in network.outputs.timed:
            found[number][:, start : start + part[0].shape[0]] = pieces[number]
        start += part[0].shape[0]
        del pieces  # before the next part allocates
    return found
