"""Who holds a tensor's memory, and refusing what writes into a tensor that others may read."""

from __future__ import annotations

import operator

from torch import fx, nn

from ..network.over_time import Timed
from ..neuron import IFNode
from .graphs import called, label_of, site_of
from .rules import Memory, Refusal, rule_of
from .rules.normalisation import DROPOUTS
from .rules.rectifiers import is_rectifier
from .state import Conversion

# What fx's proxies make of `y += z` and the like, and setting an item.
IN_PLACE = (
    operator.iadd,
    operator.isub,
    operator.imul,
    operator.itruediv,
    operator.ifloordiv,
    operator.imod,
    operator.ipow,
    operator.imatmul,
    operator.setitem,
)

IN_PLACE_METHODS = ("__setitem__", *(f"__{each.__name__}__" for each in IN_PLACE[:-1]))


def owned(root: nn.Module, node: fx.Node) -> bool:
    """Whether one reader alone sees this tensor's memory, so that it may be overwritten."""
    if len(node.users) != 1:
        return False
    if node.op == "call_module":
        module = called(root, node)
        if is_rectifier(module) or isinstance(module, (IFNode, Timed)):
            return True
    rule = rule_of(node, root)
    if rule is None or rule.memory is Memory.UNKNOWN:
        return False
    makes = rule.memory is Memory.UNLESS_WRITTEN and not writes(root, node)
    return makes or rule.memory is Memory.OWN or owned(root, node.all_input_nodes[0])


def writes(root: nn.Module, node: fx.Node) -> bool:
    """Whether a call changes its first input."""
    if node.op == "call_module":
        module = called(root, node)
        return bool(getattr(module, "inplace", False)) and not isinstance(module, DROPOUTS)
    if node.op not in ("call_function", "call_method"):
        return False
    name = label_of(node)
    by_name = name.endswith("_") and (not name.endswith("__") or name in IN_PLACE_METHODS)
    by_argument = node.kwargs.get("inplace") is True or node.kwargs.get("out") is not None
    return node.target in IN_PLACE or by_name or by_argument


class RefuseWrites:
    """Refuses operations that write into a tensor that others may read: rewriting moves readers
    before and after the write.
    """

    def apply(self, conversion: Conversion) -> None:
        for node in conversion.graph.nodes:
            if not writes(conversion.model, node) or not node.all_input_nodes:
                continue
            first, out = node.all_input_nodes[0], node.kwargs.get("out")
            if first.op == "get_attr" and not node.users and out is None:
                continue  # a counter of the model's own, which nothing reads
            if owned(conversion.model, first) and out is None:
                continue
            adds = node.target in (operator.iadd, "add_")
            why = Refusal(
                f"{'adds' if adds else 'works'} in place {'to' if adds else 'on'} a tensor that "
                "others may read",
                "use the form that makes a new one",
            )
            if node.op == "call_module":
                site, kind = node.target, type(called(conversion.model, node)).__name__
            else:
                site, kind = site_of(node), label_of(node)
            conversion.refuse(site, kind, why, node)
