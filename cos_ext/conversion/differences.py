"""Stretches that are computed on running means: what is not affine between neurons, and what
follows it up to the next neurons. One RunningMean before, one Difference behind;
../network/over_time.py has the mathematics. Which calls are not affine was decided before.
"""

from __future__ import annotations

from torch import fx, nn

from ..network.over_time import Difference, RunningMean, TimeBroadcast, Timed
from ..network.pooling import MAX_POOLS, MaxPoolBefore
from ..neuron import IFNode
from .graphs import called, free_name
from .state import Conversion

CHOICES = ("difference", "error")


class PlaceDifferences:
    """Has every call of `conversion.differences` read running means, and neurons and the output
    what comes step by step. What is affine stays in the form that it finds.
    """

    def apply(self, conversion: Conversion) -> None:
        if not conversion.differences:
            return
        facts = conversion.facts
        ends: dict[tuple[fx.Node, bool], fx.Node] = {}  # whether it is in means: in the other form
        for node in list(conversion.graph.nodes):
            if node in facts.numbers or isinstance(_module(conversion, node), Timed):
                continue
            read = [x for x in facts.tensors(node) if self._has_time(conversion, x)]
            by_steps = self._by_steps(conversion, node)
            curved = node in conversion.differences
            if not by_steps and (curved or any(x in facts.means for x in read)):
                facts.means.add(node)
            wants_means = node in facts.means
            for source in read:
                if (source in facts.means) != wants_means:
                    key = (source, wants_means)
                    if key not in ends:
                        ends[key] = self._end(conversion, source, wants_means)
                    node.replace_input_with(source, ends[key])
        conversion.graph.lint()

    @staticmethod
    def _has_time(conversion: Conversion, node: fx.Node) -> bool:
        """Whether it may differ from step to step; in a stream, what is static does."""
        facts = conversion.facts
        constant = node in facts.fixed and not isinstance(_module(conversion, node), TimeBroadcast)
        return node in facts.spiking and not constant

    @staticmethod
    def _by_steps(conversion: Conversion, node: fx.Node) -> bool:
        """Whether a node needs what comes at each step."""
        module = _module(conversion, node)
        chosen = isinstance(module, MAX_POOLS) and node not in conversion.differences
        return node.op == "output" or chosen or isinstance(module, (IFNode, MaxPoolBefore))

    @staticmethod
    def _end(conversion: Conversion, source: fx.Node, means: bool) -> fx.Node:
        """An end of a stretch, after `source`."""
        facts, model = conversion.facts, conversion.model
        name = free_name(model, "running_mean" if means else "difference")
        model.add_module(name, RunningMean() if means else Difference())
        with conversion.graph.inserting_after(source):
            end = conversion.graph.call_module(name, (source,))
        facts.spiking.add(end)
        facts.batched.add(end)
        if means:
            facts.means.add(end)
        if source in conversion.shapes:
            conversion.shapes[end] = conversion.shapes[source]
        return end


def _module(conversion: Conversion, node: fx.Node) -> nn.Module | None:
    return called(conversion.model, node) if node.op == "call_module" else None
