"""Tracing an ANN, and its activation call sites: every one a module of its own, in order of
execution.

What becomes of them is convert.py's and calibrate.py's business; no spiking neurons and no rules of
conversion here.
"""

from __future__ import annotations

import ast
import copy
import inspect
import operator
import re
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx, nn
from torch.fx._symbolic_trace import _assert_is_none
from torch.nn import functional as TF

from ..network.pooling import MAX_POOLS
from ..neuron import IFNode
from ..qcfs import QCFS
from .report import ConversionError

_TORCH = Path(torch.__file__).parent
ACTIVATIONS = (nn.ReLU, nn.ReLU6, nn.Hardtanh, QCFS)


@dataclass
class Traced:
    """A copy of a model in eval mode that computes what the model does, with one module per
    activation call site.

    module: an fx.GraphModule, or, where the model could not be traced (`why_not` says why), the
    copy itself. sites: the activation modules (nn.ReLU, nn.ReLU6, nn.Hardtanh, QCFS) by call site;
    in order of execution, or, untraced, of registration. origin: what stood at a site in the model,
    as a report names it.
    """

    module: nn.Module
    sites: dict[str, nn.Module]
    origin: dict[str, str]
    why_not: str = ""
    lines: dict[str, str] = field(default_factory=dict)  # of the source, by the node's name
    uncalled: dict[str, nn.Module] = field(
        default_factory=dict
    )  # modules that forward does not call
    asks: list[str] = field(
        default_factory=list
    )  # classes whose forward asks for types, which tracing answers wrongly

    @property
    def graph(self) -> fx.Graph | None:
        return self.module.graph if isinstance(self.module, fx.GraphModule) else None


def clip_of(module: nn.Module) -> float | None:
    """Where the activation saturates: b of min(max(x, 0), b), or None (nn.ReLU, which does not;
    QCFS, which has its own θ).
    """
    return float(module.max_val) if isinstance(module, nn.Hardtanh) else None


def changed(module: nn.Module) -> bool:
    """Whether a module does not do what its class does: hooks, or a forward that was set on the
    object.
    """
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def is_activation(module: nn.Module) -> bool:
    """Whether a module is a rectifier that integrate-and-fire neurons can stand for; subclasses may
    compute anything.
    """
    if "forward" in vars(module):
        return False
    if type(module) is nn.Hardtanh:
        return module.min_val == 0 and module.max_val > 0
    return type(module) in ACTIVATIONS


class _Proxy(fx.Proxy):
    """fx takes `y += z` for an addition, which hides that it changes whatever else shares y's
    memory.
    """


def _in_place(function: Callable) -> Callable:
    return lambda self, other: self.tracer.create_proxy(
        "call_function", function, (self, other), {}
    )


for _name in ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "imatmul"):
    setattr(_Proxy, f"__{_name}__", _in_place(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    record_stack_traces = True

    def is_leaf_module(self, module: nn.Module, qualified_name: str) -> bool:
        return isinstance(module, (QCFS, IFNode)) or super().is_leaf_module(module, qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _relu(node: fx.Node) -> nn.Module | None:
    inplace = (
        argument(node, 1, "inplace", False)
        if node.target is TF.relu
        else node.target in (torch.relu_, TF.relu_, "relu_")
    )
    return nn.ReLU(inplace) if isinstance(inplace, bool) else None


def _relu6(node: fx.Node) -> nn.Module | None:
    inplace = argument(node, 1, "inplace", False)
    return nn.ReLU6(inplace) if isinstance(inplace, bool) else None


def _hardtanh(node: fx.Node) -> nn.Module | None:
    low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
    inplace = argument(node, 3, "inplace", False) or node.target is TF.hardtanh_
    return _clip(low, high, inplace)


def _clamp(node: fx.Node) -> nn.Module | None:
    low, high = argument(node, 1, "min", None), argument(node, 2, "max", None)
    inplace = str(node.target).endswith("_") or node.target in (torch.clamp_,)
    if isinstance(low, (int, float)) and low == 0 and high is None:
        return nn.ReLU(inplace)
    return _clip(low, high, inplace)


def _clip(low, high, inplace) -> nn.Module | None:
    numbers = all(isinstance(value, (int, float)) for value in (low, high))
    return nn.Hardtanh(0.0, float(high), inplace) if numbers and low == 0 and high > 0 else None


# Functions and methods that are activations: what makes the module that stands for a call, or None
# where it is another function.
FUNCTIONS: dict[Callable | str, Callable[[fx.Node], nn.Module | None]] = {
    TF.relu: _relu,
    torch.relu: _relu,
    torch.relu_: _relu,
    TF.relu_: _relu,
    "relu": _relu,
    "relu_": _relu,
    TF.relu6: _relu6,
    TF.hardtanh: _hardtanh,
    TF.hardtanh_: _hardtanh,
    torch.clamp: _clamp,
    torch.clip: _clamp,
    torch.clamp_: _clamp,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_": _clamp,
    "clip_": _clamp,
}


def argument(node: fx.Node, position: int, name: str, default=None):
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def owner_of(node: fx.Node) -> str:
    """The name of the module in whose forward a node stands; "" is the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack), "") if stack else ""


def _line_of(node: fx.Node) -> str:
    """The line of the model's source that made a node, as `file.py:12: code`; "" where it is not
    known.
    """
    frames = re.findall(r'File "(.+)", line (\d+), in .*\n\s*(.*)', node.stack_trace or "")
    for path, number, code in reversed(frames):
        if not Path(path).is_relative_to(_TORCH) and path != __file__:
            return f"{Path(path).name}:{number}: {code.strip()}"
    return ""


def _asks_for_types(module: nn.Module) -> bool:
    """Whether forward has isinstance or torch.is_tensor in it: what is traced is no Tensor, so that
    another branch may be taken.
    """
    if isinstance(module, (QCFS, IFNode)) or type(module).__module__.startswith(
        "torch.nn."
    ):  # leaves of the trace
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(module).forward)))
    except (OSError, TypeError, SyntaxError):  # there is no source to look at
        return False
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(
        getattr(f, "id", getattr(f, "attr", "")) in ("isinstance", "is_tensor") for f in calls
    )


def set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path whose parent exists."""
    parent, _, leaf = path.rpartition(".")
    root.get_submodule(parent).add_module(leaf, module)


def attribute(root: nn.Module, path: str):
    """What a get_attr node reads."""
    for name in path.split("."):
        root = getattr(root, name)
    return root


def free_name(root: nn.Module, path: str) -> str:
    """The path, or the first of path_1, path_2, ... that no attribute of its parent has."""
    parent, _, leaf = path.rpartition(".")
    holder, number, name = root.get_submodule(parent), 0, leaf
    while hasattr(holder, name):
        number += 1
        name = f"{leaf}_{number}"
    return f"{parent}.{name}" if parent else name


def _trace_with_defaults(model: nn.Module) -> fx.Graph:
    """Arguments of forward that have a default keep it, so that tracing takes the branches that a
    plain call takes.
    """
    parameters = inspect.signature(type(model).forward).parameters.values()
    defaults = {p.name: p.default for p in parameters if p.default is not p.empty}
    graph = _Tracer().trace(model, concrete_args=defaults or None)
    for node in [
        node
        for node in graph.nodes
        if node.op == "placeholder" and str(node.target).lstrip("*") in defaults
    ]:
        dead, doomed = [node], [node]
        while dead:  # the assertions that fx adds
            for user in dead.pop().users:
                doomed.append(user)
                dead.append(user)
        for user in reversed(doomed):
            if user is not node and (
                user.op != "call_function"
                or user.target not in (operator.eq, torch._assert, _assert_is_none)
            ):
                raise ValueError(f"{node.target} is read although it has its default")
            if not user.users:
                graph.erase_node(user)
    return graph


def trace(model: nn.Module) -> Traced:
    """Trace a model; where that cannot be done, its copy and `why_not`. The model itself is not
    modified.

    Every call of an activation, be it a module (also one that is called at several places), a
    function or a method, becomes the call of a module of its own. The first call of a module keeps
    its name; later ones get `_1`, `_2`, ...; a function's site is named after the module in whose
    forward it stands.

    Raises:
        TypeError: model is not an nn.Module.
        ConversionError: it cannot be copied, or has hooks or a patched forward of its own.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    name = type(model).__name__
    try:
        own = copy.deepcopy(model).eval()
    except Exception as error:  # a model's own code can raise anything
        raise ConversionError(f"{name} cannot be copied: {error}") from error
    if (
        own._forward_hooks
        or own._forward_pre_hooks
        or "forward" in vars(own)
        or type(own).__call__ is not nn.Module.__call__
    ):
        raise ConversionError(
            f"{name} has hooks, a forward that was set on the object, or a __call__ of its own; "
            "none can be traced"
        )
    try:
        graph = _trace_with_defaults(own)
    except Exception as error:  # so can its forward on a proxy
        sites = {path: module for path, module in own.named_modules() if is_activation(module)}
        origin = {site: type(module).__name__ for site, module in sites.items()}
        return Traced(own, sites, origin, str(error).strip().split("\n")[0] or type(error).__name__)
    sites, origin, pools = {}, {}, set()
    for node in list(graph.nodes):
        if node.op == "call_module":
            module = own.get_submodule(node.target)
            if isinstance(module, MAX_POOLS) and len(node.all_input_nodes) == 1:
                # Without parameters, so that each call can have its own: what becomes of one need
                # not become of the others.
                if node.target in pools:
                    node.target = free_name(own, node.target)
                    set_module(own, node.target, copy.deepcopy(module))
                pools.add(node.target)
            if not is_activation(module):
                continue
            if node.target in sites:
                origin_name = f"{type(module).__name__}, a further call of {node.target}"
                node.target = free_name(own, node.target)
                module = copy.deepcopy(module)
                set_module(own, node.target, module)
            else:
                origin_name = type(module).__name__
            if len(node.all_input_nodes) == 1:
                node.args, node.kwargs = (node.all_input_nodes[0],), {}
            sites[node.target], origin[node.target] = module, origin_name
        elif node.op in ("call_function", "call_method") and node.target in FUNCTIONS:
            made = FUNCTIONS[node.target](node)
            if made is None or len(node.all_input_nodes) != 1:
                continue
            label = node.target if isinstance(node.target, str) else node.target.__name__
            owner = owner_of(node)
            site = free_name(own, f"{owner}.{label.strip('_')}" if owner else label.strip("_"))
            set_module(own, site, made)
            node.op, node.target, node.args, node.kwargs = (
                "call_module",
                site,
                (node.all_input_nodes[0],),
                {},
            )
            sites[site], origin[site] = made, label
    graph.lint()
    lines = {node.name: _line_of(node) for node in graph.nodes}
    called = {node.target for node in graph.nodes if node.op == "call_module"}
    uncalled = {path: module for path, module in own.named_modules() if path not in called}
    asks = sorted({type(module).__name__ for module in own.modules() if _asks_for_types(module)})
    return Traced(fx.GraphModule(own, graph, name).eval(), sites, origin, "", lines, uncalled, asks)
