"""Tracing an ANN, and its activation call sites: every one a module of its own, in order of
execution. What an activation is, rules/rectifiers.py says; no spiking neurons here.
"""

from __future__ import annotations

import ast
import copy
import inspect
import operator
import re
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import FunctionType

import torch
from torch import Tensor, fx, nn
from torch.fx._symbolic_trace import _assert_is_none
from torch.utils._pytree import tree_leaves

from .._batches import Inputs
from ..network.outputs import Outputs
from ..network.pooling import MAX_POOLS
from ..neuron import IFNode
from ..qcfs import QCFS
from .attention import write_out
from .copying import beside, copied, refuse_wrappers
from .forced import agree
from .graphs import become_module, called, free_name, label_of, quiet_fakes, set_module
from .lines import line_of, reason
from .rules import rule_for
from .rules.rectifiers import Rectifier, Signed, is_rectifier
from .signed import Place, Places
from .tracer import Tracer
from .two_batches import record

TYPES = ("isinstance", "is_tensor")


@dataclass
class Traced:
    """A copy of a model in eval mode that computes what the model does, with one module per
    activation call site.

    module: an fx.GraphModule, or, where the model could not be traced, the copy itself.
    sites: the activation modules by call site; in order of execution, or, untraced, of
        registration.
    origin: what stood at a site in the model, as a report names it.
    inputs: which of forward's arguments are inputs.
    why_not: why the model could not be traced.
    lines: of the source, by the node's name.
    uncalled: modules that forward does not call.
    shapes: of the inputs without the batch, where control flow looked at them.
    ran_on: where the model was traced by running it, empty inputs of those shapes and dtypes.
    asks: classes whose forward asks for types, which tracing answers wrongly.
    signed: those of the sites where signed neurons stand.
    outputs: the structure of what it gives, as a flat tuple; None where it could not be traced.
    """

    module: nn.Module
    sites: dict[str, nn.Module]
    origin: dict[str, str]
    inputs: Inputs
    why_not: str = ""
    lines: dict[str, str] = field(default_factory=dict)
    uncalled: dict[str, nn.Module] = field(default_factory=dict)
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    ran_on: dict[str, Tensor] = field(default_factory=dict)
    asks: list[str] = field(default_factory=list)
    outputs: Outputs | None = None

    @property
    def signed(self) -> tuple[str, ...]:
        return tuple(site for site, module in self.sites.items() if isinstance(module, Signed))

    @property
    def graph(self) -> fx.Graph | None:
        return self.module.graph if isinstance(self.module, fx.GraphModule) else None


def _asks(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether forward calls one of these: what is traced is no Tensor, so that another branch may
    be taken.
    """
    if isinstance(module, (QCFS, IFNode)) or type(module).__module__.startswith("torch.nn."):
        return False  # a leaf of the trace
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(type(module).forward)))
    except (OSError, TypeError, SyntaxError):  # there is no source to look at
        return False
    calls = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return any(getattr(f, "id", getattr(f, "attr", "")) in names for f in calls)


def _graph_of(model: nn.Module, inputs: Inputs, tracer: Tracer) -> fx.Graph:
    """What is no input keeps its default, so that tracing takes the branches that a call without it
    takes, and is no argument of the graph.

    Raises:
        ValueError: an argument is read although it has its default.
    """
    for module in model.modules():
        if _asks(module, ("hasattr",)):
            raise ValueError(
                f"forward of {type(module).__name__} asks hasattr, which tracing answers wrongly"
            )
    graph = tracer.trace(model, concrete_args=dict(inputs.fixed) or None)
    wanted = set(inputs.names)
    for node in list(graph.nodes):
        name = str(node.target)
        if node.op == "placeholder" and name in wanted:
            wanted.remove(name)
            continue
        given = {name, re.sub(r"_\d+$", "", name)}  # fx numbers them, the parts of a tuple on
        if node.op == "placeholder" and given & inputs.fixed.keys():
            _erase_with_assertions(graph, node)
    return graph


@dataclass
class _Found:
    """A copy of a model and its graph; or None, and why there is none."""

    own: nn.Module
    graph: fx.Graph | None
    why_not: str = ""
    ran: bool = False  # traced by running it
    looked: bool = False  # at shapes, which are the examples' then
    outputs: Outputs | None = None


def _find(model: nn.Module, inputs: Inputs, examples: Mapping[str, Tensor], runs: bool) -> _Found:
    """The graph of torch.fx, which is for any shapes; where that fails, the one of a run."""
    found = _Found(copied(model), None) if runs else _by_fx(model, inputs)
    if not examples or (
        found.graph is not None
        and not _has_wrapped(found.graph)
        and _is_right(found, model, inputs, examples)
    ):
        return found
    try:
        with quiet_fakes():
            recorded = record(model, inputs, examples)
    except Exception as error:  # a model's own forward can raise anything
        found.why_not = reason(error) if found.graph is None else ""
        return found
    own = write_out(copied(model))
    for name, value in recorded.constants.items():
        setattr(own, name, value)
    return _Found(own, recorded.graph, "", True, recorded.looked, recorded.outputs)


def _has_wrapped(graph: fx.Graph) -> bool:
    """Whether a call is one of a function that torch.fx.wrap hides, and that no rule knows: a run
    sees what it calls.
    """
    return any(
        node.op == "call_function"
        and isinstance(node.target, FunctionType)
        and not node.target.__module__.startswith("torch.")
        and rule_for(node.target) is None
        for node in graph.nodes
    )


def _by_fx(model: nn.Module, inputs: Inputs) -> _Found:
    """What torch.fx makes of a model, or why it fails."""
    why = ""
    for buffers in (True, False):  # some models look at the numbers in their buffers
        try:
            # In another copy: forward may leave what was traced on its modules.
            scratch, tracer = write_out(copied(model, share=True)), Tracer(buffers)
            graph = _graph_of(scratch, inputs, tracer)
        except Exception as error:  # a model's own forward can raise anything on a proxy
            why = why or reason(error)
            continue
        own = write_out(copied(model))
        for node in graph.nodes:  # tensors that forward makes are attributes since then
            name = str(node.target)
            if node.op == "get_attr" and name in vars(scratch).keys() - vars(own).keys():
                setattr(own, name, vars(scratch)[name])
        return _Found(own, graph, outputs=tracer.outputs)
    return _Found(copied(model), None, why)


@torch.no_grad()
def _is_right(
    found: _Found, model: nn.Module, inputs: Inputs, examples: Mapping[str, Tensor]
) -> bool:
    """Whether a graph computes what the model does on a sample; looked at where forward asks for
    types, which torch.fx answers as for no tensor.
    """
    if not any(_asks(module, TYPES) for module in model.modules()):
        return True
    sample = [x[:1].clone() for x in examples.values()]
    try:
        ours = fx.Interpreter(beside(found.own), graph=found.graph).run(
            *(x.clone() for x in sample)
        )
        pairs = zip(tree_leaves(ours), tree_leaves(inputs.call(beside(model), sample)))
        return all(agree(*pair) for pair in pairs)
    except Exception:  # of the model's own code, or of a wrong graph
        return False


def _erase_with_assertions(graph: fx.Graph, node: fx.Node) -> None:
    """Erase an argument, and what fx adds to assert that it has its default."""
    dead, doomed = [node], {node: None}
    while dead:
        for user in dead.pop().users:
            doomed[user] = None
            dead.append(user)
    for user in reversed(list(doomed)):
        asserts = user.target in (operator.eq, torch._assert, _assert_is_none)
        if user is not node and (user.op != "call_function" or not asserts):
            raise ValueError(f"{node.target} is read although it has its default")
        if not user.users:
            graph.erase_node(user)


def trace(
    model: nn.Module,
    inputs: Inputs | None = None,
    examples: Mapping[str, Tensor] | None = None,
    *,
    spikes: str = "rectifiers",
    runs: bool = False,
) -> Traced:
    """Trace a model; where that cannot be done, its copy and `why_not`. The model itself is not
    modified.

    Every call of an activation, be it a module (also one that is called at several places), a
    function or a method, becomes the call of a module of its own. The first call of a module keeps
    its name; later ones get `_1`, `_2`, ...; a function's site is named after the module in whose
    forward it stands. Where signed neurons are to stand, an identity is a site, too.

    Args:
        model: the ANN.
        inputs: of its arguments; None: those without a default.
        examples: by name, where there are some. What torch.fx cannot trace is run on their shapes.
        spikes: where neurons stand, one of signed.CHOICES.
        runs: torch.fx is not tried.

    Raises:
        TypeError: model is not an nn.Module.
        ConversionError: it cannot be copied, or has hooks or a patched forward of its own.
    """
    refuse_wrappers(model)
    name = type(model).__name__
    inputs, examples = inputs or Inputs.of(model), examples or {}
    found = _find(model, inputs, examples, runs)
    own, graph = found.own, found.graph
    if graph is None:
        sites = {path: module for path, module in own.named_modules() if is_rectifier(module)}
        origin = {site: type(module).__name__ for site, module in sites.items()}
        return Traced(own, sites, origin, inputs, found.why_not)
    traced = Traced(own, {}, {}, inputs, outputs=found.outputs)
    if found.looked:
        traced.shapes = [tuple(x.shape[1:]) for x in examples.values()]
    if found.ran:
        traced.ran_on = {name: x[:0].clone() for name, x in examples.items()}
    pools: set[str] = set()
    places = Places(own, graph)
    for node in list(graph.nodes):
        if node.op == "call_module":
            _own_pool(own, node, pools)
        if spikes == "inputs":
            _enter(traced, places.before(node))
            continue
        if node.op == "call_module":
            _module_site(traced, node)
        elif node.op in ("call_function", "call_method"):
            _function_site(traced, node)
        if spikes == "activations":
            _enter(traced, places.after(node))
    graph.lint()
    reached = {node.target for node in graph.nodes if node.op == "call_module"}
    traced.lines = {node.name: line_of(node) for node in graph.nodes}
    traced.uncalled = {path: m for path, m in own.named_modules() if path not in reached}
    traced.asks = sorted({type(m).__name__ for m in own.modules() if _asks(m, TYPES)})
    traced.module = fx.GraphModule(own, graph, name).eval()
    return traced


def _enter(traced: Traced, places: list[Place]) -> None:
    for place in places:
        traced.sites[place.site], traced.origin[place.site] = place.module, place.origin


def _own_pool(root: nn.Module, node: fx.Node, pools: set[str]) -> None:
    """Give each call of a max pooling a module of its own: what becomes of one need not become of
    the others, and it has no parameters.
    """
    module = called(root, node)
    if not isinstance(module, MAX_POOLS) or len(node.all_input_nodes) != 1:
        return
    if str(node.target) in pools:
        node.target = free_name(root, str(node.target))
        set_module(root, node.target, copy.deepcopy(module))
    pools.add(str(node.target))


def _module_site(traced: Traced, node: fx.Node) -> None:
    """Enter the call of an activation module, a further call of one module as a copy of it."""
    module, site = called(traced.module, node), str(node.target)
    if not is_rectifier(module):
        return
    origin = type(module).__name__
    if site in traced.sites:
        origin = f"{origin}, a further call of {site}"
        node.target = site = free_name(traced.module, site)
        module = copy.deepcopy(module)
        set_module(traced.module, site, module)
    if len(node.all_input_nodes) == 1:
        node.args, node.kwargs = (node.all_input_nodes[0],), {}
    traced.sites[site], traced.origin[site] = module, origin


def _function_site(traced: Traced, node: fx.Node) -> None:
    """Make an activation function the call of a module, and enter it."""
    rule = rule_for(node.target)
    made = rule.stand_in(node) if isinstance(rule, Rectifier) else None
    if made is None or len(node.all_input_nodes) != 1:
        return
    label = label_of(node)
    site = become_module(traced.module, node, label.strip("_"), made)
    traced.sites[site], traced.origin[site] = made, label
