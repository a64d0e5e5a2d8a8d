"""How the authors' repositories name what their networks hold, and the network of ours that a
checkpoint was trained in.

Names and shapes are facts read from the public sources, at the commits given in
:func:`cos_ext.models.load_qcfs_checkpoint`; none of their code is here. No file is read.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..qcfs import QCFS
from .architectures import VGG, ResNet, build

BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet20": [3, 3, 3], "resnet34": [3, 4, 6, 3]}
KNOWN = ("vgg16", *BLOCKS)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_RESIDUAL = {
    f"{part}{half}": f"residual_function.{3 * (half - 1) + slot}"
    for half in (1, 2)
    for slot, part in enumerate(("conv", "bn", "act"))
}


def name_of(model: ResNet | VGG) -> str:
    """The network of theirs that a model of ours is; ValueError where they have none like it."""
    if isinstance(model, VGG):
        return "vgg16"
    blocks = [len(stage) for stage in model.stages if isinstance(stage, nn.Sequential)]
    for name, theirs in BLOCKS.items():
        if blocks == theirs:
            return name
    raise ValueError(
        f"architecture has stages of {blocks} blocks; the authors' networks are {BLOCKS}"
    )


def reference_of(name: str, state: Mapping[str, Tensor], levels: int) -> nn.Module:
    """The network that the checkpoint was trained in, by our names, on meta. Its sizes and dtype
    come from ``state``.
    """

    def size(key: str, dimensions: int, axis: int) -> int | None:
        return state[key].shape[axis] if key in state and state[key].ndim == dimensions else None

    head, first = ("classifier.7", "layer1.0") if name == "vgg16" else ("fc", "conv1.0")
    # Where a key is absent or malformed any size will do: the key is reported.
    num_classes = size(f"{head}.weight", 2, 0) or size(f"{head}.bias", 1, 0) or 1
    in_channels = size(f"{first}.weight", 4, 1) or 3
    # Their ResNets have one stem; what differs in VGG-16 is the side of the last feature map.
    large = name == "vgg16" and size("classifier.1.weight", 2, 1) == 512 * 7 * 7
    with torch.device("meta"):
        model = build(
            name, num_classes, in_channels, levels=levels, stem="imagenet" if large else "cifar"
        )
    if isinstance(model, VGG):
        model.features[-1] = nn.AvgPool2d(2)
    dtypes = {value.dtype for value in state.values()} & set(DTYPES)
    return model.to(functools.reduce(torch.promote_types, dtypes)) if dtypes else model


def their_names(
    reference: nn.Module, state: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, str]]:
    """Our key -> theirs; and their convolutions' biases -> the running_mean of ours that absorbs
    each.
    """
    new = any(key.endswith(".thresh") for key in state)
    old = not new or any(key.endswith(".up") for key in state)
    threshold, after_sum = ("up", "relu") if old else ("thresh", "act")
    residual = _RESIDUAL | {"act2": after_sum}
    modules, absorbed = _vgg_names(reference) if isinstance(reference, VGG) else ({}, {})
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
        names[key] = f"{theirs}.{threshold if is_threshold(key) else leaf}"
    return names, absorbed


def _vgg_names(reference: VGG) -> tuple[dict[str, str], dict[str, str]]:
    """Our module -> theirs; and the biases as in :func:`their_names`."""
    modules, absorbed = {}, {}
    layer, slot = 1, 0
    for index, module in enumerate(reference.features):
        modules[f"features.{index}"] = f"layer{layer}.{slot}"
        if isinstance(module, nn.Conv2d):
            absorbed[f"layer{layer}.{slot}.bias"] = f"features.{index + 1}.running_mean"
        if isinstance(module, nn.AvgPool2d):
            layer, slot = layer + 1, 0
        else:  # a Dropout follows each activation of theirs
            slot += 2 if isinstance(module, QCFS) else 1
    return modules, absorbed


def linear_biases(reference: nn.Module) -> dict[str, Tensor]:
    """Zeros for the biases of the linear layers, by our names."""
    return {
        f"{name}.bias": torch.zeros(module.out_features)
        for name, module in reference.named_modules()
        if isinstance(module, nn.Linear)
    }


def is_threshold(ours: str) -> bool:
    """Whether a key of ours is that of a QCFS threshold."""
    return ours.endswith(".threshold")
