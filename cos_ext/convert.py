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
ADDITIONS = (operator.add, operator.iadd, torch.add)
SHAPE_ATTRIBUTES = ("shape", "ndim", "dtype", "device")
# Modules whose output is a fresh tensor that nothing else holds, so that a single reader may overwrite it.
FRESH = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear, *BATCH_NORMS,
         nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)  # fmt: skip


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
    `report` lists what the conversion did.
    """

    def __init__(
        self, module: nn.Module, report: ConversionReport, timesteps: int, rho: int, iterations: int | None
    ) -> None:
        super().__init__()
        self.module = module
        self.report = report
        self._configure(timesteps, rho, iterations)

    def _configure(self, timesteps: int, rho: int, iterations: int | None) -> None:
        if isinstance(timesteps, bool) or not isinstance(timesteps, int):
            raise TypeError(f"timesteps must be an int, got {type(timesteps).__name__}")
        if timesteps < 1:
            raise ValueError(f"timesteps must be >= 1, got {timesteps}")
        # A node of its own checks rho and iterations first, so that a bad value leaves every node as it was.
        steps = max(timesteps, rho) if isinstance(rho, int) else timesteps
        IFNode(timesteps=steps, rho=rho, iterations=iterations)
        for module in self.modules():
            if isinstance(module, IFNode):
                module.configure(steps, rho, iterations)
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


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, (QCFS, IFNode)) or super().is_leaf_module(module, qualified_name)


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
    IFNode(
        timesteps=max(timesteps, rho) if isinstance(timesteps, int) and isinstance(rho, int) else timesteps,
        rho=rho,
        iterations=iterations,
    )  # fmt: skip  (validates all three)
    model = copy.deepcopy(model).eval()
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # tracing runs the model's own code, which can raise anything on a proxy
        raise ConversionError(f"{type(model).__name__} cannot be traced by torch.fx: {error}") from error

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
def _check_trace(model: nn.Module, graph: fx.Graph, example_input: Tensor) -> None:
    """ConversionError unless the traced graph computes what the model computes on the example.

    Tracing cannot see that two names share memory: `y = x; x += 1` changes y in the model, and not in the graph.
    """
    expected = model(example_input.clone())
    traced = fx.GraphModule(model, graph)(example_input.clone())
    if not torch.allclose(traced, expected, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise ConversionError(
            f"the traced graph of {type(model).__name__} differs from the model on example_input by up to "
            f"{(traced - expected).abs().max().item():.3g}; look for in-place operations on tensors that are read again"
        )


class _Planner:
    """Classifies every node of the traced graph, then rewrites it. Nothing is changed unless everything converts."""

    def __init__(self, model: nn.Module, graph: fx.Graph, thresholds: dict[str, float | Tensor]) -> None:
        self.model, self.graph, self.thresholds = model, graph, thresholds
        self.report = ConversionReport()
        self.sites: set[str] = set()
        self.neurons: dict[fx.Node, IFNode] = {}
        self.spiking: set[fx.Node] = set()

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
            if node.op == "call_module":
                self._module(node, self.model.get_submodule(node.target), calls[node.target])
            elif node.op in ("call_function", "call_method"):
                self._function(node)
            elif node.op == "output" and not isinstance(node.args[0], fx.Node):
                self._refuse("forward", "output", "one tensor output is supported")
        for name, module in self.model.named_modules():
            if name not in calls and isinstance(module, (*ACTIVATIONS, *MAX_POOLS)):
                self.report.entries.append(
                    Entry(name, type(module).__name__, "unused", reason="forward does not call it")
                )
        if not self.report.unsupported():
            if not self.neurons:
                self._refuse("forward", type(self.model).__name__, "there is no activation module to convert")
            elif not any(node.op == "output" and node in self.spiking for node in self.graph.nodes):
                self._refuse("forward", "output", "the output does not depend on any activation")

    def _refuse(self, site: str, kind: str, reason: str) -> None:
        self.report.entries.append(Entry(site, kind, "unsupported", reason=reason))

    def _keep(self, site: str, kind: str, reason: str = "") -> None:
        self.report.entries.append(Entry(site, kind, "kept", reason=reason))

    def _module(self, node: fx.Node, module: nn.Module, calls: int) -> None:
        site, kind = node.target, type(module).__name__
        if isinstance(module, ACTIVATIONS) and type(module) in ACTIVATIONS:
            self.sites.add(site)
            self._activation(node, module, calls)
        elif type(module) in BATCH_NORMS:
            if module.track_running_stats:
                self._keep(site, kind, "in place, with its running statistics")
            else:
                self._refuse(
                    site, kind, "has no running statistics, so its output would depend on the other time-steps"
                )
        elif type(module) is nn.Flatten:
            if module.start_dim >= 1:
                self._keep(site, kind)
            else:
                self._refuse(site, kind, f"start_dim={module.start_dim} may merge the batch, into which time is folded")
        elif isinstance(module, MAX_POOLS):
            self._refuse(site, kind, "max pooling does not commute with the mean over time; use average pooling")
        elif type(module) in KEPT:
            self._keep(site, kind)
        elif isinstance(module, IFNode):
            self._refuse(site, kind, "the model is spiking already")
        else:
            self._refuse(site, kind, "no rule converts this module")

    def _activation(self, node: fx.Node, module: nn.Module, calls: int) -> None:
        site, kind = node.target, type(module).__name__
        if calls > 1:
            if not any(entry.site == site for entry in self.report.entries):
                self._refuse(site, kind, f"one module object is called at {calls} places; give each its own")
            self.spiking.add(node)
            return
        if getattr(module, "inplace", False) and self._read_later(node):
            self._refuse(site, kind, "works in place on a tensor that is read again afterwards; use inplace=False")
            self.spiking.add(node)
            return
        given = self.thresholds.get(site, module.threshold.detach() if isinstance(module, QCFS) else None)
        source = "from thresholds" if site in self.thresholds else "learned"
        static = not any(argument in self.spiking for argument in node.all_input_nodes)
        self.spiking.add(node)
        if given is None:
            self._refuse(site, kind, "has no threshold of its own; give one in thresholds={...}")
            return
        try:
            # timesteps is set by the network; static_input needs one from the start.
            neuron = IFNode(given, timesteps=1, static_input=static, inplace=self._may_overwrite(node, static))
        except (TypeError, ValueError) as error:
            self._refuse(site, kind, str(error))
            return
        reference = next((p for p in (*module.parameters(), *self.model.parameters()) if p.is_floating_point()), None)
        if reference is not None:
            neuron.to(device=reference.device, dtype=reference.dtype)
        self.neurons[node] = neuron
        theta = neuron.v_threshold
        shown = f"{theta.item():.6g}" if theta.dim() == 0 else f"{theta.min().item():.4g}..{theta.max().item():.4g}"
        reason = source + ("; static input, read once" if static else "")
        self.report.entries.append(Entry(site, kind, "converted", shown, reason))

    def _read_later(self, node: fx.Node) -> bool:
        (source,) = node.all_input_nodes
        order = {other: index for index, other in enumerate(self.graph.nodes)}
        return any(order[user] > order[node] for user in source.users)

    def _may_overwrite(self, node: fx.Node, static: bool) -> bool:
        (source,) = node.all_input_nodes
        if static or len(source.users) != 1:
            return False
        if source.op == "call_module":
            return type(self.model.get_submodule(source.target)) in FRESH
        # Not operator.iadd: its result is the memory of its first operand, which others may read.
        return source.op == "call_function" and source.target in (operator.add, torch.add)

    def _function(self, node: fx.Node) -> None:
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        site = self._where(node)
        if node.target in ADDITIONS or name in ("add", "add_"):
            if any(self._is_size(source) for source in node.all_input_nodes):
                self._refuse(site, name, "adds a size, which changes when time is folded into the batch")
            else:
                self._keep(site, name)
        elif name == "getattr":
            if node.args[1] not in SHAPE_ATTRIBUTES:
                self._refuse(site, f"getattr {node.args[1]}", "no rule converts this attribute")
        elif name == "getitem":
            if not self._is_size(node):
                self._refuse(site, name, "indexing could pick from the batch, into which time is folded")
        elif name in ("cat", "concat", "concatenate"):
            dim = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", node.kwargs.get("axis", 0))
            self._per_sample(site, name, [dim])
        elif name == "flatten":
            start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
            self._per_sample(site, name, [start], last=False)
        elif name in ("mean", "sum"):
            dims = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)
            self._per_sample(site, name, dims if isinstance(dims, (tuple, list)) else [dims])
        elif name in ("view", "reshape"):
            shape = node.args[1:] if not isinstance(node.args[1], (tuple, list)) else node.args[1]
            first, rest = shape[0], shape[1:]
            own = isinstance(first, fx.Node) and self._is_size(first)
            if any(isinstance(size, fx.Node) and not self._is_size(size) for size in shape):
                self._refuse(site, name, "its sizes are computed")
            elif (first == -1 and -1 not in rest) or (
                own and (node.args[0] in self.spiking) == (first in self.spiking)
            ):
                self._keep(site, name)
            else:
                self._refuse(site, name, f"its first size {first} fixes the batch, into which time is folded")
        elif name == "dropout":
            training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", True)
            if training is False:
                self._keep(site, name)
            else:
                self._refuse(site, name, "is active in evaluation too; pass training=self.training")
        elif name in ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d", "contiguous"):
            self._keep(site, name)
        elif name != "size":
            self._refuse(site, name, "no rule converts this function; activations must be modules")

    def _per_sample(self, site: str, name: str, dims, last: bool = True) -> None:
        # Dimension 0 is the batch. A negative one may be it, depending on the rank; -1 is not, nor are -2 and -1 together.
        negative = {dim for dim in dims if isinstance(dim, int) and dim < 0}
        if all(isinstance(dim, int) and dim != 0 for dim in dims) and (
            last and negative in ({-1}, {-1, -2}) or not negative
        ):
            self._keep(site, name)
        else:
            self._refuse(
                site, name, f"dim {list(dims)} may be the batch, into which time is folded; count from the front"
            )

    def _is_size(self, node: fx.Node) -> bool:
        """Whether `node` is a number taken from a shape: x.size(0), x.shape[0], x.shape."""
        if node.op == "call_method" and node.target == "size":
            return True
        if node.op == "call_function" and node.target is getattr:
            return node.args[1] == "shape"
        return node.op == "call_function" and node.target is operator.getitem and self._is_size(node.args[0])

    def _from_input(self) -> set[fx.Node]:
        """The nodes that depend on the model's input, unlike parameters, which have no batch."""
        found: set[fx.Node] = set()
        for node in self.graph.nodes:
            if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
                found.add(node)
        return found

    def _where(self, node: fx.Node) -> str:
        stack = node.meta.get("nn_module_stack") or {}
        owner = next(reversed(stack), "") if stack else ""
        return f"{owner + ': ' if owner else ''}{node.name}"

    def rewrite(self) -> None:
        for node, neuron in self.neurons.items():
            parent, _, leaf = node.target.rpartition(".")
            setattr(self.model.get_submodule(parent), leaf, neuron)
        batched = self._from_input()
        broadcasts: dict[fx.Node, fx.Node] = {}
        for node in list(self.graph.nodes):
            if node.op not in ("call_function", "call_method") or node not in self.spiking:
                continue
            for source in node.all_input_nodes:
                if source in self.spiking or source not in batched or self._is_size(source):
                    continue
                if source not in broadcasts:
                    name = f"time_broadcast_{len(broadcasts)}"
                    self.model.add_module(name, TimeBroadcast(1))
                    with self.graph.inserting_after(source):
                        broadcasts[source] = self.graph.call_module(name, (source,))
                node.replace_input_with(source, broadcasts[source])
        self.graph.lint()
