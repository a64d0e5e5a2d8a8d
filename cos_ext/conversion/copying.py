"""The copy of a model that is traced, and what is refused before: wrappers, hooks, patches. Weights
that are computed anew at every call (pruning, weight and spectral norm, parametrizations) are baked
into the copy. Nothing is traced here.
"""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from torch.utils import _pytree as pytree

from .graphs import changed
from .report import ConversionError
from .rules.normalisation import BatchNormAny

# Wrappers by the name of their class, so that what is not used need not be imported.
WRAPPERS = {
    "DistributedDataParallel": "model.module",
    "DataParallel": "model.module",
    "FullyShardedDataParallel": "model.module, with its parameters gathered",
    "OptimizedModule": "model._orig_mod, the model before torch.compile",
    "AveragedModel": "model.module",
}


def copied(model: nn.Module, *, share: bool = False) -> nn.Module:
    """The model's copy in eval mode, if it is one that can be traced or walked.

    Args:
        model: the model.
        share: the copy has the model's weights, which it must not write over.

    Raises:
        TypeError: model is not an nn.Module.
        ConversionError: it is a wrapper, cannot be copied, or has hooks or a patched forward.
    """
    refuse_wrappers(model)
    name = type(model).__name__
    try:
        with torch.no_grad():
            own = beside(model) if share else copy.deepcopy(model, _detached(model)).eval()
            for module in list(own.modules()):
                _bake(module)
            own = _without_sync(own)
    except Exception as error:  # a model's own code can raise anything
        raise ConversionError(f"{name} cannot be copied: {error}") from error
    if changed(own) or type(own).__call__ is not nn.Module.__call__:
        raise ConversionError(
            f"{name} has hooks, a forward that was set on the object, or a __call__ of its own; "
            "none can be traced, so remove them before converting"
        )
    return own


@torch.no_grad()
def beside(model: nn.Module) -> nn.Module:
    """A copy in eval mode to run beside the model, whose weights it shares: what a run leaves on
    modules, the model does not have.
    """
    shared: dict[int, Any] = _detached(model)
    for parameter in model.parameters():
        shared[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    return copy.deepcopy(model, shared).eval()


def refuse_wrappers(model: nn.Module) -> None:
    """Raise where a model, or a part of it, is compiled or wraps another.

    Raises:
        TypeError: it is not an nn.Module.
        ConversionError: it is such a model.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        name, where = type(module).__name__, f" at {path}" if path else ""
        if isinstance(module, torch.jit.ScriptModule):
            raise ConversionError(
                f"{name}{where} is compiled by torch.jit and has no Python forward to trace; pass "
                "the eager model, from which it was scripted or traced"
            )
        if name in WRAPPERS and type(module).__module__.startswith("torch."):
            raise ConversionError(
                f"{name}{where} wraps the model, whose call sites would have other names; pass "
                f"{WRAPPERS[name]}"
            )


def _detached(model: nn.Module) -> dict[int, Any]:
    """A memo for deepcopy: tensors that a run left on modules and that have a graph behind them, as
    copies without. They cannot be copied otherwise.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        own = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        for leaf in pytree.tree_leaves(own):
            if isinstance(leaf, Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    return memo


def _bake(module: nn.Module) -> None:
    """Make weights that are computed at every call parameters, as they are in eval mode."""
    for hook in list(module._forward_pre_hooks.values()):
        if isinstance(hook, prune.BasePruningMethod):
            prune.remove(module, hook._tensor_name)
        elif isinstance(hook, WeightNorm):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)
                torch.nn.utils.remove_weight_norm(module, hook.name)
        elif isinstance(hook, SpectralNorm):
            torch.nn.utils.remove_spectral_norm(module, hook.name)
    if parametrize.is_parametrized(module):
        # By hand: parametrize.remove_parametrizations changes the class, which the original shares.
        names = list(module.parametrizations)  # type: ignore[arg-type]
        values = {name: getattr(module, name).detach().clone() for name in names}
        del module._modules["parametrizations"]
        module.__class__ = type(module).__bases__[0]
        for name, value in values.items():
            module.register_parameter(name, nn.Parameter(value))


def _without_sync(module: nn.Module) -> nn.Module:
    """Every SyncBatchNorm as a BatchNorm, which it is in eval mode."""
    if isinstance(module, nn.SyncBatchNorm):
        sync = module
        module = BatchNormAny(sync.num_features, sync.eps, sync.momentum, sync.affine).eval()
        module.__dict__.update({**vars(sync), "_modules": {}})
        return module
    for name, child in module.named_children():
        if isinstance(child, nn.SyncBatchNorm) or any(
            isinstance(m, nn.SyncBatchNorm) for m in child.modules()
        ):
            module._modules[name] = _without_sync(child)
    return module
