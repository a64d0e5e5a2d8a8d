"""Whether a checkpoint fits a model: keys, shapes, dtypes, values and modules, said in one message.

Nothing is read from a file or loaded into a model here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn

from ..qcfs import QCFS
from .architectures import VGG
from .checkpoint_names import BLOCKS, DTYPES, is_threshold

# Networks of the same repositories that cos_ext.models lacks, each by a key that only it has.
_NOT_OURS = {
    "layer1.1.thresh": "vgg16_wobn of ANN_SNN_QCFS: no BatchNorm, and max pooling",
    "conv1.3.weight": "resnet20p of ANN2SNN_COS: a stem of three convolutions",
    "conv2_x.0.residual_function.6.weight": "a ResNet of bottleneck blocks (resnet50, resnet101 or "
    "resnet152)",
    "module_list.0.weight": "vgg16_normed: convolutions without BatchNorm",
}
# Attributes of a module that do not enter its output in eval mode; levels are compared by
# themselves.
_NO_EFFECT = {"training", "momentum", "inplace", "p", "levels"}


def misfits(
    model: nn.Module,
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    absorbed: Mapping[str, str],
) -> list[str]:
    """Where keys, shapes, dtypes and values disagree: one line for each kind. Empty if the
    checkpoint fits.
    """
    tensors = model.state_dict()
    ours_of = {**{theirs: ours for ours, theirs in names.items()}, **absorbed}
    shapes, dtypes, thresholds = [], [], []
    for theirs, ours in ours_of.items():
        value, own = state.get(theirs), tensors.get(ours)
        if value is None or own is None:  # what an instance lacks, its modules tell
            continue
        if not _fits(value, own, ours):
            shapes.append(f"{theirs} {tuple(value.shape)} (ours: {ours} {tuple(own.shape)})")
        elif value.dtype not in DTYPES and not ours.endswith(".num_batches_tracked"):
            dtypes.append(f"{theirs} {value.dtype}")
        elif is_threshold(ours):
            theta = value.to(own.dtype).item()  # in the model's dtype, where it may underflow
            if not (math.isfinite(theta) and theta > 0):
                thresholds.append(f"{theirs} = {theta}")
    return _lines(
        {
            "missing": [
                f"{theirs} (ours: {ours})"
                for theirs, ours in ours_of.items()
                if theirs not in state
            ],
            "unexpected": [key for key in state if key not in ours_of],
            "mis-shaped": shapes,
            "not floating-point": dtypes,
            "thresholds that are not positive and finite": thresholds,
        }
    )


def unlike(
    reference: nn.Module, model: nn.Module, names: Mapping[str, str], state: Mapping[str, Tensor]
) -> list[str]:
    """Modules of an instance that would compute something else than those of ``reference``,
    whatever the weights.
    """

    def described(module: nn.Module | None) -> str:
        if module is None:
            return "nothing"
        # QCFS reads its threshold to print itself, and the reference has no values.
        brief = isinstance(module, QCFS) or list(module.children())
        return type(module).__name__ if brief else repr(module)

    wanted, found = (dict(m.named_modules(remove_duplicate=False)) for m in (reference, model))
    tensors = model.state_dict()
    # Sizes follow from shapes, which are reported by key.
    misshaped = {
        ours.rpartition(".")[0]
        for ours, theirs in names.items()
        if ours in tensors and theirs in state and not _fits(state[theirs], tensors[ours], ours)
    }
    others: list[str] = []
    first_name: dict[int, str] = {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if first_name.setdefault(id(parameter), key) != key:
            others.append(f"{key} is the same tensor as {first_name[id(parameter)]}")
    last_pool = _last_pool(reference)
    for name in {**wanted, **found}:
        theirs, ours = wanted.get(name), found.get(name)
        if name in misshaped or _same(theirs, ours) or (name == last_pool and _is_global(ours)):
            continue
        others.append(f"{name or 'the model'}: {described(ours)} instead of {described(theirs)}")
    return _lines({"modules of the model unlike those of the checkpoint's network": others})


def _last_pool(reference: nn.Module) -> str | None:
    """The pooling that an instance may do globally, in a VGG-16 for 512 features."""
    if not isinstance(reference, VGG):
        return None
    first = reference.classifier[1]
    small = isinstance(first, nn.Linear) and first.in_features == 512
    return f"features.{len(reference.features) - 1}" if small else None


def hints(name: str, state: Mapping[str, Tensor]) -> list[str]:
    """What the checkpoint seems to be instead, if its keys tell."""
    for key, network in _NOT_OURS.items():
        if key in state:
            return [f"it looks like {network}; cos_ext.models has no such network"]
    if "stem.0.weight" in state or "features.0.weight" in state:
        return ["its keys look like cos_ext's own: use cos_ext.models.load_weights"]
    blocks = [
        len({key.split(".")[1] for key in state if key.startswith(f"conv{stage}_x.")})
        for stage in range(2, 6)
    ]
    convolutions = [
        key for key in state if key.startswith("layer") and key.endswith(".running_mean")
    ]
    seen = [other for other, theirs in BLOCKS.items() if blocks == [*theirs, 0][:4]]
    seen += ["vgg16"] if len(convolutions) == 13 else []
    return [f"its keys look like those of {other}" for other in seen if other != name]


def _lines(kinds: Mapping[str, list[str]]) -> list[str]:
    return [f"{kind}: {', '.join(found)}" for kind, found in kinds.items() if found]


def _fits(value: Tensor, own: Tensor, ours: str) -> bool:
    if is_threshold(ours):
        return value.shape == (1,) and own.ndim == 0
    return value.shape == own.shape


def _same(theirs: nn.Module | None, ours: nn.Module | None) -> bool:
    if theirs is None or type(theirs) is not type(ours):
        return False
    tensors = [
        [*m.named_parameters(recurse=False), *m.named_buffers(recurse=False)]
        for m in (theirs, ours)
    ]
    settings = [key for key in vars(theirs) if not key.startswith("_") and key not in _NO_EFFECT]
    return {key for key, _ in tensors[0]} == {key for key, _ in tensors[1]} and all(
        getattr(theirs, key) == getattr(ours, key, None) for key in settings
    )


def _is_global(pool: nn.Module | None) -> bool:
    return isinstance(pool, nn.AdaptiveAvgPool2d) and pool.output_size in (1, (1, 1))
