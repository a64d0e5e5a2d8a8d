"""How long a network's layers watch before its first answer, by both counts of latency. What the
answers are worth is measured elsewhere.
"""

from __future__ import annotations

from torch import fx

from .settings import Configured


def pipeline_watch(network: Configured) -> int:
    """The steps that pass before the first output where all layers run at once: the watched steps
    of the calibrated layers on the longest way through the network.

    A layer can emit only after it has watched, and the one after it begins to watch then. Of a
    model that could not be traced the order is not known: all its layers count, one after another.
    """
    watched = {site: node.watch_steps for site, node in network.nodes().items()}
    if not isinstance(network.module, fx.GraphModule):
        return sum(watched.values())
    after: dict[fx.Node, int] = {}
    for node in network.module.graph.nodes:
        own = watched.get(str(node.target), 0) if node.op == "call_module" else 0
        after[node] = own + max((after[source] for source in node.all_input_nodes), default=0)
    return max(after.values(), default=0)
