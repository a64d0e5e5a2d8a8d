"""Small helpers for torch.fx graphs and the modules they call. No rules and no spikes here."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import Any, cast

from torch import fx, nn


@contextlib.contextmanager
def quiet_fakes() -> Iterator[None]:
    """What fails on tensors without data is not worth a line in torch's log."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """An argument of a call, given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def leaves_of(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """What a traced graph gives, which is a flat tuple."""
    (last,) = (node for node in graph.nodes if node.op == "output")
    return cast(tuple[fx.Node, ...], last.args[0])


def called(root: nn.Module, node: fx.Node) -> nn.Module:
    """The module that a call_module node calls."""
    return root.get_submodule(str(node.target))


def attribute(root: nn.Module, path: str) -> Any:
    """What a get_attr node reads."""
    value: Any = root
    for name in path.split("."):
        value = getattr(value, name)
    return value


def owner_of(node: fx.Node) -> str:
    """The name of the module in whose forward a node stands; "" is the model itself."""
    stack = node.meta.get("nn_module_stack") or {}
    return next(reversed(stack), "") if stack else ""


def label_of(node: fx.Node) -> str:
    """What a report calls a function or method."""
    return (
        node.target
        if isinstance(node.target, str)
        else getattr(node.target, "__name__", str(node.target))
    )


def site_of(node: fx.Node) -> str:
    """Where a report says that a function or method stands."""
    owner = owner_of(node)
    return f"{owner}: {node.name}" if owner else node.name


def set_module(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a path whose parent exists."""
    parent, _, leaf = path.rpartition(".")
    root.get_submodule(parent).add_module(leaf, module)


def free_name(root: nn.Module, path: str) -> str:
    """The path, or the first of path_1, path_2, ... that no attribute of its parent has."""
    parent, _, leaf = path.rpartition(".")
    holder, number, name = root.get_submodule(parent), 0, leaf
    while hasattr(holder, name):
        number += 1
        name = f"{leaf}_{number}"
    return f"{parent}.{name}" if parent else name


def become_module(root: nn.Module, node: fx.Node, label: str, module: nn.Module) -> str:
    """Make the call of a function the call of a module of its own; returns the module's name."""
    owner, known = owner_of(node), dict(root.named_modules(remove_duplicate=False))
    while owner not in known:  # a graph has not the modules that only call functions
        owner = owner.rpartition(".")[0]
    site = free_name(root, f"{owner}.{label}" if owner else label)
    set_module(root, site, module)
    node.op, node.target = "call_module", site
    node.args, node.kwargs = (node.all_input_nodes[0],), {}
    return site


def changed(module: nn.Module) -> bool:
    """Whether a module does not do what its class does: hooks, or a forward set on the object."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return bool(hooks or "forward" in vars(module))
