"""Where signed neurons stand: a module of its own goes into the traced copy at every such place,
which is a call site like an activation's. What is spiked there is any tensor; the neurons are made
in neurons.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx, nn

from .graphs import called, free_name, label_of, owner_of, set_module
from .rules import rule_of
from .rules.constants import Attention, Einsum, MatrixProduct, Repeated
from .rules.curves import Gate, InPlace, OtherActivation
from .rules.linear import Convolution, Linear, WeightedCall
from .rules.rectifiers import Rectifier, Signed, is_rectifier
from .rules.shapes import (
    Flatten,
    FlattenModule,
    Keep,
    Squeeze,
    UnflattenModule,
    Unsqueeze,
    View,
)
from .rules.sums import Product

# Where neurons stand: after all activations; after those that are max(x, 0), clipped or not; or
# before layers with weights and the operands of matrix products, whatever comes there.
CHOICES = ("activations", "rectifiers", "inputs")
LAYERS = (Linear, Convolution, WeightedCall)
PRODUCTS = (MatrixProduct, Attention, Einsum)
SHAPES = (Keep, Flatten, FlattenModule, UnflattenModule, View, Squeeze, Unsqueeze, Repeated)
OPERANDS = ("first", "second", "third")


@dataclass
class Place:
    """A site that was put in: its name, the module, and what a report calls it."""

    site: str
    module: Signed
    origin: str


@dataclass
class Places:
    """Puts sites into a graph, node by node in its order.

    Nothing is spiked before the first layer or product. One tensor that several layers read is
    spiked once.
    """

    root: nn.Module
    passed: set[fx.Node] = field(default_factory=set)  # what a layer or product came before
    spiked: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def after(self, node: fx.Node) -> list[Place]:
        """Spike what an activation gives that is no rectifier."""
        self._pass(node)
        if node not in self.passed or not self._is_activation(node):
            return []
        if node.op == "call_module":
            kind = type(called(self.root, node)).__name__
            wanted = f"{node.target}_spikes"
        else:
            kind = label_of(node).strip("_")
            wanted = _beside(node, f"{kind}_spikes")
        place = self._put(wanted, f"after {kind}")
        with node.graph.inserting_after(node):
            made = node.graph.call_module(place.site, (node,))
        made.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
        self.passed.add(made)
        return [place]

    def _is_activation(self, node: fx.Node) -> bool:
        rule = rule_of(node, self.root)
        if isinstance(rule, Gate):  # what it scales, or the output, is no layer's input
            readers = self._readers(node)
            ends = any(reader.op == "output" for reader in readers)
            return not ends and not any(
                isinstance(rule_of(reader, self.root), Product) for reader in readers
            )
        if isinstance(rule, Rectifier):
            module = called(self.root, node) if node.op == "call_module" else None
            return module is not None and not is_rectifier(module)
        return isinstance(rule, OtherActivation) or node.target in InPlace.of_activations

    def _readers(self, node: fx.Node) -> list[fx.Node]:
        """What reads a node, or the same in another shape."""
        found: list[fx.Node] = []
        for user in node.users:
            shaped = isinstance(rule_of(user, self.root), SHAPES)
            found += self._readers(user) if shaped else [user]
        return found

    def before(self, node: fx.Node) -> list[Place]:
        """Spike what a layer reads, or the operands of a product."""
        layer = isinstance(rule_of(node, self.root), LAYERS)
        product = isinstance(rule_of(node, self.root), PRODUCTS)
        places = []
        if layer or product:
            read = [x for x in node.all_input_nodes if x in self.passed]
            read = read[:1] if layer else read
            for number, source in enumerate(read):
                if source not in self.spiked:
                    places.append(self._place(node, source, number, len(read)))
                node.replace_input_with(source, self.spiked[source])
        self._pass(node)
        return places

    def _pass(self, node: fx.Node) -> None:
        begins = isinstance(rule_of(node, self.root), (*LAYERS, *PRODUCTS))
        if begins or self.passed.intersection(node.all_input_nodes):
            self.passed.add(node)

    def _place(self, node: fx.Node, source: fx.Node, number: int, count: int) -> Place:
        which = "input" if count == 1 else OPERANDS[min(number, len(OPERANDS) - 1)]
        if node.op == "call_module":
            kind, wanted = type(called(self.root, node)).__name__, f"{node.target}_{which}"
        else:
            kind = label_of(node)
            wanted = _beside(node, f"{kind.strip('_')}_{which}")
        place = self._put(wanted, f"{which} of {kind}")
        with node.graph.inserting_before(node):
            made = node.graph.call_module(place.site, (source,))
        made.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
        self.spiked[source] = made
        return place

    def _put(self, wanted: str, origin: str) -> Place:
        place = Place(free_name(self.root, wanted), Signed(), origin)
        set_module(self.root, place.site, place.module)
        return place


def _beside(node: fx.Node, label: str) -> str:
    owner = owner_of(node)
    return f"{owner}.{label}" if owner else label
