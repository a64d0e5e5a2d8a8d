"""A model that could not be traced, as it stands in a network; and copies of modules. Modules that
know the time, neurons and pooling are in files of their own; no settings and no running here.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from fractions import Fraction

from torch import Tensor, nn

from .._batches import Inputs
from .._neuron.runs import Run, running, steps_now
from ..neuron import IFNode
from .finite import Shown, Unfit
from .outputs import Flat, Outputs
from .over_time import TimeBroadcast


def twin(module: nn.Module, tensors: Mapping[int, Tensor]) -> nn.Module:
    """A copy without hooks, to run beside the module: another thread may be running that.

    Args:
        module: what is copied.
        tensors: by the id of each parameter and buffer, what the copy has in its place.
    """
    hooks = {
        id(h): type(h)() for m in module.modules() for h in (m._forward_hooks, m._forward_pre_hooks)
    }
    return copy.deepcopy(module, {**tensors, **hooks})


class Walked(nn.Module):
    """A model that could not be traced, its activations replaced: time is folded into the batch
    from its inputs on.

    sizes: by its neurons, their first size as a multiple of the batch on the example. Control flow
    that depends on the size of the batch could change it, or call neurons more than once; that is
    noticed at every call. outputs: the structure of what it gives.
    """

    def __init__(
        self, model: nn.Module, sizes: dict[IFNode, Fraction], inputs: Inputs, outputs: Outputs
    ) -> None:
        super().__init__()
        self.model, self.inputs, self.outputs = model, inputs, outputs
        self.broadcast, self.shown = TimeBroadcast(), Shown()
        self.sizes = {name: sizes[node] for name, node in model.named_modules() if node in sizes}

    def forward(self, *inputs: Tensor) -> Flat:
        folded, batch = [self.broadcast(x) for x in inputs], inputs[0].shape[0]
        marks = [Unfit(sums=True)(x) for x in inputs]
        with running(Run(calls=True)) as run:
            out = self.inputs.call(self.model, folded)
        for name, size in self.sizes.items():
            called = run.called.get(self.model.get_submodule(name), [])
            seen, expected = [mark.shape[0] for mark in called], size * folded[0].shape[0]
            if seen != [expected]:
                raise RuntimeError(
                    f"{name} was called with batches of {seen}, expected one of {expected}: "
                    "the model's control flow depends on the size of its batch, into which time "
                    "is folded"
                )
            marks.append(called[0].view(steps_now(self.broadcast.timesteps), -1).any(0))
        flat = self.outputs.flat(out)
        return self.outputs.each(lambda leaf: self.shown(leaf, batch, *marks), flat)
