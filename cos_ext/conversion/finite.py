"""NaN and infinity: refusing a model that has them, and making a network show those in its input.
What shows them is in network/finite.py.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from ..network.finite import Shown, Unfit
from ..network.outputs import STEPS
from ..network.over_time import Difference, TimeBroadcast, UnfitOverTime
from ..neuron import IFNode
from .graphs import called, free_name, label_of, leaves_of, site_of
from .ownership import owned
from .report import ConversionError
from .rules import Call
from .rules.constants import constant
from .state import Conversion

RUNNING = ("running_mean", "running_var")


def check_loaded(model: nn.Module) -> None:
    """Refuse a model without numbers: with lazy modules, or tensors on the meta device.

    Raises:
        ConversionError: it is such a model.
    """
    if any(is_lazy(x) for x in model.parameters()):
        raise ConversionError(
            f"{type(model).__name__} has lazy modules, which do not know their shapes; run it once "
            "on an input before it is converted"
        )
    if any(x.is_meta for x in (*model.parameters(), *model.buffers())):
        raise ConversionError(
            f"{type(model).__name__} has tensors on the meta device, which have no numbers; load "
            "its weights before, or use load_network for a saved network"
        )


def check_finite(model: nn.Module) -> None:
    """Refuse a model with a parameter or a running statistic that has NaN or infinity, or a
    variance that is not positive, or another buffer with NaN: a mask may be infinite. What
    thresholds may be is known elsewhere.

    Raises:
        ConversionError: naming all of them.
    """
    bad = [name for name, parameter in model.named_parameters() if not _is_finite(parameter)]
    for name, module in model.named_modules():
        variance = getattr(module, "running_var", None)
        eps = getattr(module, "eps", None)  # of a traced module's own forward it is a number there
        wrong = isinstance(variance, Tensor) and (
            variance < 0 if eps is None else variance + eps <= 0
        )
        if isinstance(wrong, Tensor) and wrong.any():
            bad.append(f"1/sqrt({name}.running_var + eps)")
    for name, buffer in model.named_buffers():
        infinite = name.rpartition(".")[2] not in RUNNING
        if not _is_finite(buffer) and not (infinite and not buffer.isnan().any()):
            bad.append(name)
    if bad:
        raise ConversionError(
            f"{type(model).__name__} has NaN or infinite numbers in {', '.join(bad)}; neurons "
            "would hide them, so train or load the model again"
        )


@torch.no_grad()
def _is_finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    # The sum of finite numbers may be infinite, but seldom is, and takes no memory.
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())


class CheckComputed:
    """Refuses NaN in what is computed from parameters: normalised weights, and the constants and
    numbers that forward uses.
    """

    def apply(self, conversion: Conversion) -> None:
        module = conversion.traced.module
        check_finite(module)
        if not isinstance(module, fx.GraphModule):
            return  # a network that is walked shows NaN where neurons are given it
        given: set[fx.Node] = set()  # what depends on the inputs
        bad: dict[str, None] = {}
        for node in module.graph.nodes:
            if node.op == "placeholder" or given.intersection(node.all_input_nodes):
                given.add(node)
                numbers = pytree.tree_leaves((node.args, node.kwargs))
                if any(isinstance(x, float) and math.isnan(x) for x in numbers):
                    bad[f"a number given to {label_of(node)}"] = None
        for node in module.graph.nodes:
            if node not in given and given.intersection(node.users):
                found = constant(Call(node, module, conversion.facts), node)
                if found is not None and found.is_floating_point() and found.isnan().any():
                    bad[f"{site_of(node)} ({label_of(node)})"] = None
        if bad:
            raise ConversionError(
                f"{conversion.name} has NaN in {', '.join(bad)}; neurons would hide it"
            )


class ShowUnfit:
    """Has the output show the samples whose input is NaN or infinite, as NaN: looked for in the
    static tensors that neurons, or sums with spikes, are given, and in the differences.
    """

    def apply(self, conversion: Conversion) -> None:
        model, graph = conversion.model, conversion.graph
        inputs = [node for node in graph.nodes if node.op == "placeholder"]
        watched: dict[fx.Node, bool] = {}  # whether it meets spikes in sums
        for node in graph.nodes:
            module = called(model, node) if node.op == "call_module" else None
            static = isinstance(module, IFNode) and module.static_input
            if static or isinstance(module, TimeBroadcast):
                batched = [x for x in node.all_input_nodes if x in conversion.facts.batched]
                sums = isinstance(module, TimeBroadcast)
                watched.update({x: sums or watched.get(x, False) for x in batched})
        (last,) = (node for node in graph.nodes if node.op == "output")
        leaves, kinds = leaves_of(graph), conversion.outputs.kinds
        by_step = {leaf: "" for leaf, kind in zip(leaves, kinds) if kind == STEPS}
        for leaf in by_step:
            by_step[leaf] = free_name(model, "shown")
            model.add_module(by_step[leaf], Shown(inplace=owned(model, leaf)))
        names = {True: free_name(model, "unfit_sums"), False: free_name(model, "unfit")}
        for sums in set(watched.values()):
            model.add_module(names[sums], Unfit(sums))
        marks = []
        for source, sums in watched.items():
            # At once: what follows may write over it.
            with graph.inserting_after(inputs[-1] if source in inputs else source):
                marks.append(graph.call_module(names[sums], (source,)))
        for node in list(graph.nodes):
            module = called(model, node) if node.op == "call_module" else None
            if isinstance(module, Difference) and list(node.users) != [last]:
                name = free_name(model, "unfit_over_time")
                model.add_module(name, UnfitOverTime())
                with graph.inserting_after(node):
                    marks.append(graph.call_module(name, (node,)))
        with graph.inserting_after(inputs[-1]):
            batch = graph.call_method("size", (inputs[0], 0))
        with graph.inserting_before(last):
            made = {
                leaf: graph.call_module(shown, (leaf, batch, *marks))
                for leaf, shown in by_step.items()
            }
            last.args = (tuple(made.get(leaf, leaf) for leaf in leaves),)
        graph.lint()
