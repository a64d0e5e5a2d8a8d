"""Making the spiking graph: neurons for activations, poolings where they were chosen to be, static
tensors repeated over time where they meet spiking ones. Nothing is decided here.
"""

from __future__ import annotations

import copy

from torch import fx, nn

from ..network.over_time import TimeBroadcast
from ..network.pooling import MaxPoolBefore
from .graphs import free_name, set_module
from .max_pooling import neurons_after
from .report import Entry
from .rules import Call, rule_of
from .state import Conversion


class Rewrite:
    """Rewrites the traced copy. It must not be applied where anything was refused."""

    def apply(self, conversion: Conversion) -> None:
        model, graph = conversion.model, conversion.graph
        for node in list(graph.nodes):
            node.type = (
                None  # annotations that are strings would keep the network from being pickled
            )
            rule = rule_of(node, model)
            if rule is not None and node in conversion.facts.batched:
                rule.rewrite(Call(node, model, conversion.facts))
        for site, module in (*conversion.neurons.items(), *conversion.averages.items()):
            set_module(model, site, module)
        for node, pool in conversion.before.items():
            self._move_before(conversion, node, pool)
        self._repeat_static(conversion)
        graph.eliminate_dead_code()
        graph.lint()

    def _move_before(self, conversion: Conversion, node: fx.Node, pool: nn.Module) -> None:
        """pool(neurons(x)) becomes neurons(pool(x)); where others read the neurons too, the pooled
        ones are further neurons.
        """
        model, graph, facts = conversion.model, conversion.graph, conversion.facts
        (activation,) = node.all_input_nodes
        if str(activation.target) not in conversion.neurons:
            site = neurons_after(conversion, node) or ""
            set_module(model, str(node.target), MaxPoolBefore(pool, site))
            return
        (currents,) = activation.all_input_nodes
        static, site = currents not in facts.spiking, str(activation.target)
        if len(activation.users) > 1:
            site = self._further_neurons(conversion, site, node)
        set_module(model, str(node.target), pool if static else MaxPoolBefore(pool, site))
        with graph.inserting_after(node):
            pooled = graph.call_module(site, (node,))
        node.replace_all_uses_with(pooled, delete_user_cb=lambda user: user is not pooled)
        node.args = (currents,)
        facts.spiking.add(pooled)
        facts.batched.add(pooled)
        if static:
            facts.spiking.discard(node)

    def _further_neurons(self, conversion: Conversion, origin: str, node: fx.Node) -> str:
        """A copy of a call site's neurons, that reads what is pooled; its name."""
        neuron, entries = conversion.neurons[origin], conversion.report.entries
        site = free_name(conversion.model, f"{origin}_{node.name}")
        conversion.copies[site] = origin
        set_module(conversion.model, site, copy.deepcopy(neuron))
        neuron.inplace = False  # the currents are read twice now
        index = next(i for i, entry in enumerate(entries) if entry.site == origin)
        old = entries[index]
        reason = f"those of {origin} again, pooled before"
        entries.insert(index + 1, Entry(site, old.kind, "converted", old.threshold, reason))
        return site

    def _repeat_static(self, conversion: Conversion) -> None:
        """Repeat static tensors over time where a call reads a spiking one too."""
        model, graph, facts = conversion.model, conversion.graph, conversion.facts
        repeated: dict[fx.Node, fx.Node] = {}
        for node in list(graph.nodes):
            calls = node.op.startswith("call_") and node not in facts.numbers
            if not calls or not any(x in facts.spiking for x in facts.tensors(node)):
                continue
            for source in facts.tensors(node):
                if source in facts.spiking or source not in facts.batched:
                    continue
                if source not in repeated:
                    name = free_name(model, f"time_broadcast_{len(repeated)}")
                    model.add_module(name, TimeBroadcast())
                    with graph.inserting_after(source):
                        repeated[source] = graph.call_module(name, (source,))
                    facts.spiking.add(repeated[source])
                    facts.fixed.add(repeated[source])
                node.replace_input_with(source, repeated[source])
