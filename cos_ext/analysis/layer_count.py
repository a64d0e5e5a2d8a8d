"""The running sums of one call of a layer or product where operations are counted.

What an operation is was found out in operation_counter.py; what follows from the counts is in
energy_results.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from .energy_results import LayerEnergy


class LayerCount:
    """Running sums of one call of a layer or product, on the data's device, never waited for.

    input: "static", "product", or "graded" where it is known; "" where the data decide.
    """

    def __init__(self, kind: str, input: str) -> None:
        self.kind, self.input = kind, input
        self.macs = 0  # of all samples
        self.inputs = 0  # elements, of all steps
        self.operations: Tensor | None = None  # [S] int64
        self.nonzero: Tensor | None = None
        self.low: Tensor | None = None  # per channel, of what is not 0
        self.high: Tensor | None = None
        # The neurons that read what it computes; None is the output.
        self.readers: set[str | None] = set()

    def see(self, x: Tensor, fan_out: Tensor | int, steps: int, levels: Tensor | None) -> None:
        """Take in spikes ``[S*B, C, *space]``, each of which reaches ``fan_out`` outputs,
        ``[*space]``; ``levels`` where the spikes are of several.
        """
        sent = x != 0 if levels is None else levels.long()
        fires = sent != 0
        counts = sent.unflatten(0, (steps, x.shape[0] // steps)).sum((1, 2))  # [S, *space]
        operations = (counts * fan_out).reshape(steps, -1).sum(1)
        others = [dim for dim in range(x.dim()) if dim != 1]
        # A level is a value by itself, whatever stands in x.
        x = x if levels is None else fires.to(x.dtype)
        low = torch.where(fires, x, math.inf).amin(others)
        high = torch.where(fires, x, -math.inf).amax(others)
        self.inputs += x.numel()
        self.operations = operations if self.operations is None else self.operations + operations
        nonzero = fires.sum()
        self.nonzero = nonzero if self.nonzero is None else self.nonzero + nonzero
        self.low = low if self.low is None else torch.minimum(self.low, low)
        self.high = high if self.high is None else torch.maximum(self.high, high)

    def result(
        self, site: str, samples: int, steps: int, watch: int, reads: Iterable[int], again: int
    ) -> LayerEnergy:
        """What was counted, per image. Waits for the device."""
        kind, share = self.input, 1.0
        operations = [] if kind == "static" else [self.macs] * steps
        if self.nonzero is not None:
            share = int(self.nonzero) / self.inputs
        if not kind:
            assert self.operations is not None  # it has seen spikes
            assert self.low is not None and self.high is not None
            kind = "graded" if bool((self.low < self.high).any()) else "spikes"
            operations = self.operations.tolist()
        return LayerEnergy(
            site=site,
            kind=self.kind,
            input=kind,
            macs=self.macs / samples,
            watch=watch,
            reads=tuple(reads),
            per_step=tuple(count / samples for count in operations),
            nonzero=share,
            again=again,
        )
