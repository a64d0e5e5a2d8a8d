"""What is known of the values in a graph: who spikes, who has the batch in front, ranks, numbers.
Passes and rules read it; how an operation changes it is the rules' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx
from torch._subclasses import FakeTensorMode

from .graphs import quiet_fakes
from .sizes import Size


@dataclass
class Facts:
    """Facts by node, found in the order of execution.

    spiking: depends on an activation, so that time is folded into its batch; also numbers that
        may know that batch.
    batched: depends on the model's input, unlike parameters, which have no batch.
    leading: its first dimension is surely the batch; not so after view(-1, ...), which may cut
        samples in pieces.
    ranks: number of dimensions, where it is known.
    fixed: has time in its batch, like what spikes, and is the same at every step.
    means: is a running mean over the steps, of what spikes.
    numbers: what is no tensor but a number, and what it knows of the batch.
    lists: tuples of tensors, from chunk and split.
    seen: whose first dimension is the batch on the example; None without an example.
    pieces: the first size on the example of those that begin with a whole number of pieces of every
        sample, as windows of images do.
    outermost: static, and the batch is surely the outermost part of its first dimension.
    """

    spiking: set[fx.Node] = field(default_factory=set)
    fixed: set[fx.Node] = field(default_factory=set)
    means: set[fx.Node] = field(default_factory=set)
    batched: set[fx.Node] = field(default_factory=set)
    leading: set[fx.Node] = field(default_factory=set)
    ranks: dict[fx.Node, int] = field(default_factory=dict)
    numbers: dict[fx.Node, Size] = field(default_factory=dict)
    lists: set[fx.Node] = field(default_factory=set)
    seen: set[fx.Node] | None = None
    pieces: dict[fx.Node, int] = field(default_factory=dict)
    outermost: set[fx.Node] = field(default_factory=set)

    @classmethod
    def of_example(cls, shapes: Mapping[fx.Node, torch.Size], batch: int) -> Facts:
        """The facts that the shapes on an example tell before anything else is known."""
        ranks = {node: len(shape) for node, shape in shapes.items()}
        firsts = {node: shape[0] for node, shape in shapes.items() if shape}
        return cls(
            ranks=ranks,
            seen={node for node, first in firsts.items() if first == batch},
            pieces={node: first for node, first in firsts.items() if batch and first % batch == 0},
        )

    def in_step(self, tensors: Iterable[fx.Node]) -> bool:
        """Whether tensors that spike begin with as many pieces of every sample. What keeps time in
        the batch leaves it outermost; what is static may have had another order.
        """
        known = self.spiking | self.outermost
        counts = {self.pieces.get(x) if x in known else None for x in tensors}
        return len(counts) == 1 and None not in counts

    def keep_order(self, node: fx.Node) -> None:
        """Note of what is static, and has been found right for spikes, that it moves no batch."""
        batched = [x for x in self.tensors(node) if x in self.batched]
        one = len(batched) == 1 and batched[0] in self.outermost
        if not batched or one or self.in_step(batched):
            self.outermost.add(node)

    def tensors(self, node: fx.Node) -> list[fx.Node]:
        """What a node reads, numbers left out."""
        return [source for source in node.all_input_nodes if source not in self.numbers]

    def depend(self, node: fx.Node) -> None:
        """Note what follows for a node from what it reads, whatever it computes."""
        tensors = self.tensors(node)
        if any(source in self.spiking for source in tensors):
            self.spiking.add(node)
        # A number that knows the batch makes a tensor of it; a plain one does not.
        plain = {s for s in node.all_input_nodes if self.numbers.get(s) is Size.PLAIN}
        if node.op == "placeholder" or any(
            source in self.batched for source in node.all_input_nodes if source not in plain
        ):
            self.batched.add(node)
        batched = [source for source in tensors if source in self.batched]
        if node.op == "get_attr":
            return
        if self.seen is not None:
            leads = node in self.seen
        else:
            leads = all(s in self.leading for s in batched) and (
                bool(batched) or node.op == "placeholder"
            )
        if leads:
            self.leading.add(node)

    def lose_batch(self, node: fx.Node) -> None:
        """Its first dimension may not be the batch any more; an example knows better."""
        if self.seen is None:
            self.leading.discard(node)

    def is_spiking_tensor(self, value: object) -> bool:
        """Whether an argument is a tensor, not a number, with time folded into its batch."""
        return isinstance(value, fx.Node) and value in self.spiking and value not in self.numbers

    def spikes(self, value: object) -> bool:
        """Whether a tensor's numbers depend on spikes."""
        return self.is_spiking_tensor(value) and value not in self.fixed

    def is_plain(self, value: object) -> bool:
        """Whether an argument is an int, or a number that does not know the batch."""
        return isinstance(value, int) or (
            isinstance(value, fx.Node) and self.numbers.get(value) is Size.PLAIN
        )


def shapes_on(module: fx.GraphModule, examples: tuple[Tensor, ...]) -> dict[fx.Node, torch.Size]:
    """The shape of every tensor in the graph on an example, found without computing, where the
    operations allow that.
    """
    try:
        with quiet_fakes(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            return _shapes(module, tuple(mode.from_tensor(x) for x in examples))
    except Exception:  # operations of others may know no fakes
        return _shapes(module, tuple(x.clone() for x in examples))


def _shapes(module: fx.GraphModule, examples: tuple[Tensor, ...]) -> dict[fx.Node, torch.Size]:
    shapes: dict[fx.Node, torch.Size] = {}

    class Interpreter(fx.Interpreter):
        def run_node(self, node: fx.Node) -> object:
            value = super().run_node(node)
            if isinstance(value, Tensor):
                shapes[node] = value.shape
            return value

    with torch.no_grad():
        Interpreter(module).run(*examples)
    return shapes
