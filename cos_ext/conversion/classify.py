"""Deciding what becomes of every call in a traced graph, by asking its rule. Nothing is changed."""

from __future__ import annotations

import dataclasses

from torch import fx, nn

from ..network.outputs import CONSTANT, STATIC, STEPS
from ..neuron import IFNode
from .facts import Facts
from .graphs import called, changed, label_of, leaves_of, site_of
from .neurons import make_neuron
from .ownership import owned
from .rules import Call, Refusal, Rule, rule_for, rule_of
from .rules.base import NO_RULE, WRITE_ONE
from .rules.curves import Curved, OtherActivation
from .rules.pooling import MaxPool
from .rules.rectifiers import Rectifier, Signed
from .rules.refused import Refused, Staircase
from .sizes import Size
from .state import OF_MEANS, Conversion

CHANGED = Refusal(
    "has forward hooks or a patched forward, which would see time-steps or be lost",
    "remove them before converting",
)
PARTS = Refusal(
    "the output has a list whose length is not known",
    "give its parts: first, second = x.chunk(2, 1); return first, second",
)
BATCH_SIZE = Refusal(
    "uses the size of the batch, into which time is folded",
    "leave the batch out of what is computed, or use -1 for it in a view",
)
SPIKING_SIZE = Refusal(
    "uses the size of the batch of a spiking tensor, into which time is folded",
    "take the size from the model's input",
)


def module_rank(call: Call, rule: Rule | None) -> int | None:
    """The rank of a module's output; what has no rule is taken to keep it."""
    return rule.rank(call) if rule is not None else call.rank


def ranks_by_modules(graph: fx.Graph, root: nn.Module, known: dict[fx.Node, int]) -> Facts:
    """Facts with the ranks that are known, and what modules alone tell of the others."""
    facts = Facts(ranks=dict(known))
    for node in graph.nodes:
        if node.op == "call_module" and node not in facts.ranks:
            rank = module_rank(Call(node, root, facts), rule_of(node, root))
            if rank is not None:
                facts.ranks[node] = rank
    return facts


class Classify:
    """Walks the graph in the order of execution, notes facts, asks rules, and makes neurons.

    Everything that a rule refuses is entered in the report; so is everything that is kept.
    """

    def apply(self, conversion: Conversion) -> None:
        facts, graph = conversion.facts, conversion.graph
        for node in graph.nodes:
            facts.depend(node)
            if node.op == "placeholder":
                facts.outermost.add(node)
            if node.op == "call_module":
                self._module(conversion, node)
            elif node.op in ("call_function", "call_method"):
                self._function(conversion, node)
            elif node.op == "output":
                self._output(conversion, node)
        for site, module in conversion.traced.uncalled.items():
            kind = type(module)
            if isinstance(rule_for(kind), (Rectifier, MaxPool)):
                conversion.add(site, kind.__name__, "unused", "forward does not call it")
        if not conversion.report.unsupported():
            self._require_neurons(conversion)

    def _output(self, conversion: Conversion, node: fx.Node) -> None:
        kinds = tuple(self._kind(conversion, leaf) for leaf in leaves_of(conversion.graph))
        conversion.outputs = dataclasses.replace(conversion.outputs, kinds=kinds)

    def _kind(self, conversion: Conversion, leaf: fx.Node) -> str:
        """What a leaf of the output is; refused where it is no tensor with the batch in front."""
        facts = conversion.facts
        number, why = facts.numbers.get(leaf), None
        if leaf in facts.lists:
            why = PARTS
        elif number is not None:
            why = BATCH_SIZE if number is not Size.PLAIN else None
        elif leaf in facts.batched and leaf not in facts.spiking and leaf not in facts.leading:
            why = self._unknown_batch(facts, leaf.name)
        if why is not None and leaf not in conversion.refused:
            conversion.refuse("forward", "output", why, leaf)
        if number is not None or leaf not in facts.batched:
            return CONSTANT
        return STEPS if leaf in facts.spiking else STATIC

    def _require_neurons(self, conversion: Conversion) -> None:
        outputs = [node for node in conversion.graph.nodes if node.op == "output"]
        if not conversion.neurons:
            others = self._other_activations(conversion)
            why = Refusal(
                "there is no activation to convert"
                + (f", for neurons cannot stand for {', '.join(others)}" if others else ""),
                "train it with nn.ReLU or cos_ext.QCFS",
            )
            conversion.refuse("forward", conversion.name, why)
        elif not any(node in conversion.facts.spiking for node in outputs):
            why = Refusal(
                "the output does not depend on any activation", "return what the activations reach"
            )
            conversion.refuse("forward", "output", why)

    @staticmethod
    def _other_activations(conversion: Conversion) -> list[str]:
        """The names of activations that are no rectifiers."""
        found: dict[str, None] = {}
        for node in conversion.graph.nodes:
            rule = rule_of(node, conversion.model)
            if isinstance(rule, (OtherActivation, Staircase)):
                module = called(conversion.model, node) if node.op == "call_module" else None
                found[type(module).__name__ if module is not None else label_of(node)] = None
        return list(found)

    # Modules

    def _module(self, conversion: Conversion, node: fx.Node) -> None:
        facts, site = conversion.facts, str(node.target)
        module = called(conversion.model, node)
        call, rule = Call(node, conversion.model, facts), rule_of(node, conversion.model)
        if node not in facts.ranks and (rank := module_rank(call, rule)) is not None:
            facts.ranks[node] = rank
        if rule is not None and rule.makes_list:
            facts.lists.add(node)
        activation = site in conversion.traced.sites
        if activation and len(call.sources) == 1 and node not in facts.batched:
            self._keep(conversion, site, module, "of constants, no neurons")
            return
        if activation:
            facts.spiking.add(node)
        elif node not in facts.spiking and not changed(module) and not isinstance(module, IFNode):
            if rule is None or not rule.leads(call):
                facts.lose_batch(node)
            elif node in facts.batched:
                facts.keep_order(node)
            if node in facts.batched:
                self._keep(conversion, site, module, "static, runs once")
            return
        refusal = self._refusal(conversion, call, rule, activation)
        if self._follows(conversion, node, rule):
            return
        if refusal is not None:
            signed = isinstance(module, Signed)
            kind = conversion.traced.origin[site] if signed else type(module).__name__
            conversion.refuse(site, kind, refusal, node)
        elif node in conversion.differences:
            self._keep(conversion, site, module, OF_MEANS, "difference")
        elif not activation:
            self._keep(conversion, site, module)

    def _refusal(
        self, conversion: Conversion, call: Call, rule: Rule | None, activation: bool
    ) -> Refusal | None:
        """Why a spiking call of a module cannot be; an activation gets its neurons."""
        module = call.module
        assert module is not None
        if changed(module):
            return CHANGED
        if activation:
            return self._activation(conversion, call, module)
        if isinstance(module, IFNode):
            return Refusal("the model is spiking already", "convert the ANN it was made from")
        if len(call.sources) != 1:
            return Refusal("is called with several tensors", "call it with one")
        if rule is None:
            return Refusal(f"{NO_RULE} module", WRITE_ONE)
        return self._check(conversion, call, rule)

    @staticmethod
    def _check(conversion: Conversion, call: Call, rule: Rule) -> Refusal | None:
        """Why a call cannot be; one that is not affine may be a difference, and is entered."""
        refusal = rule.check(call)
        if refusal is None or conversion.settings.nonlinear == "error":
            return refusal
        refusal = rule.check_sample(call)
        if refusal is None and call.node in conversion.facts.spiking:
            conversion.differences.add(call.node)
        return refusal

    def _activation(self, conversion: Conversion, call: Call, module: nn.Module) -> Refusal | None:
        facts, sources = conversion.facts, call.sources
        if len(sources) != 1 or sources[0] not in facts.batched:
            return Refusal("is not called with one tensor", "call it with one")
        static = sources[0] not in facts.spiking
        inplace = not static and owned(conversion.model, sources[0])
        site = str(call.node.target)
        return make_neuron(conversion, site, module, static=static, inplace=inplace)

    def _keep(
        self,
        conversion: Conversion,
        site: str,
        module: nn.Module,
        reason: str = "",
        status: str = "kept",
    ) -> None:
        if any(entry.site == site for entry in conversion.report.entries):
            return  # called at several places
        reason = conversion.unfolded.get(site, reason)
        conversion.add(site, type(module).__name__, status, reason)
        if site in conversion.folded:
            conversion.report.entries.append(conversion.folded[site])

    # Functions and methods

    def _function(self, conversion: Conversion, node: fx.Node) -> None:
        facts = conversion.facts
        call, rule = Call(node, conversion.model, facts), rule_of(node, conversion.model)
        if rule is not None and (number := rule.number(call)) is not None:
            facts.numbers[node] = number
            # Of a number that was made of a spiking tensor's sizes it is known, too.
            if number is not Size.PLAIN and any(s in facts.spiking for s in call.sources):
                facts.spiking.add(node)
            return
        if rule is not None and node not in facts.ranks and (rank := rule.rank(call)) is not None:
            facts.ranks[node] = rank
        if rule is not None and rule.makes_list:
            facts.lists.add(node)
        refusal = self._function_refusal(conversion, call, rule)
        if rule is not None and refusal is None and rule.per_sample(call):
            # As many as the batch that the size is of: with a spiking tensor's, one a step, too.
            facts.leading.add(node)
            if any(source in facts.spiking for source in call.sources):
                facts.spiking.add(node)
                facts.fixed.add(node)
        if node in facts.spiking:
            refusal = refusal or self._unsure(call)
            if self._follows(conversion, node, rule):
                return
            if refusal is not None:
                conversion.refuse(site_of(node), label_of(node), refusal, node)
                return
            curved = node in conversion.differences
            status, reason = ("difference", OF_MEANS) if curved else ("kept", "")
            conversion.add(site_of(node), label_of(node), status, reason)
        elif node in facts.batched:
            # Whatever it is, it runs as in the ANN, but for sizes of tensors that have a time.
            self._static_sizes(conversion, call, rule, refusal)
            if refusal is None:
                facts.keep_order(node)
            conversion.add(site_of(node), label_of(node), "kept", "static, runs once")
        if rule is None or not rule.leads(call) or self._batch_sizes(call, rule):
            facts.lose_batch(node)

    def _follows(self, conversion: Conversion, node: fx.Node, rule: Rule | None) -> bool:
        """Whether a call reads what was refused: what is not known of that may be why it is refused
        itself, unless it would be whatever it reads.
        """
        follows = any(source in conversion.refused for source in node.all_input_nodes)
        if follows:
            conversion.refused.add(node)
        ever: tuple[type[Rule], ...] = (Refused, MaxPool, Rectifier)
        if conversion.settings.nonlinear == "error":
            ever = (*ever, Curved)
        return follows and rule is not None and not isinstance(rule, ever)

    def _function_refusal(
        self, conversion: Conversion, call: Call, rule: Rule | None
    ) -> Refusal | None:
        if rule is None:
            return Refusal(f"{NO_RULE} function", WRITE_ONE)
        if self._batch_sizes(call, rule):
            return BATCH_SIZE
        return self._check(conversion, call, rule)

    def _batch_sizes(self, call: Call, rule: Rule | None) -> list[fx.Node]:
        """Numbers that may know the batch, but for those that the rule lets stand for it."""
        numbers, free = call.facts.numbers, rule.free_sizes(call) if rule is not None else ()
        known = ((source, numbers.get(source, Size.PLAIN)) for source in call.sources)
        return [source for source, size in known if size is not Size.PLAIN and source not in free]

    def _static_sizes(
        self, conversion: Conversion, call: Call, rule: Rule | None, refusal: Refusal | None
    ) -> None:
        """Refuse sizes of spiking tensors in what is static, but where they stand for the batch."""
        wrong = self._batch_sizes(call, rule if refusal is None else None)
        if any(source in conversion.facts.spiking for source in wrong):
            conversion.refuse(site_of(call.node), label_of(call.node), SPIKING_SIZE, call.node)

    def _unsure(self, call: Call) -> Refusal | None:
        """Where several tensors meet, each must be known to have the batch in front."""
        facts = call.facts
        batched = [s for s in facts.tensors(call.node) if s in facts.batched]
        unsure = ", ".join(s.name for s in batched if s not in facts.leading)
        if len(batched) < 2 or not unsure or facts.in_step(batched):
            return None
        return self._unknown_batch(facts, unsure)

    @staticmethod
    def _unknown_batch(facts: Facts, names: str) -> Refusal:
        if facts.seen is not None:
            return Refusal(
                f"the first dimension of {names} is not the batch", "bring the batch to the front"
            )
        return Refusal(
            f"whether {names} has the batch as its first dimension is not known",
            "pass example_input",
        )
