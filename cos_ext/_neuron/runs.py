"""What a run of a network asks of its neurons beside their spikes, and what they told it.

Kept by thread, and never on a module: several threads may run one network. What is done with it is
the callers' business.
"""

from __future__ import annotations

import threading
from typing import NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _global

from .finite import unfit

Steps = TypeVar("Steps", int, int | None)


class Recorder(Protocol):
    """Keeps what neurons did at every step."""

    def wants(self, node: nn.Module) -> bool: ...

    def note(self, node: nn.Module, x_seq: Tensor, spikes: Tensor) -> None:
        """The currents and the spikes of one call, ``[T, B, ...]`` each."""


class Portion:
    """Some of a simulation's steps, and the potentials that neurons go on from and leave behind.

    Args:
        steps: how many, whatever the neurons' own settings say.
        potentials: by node, ``[*neurons]`` in the state dtype; a node without one starts from its
            v_init. After the portion, those after its last step. Modules that go by running means
            keep their sums here, too.
        first: the number of its first step; the simulation's first is 1.
    """

    def __init__(
        self, steps: int, potentials: dict[nn.Module, Tensor] | None = None, first: int = 1
    ) -> None:
        self.steps, self.first = steps, first
        self.potentials = {} if potentials is None else potentials


class Run:
    """One run, or several that are measured together. Neurons add to it while it is active.

    Args:
        apart: nothing is fused into the neurons, and the network runs step by step.
        keeps: neurons leave their input as it is.
        counts: spikes are added up, into ``emitted``.
        statistics: the kernels' sums are added up, into ``sums``.
        calls: every input is listed, in ``called``: bool [N], which of its N samples have NaN or
            +inf.
        recorder: is given the currents and spikes of the neurons that it wants.
        waiting: the convolutions that hand their currents on before they are computed.
        portion: the steps that are run, of a simulation that goes on.
        frames: the inputs differ from step to step: so many frames are folded into their batch.
            None: they are the same at every step.
    """

    def __init__(
        self,
        *,
        apart: bool = False,
        keeps: bool = False,
        counts: bool = False,
        statistics: bool = False,
        calls: bool = False,
        recorder: Recorder | None = None,
        waiting: frozenset[nn.Module] = frozenset(),
        portion: Portion | None = None,
        frames: int | None = None,
    ) -> None:
        self.waiting, self.portion, self.frames = waiting, portion, frames
        self.apart, self.keeps, self.recorder = apart, keeps, recorder
        self.counts, self.statistics, self.calls = counts, statistics, calls
        self.emitted: dict[nn.Module, tuple[Tensor, int]] = {}  # spikes, neurons · steps
        self.sums: dict[nn.Module, Tensor] = {}
        self.called: dict[nn.Module, list[Tensor]] = {}

    def add_spikes(self, node: nn.Module, spikes: Tensor, places: int) -> None:
        """Add up what neurons emitted: spikes at so many neurons and steps."""
        before, steps = self.emitted.get(node, (0, 0))
        self.emitted[node] = (before + spikes, steps + places)

    def add_sums(self, node: nn.Module, sums: Tensor) -> None:
        """Add up the kernels' statistics; a sum that would overflow stays at the largest int64."""
        if node in self.sums:
            sums = self.sums[node] + sums
            sums = torch.where(sums < 0, torch.iinfo(torch.int64).max, sums)
        self.sums[node] = sums

    def like(self) -> Run:
        """A run that asks the same and has been told nothing; without a recorder."""
        return Run(
            apart=self.apart or self.recorder is not None,
            keeps=self.keeps or self.recorder is not None,
            counts=self.counts,
            statistics=self.statistics,
            portion=self.portion and Portion(self.portion.steps, first=self.portion.first),
            frames=self.frames,
        )


class _Active(threading.local):
    def __init__(self) -> None:
        self.runs: tuple[Run, ...] = ()


_ACTIVE = _Active()


def note_call(node: nn.Module, x: Tensor) -> None:
    """For the runs that list calls: neurons are given this."""
    for run in active():
        if run.calls:
            run.called.setdefault(node, []).append(unfit(x))


def active() -> tuple[Run, ...]:
    """The runs that are active in this thread."""
    return _ACTIVE.runs


def portion() -> Portion | None:
    """The portion that is run in this thread; None: whole simulations."""
    found = [run.portion for run in active() if run.portion is not None]
    return found[-1] if found else None


def steps_now(own: Steps) -> Steps:
    """The steps that are run in this thread: the portion's, or those of one's own."""
    now = portion()
    return own if now is None or own is None else now.steps


def frames_now() -> int | None:
    """How many frames are folded into the batch of the inputs, in this thread; None: the inputs are
    the same at every step.
    """
    found = [run.frames for run in active() if run.frames is not None]
    return found[-1] if found else None


class Watch(NamedTuple):
    """What hooks and the active runs ask of a node in one call.

    * ``apart``: what is fused runs in passes of its own, so that the spikes come out as they are.
    * ``keeps``: its input stays as it is.
    * ``counts``, ``statistics``: as for :class:`Run`.
    * ``recorders``: those that want to see these neurons.
    * ``steps``: those of the portion that is run; None: whole simulations.
    * ``frames``: as for :class:`Run`.
    """

    apart: bool
    keeps: bool
    counts: bool
    statistics: bool
    recorders: tuple[Recorder, ...]
    steps: int | None
    frames: int | None


NOBODY = Watch(False, False, False, False, (), None, None)


def watch(node: nn.Module) -> Watch:
    """Who looks at these neurons, and at what."""
    runs, seen = active(), hooked(node)
    if not runs and not seen:
        return NOBODY
    given = [run.recorder for run in runs if run.recorder is not None]
    wanting = tuple(recorder for recorder in given if recorder.wants(node))
    return Watch(
        apart=seen or bool(wanting) or any(run.apart for run in runs),
        keeps=seen or bool(given) or any(run.keeps for run in runs),
        counts=any(run.counts for run in runs),
        statistics=any(run.statistics for run in runs),
        recorders=wanting,
        steps=None if (now := portion()) is None else now.steps,
        frames=frames_now(),
    )


def tell(
    node: nn.Module,
    watched: Watch,
    x_seq: Tensor,
    spikes: Tensor,
    total: Tensor | None,
    sums: Tensor | None,
    v: Tensor | None = None,
) -> None:
    """What neurons did in one call, for those who look at it; and the potential after it."""
    for run in active():
        if run.portion is not None and v is not None:
            run.portion.potentials[node] = v
        if run.counts and total is not None:
            run.add_spikes(node, total, x_seq.numel())
        if run.statistics and sums is not None:
            run.add_sums(node, sums)
    for recorder in watched.recorders:
        recorder.note(node, x_seq, spikes)


class running:
    """Makes a run active in this thread, beside those that are, or instead of them. A class, since
    torch.compile sees through it.
    """

    def __init__(self, *runs: Run, alone: bool = False) -> None:
        self.runs, self.alone = runs, alone

    def __enter__(self) -> Run:
        self.before = _ACTIVE.runs
        _ACTIVE.runs = self.runs if self.alone else (*self.before, *self.runs)
        return self.runs[0]

    def __exit__(self, *_: object) -> None:
        _ACTIVE.runs = self.before


def rehearsing() -> running:
    """For a dry run: what is active asks the same of it, and is told nothing."""
    return running(Run(), *(run.like() for run in active()), alone=True)


def hooked(module: nn.Module) -> bool:
    """Whether somebody sees what goes into this module, or comes out of it."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or _global._global_forward_hooks
        or _global._global_forward_pre_hooks
    )
