"""Inputs over time: a frame for every step, as event cameras, spike encodings and video give them.

How a frame becomes currents is the model's business, and whether inputs fit inputs.py's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .._neuron.runs import Run, running
from .front import mixes_samples
from .inputs import check_sequences, check_shapes
from .stepping import Stepped, inputs_of

MIXES = (
    "before its first neurons the model computes something over the whole batch (x - x.mean(), "
    "BatchNorm without running statistics), into which time is folded: frames would change each "
    "other; compute it from each sample, or outside of the model"
)


class Sequenced(Stepped):
    """A converted model that also takes another input at every step."""

    def run(self, *inputs: Tensor, **named: Tensor) -> Any:
        """A frame for every step, [T, B, ...], to per-step outputs [T, B, ...].

        What runs once per image in :meth:`forward` runs once per frame: the part of the model
        before its first neurons. These see other currents at every step,
        :math:`x(t) = \\mathrm{front}(\\mathrm{frame}(t))`, and nothing else differs. An image
        that is repeated, ``x.expand(T, *x.shape)``, gives the outputs of :meth:`forward`; where
        neurons do not watch, the outputs are those of :meth:`step`, frame by frame, with a
        :meth:`reset` before. All that is bit for bit where a layer's sums do not depend on the
        size of the batch.

        Calibrated neurons watch the first rho frames, so that layers run max(T, rho) steps, and
        the sequence has that many frames; the outputs are those of the first T steps. Exactly
        calibrated ones, with rho = T and ``iterations=None``, emit over T steps what the quantised
        ANN's activations are: in the first layers those of the mean over time of their currents.
        Where the front is affine, the mean output is that of the quantised ANN on the mean frame.
        With emission "even" and "front" spikes follow from the first rho frames alone, also where
        T > rho.

        ``memory_limit`` splits the batch, not the time. Gradients go through as in
        :meth:`forward`. A frame with NaN or infinity shows in all outputs of its sample. Under
        torch.compile the first call breaks the graph.

        Args:
            inputs, named: as for :meth:`forward`, with time in front. All of them are sequences.

        Raises:
            TypeError: as for :meth:`forward`.
            ValueError: an input is no sequence of max(T, rho) frames, has other dimensions than
                the model wants, or another batch size; the model mixes the samples of a batch
                before its first neurons; execution is "counts".
        """
        sequences = inputs_of(self).bound(inputs, named)
        wrong = [type(x).__name__ for x in sequences if not isinstance(x, Tensor)]
        if wrong:
            raise TypeError(f"inputs must be tensors [T, B, ...], got {', '.join(wrong)}")
        if self.execution == "counts":
            raise ValueError(
                'run() needs execution = "steps", got "counts", which looks at means over time: '
                "the order of frames would be lost"
            )
        steps, watched = self._steps, self.watch_steps
        check_sequences(sequences, steps, f"timesteps = {self.timesteps}, rho = {watched}")
        options = self.options
        check_shapes(sequences, options.get("ranks", ()), options.get("shapes", ()), ("T", "B"))
        # The batch in front, so that it is split as that of images is.
        by_sample = tuple(x.transpose(0, 1) for x in sequences)
        with running(Run(frames=steps)):
            if self._mix(by_sample):
                raise ValueError(f"run() needs a model that takes each frame by itself: {MIXES}")
            return self._outputs(*by_sample)

    @torch.compiler.disable(reason="whether frames mix is found by running some of them")
    def _mix(self, sequences: tuple[Tensor, ...]) -> bool:
        return mixes_samples(self, sequences)
