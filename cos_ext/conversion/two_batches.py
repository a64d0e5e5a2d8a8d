"""What becomes of the size of the batch in a recorded run: two runs, of batches of two sizes, are
compared call by call. How a run is recorded is in recorder.py.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError

from .._batches import Inputs
from ..network.outputs import Outputs
from .attention import write_out
from .batch_number import BATCH, SIZES
from .copying import copied
from .graphs import free_name
from .lines import line_of
from .recorder import Recorder

THIRD = 7  # told as a BatchNumber, which notices what the batch would decide otherwise


class Recorded(NamedTuple):
    """A graph for any batch; the constants that forward makes, by the attribute that the graph
    reads; whether forward looked at shapes; and the structure of the output.
    """

    graph: fx.Graph
    constants: dict[str, Tensor]
    looked: bool
    outputs: Outputs


def record(model: nn.Module, inputs: Inputs, examples: Mapping[str, Tensor]) -> Recorded:
    """Trace a model by running copies of it without data, for any size of the batch.

    Sizes in the graph are those of the example. An integer that is a multiple of the batch in both
    runs becomes the size of the first input's batch, times what is left; the one size of a view
    that depends on the batch becomes -1. What depends on the batch otherwise is refused.

    Raises:
        TraceError: values or the batch decide what is called; a number depends on the batch in
            another way; or a tensor comes from where no call is seen.
    """

    try:
        return _record(model, inputs, examples, news=True)
    except TraceError:
        return _record(model, inputs, examples, news=False)


def _record(
    model: nn.Module, inputs: Inputs, examples: Mapping[str, Tensor], news: bool
) -> Recorded:
    def run(batch: int, sizes: Iterable[Any] = ()) -> tuple[Recorder, nn.Module]:
        scratch = write_out(copied(model, share=True))
        return Recorder(scratch, inputs, examples, batch, sizes, news), scratch

    first, scratch = run(SIZES[0])
    second, _ = run(SIZES[1])
    merge = _Merge(first, second, scratch)
    merge.apply()
    if first.outputs.others != second.outputs.others:
        raise TraceError(f"{BATCH}, here a number in the output")
    run(THIRD, zip(first.sizes, second.sizes))
    return Recorded(first.graph, merge.constants, first.looked, first.outputs)


class _Merge:
    """Makes the first run's graph one for any batch."""

    def __init__(self, first: Recorder, second: Recorder, root: nn.Module) -> None:
        self.first, self.second, self.root = first, second, root
        self.graph = first.graph
        self.partners: dict[fx.Node, fx.Node] = {}  # of the first run's nodes
        self.constant: set[fx.Node] = set()
        self.held: dict[fx.Node, fx.Node] = {}
        self.constants: dict[str, Tensor] = {}  # by the attribute that holds it
        self.sizes: dict[int, fx.Node] = {}  # multiples of the batch
        self.node: fx.Node  # that is compared

    def apply(self) -> None:
        recorded = list(self.graph.nodes)
        for ours, theirs in zip_longest(recorded, self.second.graph.nodes):
            self.node = ours or theirs
            if ours is None or theirs is None:
                raise self._differs("what is called")
            if (ours.op, ours.target) != (theirs.op, theirs.target):
                raise self._differs("what is called")
            self.partners[ours] = theirs
            ours.args, ours.kwargs = self._shape(ours, theirs) or self._any_batch(
                (ours.args, ours.kwargs), (theirs.args, theirs.kwargs)
            )
            if ours in self.first.real and self.constant.issuperset(ours.all_input_nodes):
                self.constant.add(ours)
        for node in recorded:
            if node not in self.constant:
                node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), self._held)
        passing = self.first.real | self.first.parts
        for node in reversed(recorded):
            if not node.users and (node in passing or node.op == "get_attr"):
                self.graph.erase_node(node)

    def _differs(self, what: str) -> TraceError:
        line = line_of(self.node)
        return TraceError(f"{BATCH}, here {what}" + (f" [{line}]" if line else ""))

    def _any_batch(self, ours: Any, theirs: Any) -> Any:
        """One argument for any batch, of those for two."""
        if isinstance(ours, fx.Node):
            if self.partners.get(ours) is not theirs:
                raise self._differs("which tensor is read")
            return ours
        if type(ours) is not type(theirs):
            raise self._differs("an argument")
        if isinstance(ours, (tuple, list, dict)) and len(ours) != len(theirs):
            raise self._differs("how many are given")
        if isinstance(ours, (tuple, list)):
            return type(ours)(map(self._any_batch, ours, theirs))
        if isinstance(ours, dict):
            return {key: self._any_batch(value, theirs[key]) for key, value in ours.items()}
        if isinstance(ours, slice):
            ends, others = ((x.start, x.stop, x.step) for x in (ours, theirs))
            return slice(*self._any_batch(ends, others))
        same = ours == theirs or (ours != ours and theirs != theirs)  # NaN
        return ours if same else self._size(ours, theirs)

    def _size(self, ours: Any, theirs: Any) -> fx.Node:
        """A node for a number that is a multiple of the batch."""
        times, rest = divmod(ours, SIZES[0]) if type(ours) is int else (0, 1)
        if rest or times * SIZES[1] != theirs:
            each = f"{ours} for {SIZES[0]} samples, {theirs} for {SIZES[1]}"
            raise self._differs(each)
        if not self.sizes:
            inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
            with self.graph.inserting_after(inputs[-1]):
                self.sizes[1] = self.graph.call_method("size", (inputs[0], 0))
        if times not in self.sizes:
            with self.graph.inserting_after(self.sizes[1]):
                self.sizes[times] = self.graph.call_function(operator.mul, (self.sizes[1], times))
        return self.sizes[times]

    def _shape(self, ours: fx.Node, theirs: fx.Node) -> tuple[Any, Any] | None:
        """The arguments of a view, or of an expansion of what has the batch, with -1 where the
        result has the batch; None where that says too little, or there is nothing to say.
        """
        if ours.target not in ("view", "reshape", torch.reshape, "expand"):
            return None
        if self._plain(ours) == self._plain(theirs):
            return None
        mine, other = self.first.results[ours].shape, self.second.results[theirs].shape
        free = [dim for dim, size in enumerate(mine) if size != other[dim]]
        source = ours.args[0]
        if not isinstance(source, fx.Node):
            return None
        if ours.target == "expand" and len(free) == 1:
            given = self.first.results[source].shape
            if len(given) != len(mine) or given[free[0]] != mine[free[0]]:
                return None
        if len(free) != 1 or self.partners.get(source) is not theirs.args[0]:
            return None
        return (source, tuple(-1 if dim in free else size for dim, size in enumerate(mine))), {}

    @staticmethod
    def _plain(node: fx.Node) -> str:
        return str((node.args[1:], node.kwargs))

    def _held(self, node: fx.Node) -> fx.Node:
        """For a constant an attribute of the model, which what reads it reads instead."""
        if node not in self.constant or node.target in self.first.names:
            return node
        if node not in self.held:
            value, other = self.first.results[node], self.second.results[self.partners[node]]
            if not _equal(value, other):
                self.node = node
                raise self._differs("a tensor that forward makes, unless chance makes it")
            name = free_name(self.root, "_constant")
            setattr(self.root, name, value)
            self.constants[name] = value
            with self.graph.inserting_after(node):
                self.held[node] = self.graph.get_attr(name)
        return self.held[node]


def _equal(value: Tensor, other: Tensor) -> bool:
    if value.shape != other.shape or value.dtype != other.dtype:
        return False
    return bool(((value == other) | ((value != value) & (other != other))).all())
