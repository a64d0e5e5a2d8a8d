"""Conversion of a trained ANN into a SpikingNetwork: tracing, the rules of what converts, and the report of what was done.

Neurons are in neuron.py; evaluation is in evaluate.py.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as TF

from .neuron import IFNode
from .qcfs import QCFS

ACTIVATIONS = (nn.ReLU, QCFS)
# Linear per sample and step, so that they commute with the mean over time and with time folded into the batch.
KEPT = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, nn.Identity,
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d,
)  # fmt: skip
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
MAX_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
# Functions and methods that have a rule, by the name of the rule. Anything else is refused.
FUNCTIONS = {
    operator.add: "sum", torch.add: "sum", operator.iadd: "add_", getattr: "getattr", operator.getitem: "getitem",
    torch.cat: "cat", torch.concat: "cat", torch.concatenate: "cat", torch.flatten: "flatten", torch.mean: "mean",
    torch.sum: "mean", torch.reshape: "view", TF.dropout: "dropout", TF.avg_pool1d: "pool", TF.avg_pool2d: "pool",
    TF.avg_pool3d: "pool", TF.adaptive_avg_pool1d: "pool", TF.adaptive_avg_pool2d: "pool", TF.adaptive_avg_pool3d: "pool",
}  # fmt: skip
METHODS = {
    "add": "sum", "add_": "add_", "flatten": "flatten", "mean": "mean", "sum": "mean", "view": "view", "reshape": "view",
    "size": "size", "contiguous": "contiguous",
}  # fmt: skip
NUMBERS = ("shape", "ndim", "dtype", "device")  # attributes of a tensor that are no tensors
# Modules whose output is a fresh tensor that nothing else holds; and those that may hand on the memory of their input.
FRESH = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, *BATCH_NORMS,
         nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, *ACTIVATIONS)  # fmt: skip
ALIASING = (nn.Identity, nn.Flatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d)
RANKS = {
    nn.Conv1d: 3, nn.ConvTranspose1d: 3, nn.AvgPool1d: 3, nn.AdaptiveAvgPool1d: 3, nn.Conv2d: 4, nn.ConvTranspose2d: 4,
    nn.BatchNorm2d: 4, nn.AvgPool2d: 4, nn.AdaptiveAvgPool2d: 4, nn.Conv3d: 5, nn.ConvTranspose3d: 5, nn.BatchNorm3d: 5,
    nn.AvgPool3d: 5, nn.AdaptiveAvgPool3d: 5,
}  # fmt: skip


@dataclass(frozen=True)
class Entry:
    """One line of a report: a module or call site, what it is, what became of it, its threshold, and why."""

    site: str
    kind: str
    status: str  # converted, kept, unused or unsupported
    threshold: str = ""
    reason: str = ""


@dataclass
class ConversionReport:
    """What convert() did with every module and call site, in execution order. Prints as a table."""

    entries: list[Entry] = field(default_factory=list)

    def unsupported(self) -> list[Entry]:
        return [entry for entry in self.entries if entry.status == "unsupported"]

    def __str__(self) -> str:
        rows = [("call site", "kind", "status", "threshold", "reason")]
        rows += [(e.site, e.kind, e.status, e.threshold, e.reason) for e in self.entries]
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


class ConversionError(ValueError):
    """The model cannot be converted. `.report` has every offending module and call site; the message lists them all."""

    def __init__(self, message: str, report: ConversionReport | None = None) -> None:
        super().__init__(message)
        self.report = report or ConversionReport()


class TimeBroadcast(nn.Module):
    """Repeats a static tensor [B, ...] over time, [T*B, ...], where it meets a spiking one."""

    def __init__(self, timesteps: int) -> None:
        super().__init__()
        self.timesteps = timesteps

    def forward(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0).expand(self.timesteps, *x.shape).flatten(0, 1)


class SpikingNetwork(nn.Module):
    """A converted network. Input: the ANN's, [B, ...]; output: [T, B, ...], one per time-step.

    `timesteps`, `rho` and `iterations` can be changed at any time. Hidden layers run max(timesteps, rho) steps. Everything
    before the first neurons runs once per image, not once per step. In eval mode, and no parameter requires a gradient.
    `report` lists what the conversion did. Neurons write over their input where nothing else reads it, so a hook that keeps
    the output of the layer before them must clone it.
    """

    def __init__(
        self, module: nn.Module, report: ConversionReport, timesteps: int, rho: int, iterations: int | None
    ) -> None:
        super().__init__()
        self.module = module
        self.report = report
        self._configure(timesteps, rho, iterations)

    def _configure(self, timesteps: int, rho: int, iterations: int | None) -> None:
        steps = _check_settings(timesteps, rho, iterations)  # first, so that a bad value leaves every node as it was
        for module in self.modules():
            if isinstance(module, IFNode):
                module.configure(timesteps=steps, rho=rho, iterations=iterations)
            elif isinstance(module, TimeBroadcast):
                module.timesteps = steps
        self._timesteps, self._rho, self._iterations = timesteps, rho, iterations

    @property
    def timesteps(self) -> int:
        return self._timesteps

    @property
    def rho(self) -> int:
        return self._rho

    @property
    def iterations(self) -> int | None:
        return self._iterations

    @timesteps.setter
    def timesteps(self, value: int) -> None:
        self._configure(value, self._rho, self._iterations)

    @rho.setter
    def rho(self, value: int) -> None:
        self._configure(self._timesteps, value, self._iterations)

    @iterations.setter
    def iterations(self, value: int | None) -> None:
        self._configure(self._timesteps, self._rho, value)

    def nodes(self) -> dict[str, IFNode]:
        """The neurons by call site, in execution order."""
        return {e.site: self.module.get_submodule(e.site) for e in self.report.entries if e.status == "converted"}

    def forward(self, x: Tensor) -> Tensor:
        """x [B, ...] to per-step outputs [T, B, ...]."""
        out = self.module(x)
        return out.unflatten(0, (max(self._timesteps, self._rho), x.shape[0]))[: self._timesteps]

    def rate(self, x: Tensor) -> Tensor:
        """The mean over time of :meth:`forward`, [B, ...]."""
        return self(x).mean(0)


def _check_settings(timesteps: int, rho: int, iterations: int | None) -> int:
    """The steps that hidden layers run; TypeError or ValueError where the settings do not fit."""
    if isinstance(timesteps, bool) or not isinstance(timesteps, int):
        raise TypeError(f"timesteps must be an int, got {type(timesteps).__name__}")
    if timesteps < 1:
        raise ValueError(f"timesteps must be >= 1, got {timesteps}")
    steps = max(timesteps, rho) if isinstance(rho, int) else timesteps
    IFNode(timesteps=steps, rho=rho, iterations=iterations)  # knows what rho and iterations may be
    return steps


class _Proxy(fx.Proxy):
    """fx takes `y += z` for an addition, which hides that it changes whatever else shares y's memory."""

    def __iadd__(self, other):
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, (QCFS, IFNode)) or super().is_leaf_module(module, qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def convert(model: nn.Module, *, timesteps: int, rho: int = 0, iterations: int | None = 1,
            thresholds: Mapping[str, float | Tensor] | None = None, max_pool: str = "error", fold_batchnorm: bool = True,
            example_input: Tensor | None = None) -> SpikingNetwork:  # fmt: skip
    """Turn a trained ANN into a spiking network; the model itself is not modified.

    Every nn.ReLU and QCFS module becomes an IFNode. A QCFS brings its threshold; a ReLU needs an entry in `thresholds`.
    Convolutions, Linear, BatchNorm (in eval mode), average pooling, Flatten, Dropout, additions and concatenations stay.

    Args:
        model: any torch.fx-traceable module with one tensor input and one tensor output.
        timesteps: T >= 1.
        rho: steps to watch for calibration, 0 for none; may exceed timesteps.
        iterations: of the calibration; None is until exact.
        thresholds: by activation call site (the module's name), a float or a tensor that broadcasts to its neurons.
        max_pool: "error": a max pooling is an offender.
        fold_batchnorm: BatchNorm is kept in place at present, whatever is given here; the report says so.
        example_input: a [B, ...] input on the model's device. If given, the traced graph is compared with the model on it,
            and the network is run on it once, so that what tracing cannot see, and shape errors, show here.

    Raises:
        ConversionError: listing every module and call site that cannot be converted, an activation module that is called at
            several places, and activations without a threshold, all at once.
        TypeError, ValueError: another argument is wrong.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    if max_pool != "error":
        raise ValueError(f"max_pool must be 'error', got {max_pool!r}")
    _check_settings(timesteps, rho, iterations)
    if thresholds is not None and not isinstance(thresholds, Mapping):
        raise TypeError(f"thresholds must be a mapping of call sites to thresholds, got {type(thresholds).__name__}")
    if example_input is not None and not isinstance(example_input, Tensor):
        raise TypeError(f"example_input must be a tensor, got {type(example_input).__name__}")
    name = type(model).__name__
    try:
        model = copy.deepcopy(model).eval()
        graph = _Tracer().trace(model)
    except Exception as error:  # both run the model's own code, and tracing can raise anything on a proxy
        raise ConversionError(f"{name} cannot be copied and traced by torch.fx: {error}") from error

    planner = _Planner(model, graph, dict(thresholds or {}))
    planner.plan()
    offenders = planner.report.unsupported()
    if offenders:
        listed = "\n".join(f"  {e.site} ({e.kind}): {e.reason}" for e in offenders)
        raise ConversionError(
            f"{type(model).__name__} cannot be converted; {len(offenders)} offending:\n{listed}", planner.report
        )
    unknown = sorted(set(thresholds or {}) - planner.sites)
    if unknown:
        raise ValueError(
            f"thresholds names {unknown}, which are no activation call sites; those are {sorted(planner.sites)}"
        )
    if example_input is not None:
        _check_trace(model, graph, example_input)
    planner.rewrite()
    module = fx.GraphModule(model, graph, type(model).__name__).eval().requires_grad_(False)
    network = SpikingNetwork(module, planner.report, timesteps, rho, iterations).eval()
    if example_input is not None:
        network(example_input)
    return network


@torch.no_grad()
def _check_trace(model: nn.Module, graph: fx.Graph, example: Tensor) -> None:
    """ConversionError unless the traced graph is the model, sample by sample, on the example.

    Tracing cannot see everything, and an operation that mixes the samples of a batch would mix the time-steps.
    """
    # In float64: in float32 a larger batch may round a sum across a level of a QCFS activation, which proves nothing.
    name, model, example = type(model).__name__, copy.deepcopy(model).double(), example.double()
    traced = fx.GraphModule(model, copy.deepcopy(graph))

    def differ(ours: Tensor, theirs: Tensor) -> bool:
        return ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-6, atol=1e-9, equal_nan=True)

    try:
        expected = model(example.clone())
    except (RuntimeError, ValueError, TypeError) as error:
        raise ConversionError(f"{name} does not run on example_input in float64: {error}") from error
    if differ(traced(example.clone()), expected):
        raise ConversionError(
            f"the traced graph of {name} differs from the model on example_input; look for in-place operations on tensors "
            "that are read again"
        )
    try:
        both = traced(torch.cat([example, 2 * example]))
    except (RuntimeError, ValueError) as error:
        raise ConversionError(f"{name} does not take a batch twice as large as example_input: {error}") from error
    if differ(both, torch.cat([expected, model(2 * example)])):
        raise ConversionError(f"the output of {name} for a sample depends on the other samples of the batch")


class _Planner:
    """Classifies every node of the traced graph, then rewrites it. Nothing is changed unless everything converts."""

    def __init__(self, model: nn.Module, graph: fx.Graph, thresholds: dict[str, float | Tensor]) -> None:
        self.model, self.graph, self.thresholds = model, graph, thresholds
        self.report = ConversionReport()
        self.sites: set[str] = set()
        self.neurons: dict[fx.Node, IFNode] = {}
        self.spiking: set[fx.Node] = set()  # depend on an activation: time is folded into their batch
        self.batched: set[fx.Node] = set()  # depend on the model's input, unlike parameters, which have no batch
        self.numbers: set[fx.Node] = set()  # sizes, dtypes: no tensors
        self.rank: dict[fx.Node, int] = {}  # number of dimensions, where it is known

    def plan(self) -> None:
        calls: dict[str, int] = {}
        for node in self.graph.nodes:
            if node.op == "call_module":
                calls[node.target] = calls.get(node.target, 0) + 1
        inputs = [node for node in self.graph.nodes if node.op == "placeholder"]
        if len(inputs) != 1:
            self._refuse("forward", "input", f"one tensor input is supported, the model takes {len(inputs)}")
        for node in self.graph.nodes:
            if any(source in self.spiking for source in node.all_input_nodes):
                self.spiking.add(node)
            if node.op == "placeholder" or any(source in self.batched for source in node.all_input_nodes):
                self.batched.add(node)
            if node.op == "call_module":
                self._module(node, self.model.get_submodule(node.target), calls[node.target])
            elif node.op in ("call_function", "call_method"):
                self._function(node)
            elif node.op == "output" and not isinstance(node.args[0], fx.Node):
                self._refuse("forward", "output", "one tensor output is supported")
        for name, module in self.model.named_modules():
            if name not in calls and isinstance(module, (*ACTIVATIONS, *MAX_POOLS)):
                self._add(name, type(module).__name__, "unused", "forward does not call it")
        if not self.report.unsupported():
            if not self.neurons:
                self._refuse("forward", type(self.model).__name__, "there is no activation module to convert")
            elif not any(node.op == "output" and node in self.spiking for node in self.graph.nodes):
                self._refuse("forward", "output", "the output does not depend on any activation")

    def _add(self, site: str, kind: str, status: str, reason: str = "", threshold: str = "") -> None:
        self.report.entries.append(Entry(site, kind, status, threshold, reason))

    def _refuse(self, site: str, kind: str, reason: str) -> None:
        self._add(site, kind, "unsupported", reason)

    def _module(self, node: fx.Node, module: nn.Module, calls: int) -> None:
        site, kind = node.target, type(module).__name__
        sources = node.all_input_nodes
        if type(module) in RANKS:
            self.rank[node] = RANKS[type(module)]
        elif type(module) is nn.Flatten and module.start_dim == 1 and module.end_dim == -1:
            self.rank[node] = 2
        elif type(module) is not nn.Flatten and sources and sources[0] in self.rank:
            self.rank[node] = self.rank[sources[0]]

        activation = type(module) in ACTIVATIONS
        if activation:
            self.sites.add(site)
        if module._forward_hooks or module._forward_pre_hooks:
            reason = "has forward hooks, which would see time-steps or be lost"
        elif len(sources) != 1 or sources[0] not in self.batched:
            reason = "is not called with one tensor that depends on the model's input"
        elif activation:
            reason = self._activation(node, module, calls)
        elif type(module) in BATCH_NORMS:
            known = module.running_mean is not None and module.running_var is not None
            reason = "" if known else "has no running statistics, so its output would depend on the other time-steps"
        elif type(module) is nn.Flatten:
            merges = module.start_dim < 1
            reason = f"start_dim={module.start_dim} may merge the batch, into which time is folded" if merges else ""
        elif isinstance(module, MAX_POOLS):
            reason = "max pooling does not commute with the mean over time; use average pooling"
        elif isinstance(module, IFNode):
            reason = "the model is spiking already"
        else:
            reason = "" if type(module) in KEPT else "no rule converts this module"
        if activation:
            self.spiking.add(node)
        if reason:
            if not any(entry.site == site and entry.reason == reason for entry in self.report.entries):
                self._refuse(site, kind, reason)
        elif not activation:
            self._add(
                site, kind, "kept", "in place, with its running statistics" if type(module) in BATCH_NORMS else ""
            )

    def _activation(self, node: fx.Node, module: nn.Module, calls: int) -> str:
        """Make the neuron and its entry, or say why not."""
        site, (source,) = node.target, node.all_input_nodes
        if calls > 1:
            return f"one module object is called at {calls} places; give each its own"
        if getattr(module, "inplace", False) and not self._owned(source):
            return "works in place on a tensor that others may read; use inplace=False"
        given = self.thresholds.get(site, module.threshold.detach() if isinstance(module, QCFS) else None)
        if given is None:
            return "has no threshold of its own; give one in thresholds={...}"
        static = source not in self.spiking
        reference = next((p for p in (*module.parameters(), *self.model.parameters()) if p.is_floating_point()), None)
        try:
            # timesteps is set by the network; static_input needs one from the start.
            neuron = IFNode(given, timesteps=1, static_input=static, inplace=not static and self._owned(source))
            if reference is not None:
                neuron.to(device=reference.device, dtype=reference.dtype)
        except (TypeError, ValueError) as error:
            return str(error)
        self.neurons[node] = neuron
        theta = neuron.v_threshold
        shown = f"{theta.item():.6g}" if theta.dim() == 0 else f"{theta.min().item():.4g}..{theta.max().item():.4g}"
        origin = "from thresholds" if site in self.thresholds else "learned"
        self._add(
            site, type(module).__name__, "converted", origin + ("; static input, read once" if static else ""), shown
        )
        return ""

    def _owned(self, node: fx.Node) -> bool:
        """Whether one reader alone sees this tensor's memory, so that it may be overwritten."""
        if len(node.users) != 1:
            return False
        if node.op == "call_module":
            module = type(self.model.get_submodule(node.target))
            return module in FRESH or (module in ALIASING and self._owned(node.all_input_nodes[0]))
        rule = self._rule(node)
        if rule in ("sum", "cat", "mean", "pool"):
            return True
        return rule in ("add_", "flatten", "view", "contiguous", "dropout") and self._owned(node.args[0])

    def _rule(self, node: fx.Node) -> str | None:
        if node.op == "call_method":
            return METHODS.get(node.target)
        return FUNCTIONS.get(node.target) if node.op == "call_function" else None

    def _function(self, node: fx.Node) -> None:
        rule = self._rule(node)
        kind = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        stack = node.meta.get("nn_module_stack") or {}
        owner = next(reversed(stack), "") if stack else ""
        site = f"{owner + ': ' if owner else ''}{node.name}"
        source = node.args[0] if node.args and isinstance(node.args[0], fx.Node) else None
        if source in self.rank:
            self.rank[node] = self.rank[source]  # the rules that change it say so
        if rule is None:
            reason = "no rule converts this function; activations must be modules"
        elif rule == "size" or (rule == "getattr" and node.args[1] in NUMBERS):
            self.numbers.add(node)
            return
        elif rule == "getitem" and source in self.numbers:
            self.numbers.add(node)
            return
        else:
            reason = getattr(self, f"_{rule}")(node, source)
        if reason:
            self._refuse(site, kind, reason)
        else:
            self._add(site, kind, "kept")

    # One method a rule: the reason why the call cannot be kept, or "".

    def _getattr(self, node: fx.Node, source: fx.Node | None) -> str:
        return f"no rule converts the attribute {node.args[1]}"

    def _getitem(self, node: fx.Node, source: fx.Node | None) -> str:
        return "indexing could pick from the batch, into which time is folded"

    def _pool(self, node: fx.Node, source: fx.Node | None) -> str:
        return ""

    def _contiguous(self, node: fx.Node, source: fx.Node | None) -> str:
        return ""

    def _add_(self, node: fx.Node, source: fx.Node | None) -> str:
        owned = source is not None and self._owned(source)
        return self._sum(node, source) if owned else "adds in place to a tensor that others may read; write y = y + z"

    def _sum(self, node: fx.Node, source: fx.Node | None) -> str:
        sized = any(source in self.numbers for source in node.all_input_nodes)
        ranks = [self.rank[source] for source in node.all_input_nodes if source in self.rank]
        if ranks:
            self.rank[node] = max(ranks)
        return "adds a size, which changes when time is folded into the batch" if sized else ""

    def _dropout(self, node: fx.Node, source: fx.Node | None) -> str:
        training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
        return "" if training is False else "is active in evaluation too; pass training=self.training"

    def _cat(self, node: fx.Node, source: fx.Node | None) -> str:
        parts = node.args[0] if node.args else node.kwargs.get("tensors", ())
        first = next((part for part in parts if part in self.rank), None) if isinstance(parts, (tuple, list)) else None
        if first is not None:
            self.rank[node] = self.rank[first]
        return self._per_sample(node, node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0), first)

    def _flatten(self, node: fx.Node, source: fx.Node | None) -> str:
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
        reason = self._per_sample(node, start, source)
        self.rank.pop(node, None)
        if start == 1 and end == -1:
            self.rank[node] = 2
        return reason

    def _mean(self, node: fx.Node, source: fx.Node | None) -> str:
        dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", ())
        reason = self._per_sample(node, dims, source)
        keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        if keeps is not True and node in self.rank:
            self.rank[node] -= len(dims) if isinstance(dims, (tuple, list)) else 1
        return reason

    def _per_sample(self, node: fx.Node, dims, source: fx.Node | None) -> str:
        """Refuse dimensions that are, or may be, the batch; a negative one needs a known rank."""
        dims = list(dims) if isinstance(dims, (tuple, list)) else [dims]
        rank = self.rank.get(source)
        fine = dims and all(
            isinstance(dim, int) and (dim >= 1 or (dim < 0 and rank is not None and dim + rank >= 1)) for dim in dims
        )
        return "" if fine else f"dim {dims} may be the batch, into which time is folded; count from the front"

    def _view(self, node: fx.Node, source: fx.Node | None) -> str:
        shape = node.args[1:] or (node.kwargs.get("shape", node.kwargs.get("size", ())),)
        if len(shape) == 1 and isinstance(shape[0], (tuple, list)):
            shape = shape[0]
        self.rank.pop(node, None)
        if len(shape) < 2 or not all(isinstance(size, int) for size in shape[1:]):
            return f"to shape {tuple(shape)}: the batch must be a dimension of its own, and the others plain numbers"
        self.rank[node] = len(shape)
        own = self._is_batch_size(shape[0]) and (shape[0] in self.spiking) == (source in self.spiking)
        if own or (shape[0] == -1 and -1 not in shape[1:]):
            return ""
        return f"its first size {shape[0]} fixes the batch, into which time is folded"

    def _is_batch_size(self, size) -> bool:
        """Whether `size` is x.size(0) or x.shape[0]."""
        if not isinstance(size, fx.Node) or size not in self.numbers:
            return False
        if size.op == "call_method":
            return (size.args[1] if len(size.args) > 1 else size.kwargs.get("dim")) == 0
        return size.target is operator.getitem and size.args[1] == 0

    def rewrite(self) -> None:
        for node in self.graph.nodes:
            node.type = None  # annotations that are strings would keep the network from being pickled
        for node, neuron in self.neurons.items():
            parent, _, leaf = node.target.rpartition(".")
            setattr(self.model.get_submodule(parent), leaf, neuron)
            node.args, node.kwargs = (node.all_input_nodes[0],), {}
        broadcasts: dict[fx.Node, fx.Node] = {}
        for node in list(self.graph.nodes):
            if node.op not in ("call_function", "call_method") or node not in self.spiking or node in self.numbers:
                continue
            for source in node.all_input_nodes:
                if source in self.spiking or source not in self.batched or source in self.numbers:
                    continue
                if source not in broadcasts:
                    name = f"time_broadcast_{len(broadcasts)}"
                    self.model.add_module(name, TimeBroadcast(1))
                    with self.graph.inserting_after(source):
                        broadcasts[source] = self.graph.call_module(name, (source,))
                node.replace_input_with(source, broadcasts[source])
        self.graph.lint()
