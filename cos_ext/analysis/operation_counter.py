"""Counting the operations of a running network: every ATen operation is looked at, whichever way it
was called.

What follows from the counts is in energy_results.py, what is known of an operation in aten.py.
Nothing here changes a network.
"""

from __future__ import annotations

import math
import threading
from collections import Counter
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ..conversion.graphs import owner_of
from ..network.finite import Shown
from ..network.modules import Walked
from ..network.network import SpikingNetwork
from ..network.over_time import Difference, RunningMean, UnfitOverTime
from . import aten
from .layer_count import LayerCount
from .sent_levels import SentLevels

# The ends of a stretch on running means.
ENDS = (RunningMean, Difference)

Call = tuple[str, int]  # a layer's site, and the number of its call in a pass


class Origin(NamedTuple):
    """What is known of a tensor of the running network."""

    # 0 is a constant, 1 depends on the network's input, 2 on spikes: time is folded into its first
    # dimension.
    level: int = 0
    # Unless the steps are elsewhere, or some are left out.
    moved: bool = False
    # The calls of layers that it depends on, with no neurons between.
    layers: frozenset[Call] = frozenset()
    # The neurons that it depends on, with no others between.
    sites: frozenset[str] = frozenset()
    # Whether there are running means, or differences of such, with no neurons between.
    means: bool = False


def _input(x: Origin, weight: Origin) -> str:
    """What a layer reads, as far as it follows from where its factors come from."""
    if max(x.level, weight.level) == 1:
        return "static"
    if weight.level > 0:
        return "product"
    return "graded" if x.means else ""


class OperationCounter(TorchDispatchMode):
    """Runs a network and counts what its ATen operations do.

    Attributes:
        layers: what was counted, by call.
        neurons: how many, of all samples, by site in order of execution.
        readers: of the spikes of a site: other neurons; None is the output.
        uncounted: elements that operations which are not counted go through, of all samples and
            steps.
    """

    def __init__(self, network: SpikingNetwork) -> None:
        super().__init__()
        self.network, self.steps = network, network._steps
        self.walked = isinstance(network.module, Walked)
        self.layers: dict[Call, LayerCount] = {}
        self.neurons: dict[str, int] = {}
        self.readers: dict[str, set[str | None]] = {}
        self.uncounted: Counter[str] = Counter()
        self._refused: dict[str, None] = {}
        self._fan_outs: dict[Any, tuple[Tensor, int]] = {}
        self._origins, self._levels = WeakTensorKeyDictionary(), SentLevels()
        self._mixed = any(node.neuron is not None for node in network.nodes().values())
        self._paused = False
        self._calls: Counter[str] = Counter()  # of layers, by site, in this pass
        self.here = [("forward", "")]  # site and kind of what is running

    def run(self, inputs: list[Tensor]) -> None:
        """Count one batch. ValueError if something in it cannot be counted."""
        self._origins, self._calls = WeakTensorKeyDictionary(), Counter()
        self._levels = SentLevels()
        # In inference mode operations would reach this mode before they are broken up into those
        # that it knows; fused attention would not be broken up at all.
        with torch.inference_mode(False), torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            # Copies: an operation in place may be the first to read them.
            inputs = [x.clone() for x in inputs]
            for x in inputs:
                self._origins[x] = Origin(1)
            with self:
                outputs = self._outputs(inputs)
        if self._refused:
            raise ValueError(
                "network computes in ways that cannot be counted:\n" + "\n".join(self._refused)
            )
        for origin in map(self._of, outputs):
            for key in origin.layers:
                self.layers[key].readers.add(None)
            for site in origin.sites:
                self.readers[site].add(None)

    def _outputs(self, inputs: list[Tensor]) -> tuple[Any, ...]:
        module = self.network.module
        if isinstance(module, fx.GraphModule):
            return _Interpreter(module, self).run(*inputs)
        assert isinstance(module, Walked)
        return self._walk(module, inputs)

    def _walk(self, walked: Walked, inputs: list[Tensor]) -> tuple[Any, ...]:
        """A module that is no graph, with hooks that say which of its modules is running."""
        handles, own = [], threading.get_ident()  # another thread may run the network, too

        def enter(place: tuple[str, str], module: nn.Module, args: Any) -> None:
            if threading.get_ident() == own:
                self.here.append(place)
                self._paused = isinstance(module, ENDS)

        def leave(module: nn.Module, args: Any, out: Any) -> None:
            if threading.get_ident() == own:
                self.here.pop()
                if isinstance(module, ENDS):
                    self._ended(module, args[0], out)

        try:
            for name, module in walked.model.named_modules():
                place = (name or "forward", module._get_name())
                handles.append(module.register_forward_pre_hook(partial(enter, place)))
                handles.append(module.register_forward_hook(leave))
            return walked(*inputs)
        finally:
            del self.here[1:]
            for handle in handles:
                handle.remove()

    def _of(self, tensor: Any) -> Origin:
        return self._origins.get(tensor, Origin()) if isinstance(tensor, Tensor) else Origin()

    def _set(self, tensor: Any, origin: Origin) -> None:
        if isinstance(tensor, Tensor):
            self._origins[tensor] = origin

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if self._paused:
            return func(*args, **kwargs)
        name = func._schema.name.split("::")[1]
        if func.namespace == "cos_ext":
            return self._neurons(func, name, args, kwargs)
        sources = [self._of(leaf) for leaf in tree_leaves((args, kwargs))]
        level = max((source.level for source in sources), default=0)
        out = func(*args, **kwargs)
        if level == 0:
            return out
        moved = any(source.moved for source in sources)
        moved = moved or (level == 2 and aten.moves_time(name, args, kwargs))
        layers = frozenset[Call]().union(*(source.layers for source in sources))
        sites = frozenset[str]().union(*(source.sites for source in sources))
        if self._multiplies(name, args):
            layers = layers | self._product(name, args, out)
        elif aten.is_opaque(name):
            self._refuse(name, "has no rule")
        elif level == 2 and not func.is_view and name not in aten.MOVES:
            self._note_uncounted(name, args, kwargs, out)
        means = any(source.means for source in sources)
        self._pass_on(func, args, out, Origin(level, moved, layers, sites, means))
        if level == 2:
            self._levels.follow(func, args, kwargs, out)
        return out

    def _pass_on(self, func: Any, args: tuple[Any, ...], out: Any, origin: Origin) -> None:
        """Note where the results of an operation come from, and what it wrote into."""
        for leaf in tree_leaves(out):
            self._set(leaf, origin)
        for argument, value in zip(func._schema.arguments, args):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self._set(value, origin)
                # Whatever else looks at that memory.
                self._set(getattr(value, "_base", None), origin)

    def _note_uncounted(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any
    ) -> None:
        read = [leaf for leaf in tree_leaves((args, kwargs)) if self._of(leaf).level == 2]
        made = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        self.uncounted[name.strip("_")] += max(tensor.numel() for tensor in (*read, *made))

    def _refuse(self, name: str, reason: str) -> None:
        site, kind = self.here[-1]
        self._refused[f"  {site} ({kind or 'forward'}, {name}): {reason}"] = None

    def _neurons(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operators of neurons: x_seq ``[S, *neurons]`` first. Their spikes are written over
        it, or the first result.
        """
        if name.rstrip("_") not in ("if_forward", "cos_forward", "general_forward"):
            raise ValueError(
                f"network must emit spikes step by step to be counted; {self.here[-1][0]} calls "
                f"{name}"
            )
        site, x_seq = self.here[-1][0], args[0]
        origin = self._of(x_seq)
        for key in origin.layers:
            self.layers[key].readers.add(site)
        for source in origin.sites:
            self.readers[source].add(site)
        self.neurons[site] = self.neurons.get(site, 0) + x_seq.numel() // x_seq.shape[0]
        self.readers.setdefault(site, set())
        out = func(*args, **kwargs)
        made = (x_seq, *tree_leaves(out)) if name.endswith("_") else tree_leaves(out)
        for leaf in made:
            self._set(leaf, Origin(2, sites=frozenset([site])))
        if name.startswith("general"):
            self._levels.sent(func, args, made[0])
        elif self._mixed:
            self._levels.sent_ones(made[0])
        return out

    def end(self, module: nn.Module, x: Tensor) -> Tensor:
        """Run an end of a stretch on running means."""
        self._paused = True
        out: Tensor = module(x)
        self._ended(module, x, out)
        return out

    def _ended(self, module: nn.Module, x: Tensor, out: Tensor) -> None:
        """Take an end, which has run unseen, for one operation."""
        self._paused, origin = False, self._of(x)
        self._set(out, origin._replace(means=True))
        if origin.level == 2:
            name = "running_mean" if isinstance(module, RunningMean) else "difference"
            self.uncounted[name] += x.numel()

    def _multiplies(self, name: str, args: tuple[Any, ...]) -> bool:
        """Whether it is a product that is counted: of matrices, or element by element of two
        tensors that depend on the network's input. Scaling by constants is none.
        """
        levels = [self._of(args[position]).level for position in aten.PRODUCTS.get(name, ())]
        return bool(levels) and (name not in aten.ELEMENTWISE or min(levels) > 0)

    def _product(self, name: str, args: tuple[Any, ...], out: Tensor) -> frozenset[Call]:
        """Count one multiplication by weights, or of two tensors; its key, or none where both
        factors are constants.
        """
        x, weight = (args[position] for position in aten.PRODUCTS[name])
        origin, other, levels = self._of(x), self._of(weight), self._levels.of(x)
        if origin.level == 0 and name != "convolution":  # a constant matrix from the left
            x, weight, levels = weight.mT, x.mT, self._levels.of(weight)
            origin, other, levels = other, origin, None if levels is None else levels.mT
        level = max(origin.level, other.level)
        if level == 0:
            return frozenset()
        site, kind = self.here[-1]
        key = (site, self._calls[site])
        self._calls[site] += 1
        reason = self._why_not(name, x, weight, (origin, other)) if level == 2 else ""
        if reason:
            self._refuse(name, reason)
            return frozenset()
        layer = self.layers.setdefault(key, LayerCount(kind or name, _input(origin, other)))
        fan_out: Tensor | int = weight.shape[-1]
        if name == "convolution":
            fan_out, total = self._fan_out(x, args, out)
            macs = x.shape[0] * x.shape[1] * total
        else:
            macs = out.numel() if name in aten.ELEMENTWISE else x.numel() * weight.shape[-1]
        # Of a static layer, too, where a model that is no graph runs it at every step.
        layer.macs += macs // (self.steps if level == 2 or self.walked else 1)
        if level == 2 and other.level == 0:
            if name != "convolution":  # by rows, time slowest
                x, levels = x.flatten(0, -2), None if levels is None else levels.flatten(0, -2)
            layer.see(x, fan_out, self.steps, levels)
        return frozenset([key])

    def _why_not(self, name: str, x: Tensor, weight: Tensor, origins: tuple[Origin, Origin]) -> str:
        """Why a product with spikes in it cannot be counted; "" where it can."""
        of_two = origins[1].level > 0
        if of_two and name == "convolution":
            return "its weights depend on the network's input"
        # One matrix for all of them is how matmul multiplies a tensor that it cannot fold.
        batches = name in ("bmm", "baddbmm") and x.shape[0] > 1
        if batches and not of_two and weight.stride(0) != 0:
            return (
                "a product of batches of matrices has no rule where time is folded into the batch"
            )
        rows = x.shape[0] if name == "convolution" else math.prod(x.shape[:-1])
        if any(origin.moved for origin in origins) or (rows % self.steps and not of_two):
            return "the first dimension of its input is not time, with the batch"
        return ""

    def _fan_out(self, x: Tensor, args: tuple[Any, ...], out: Tensor) -> tuple[Tensor, int]:
        """Outputs that an input at each position ``[*space]`` reaches, and their sum."""
        weight, (stride, padding, dilation, transposed, _, groups) = args[1], args[3:9]
        sizes = (x.shape[2:], out.shape[2:], weight.shape)
        settings = (*map(tuple, (stride, padding, dilation)), transposed, groups)
        key = (*sizes, *settings, x.device)
        if key not in self._fan_outs:
            total = aten.reached(
                x.shape[2:],
                out.shape[2:],
                weight.shape[2:],
                weight.shape[1] if transposed else weight.shape[0] // groups,
                stride=stride,
                padding=padding,
                dilation=dilation,
                transposed=transposed,
            )
            self._fan_outs[key] = (total.to(x.device), int(total.sum()))
        return self._fan_outs[key]


class _Interpreter(fx.Interpreter):
    """Runs a traced network and says which of its nodes is running."""

    def __init__(self, module: fx.GraphModule, counter: OperationCounter) -> None:
        super().__init__(module)
        self.counter = counter

    def run_node(self, node: fx.Node) -> Any:
        """One node of the graph, its name and kind noted before."""
        target = node.target
        if node.op == "call_module":
            assert isinstance(target, str)
            module = self.fetch_attr(target)
            if isinstance(module, (Shown, UnfitOverTime, *ENDS)):
                first = self.fetch_args_kwargs_from_env(node)[0][0]
                # The others compute nothing.
                return self.counter.end(module, first) if isinstance(module, ENDS) else first
            place = (target, module._get_name())
        else:
            owner = owner_of(node)
            kind = target if isinstance(target, str) else getattr(target, "__name__", "")
            place = (f"{owner + ': ' if owner else ''}{node.name}", kind)
        self.counter.here[-1] = place
        return super().run_node(node)
