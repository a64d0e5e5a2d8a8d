"""Where signed neurons stand: a module of its own goes into the traced copy at every such place,
which is a call site like an activation's. What is spiked there is any tensor; the neurons are made
in neurons.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import fx, nn

from .graphs import called, free_name, label_of, owner_of, set_module
from .rules import rule_of
from .rules.constants import Attention, Einsum, MatrixProduct
from .rules.curves import Gate, InPlace, OtherActivation
from .rules.linear import Convolution, Linear, WeightedCall
from .rules.rectifiers import Rectifier, Signed, is_rectifier
from .rules.sizes import is_size
from .rules.sums import Product

# Where neurons stand: after all activations; after those that are max(x, 0), clipped or not; or
# before layers with weights and the operands of matrix products, whatever comes there.
CHOICES = ("activations", "rectifiers", "inputs")
LAYERS = (Linear, Convolution, WeightedCall)
PRODUCTS = (MatrixProduct, Attention, Einsum)
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

    Nothing is spiked before the first layer or product, or after the last. One tensor that several
    layers read is spiked once.
    """

    root: nn.Module
    graph: fx.Graph
    given: set[fx.Node] = field(default_factory=set)  # what depends on the input
    passed: set[fx.Node] = field(default_factory=set)  # what a layer or product came before
    spiked: dict[fx.Node, fx.Node] = field(default_factory=dict)
    # What a layer or product comes after, with no other activation between.
    coming: set[fx.Node] = field(default_factory=set)

    def __post_init__(self) -> None:
        for node in reversed(self.graph.nodes):
            if any(self._begins(user) or self._leads_on(user) for user in node.users):
                self.coming.add(node)

    def _leads_on(self, node: fx.Node) -> bool:
        rule = rule_of(node, self.root)
        return node in self.coming and not isinstance(rule, (Rectifier, OtherActivation))

    def after(self, node: fx.Node) -> list[Place]:
        """Spike what an activation gives that is no rectifier."""
        self._pass(node)
        between = node in self.passed and node in self.coming
        if not between or not self._is_activation(node):
            return []
        place = self._put(node, "spikes", "after")
        with node.graph.inserting_after(node):
            made = self._call(place, node, node)
        node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
        self.passed.add(made)
        return [place]

    def _is_activation(self, node: fx.Node) -> bool:
        rule = rule_of(node, self.root)
        if isinstance(rule, Gate):  # one that scales is no layer's input
            return not self._scales(node)
        if isinstance(rule, Rectifier):
            module = called(self.root, node) if node.op == "call_module" else None
            return module is not None and not is_rectifier(module)
        return isinstance(rule, OtherActivation) or node.target in InPlace.of_activations

    def _scales(self, node: fx.Node) -> bool:
        """Whether a value is a factor before a layer reads it."""
        open_, seen = [node], {node}
        while open_:
            for user in open_.pop().users:
                if isinstance(rule_of(user, self.root), Product):
                    return True
                if user not in seen and not self._begins(user):
                    seen.add(user)
                    open_.append(user)
        return False

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
        if node.op != "placeholder" and not self.given.intersection(node.all_input_nodes):
            return
        if is_size(node):
            return  # what is repeated as often as there are samples does not depend on them
        self.given.add(node)
        if self._begins(node) or self.passed.intersection(node.all_input_nodes):
            self.passed.add(node)

    def _begins(self, node: fx.Node) -> bool:
        return isinstance(rule_of(node, self.root), (*LAYERS, *PRODUCTS))

    def _place(self, node: fx.Node, source: fx.Node, number: int, count: int) -> Place:
        which = "input" if count == 1 else OPERANDS[min(number, len(OPERANDS) - 1)]
        place = self._put(node, which, f"{which} of")
        with node.graph.inserting_before(node):
            self.spiked[source] = self._call(place, source, node)
        return place

    def _put(self, node: fx.Node, suffix: str, where: str) -> Place:
        """A site named after a call, in the module in whose forward it stands."""
        if node.op == "call_module":
            kind, name = type(called(self.root, node)).__name__, str(node.target)
        else:
            kind = label_of(node).strip("_")
            name = ".".join(filter(None, (owner_of(node), kind)))
        place = Place(free_name(self.root, f"{name}_{suffix}"), Signed(), f"{where} {kind}")
        set_module(self.root, place.site, place.module)
        return place

    def _call(self, place: Place, source: fx.Node, beside: fx.Node) -> fx.Node:
        """The site's call, for what depends on the input."""
        made = source.graph.call_module(place.site, (source,))
        made.meta["nn_module_stack"] = beside.meta.get("nn_module_stack")
        self.given.add(made)
        return made
