"""What answers are read from: sums of outputs over steps, and how far each sample ran. Whether they
are right is counted in scores.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._numbers import whole
from ..network.network import SpikingNetwork
from ..network.stepping import Stepping
from .confidence import Confidence


class Readout(NamedTuple):
    """How outputs become answers.

    * ``first_step``: outputs are added up from this one on.
    * ``stop``: when a sample is finished; None: at T.
    * ``leave_every``: None: all samples run T steps. k: after every k steps those that are finished
      leave the batch.
    * ``over_time``: inputs are sequences, a frame for every step.
    * ``output``: what takes the scores out of the network's output; once checked, a function.
    """

    first_step: int = 1
    stop: Confidence | None = None
    leave_every: int | None = None
    over_time: bool = False
    output: Any = None


class Read(NamedTuple):
    """What there is to read at t = 1..T; a sample that stops keeps what it had then."""

    totals: Tensor  # [T, B, ...], sums of outputs
    steps: Tensor  # int64 [T, 1] or [T, B], of so many
    stopped: Tensor | None  # int64 [B], in 1..T

    @property
    def means(self) -> Tensor:
        """[T, B, ...]."""
        return _means(self.totals, self.steps)


class EarlyExit(NamedTuple):
    """What :func:`early_exit` gives.

    * ``mean``: [B, ...], of each sample's outputs until it stopped; its answer.
    * ``steps``: int64 [B], how many steps it ran.
    """

    mean: Tensor
    steps: Tensor


@torch.no_grad()
def early_exit(
    network: SpikingNetwork,
    *inputs: Tensor,
    stop: Confidence,
    leave_every: int = 1,
    first_step: int = 1,
    output: Any = None,
) -> EarlyExit:
    """Answers of a batch whose samples leave it as soon as they are sure.

    What :meth:`cos_ext.SpikingNetwork.rate` is for all steps. After every portion the host waits
    for the device, to learn who is left.

    Args:
        network: without neurons that watch (rho = 0); put in eval mode.
        inputs: as for the network, [B, ...].
        stop: when a sample is finished.
        leave_every: the steps between two looks, >= 1.
        first_step: outputs are averaged from this step on, as for :func:`cos_ext.evaluate`.
        output: which of several outputs are the scores, likewise.

    Raises:
        TypeError: network is not a SpikingNetwork, stop no Confidence; and as for the network.
        ValueError: neurons watch; outputs are not [T, B, classes] or [T, B]; a number is out of
            range; what the network computes of a sample depends on the others; there are several
            outputs, and ``output`` does not say which; it is a function, and the network has a
            readout, which is that of one output.
    """
    if not isinstance(network, SpikingNetwork):
        raise TypeError(f"network must be a SpikingNetwork, got {type(network).__name__}")
    readout = checked(Readout(first_step, stop, leave_every, output=output), network)
    number = network.outputs.chooser(output)[1]
    if number is None and network.readout is not None:
        raise ValueError(
            "output must be a key, index or attribute for a network with a readout, got a function"
        )
    network.eval()
    read = leaving(network.begin(*inputs), readout, network.timesteps)
    assert read.stopped is not None  # it was asked when
    mean = read.means[-1]
    own = None if network.readout is None or number is None else network.readout[number]
    return EarlyExit(mean if own is None else own(mean), read.stopped)


def checked(readout: Readout, network: SpikingNetwork) -> Readout:
    """TypeError or ValueError where a readout does not fit itself or the network."""
    first, stop, every, over_time, output = readout
    first = whole("first_step", first, 1, network.timesteps)
    if stop is not None and not isinstance(stop, Confidence):
        raise TypeError(f"stop must be a cos_ext.Confidence or None, got {type(stop).__name__}")
    if stop is not None and isinstance(stop.threshold, tuple):
        needed, given = network.timesteps - 1, len(stop.threshold)
        if given < needed:
            raise ValueError(
                f"stop must have a threshold for each of the {needed} steps before the last, got "
                f"{given}"
            )
    if every is not None:
        if stop is None:
            raise ValueError("leave_every needs stop, which says when a sample is finished")
        if over_time:
            raise ValueError(
                "leave_every is for images; with over_time=True all frames are run at once. Leave "
                "it out: stop alone gives the same answers"
            )
        every = whole("leave_every", every, 1, or_=" or None")
    return Readout(first, stop, every, over_time, network.outputs.chooser(output)[0])


def read_of(network: SpikingNetwork, inputs: Any, readout: Readout) -> Read:
    """What there is to read of a batch: a tensor, a tuple of them, or a mapping by name. The
    readout was checked.
    """
    named = inputs if isinstance(inputs, Mapping) else {}
    given = () if isinstance(inputs, Mapping) else inputs
    given = given if isinstance(given, tuple) else (given,)
    if readout.leave_every is None:
        call = network.run if readout.over_time else network
        return recorded(readout.output(call(*given, **named)), readout)
    return leaving(network.begin(*given, **named), readout, network.timesteps)


def recorded(outputs: Tensor, readout: Readout) -> Read:
    """Of the outputs of all samples at all steps, [T, B, ...]."""
    if readout.stop is None and readout.first_step == 1:
        steps = torch.arange(1, len(outputs) + 1, device=outputs.device)[:, None]
        return Read(outputs.cumsum(0), steps, None)
    totals, steps = _Sums(readout.first_step).add(outputs)
    if readout.stop is None:
        return Read(totals, steps, None)
    return _held(totals, steps, readout.stop.stops(_means(totals, steps)))


def leaving(stepping: Stepping, readout: Readout, timesteps: int) -> Read:
    """Of a run that samples leave: what :func:`recorded` says of all outputs."""
    stop, every = readout.stop, readout.leave_every
    assert stop is not None and every is not None  # checked() has seen to it
    sums, counts = _Sums(readout.first_step), []
    found: Tensor | None = None  # [T, B, ...]; after a sample's last step anything
    there = stopped = torch.empty(0)
    while stepping.t < timesteps:
        before = stepping.t
        outputs = readout.output(stepping.advance(min(every, timesteps - before)))
        if found is None:
            found = outputs.new_zeros((timesteps, *outputs.shape[1:]))
            there = torch.arange(outputs.shape[1], device=outputs.device)
            stopped = torch.full_like(there, timesteps)
        totals, steps = sums.add(outputs)
        found[before : stepping.t, there] = totals
        counts.append(steps)
        looks = min(stepping.t, timesteps - 1) - before  # all stop at the last step
        if looks == 0:
            break
        sure = stop.sure(_means(totals[:looks], steps[:looks]), before)
        done = sure.any(0)
        stopped[there[done]] = before + 1 + sure[:, done].to(torch.int8).argmax(0)
        left = done.logical_not().nonzero()[:, 0]
        if len(left) == 0 or stepping.t == timesteps:
            break
        if len(left) < len(there):
            stepping.keep(left)
            sums.keep(left)
            there = there[left]
    assert found is not None  # T >= 1
    counts.append(counts[0].new_ones((timesteps - stepping.t, 1)))
    return _held(found, torch.cat(counts), stopped)


class _Sums:
    """Adds outputs up step by step, from `first_step` on; before it, each stands alone."""

    def __init__(self, first_step: int) -> None:
        self.first_step, self.t = first_step, 0
        self.total: Tensor | None = None  # float64, as torch adds float32 up on a CPU

    def add(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        """The sums [k, B, ...] after these outputs, and of how many each is, int64 [k, 1]."""
        totals, steps = [], []
        for output in outputs:
            self.t += 1
            fresh = self.total is None or self.t <= self.first_step
            self.total = output.double() if fresh else self.total + output.double()
            totals.append(self.total.to(outputs.dtype))
            steps.append(max(self.t - self.first_step, 0) + 1)
        return torch.stack(totals), torch.tensor(steps, device=outputs.device)[:, None]

    def keep(self, index: Tensor) -> None:
        """Go on with some of the samples."""
        assert self.total is not None  # some have been added
        self.total = self.total.index_select(0, index)


def _held(totals: Tensor, steps: Tensor, stopped: Tensor) -> Read:
    """Every sample keeps what it had when it stopped."""
    every = torch.arange(len(totals), device=totals.device)[:, None]
    at = torch.minimum(every, stopped - 1)  # [T, B]
    places = at.view(*at.shape, *[1] * (totals.dim() - 2)).expand_as(totals)
    return Read(totals.gather(0, places), steps.expand_as(at).gather(0, at), stopped)


def _means(totals: Tensor, steps: Tensor) -> Tensor:
    return totals / steps.view(*steps.shape, *[1] * (totals.dim() - 2))
