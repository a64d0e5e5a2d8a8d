"""A converted network run in portions of its steps: some steps, a look at the outputs, and on, with
all samples or fewer; and streams, one frame in and one answer out.

Potentials are kept here, never on a module, so that several threads may run one network. When a
sample is finished is the callers' business.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from .._batches import Inputs
from .._neuron.runs import Portion, Run, active, running
from .._numbers import whole
from ..functional import MAX_STEPS
from . import memory
from .front import MIXES, mixes_samples
from .inputs import batch_size, check_shapes
from .outputs import Flat
from .planned import Planned
from .settings import Configured


class Kept(NamedTuple):
    """What a simulation leaves behind."""

    potentials: dict[nn.Module, Tensor]  # after its last step
    samples: int
    t: int
    settings: tuple[Any, ...]


class Stepping:
    """One simulation of a batch, as :meth:`cos_ext.SpikingNetwork.begin` begins it.

    The outputs of all portions are those of one call of the network: bit for bit where a layer's
    sums do not depend on the size of the batch, as those by events do not. Potentials take one
    number of the state dtype for each neuron and sample, and differences one for every number that
    they read or hand on; ``memory_limit`` does not count them. There are no gradients.

    Attributes:
        t: the steps that have been run.
    """

    def __init__(
        self, network: Configured, inputs: tuple[Tensor, ...], before: Kept | None = None
    ) -> None:
        _check_watches_not(network)
        samples, options = batch_size(inputs), network.options
        check_shapes(inputs, options.get("ranks", ()), options.get("shapes", ()))
        if before is not None and samples != before.samples:
            raise ValueError(
                f"x must have the {before.samples} samples of the frames before, got {samples}; "
                "call reset() before another stream"
            )
        self._network, self._inputs = network, inputs
        kept = before or Kept({}, samples, 0, network._fixed())
        self._potentials, self.t, self._settings = dict(kept.potentials), kept.t, kept.settings

    @property
    def samples(self) -> int:
        """How many are left."""
        return batch_size(self._inputs)

    @property
    def kept(self) -> Kept:
        """What another one may go on from, with other inputs."""
        return Kept(self._potentials, self.samples, self.t, self._settings)

    def advance(self, steps: int = 1) -> Any:
        """Run some more steps.

        Args:
            steps: how many, >= 1. ``network.timesteps`` is no bound.

        Returns:
            Their outputs, [steps, B, ...], B the samples that are left, in the model's structure.

        Raises:
            TypeError, ValueError: steps is no int >= 1.
            ValueError: something is recorded or measured that needs whole simulations; or what was
                kept does not fit the inputs.
            RuntimeError: the network's settings have been changed since it was begun.
        """
        return self._network.outputs.full(self.leaves(steps))

    @torch.no_grad()
    def leaves(self, steps: int) -> Flat:
        """What :meth:`advance` gives, without the structure."""
        steps, network = whole("steps", steps, 1, MAX_STEPS), self._network
        if network._fixed() != self._settings:
            raise RuntimeError(
                "the network's settings were changed while it ran in portions; begin anew, or call "
                "reset()"
            )
        if any(run.recorder is not None or run.statistics for run in active()):
            raise ValueError(
                "records and statistics need whole simulations; call the network itself for them"
            )
        portion = Portion(steps, dict(self._potentials), self.t + 1)
        with running(Run(portion=portion)):
            count = 1 if self.samples == 0 else memory.parts(network, self._inputs)
            outputs = (
                network._whole(*self._inputs) if count == 1 else self._in_parts(portion, count)
            )
        self._potentials, self.t = portion.potentials, self.t + steps
        return outputs

    def _in_parts(self, portion: Portion, count: int) -> Flat:
        """The outputs of a batch that `memory_limit` wants in so many parts."""
        outputs, left = [], []
        kept = {n: self._by_sample(v).tensor_split(count) for n, v in portion.potentials.items()}
        for number, inputs in enumerate(zip(*(x.tensor_split(count) for x in self._inputs))):
            before = {node: split[number].flatten(0, 1) for node, split in kept.items()}
            part = Portion(portion.steps, before, portion.first)
            with running(Run(portion=part)):
                outputs.append(self._network._whole(*inputs))
            left.append(part.potentials)
        for node in left[0]:
            portion.potentials[node] = torch.cat([potentials[node] for potentials in left])
        return self._network.outputs.joined(outputs)

    @torch.no_grad()
    def keep(self, index: Tensor) -> None:
        """Go on with some of the samples alone.

        Args:
            index: int64 [n], their places in the batch as it is now.

        Raises:
            ValueError: what the network computes of a sample depends on the others.
        """
        if mixes_samples(self._network, self._inputs):
            raise ValueError(f"samples cannot leave the batch: {MIXES}")
        self._potentials = {
            n: self._by_sample(v).index_select(0, index).flatten(0, 1)
            for n, v in self._potentials.items()
        }
        self._inputs = tuple(x.index_select(0, index) for x in self._inputs)

    def _by_sample(self, v: Tensor) -> Tensor:
        """[B*k, ...] as [B, k, ...]: samples may come in pieces."""
        return v.unflatten(0, (self.samples, -1 if self.samples else 1))


class Stepped(Planned):
    """A converted model that runs step by step where its neurons do not watch."""

    def begin(self, *inputs: Tensor, **named: Tensor) -> Stepping:
        """Begin a simulation that is run in portions: :class:`cos_ext.network.stepping.Stepping`.

        ::

            running = network.begin(images)
            first = running.advance()  # [1, B, ...]
            running.keep(unsure)  # the samples that go on
            second = running.advance()  # [1, len(unsure), ...]

        Args:
            inputs, named: as for :meth:`forward`.

        Raises:
            TypeError, ValueError: as for :meth:`forward`.
            ValueError: neurons watch (rho > 0): they would have to see rho steps before the first
                portion.
        """
        return Stepping(self, inputs_of(self).bound(inputs, named))

    def step(self, *inputs: Tensor, **named: Tensor) -> Any:
        """One step of a stream: one frame in, its output out; potentials are kept until
        :meth:`reset`.

        Every thread has a stream of its own. With the same frame at every step the outputs are
        those of :meth:`forward`. The batch is fixed until :meth:`reset`.

        Args:
            inputs, named: a frame, [B, ...], as for :meth:`forward`.

        Returns:
            [B, ...], in the model's structure.

        Raises:
            TypeError, ValueError: as for :meth:`begin`; the frame has another number of samples
                than those before, or another shape or dtype.
            RuntimeError: the network's settings have been changed since the first frame.
        """
        frame, streams = inputs_of(self).bound(inputs, named), _STREAMS.of
        stream = Stepping(self, frame, streams.get(self))
        flat = self.outputs.each(lambda x: x[0], stream.leaves(1))
        streams[self] = stream.kept
        return self.outputs.full(flat)

    def reset(self) -> None:
        """Forget this thread's stream: the next :meth:`step` is a first one."""
        _STREAMS.of.pop(self, None)


class _Streams(threading.local):
    def __init__(self) -> None:
        self.of: weakref.WeakKeyDictionary[Stepped, Kept] = weakref.WeakKeyDictionary()


_STREAMS = _Streams()


def inputs_of(network: Configured) -> Inputs:
    return cast(Inputs, network.options["inputs"])


def _check_watches_not(network: Configured) -> None:
    """ValueError where a network cannot be run in portions."""
    watching = {site: node.watch_steps for site, node in network.nodes().items()}
    watching = {site: steps for site, steps in watching.items() if steps}
    if watching:
        site, steps = next(iter(watching.items()))
        raise ValueError(
            "a network that runs in portions must not watch (rho = 0 in every layer): each "
            f"calibrated layer would first have to see rho steps of the one before it; {site!r} "
            f"has rho = {steps}. Use rho = 0, with potentials of cos_ext.fit_v_init, or fine-tuned"
        )
    kept = {site: neuron for site, node in network.nodes().items() if (neuron := node.neuron)}
    more = {site: neuron for site, neuron in kept.items() if not neuron.goes_on}
    if more:
        site, neuron = next(iter(more.items()))
        raise ValueError(
            "a network that runs in portions goes on from potentials alone; the neurons at "
            f"{site!r} also keep a count, what they predict, or where they are in time: {neuron}"
        )
