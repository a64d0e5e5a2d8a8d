"""Checkpoints of the authors' repositories: their key names, and how their weights enter our
models. No architectures.

Names and shapes are facts read from the public sources, at the commits given in
:func:`load_qcfs_checkpoint`; none of their code is here.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..qcfs import QCFS
from .architectures import VGG, ResNet, _read_state, build

_BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet20": [3, 3, 3], "resnet34": [3, 4, 6, 3]}
_KNOWN = ("vgg16", *_BLOCKS)
_RESIDUAL = {
    f"{part}{half}": f"residual_function.{3 * (half - 1) + slot}"
    for half in (1, 2)
    for slot, part in enumerate(("conv", "bn", "act"))
}
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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


def load_qcfs_checkpoint(
    path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
    architecture: str | nn.Module,
    *,
    levels: int | None = None,
) -> nn.Module:
    """A model in eval mode with the weights and thresholds of a checkpoint that the authors' code
    saved.

    Sources of the key names, all of which save a bare state dict:

    * ``hzc1208/ANN2SNN_COS`` (ecb3587), Hao et al., ICLR 2023;
    * ``putshua/SNN_conversion_QCFS`` (c27a446), Bu et al., ICLR 2022: the same names;
    * ``putshua/ANN_SNN_QCFS`` (eca136b), its successor: ``thresh`` where the others have ``up``, and ``act`` where a
      residual block of theirs has ``relu``.

    =====================================  ===================================
    ==================================== theirs                                 ours
    what =====================================  ===================================
    ==================================== ``conv1.{0,1,2}``                      ``stem.{0,1,2}``
    3x3 convolution, BatchNorm, threshold ``conv{s+2}_x.{b}.residual_function``  ``stages.{s}.{b}``
    a residual block's ``.{0,1,2,3,4}``                       ``.{conv1,bn1,act1,conv2,bn2}``
    3x3 convolutions ``.shortcut.{0,1}``                    ``.shortcut.{0,1}``                  1x1
    convolution, BatchNorm ``.relu.up`` or ``.act.thresh``        ``.act2.threshold``
    after the sum ``fc``                                 ``fc`` ``layer{1..5}.{4j,4j+1,4j+2}``
    ``features.{i,i+1,i+2}``             3x3 convolution, BatchNorm, threshold
    ``classifier.{1,2,4,5,7}``             ``classifier.{1,2,4,5,7}``           512 features, or
    25088 at 224x224 =====================================  ===================================
    ====================================

    A threshold of theirs, ``up`` or ``thresh``, has shape [1]; ours is a scalar.

    What their networks compute where the keys do not tell, and what becomes of it:

    * Pooling leaves no key. Their scripts replace each max pooling of VGG-16 by 2x2 average pooling before they train,
      and so it is here, the fifth pool included: as theirs, the model for 512 features takes images
      of 32 to 63 pixels. (cos_ext.models.vgg16 pools globally there, which is equal for 32 to 47
      pixels; an instance of it is accepted.) A network trained in their code with its max pooling
      kept has the same keys and cannot be told apart.
    * VGG-16's convolutions have a bias, which BatchNorm absorbs: it is subtracted from running_mean, in float64, so the
      result is the stock architecture and equal to rounding. VGG-16 of ANN2SNN_COS with
      ``bias=False`` gets zero biases in its linear layers.
    * Their ResNets, on ImageNet too, have the stem of the CIFAR networks: 3x3, stride 1, no pooling.
    * Dropout is the identity in eval mode. Theirs also follows every convolution, with rate 0 by default; ours not.
    * L is in no state dict. The authors put the one they trained with into the file's name (``..._L4.pth``,
      ``..._L[8].pth``). What SNN_conversion_QCFS trained with ``--l=0`` clips without quantising,
      under the same keys: it has no L and is no QCFS network.

    Args:
        path_or_dict: a file of torch.save (read with weights_only=True), a .safetensors file, or a
            state dict, which is copied. Names that all begin with ``module.`` (DataParallel) are
            accepted. Tensors on any device.
        architecture: "vgg16", "resnet18", "resnet20" or "resnet34": the model is built on the CPU
            in the checkpoint's dtype; num_classes and in_channels come from its shapes. Or a ResNet
            or VGG of :mod:`cos_ext.models`: it is loaded in place, keeps its dtype and device, and
            is returned.
        levels: L of the QCFS activations. A .safetensors file may carry it as the metadata entry
            "levels", an instance has its own; otherwise it must be given. What is known twice must
            agree.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: path_or_dict, architecture or levels has the wrong type, or a dict holds what is
            not a tensor.
        ValueError: the file is damaged, is no state dict or asks for more than tensors;
            architecture is unknown; levels is missing, < 1 or contradicted; or the checkpoint does
            not fit: all missing, unexpected, mis-shaped keys, values that are not floating-point,
            thresholds that are not positive and finite, and modules of an instance that compute
            something else than theirs, in one message. Nothing has been loaded then.
    """

    if levels is not None and (isinstance(levels, bool) or not isinstance(levels, int)):
        raise TypeError(f"levels must be an int or None, got {type(levels).__name__}")
    if isinstance(architecture, str):
        name, instance = architecture, None
        if name not in _KNOWN:
            raise ValueError(f"architecture must be one of {sorted(_KNOWN)}, got {name!r}")
    elif isinstance(architecture, (ResNet, VGG)):
        name, instance = _name_of(architecture), architecture
    else:
        raise TypeError(
            "architecture must be a name or a ResNet or VGG of cos_ext.models, "
            f"got {type(architecture).__name__}"
        )
    source, state, stated = _read(path_or_dict)
    levels = _agreed_levels(source, levels, stated, instance)

    reference = _reference(name, state, levels)
    model = reference if instance is None else instance
    names, absorbed = _their_names(reference, state)
    zeros = _linear_biases(reference)
    if (
        absorbed
        and "classifier.7.weight" in state
        and not any(key in state for key in (*absorbed, *zeros))
    ):
        names, absorbed = {ours: theirs for ours, theirs in names.items() if ours not in zeros}, {}
    else:
        zeros = {}
    problems = _misfits(model, state, names, absorbed) + _unlike(reference, model, names, state)
    if problems:
        hints = _hints(name, state)
        raise ValueError(
            "\n  ".join([f"{source} does not fit {name}, nothing was loaded:", *problems, *hints])
        )

    loaded = {ours: state[theirs] for ours, theirs in names.items()} | zeros
    loaded |= {ours: value.reshape(()) for ours, value in loaded.items() if _is_threshold(ours)}
    for theirs, mean in absorbed.items():
        loaded[mean] = state[names[mean]].double() - state[theirs].double()
    if instance is None:
        model.to_empty(device="cpu")
    model.load_state_dict(loaded)
    return model.eval()


def _read(path_or_dict) -> tuple[str, dict[str, Tensor], int | None]:
    """What to call the checkpoint; its tensors, without the prefix of DataParallel; L, if the
    metadata has it.
    """
    if isinstance(path_or_dict, Mapping):
        foreign = {
            key: type(value).__name__
            for key, value in path_or_dict.items()
            if not (isinstance(key, str) and isinstance(value, Tensor))
        }
        if foreign:
            raise TypeError(
                f"path_or_dict must map names to tensors, got {foreign}; "
                "if one of them is the state dict, pass that"
            )
        source, state, metadata = "the state dict", dict(path_or_dict), {}
    elif isinstance(path_or_dict, (str, os.PathLike)):
        source = os.fspath(path_or_dict)
        state, metadata = _read_state(source)
    else:
        raise TypeError(
            f"path_or_dict must be a path or a state dict, got {type(path_or_dict).__name__}"
        )
    if state and all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    levels = metadata.get("levels")
    if levels is not None and not levels.isdecimal():
        raise ValueError(f"{source}: the metadata's levels must be an integer, got {levels!r}")
    return source, state, None if levels is None else int(levels)


def _name_of(model: nn.Module) -> str:

    if isinstance(model, VGG):
        return "vgg16"
    blocks = [len(stage) for stage in model.stages]
    for name, theirs in _BLOCKS.items():
        if blocks == theirs:
            return name
    raise ValueError(
        f"architecture has stages of {blocks} blocks; the authors' networks are {_BLOCKS}"
    )


def _agreed_levels(
    source: str, given: int | None, stated: int | None, instance: nn.Module | None
) -> int:
    found = {}
    if given is not None:
        found["levels"] = {given}
    if stated is not None:
        found["the metadata"] = {stated}
    if instance is not None:
        own = {module.levels for module in instance.modules() if isinstance(module, QCFS)}
        if own:  # an instance without QCFS is refused by its modules
            found["the model"] = own
    values = set().union(*found.values())
    if len(values) > 1:
        said = ", ".join(f"{who}: {sorted(values)}" for who, values in found.items())
        raise ValueError(f"{source}: one network has one L; {said}")
    if not values:
        if instance is not None:
            return 1
        raise ValueError(
            f"{source} does not say its L: pass levels=L, the one it was trained with; the authors "
            "put it "
            "into the file's name, as in '..._L4.pth' or '..._L[8].pth'"
        )
    (levels,) = values
    if levels < 1:
        raise ValueError(f"levels must be >= 1, got {levels}")
    return levels


def _reference(name: str, state: Mapping[str, Tensor], levels: int) -> nn.Module:
    """The network that the checkpoint was trained in, by our names, on meta; its sizes and dtype
    come from `state`.
    """

    def size(key: str, dimensions: int, axis: int) -> int | None:
        return state[key].shape[axis] if key in state and state[key].ndim == dimensions else None

    head, first = ("classifier.7", "layer1.0") if name == "vgg16" else ("fc", "conv1.0")
    # Where a key is absent or malformed any size will do: the key is reported.
    num_classes = size(f"{head}.weight", 2, 0) or size(f"{head}.bias", 1, 0) or 1
    in_channels = size(f"{first}.weight", 4, 1) or 3
    # Their ResNets have one stem; what differs in VGG-16 is the side of the last feature map.
    stem = (
        "imagenet"
        if name == "vgg16" and size("classifier.1.weight", 2, 1) == 512 * 7 * 7
        else "cifar"
    )
    with torch.device("meta"):
        model = build(name, num_classes, in_channels, levels=levels, stem=stem)
    if name == "vgg16":
        model.features[-1] = nn.AvgPool2d(2)
    dtypes = {value.dtype for value in state.values()} & set(_DTYPES)
    return model.to(functools.reduce(torch.promote_types, dtypes)) if dtypes else model


def _is_threshold(ours: str) -> bool:
    return ours.endswith(".threshold")


def _linear_biases(reference: nn.Module) -> dict[str, Tensor]:
    linear = {
        name: module for name, module in reference.named_modules() if isinstance(module, nn.Linear)
    }
    return {f"{name}.bias": torch.zeros(module.out_features) for name, module in linear.items()}


def _their_names(
    reference: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, str]]:
    """Our key -> theirs; and their convolutions' biases -> the running_mean of ours that absorbs
    each.
    """

    old = not any(key.endswith(".thresh") for key in state) or any(
        key.endswith(".up") for key in state
    )
    threshold, residual = (
        ("up", _RESIDUAL | {"act2": "relu"}) if old else ("thresh", _RESIDUAL | {"act2": "act"})
    )
    modules, absorbed = {}, {}
    if isinstance(reference, VGG):
        layer, slot = 1, 0
        for index, module in enumerate(reference.features):
            modules[f"features.{index}"] = f"layer{layer}.{slot}"
            if isinstance(module, nn.Conv2d):
                absorbed[f"layer{layer}.{slot}.bias"] = f"features.{index + 1}.running_mean"
            if isinstance(module, nn.AvgPool2d):
                layer, slot = layer + 1, 0
            else:
                slot += (
                    2 if isinstance(module, QCFS) else 1
                )  # a Dropout follows each activation of theirs
    names = {}
    for key in reference.state_dict():
        module, _, leaf = key.rpartition(".")
        if module.startswith("stem."):
            theirs = "conv1" + module.removeprefix("stem")
        elif module.startswith("stages."):
            _, stage, block, part = module.split(".", 3)
            theirs = f"conv{int(stage) + 2}_x.{block}.{residual.get(part, part)}"
        else:
            theirs = modules.get(module, module)
        names[key] = f"{theirs}.{threshold if _is_threshold(key) else leaf}"
    return names, absorbed


def _misfits(
    model: nn.Module,
    state: Mapping[str, Tensor],
    names: Mapping[str, str],
    absorbed: Mapping[str, str],
) -> list[str]:
    """Where keys, shapes, dtypes and values disagree: one line for each kind; empty if the
    checkpoint fits.
    """
    tensors = model.state_dict()
    ours_of = {theirs: ours for ours, theirs in names.items()} | absorbed
    shapes, dtypes, thresholds = [], [], []
    for theirs, ours in ours_of.items():
        value, own = state.get(theirs), tensors.get(ours)
        if value is None or own is None:  # what an instance lacks, its modules tell
            continue
        if not _fits(value, own, ours):
            shapes.append(f"{theirs} {tuple(value.shape)} (ours: {ours} {tuple(own.shape)})")
        elif value.dtype not in _DTYPES and not ours.endswith(".num_batches_tracked"):
            dtypes.append(f"{theirs} {value.dtype}")
        elif _is_threshold(ours):
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


def _lines(kinds: Mapping[str, list[str]]) -> list[str]:
    return [f"{kind}: {', '.join(found)}" for kind, found in kinds.items() if found]


def _fits(value: Tensor, own: Tensor, ours: str) -> bool:
    if _is_threshold(ours):
        return value.shape == (1,) and own.ndim == 0
    return value.shape == own.shape


def _unlike(
    reference: nn.Module, model: nn.Module, names: Mapping[str, str], state: Mapping[str, Tensor]
) -> list[str]:
    """Modules of an instance that would compute something else than those of `reference`, whatever
    the weights.
    """

    def described(module: nn.Module | None) -> str:
        if module is None:
            return "nothing"
        # QCFS reads its threshold to print itself, and the reference has no values.
        return (
            type(module).__name__
            if isinstance(module, QCFS) or list(module.children())
            else repr(module)
        )

    wanted, found = (dict(m.named_modules(remove_duplicate=False)) for m in (reference, model))
    tensors = model.state_dict()
    # Sizes follow from shapes, which are reported by key.
    misshaped = {
        ours.rpartition(".")[0]
        for ours, theirs in names.items()
        if ours in tensors and theirs in state and not _fits(state[theirs], tensors[ours], ours)
    }
    unlike, first_name = [], {}
    for key, parameter in model.named_parameters(remove_duplicate=False):
        if first_name.setdefault(id(parameter), key) != key:
            unlike.append(f"{key} is the same tensor as {first_name[id(parameter)]}")
    small = isinstance(reference, VGG) and reference.classifier[1].in_features == 512
    global_pool = f"features.{len(reference.features) - 1}" if small else None
    for name in {**wanted, **found}:
        theirs, ours = wanted.get(name), found.get(name)
        if (
            name not in misshaped
            and not _same(theirs, ours)
            and not (name == global_pool and _is_global(ours))
        ):
            unlike.append(
                f"{name or 'the model'}: {described(ours)} instead of {described(theirs)}"
            )
    return _lines({"modules of the model unlike those of the checkpoint's network": unlike})


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


def _hints(name: str, state: Mapping[str, Tensor]) -> list[str]:
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
    seen = [other for other, theirs in _BLOCKS.items() if blocks == [*theirs, 0][:4]]
    seen += ["vgg16"] if len(convolutions) == 13 else []
    return [f"its keys look like those of {other}" for other in seen if other != name]
