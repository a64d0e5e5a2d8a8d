"""Evaluation of a spiking network at every time-step in one pass over the data, by one process or
several.

Loading ahead and the exchange between processes are in cos_ext.data. Nothing here converts, trains
or plots.
"""

from __future__ import annotations

import hashlib
import operator
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
from ..network.latency import pipeline_watch
from ..network.network import SpikingNetwork
from ..network.settings import steady
from ..neuron import IFNode
from .confidence import Confidence
from .readout import Readout, checked, read_of
from .scores import Answers, Metric, Scores


@dataclass(frozen=True)
class Evaluation:
    """Results at t = 1, ..., T, from the running sum of the outputs. Prints as a table.

    With ``stop``, samples that are finished keep their answers: the last accuracy is that of all
    of them, and the others those of answers that must be given by step t.

    Attributes:
        accuracy: top-1, as fractions of the samples; empty where a metric was given.
        top5: likewise; None with five classes or fewer.
        samples: how many were run, by all processes.
        latency: watch_steps + t time-steps.
        pipeline_latency: those where all layers run at once: the watched steps of all calibrated
            layers in a row, and t.
        spike_rate: spikes per neuron and step, over all neurons.
        images_per_second: by the wall clock, data included; of the slowest process where there are
            several. With ``stop``, higher only where samples really leave (``leave_every``).
        stopped: the shares of the samples that stopped at t = 1, ..., T; None without ``stop``.
        metric: the mean of the metric that was given; None without one.
        metric_name: its name.
    """

    accuracy: list[float]
    top5: list[float] | None
    samples: int
    latency: list[int]
    spike_rate: float
    images_per_second: float
    metric: list[float] | None = None
    metric_name: str | None = None
    pipeline_latency: list[int] = field(default_factory=list)
    stopped: list[float] | None = None

    @property
    def mean_latency(self) -> float | None:
        """The mean of ``latency`` over the samples, each at the step where it stopped; None without
        ``stop``.
        """
        return self._mean(self.latency)

    @property
    def mean_pipeline_latency(self) -> float | None:
        """The same of ``pipeline_latency``."""
        return self._mean(self.pipeline_latency)

    def _mean(self, latency: list[int]) -> float | None:
        shares = self.stopped
        return None if shares is None else sum(map(operator.mul, shares, latency))

    def to_dict(self) -> dict[str, Any]:
        """The results as numbers and lists, the mean latencies included."""
        means = {"mean_latency": self.mean_latency}
        means["mean_pipeline_latency"] = self.mean_pipeline_latency
        return {**asdict(self), **means}

    def __str__(self) -> str:
        columns = [
            (f"{name:>8}", [f"{value:{form}}" for value in values])
            for name, values, form in (
                ("accuracy", self.accuracy, "8.2%"),
                ("top5", self.top5, "8.2%"),
                (self.metric_name, self.metric, "8.5g"),
                ("stopped", self.stopped, "8.2%"),
            )
            if values
        ]
        lines = ["  ".join(["   t  latency", *(head for head, _ in columns)])]
        for index, latency in enumerate(self.latency):
            cells = [f"{cells[index]:>{len(head)}}" for head, cells in columns]
            lines.append("  ".join([f"{index + 1:4d}  {latency:7d}", *cells]))
        lines.append(
            f"{self.samples} samples, {self.spike_rate:.4f} spikes per neuron and step, "
            f"{self.images_per_second:.0f} images/s"
        )
        if self.stopped is not None:
            lines.append(
                f"mean latency {self.mean_latency:.2f} of {self.latency[-1]}, pipelined "
                f"{self.mean_pipeline_latency:.2f} of {self.pipeline_latency[-1]}"
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
    sums: list[float] | None = None  # [T], of a metric
    stopped: list[int] = field(default_factory=list)  # [T], or empty
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
    loader: Iterable[tuple[Any, Tensor]],
    *,
    device: str | torch.device | None = None,
    progress: bool = True,
    prefetch: int = 2,
    distributed: bool = True,
    group: Any = None,
    shard: bool = True,
    metric: Metric | None = None,
    first_step: int = 1,
    stop: Confidence | None = None,
    leave_every: int | None = None,
    over_time: bool = False,
    output: Any = None,
) -> Evaluation:
    """Accuracy of a spiking network at every time-step, or a metric of your own.

    The answer at step t is that of the outputs added up to it: the class of the largest, or, where
    a sample has one output (a logit), class 1 if it is positive. A sample whose output is NaN is
    never right. Nothing is read back from the device before the last batch: outputs and counts stay
    there.

    Where torch.distributed is initialised, all processes of the group call this together, each
    evaluates its share, and the integer counts are added exactly: every process returns the same
    Evaluation. An error in one is raised in all, once the others have come to their end.

    Args:
        network: from :func:`cos_ext.convert`; put in eval mode, and moved to ``device`` where one
            is given.
        loader: an iterable of (inputs [B, ...], labels [B], integers from 0 on); with a metric,
            targets of any shape. A network of several inputs is given a tuple of them, or a mapping
            by name.
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

        metric: called with the mean of the outputs over steps 1..t, [B, ...], and the targets, for
            every t; gives a number, the mean over the batch, or one for each sample, [B]. Then no
            right answers are counted. ``metric=lambda y, target: (y - target).square().mean()``.
        first_step: t0, in 1..T: the answer at t is that of the outputs of steps t0..t, and before
            t0 that of the output at t alone: delayed evaluation (Bu et al., CVPR 2025; their last
            four steps where T < t0 + 4 are not done here). :func:`cos_ext.settling_step` estimates
            it.
        stop: samples are finished where this says so, and keep their answers.
        leave_every: None: all samples run T steps, and what stopping does is worked out. k: after
            every k steps, those that are finished leave the batch, which takes less time; after
            each portion the device is waited for. The results are the same, but for the spike rate,
            which is that of the steps that were run. For networks that do not watch.
        over_time: the loader's inputs are sequences [T, B, ...], a frame for every step, as
            :meth:`cos_ext.SpikingNetwork.run` takes them.
        output: the scores in what the network gives, where that is several tensors: a key, index or
            attribute, a tuple of them (``("heads", 0)``), or a function of what the network gives
            at some steps, [T, B, ...], step by step.

    Returns:
        What was measured, the same in every process.

    Raises:
        TypeError: network is not a SpikingNetwork, prefetch not an int, metric not callable, stop
            no Confidence, labels are no integers, or the loader yields no pairs of tensors.
        ValueError: the loader yields no sample, outputs are not [T, B, classes] or [T, B], labels
            are not [B] or no classes of the network, the metric gives another shape, prefetch < 0,
            first_step is not in 1..T, stop has too few thresholds, output does not lead to one
            tensor, the group lacks this process, or the processes have other settings, classes or,
            with shard=True, other labels.
        ValueError: leave_every is given without stop, with over_time, or to a network whose neurons
            watch or that mixes the samples of a batch.
        RuntimeError: the network's settings are changed meanwhile.
        cos_ext.data.distributed.RemoteError: another process failed.
    """
    readout = Readout(first_step, stop, leave_every, bool(over_time), output)
    many = distributed and _distributed.is_running()
    if not many:
        share = _counted(network, loader, device, progress, prefetch, metric, readout)
        return _merged([share], metric)
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
            metric,
            readout,
            _length(loader, processes if shard else 1),
        )
        share.labels = seen.hexdigest()
    except Exception as error:
        failure, share = error, _Share(error=f"{type(error).__name__}: {error}")
    try:
        shares = _distributed.gather(
            share, group, device=device_of(network) if isinstance(network, SpikingNetwork) else None
        )
    except Exception:  # any backend's own; after a failure here it is a consequence of that
        if failure is None:
            raise
        shares = []
    if failure is not None:  # the cause, rather than what it did to the exchange
        raise failure
    return _merged(shares, metric)


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
    metric: Metric | None,
    readout: Readout,
    length: int | None = None,
) -> _Share:
    """One pass over ``loader``. The host waits for the device once, at its end."""
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    check_depth(prefetch)
    if metric is not None and not callable(metric):
        raise TypeError(f"metric must be callable, got {type(metric).__name__}")
    if device is not None:
        network.to(device)
    network.eval()
    readout = checked(readout, network)
    nodes = [module for module in network.modules() if isinstance(module, IFNode)]
    start = time.perf_counter()
    with (
        running(Run(counts=True)) as run,
        prefetched(loader, device_of(network), prefetch) as batches,
    ):
        total = _length(loader, 1) if length is None else length
        bar = tqdm(batches, desc="evaluate", total=total, disable=not progress, leave=False)
        seen, stopped, samples = _pass(network, steady(network, bar), metric, readout)
    emitted = [run.emitted[node] for node in nodes if node in run.emitted]
    share = _Share(
        {
            "timesteps": network.timesteps,
            "watch_steps": network.watch_steps,
            "pipeline_watch": pipeline_watch(network),
        },
        samples=samples,
        stopped=[] if stopped is None else stopped.tolist(),
    )
    if samples and isinstance(seen, Scores):
        share.sums = torch.as_tensor(seen.sums).tolist()
    elif samples and isinstance(seen, Answers):
        seen.check()
        share.classes, share.correct = seen.classes, torch.as_tensor(seen.correct).tolist()
        share.correct5 = [] if seen.correct5 is None else torch.as_tensor(seen.correct5).tolist()
    share.spikes, share.steps = (
        sum(int(count) for count, _ in emitted),
        sum(count for _, count in emitted),
    )
    share.seconds = time.perf_counter() - start
    return share


def _pass(
    network: SpikingNetwork,
    batches: Iterable[tuple[Any, Tensor]],
    metric: Metric | None,
    readout: Readout,
) -> tuple[Answers | Scores, Tensor | None, int]:
    """What was counted, on the device, which nothing waits for; how many samples stopped at each
    step, [T]; and the number of samples.
    """
    seen: Answers | Scores = Answers() if metric is None else Scores(metric)
    stopped, samples = None, 0
    for inputs, labels in batches:
        read = read_of(network, inputs, readout)
        seen.add(read.totals if isinstance(seen, Answers) else read.means, labels)
        if read.stopped is not None:
            counts = torch.bincount(read.stopped - 1, minlength=network.timesteps)
            stopped = counts if stopped is None else stopped + counts
        samples += read.totals.shape[1]
    return seen, stopped, samples


def _merged(shares: list[_Share], metric: Metric | None) -> Evaluation:
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

    def means(parts: Iterable[list[Any]]) -> list[float]:
        return [sum(counts) / samples for counts in zip(*parts)]

    steps_1_to_t = range(1, settings["timesteps"] + 1)
    return Evaluation(
        accuracy=means(share.correct for share in full),
        top5=means(share.correct5 for share in full) or None,
        samples=samples,
        latency=[settings["watch_steps"] + t for t in steps_1_to_t],
        spike_rate=sum(share.spikes for share in shares) / max(steps, 1),
        images_per_second=samples / max(share.seconds for share in shares),
        metric=None if metric is None else means(share.sums or [] for share in full),
        metric_name=None if metric is None else getattr(metric, "__name__", "metric"),
        pipeline_latency=[settings["pipeline_watch"] + t for t in steps_1_to_t],
        stopped=means(share.stopped for share in full) or None,
    )
