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
from .rules.curves import InPlace, OtherActivation
from .rules.linear import Convolution, Linear, WeightedCall
from .rules.rectifiers import Signed

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


def after(root: nn.Module, node: fx.Node) -> Place | None:
    """Put a site after an activation that is no rectifier; None where the node is none."""
    rule = rule_of(node, root)
    curves = InPlace.of_activations if isinstance(rule, InPlace) else ()
    if not isinstance(rule, OtherActivation) and node.target not in curves:
        return None
    if node.op == "call_module":
        kind = type(called(root, node)).__name__
        wanted = f"{node.target}_spikes"
    else:
        kind = label_of(node).strip("_")
        wanted = _beside(node, f"{kind}_spikes")
    place, made = _put(root, wanted, f"after {kind}"), None
    with node.graph.inserting_after(node):
        made = node.graph.call_module(place.site, (node,))
    made.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)
    return place


@dataclass
class Operands:
    """Puts sites before layers and the operands of products, in the order of the graph.

    The first layers read the model's input as it is. One tensor that several read is spiked once.
    """

    root: nn.Module
    passed: set[fx.Node] = field(default_factory=set)  # what a layer or product came before
    spiked: dict[fx.Node, fx.Node] = field(default_factory=dict)

    def before(self, node: fx.Node) -> list[Place]:
        rule = rule_of(node, self.root)
        layer, product = isinstance(rule, LAYERS), isinstance(rule, PRODUCTS)
        places = []
        if layer or product:
            read = [x for x in node.all_input_nodes if x in self.passed]
            read = read[:1] if layer else read
            for number, source in enumerate(read):
                if source not in self.spiked:
                    places.append(self._place(node, source, number, len(read)))
                node.replace_input_with(source, self.spiked[source])
        if layer or product or self.passed.intersection(node.all_input_nodes):
            self.passed.add(node)
        return places

    def _place(self, node: fx.Node, source: fx.Node, number: int, count: int) -> Place:
        which = "input" if count == 1 else OPERANDS[min(number, len(OPERANDS) - 1)]
        if node.op == "call_module":
            kind, wanted = type(called(self.root, node)).__name__, f"{node.target}_{which}"
        else:
            kind = label_of(node)
            wanted = _beside(node, f"{kind.strip('_')}_{which}")
        place = _put(self.root, wanted, f"{which} of {kind}")
        with node.graph.inserting_before(node):
            made = node.graph.call_module(place.site, (source,))
        made.meta["nn_module_stack"] = node.meta.get("nn_module_stack")
        self.spiked[source] = made
        return place


def _beside(node: fx.Node, label: str) -> str:
    owner = owner_of(node)
    return f"{owner}.{label}" if owner else label


def _put(root: nn.Module, wanted: str, origin: str) -> Place:
    place = Place(free_name(root, wanted), Signed(), origin)
    set_module(root, place.site, place.module)
    return place
