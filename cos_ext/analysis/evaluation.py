"""Evaluation of a spiking network at every time-step in one pass over the data, by one process or
several.

Loading ahead and the exchange between processes are in cos_ext.data. Nothing here converts, trains
or plots.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .._batches import device_of
from .._neuron.runs import Run, running
from ..data import distributed as _distributed
from ..data.prefetch import check_depth, prefetched
from ..network.network import SpikingNetwork
from ..neuron import IFNode


@dataclass(frozen=True)
class Evaluation:
    """Results at t = 1, ..., T, from the running sum of the outputs. Prints as a table.

    Attributes:
        accuracy: top-1, as fractions of the samples.
        top5: likewise; None with five classes or fewer.
        samples: how many were run, by all processes.
        latency: watch_steps + t time-steps.
        spike_rate: spikes per neuron and step, over all neurons.
        images_per_second: by the wall clock, data included; of the slowest process where there are
            several.
    """

    accuracy: list[float]
    top5: list[float] | None
    samples: int
    latency: list[int]
    spike_rate: float
    images_per_second: float

    def to_dict(self) -> dict[str, Any]:
        """The results as numbers and lists."""
        return asdict(self)

    def __str__(self) -> str:
        lines = ["   t  latency  accuracy" + ("     top5" if self.top5 else "")]
        for index, (accuracy, latency) in enumerate(zip(self.accuracy, self.latency)):
            top5 = f"  {self.top5[index]:7.2%}" if self.top5 else ""
            lines.append(f"{index + 1:4d}  {latency:7d}  {accuracy:8.2%}{top5}")
        lines.append(
            f"{self.samples} samples, {self.spike_rate:.4f} spikes per neuron and step, "
            f"{self.images_per_second:.0f} images/s"
        )
        return "\n".join(lines)


@dataclass
class _Share:
    """What one process has counted: plain numbers, to be added exactly. An ``error`` stands for all
    of it.
    """

    settings: dict[str, int] = field(default_factory=dict)  # must agree between processes
    classes: int | None = None  # None without any sample
    correct: list[int] = field(default_factory=list)  # [T]
    correct5: list[int] = field(default_factory=list)  # [T], or empty
    samples: int = 0
    spikes: int = 0
    steps: int = 0
    seconds: float = 0.0
    # a digest of all labels that the loader gave, kept or not, where evaluate() itself shards
    labels: str = ""
    error: str | None = None


@torch.no_grad()
def evaluate(
    network: SpikingNetwork,
    loader: Iterable[tuple[Tensor, Tensor]],
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    prefetch: int = 2,
    distributed: bool = True,
    group: Any = None,
    shard: bool = True,
) -> Evaluation:
    """Accuracy of a spiking network at every time-step.

    Nothing is read back from the device before the last batch: outputs [T, B, classes] and counts
    stay there.

    Where torch.distributed is initialised, all processes of the group call this together, each
    evaluates its share, and the integer counts are added exactly: every process returns the same
    Evaluation. An error in one is raised in all, once the others have come to their end.

    Args:
        network: from :func:`cos_ext.convert`; put in eval mode, and moved to ``device`` where one
            is given.
        loader: an iterable of (inputs [B, ...], labels int64 [B]).
        device: where to compute; None: where the network is.
        progress: a progress bar on stderr, of the group's first process.
        prefetch: batches that a thread loads ahead (and for CUDA pins and copies on a stream of its
            own); 0: no thread.
        distributed: False: this process alone, even where torch.distributed is initialised.
        group: its processes take part; None: the default group. Any backend.
        shard: with several processes, True: the loader is the same in all of them and each takes
            every n-th of its batches. False: each process's loader gives only its own share
            (``batches(..., shard=(rank, processes))`` of :mod:`cos_ext.data`), so that nothing is
            loaded in vain. Shares may differ in size or be empty. A DistributedSampler is no such
            share where the samples do not divide evenly: it repeats some, which then count twice.

    Returns:
        What was measured, the same in every process.

    Raises:
        TypeError: network is not a SpikingNetwork, prefetch not an int, or the loader yields no
            pairs of tensors.
        ValueError: the loader yields no sample, outputs are not [T, B, classes], labels are not
            [B], prefetch < 0, the group lacks this process, or the processes have other settings,
            classes or, with shard=True, other labels.
        cos_ext.data.distributed.RemoteError: another process failed.
    """
    many = distributed and _distributed.is_running()
    if not many:
        share = _counted(network, loader, device, progress, prefetch)
        return _merged([share])
    rank, processes = _distributed.whoami(group)
    seen = hashlib.blake2b(digest_size=16)
    failure: Exception | None = None
    try:
        mine = _every(loader, rank, processes, seen) if shard else loader
        share = _counted(
            network,
            mine,
            device,
            progress and rank == 0,
            prefetch,
            _length(loader, processes if shard else 1),
        )
        share.labels = seen.hexdigest()
    except Exception as error:
        failure, share = error, _Share(error=f"{type(error).__name__}: {error}")
    try:
        shares = _distributed.gather(
            share, group, device=device_of(network) if isinstance(network, SpikingNetwork) else None
        )
    except Exception:
        if failure is None:
            raise
        shares = []
    if failure is not None:  # the cause, rather than what it did to the exchange
        raise failure
    return _merged(shares)


def _every(loader: Iterable[Any], rank: int, processes: int, seen: Any) -> Iterator[Any]:
    """Every ``processes``-th batch from ``rank`` on. ``seen`` digests the labels of all that lie on
    the host.
    """
    for number, batch in enumerate(loader):
        labels = batch[1] if isinstance(batch, (tuple, list)) and len(batch) == 2 else None
        if isinstance(labels, Tensor):
            # Reading one elsewhere would wait for its device.
            on_host = labels.device.type == "cpu" and labels.dtype == torch.int64
            seen.update(
                str(tuple(labels.shape)).encode()
                + (labels.contiguous().numpy().tobytes() if on_host else b"")
            )
        if number % processes == rank:
            yield batch


def _length(loader: Any, processes: int) -> int | None:
    try:
        return -(-len(loader) // processes)
    except TypeError:
        return None


def _counted(
    network: SpikingNetwork,
    loader: Iterable[Any],
    device: str | torch.device | None,
    progress: bool,
    prefetch: int,
    length: int | None = None,
) -> _Share:
    """One pass over ``loader``. The host waits for the device once, at its end."""
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    check_depth(prefetch)
    if device is not None:
        network.to(device)
    network.eval()
    nodes = [module for module in network.modules() if isinstance(module, IFNode)]
    start = time.perf_counter()
    with (
        running(Run(counts=True)) as run,
        prefetched(loader, device_of(network), prefetch) as batches,
    ):
        total = _length(loader, 1) if length is None else length
        bar = tqdm(batches, desc="evaluate", total=total, disable=not progress, leave=False)
        correct, correct5, samples, classes = _pass(network, bar)
    emitted = [run.emitted[node] for node in nodes if node in run.emitted]
    share = _Share(
        {"timesteps": network.timesteps, "watch_steps": network.watch_steps},
        classes,
        samples=samples,
    )
    if samples:
        share.correct = correct.tolist()
        share.correct5 = [] if correct5 is None else correct5.tolist()
    share.spikes, share.steps = (
        sum(int(count) for count, _ in emitted),
        sum(count for _, count in emitted),
    )
    share.seconds = time.perf_counter() - start
    return share


def _pass(
    network: SpikingNetwork, batches: Iterable[tuple[Tensor, Tensor]]
) -> tuple[Any, Any, int, int | None]:
    """(correct int64 [T], the same for top-5 or None, samples, classes). The counts are on the
    device, and nothing waits for it.
    """
    correct: Tensor | int = 0
    correct5: Tensor | int | None = 0
    samples, classes = 0, None
    for inputs, labels in batches:
        outputs = network(inputs)
        if outputs.dim() != 3:
            raise ValueError(
                f"the network's outputs must be [T, B, classes], got {tuple(outputs.shape)}"
            )
        if labels.shape != outputs.shape[1:2]:
            raise ValueError(
                f"labels must be [B] = {tuple(outputs.shape[1:2])}, got shape {tuple(labels.shape)}"
            )
        classes = outputs.shape[-1]
        totals = outputs.cumsum(0)
        correct = correct + (totals.argmax(-1) == labels).sum(1)
        if classes > 5:
            correct5 = correct5 + (totals.topk(5, -1).indices == labels[:, None]).any(-1).sum(1)
        else:
            correct5 = None
        samples += len(labels)
    return correct, correct5, samples, classes


def _merged(shares: list[_Share]) -> Evaluation:
    for rank, share in enumerate(shares):
        if share.error is not None:
            raise _distributed.RemoteError(f"evaluation failed in process {rank}: {share.error}")
    for what, values in (
        ("settings", [share.settings for share in shares]),
        ("classes", [share.classes for share in shares if share.classes is not None]),
    ):
        if any(value != values[0] for value in values):
            raise ValueError(
                f"the networks of all processes must have the same {what}, got {values}"
            )
    if any(share.labels != shares[0].labels for share in shares):
        raise ValueError(
            "loader must yield the same batches in every process with shard=True, got other "
            "labels; use shard=False where each process's loader gives its own share"
        )
    samples, steps = sum(share.samples for share in shares), sum(share.steps for share in shares)
    if samples == 0:
        raise ValueError("loader must yield at least one sample, it yielded none")
    full, settings = [share for share in shares if share.samples], shares[0].settings
    correct5 = zip(*(share.correct5 for share in full))
    return Evaluation(
        accuracy=[sum(counts) / samples for counts in zip(*(share.correct for share in full))],
        top5=[sum(counts) / samples for counts in correct5] or None,
        samples=samples,
        latency=[settings["watch_steps"] + t for t in range(1, settings["timesteps"] + 1)],
        spike_rate=sum(share.spikes for share in shares) / max(steps, 1),
        images_per_second=samples / max(share.seconds for share in shares),
    )
