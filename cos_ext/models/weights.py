"""Weights in files: reading a state dict, and loading one into a model that fits it. No
architectures, and no names but our own.
"""

from __future__ import annotations

import math
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..qcfs import QCFS

#: The weights that the demo runs: a ResNet-20 trained on Fashion-MNIST, which ships with cos_ext.
#: Beside it lies a .json file with its levels, its accuracy and how it was trained.
DEMO_CHECKPOINT = (
    Path(__file__).resolve().parent.parent / "assets" / "resnet20-fashion-mnist.safetensors"
)


def load_weights(model: nn.Module, path: str | os.PathLike[str]) -> dict[str, str]:
    """Load a .safetensors file or a weights-only state dict into a model.

    Args:
        model: changed in place; keeps its dtype and device.
        path: the file.

    Returns:
        The file's metadata; nothing for a state dict.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or corrupt, its keys or shapes do not fit the
            model, or a threshold of QCFS is not positive and finite.
            The model is unchanged.
    """
    state, metadata = read_state(path)
    expected = model.state_dict()
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"{path} does not fit the model: missing {missing}, unexpected {unexpected}, shapes "
            f"{shapes}"
        )
    for name, module in model.named_modules():
        key = f"{name}.threshold" if name else "threshold"
        if isinstance(module, QCFS):
            theta = state[key].to(expected[key].dtype).item()  # where it may underflow
            if not (math.isfinite(theta) and theta > 0):
                raise ValueError(f"{path}: {key} must be positive and finite, got {theta}")
    model.load_state_dict(state)
    return metadata


def read_state(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and the metadata of a .safetensors file, or of what torch.save wrote, on the CPU.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is truncated or corrupt, or asks for more than tensors.
    """
    from safetensors import safe_open

    with open(path, "rb") as probe:
        zip_like = probe.read(2) == b"PK"
    state: Any
    metadata: dict[str, str] = {}
    try:
        if zip_like:
            _check_parts(path)
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            with safe_open(path, framework="pt") as file:
                keys = file.keys()
                state = {key: file.get_tensor(key) for key in keys}
                metadata = file.metadata() or {}
    except Exception as error:  # damaged bytes and refused pickles raise nearly anything
        raise ValueError(f"{path} is truncated or is not a checkpoint: {error}") from error
    if not isinstance(state, dict) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ValueError(f"{path} holds no state dict of tensors")
    for key, value in state.items():
        dense = value.layout == torch.strided and value.device.type == "cpu"
        if not dense or value.nbytes > value.untyped_storage().nbytes():
            raise ValueError(f"{path} is corrupt: {key} claims more than the file holds")
    return state, metadata


def _check_parts(path: str | os.PathLike[str]) -> None:
    """ValueError where a file of torch.save is packed, or makes tensors without data."""
    with zipfile.ZipFile(path) as file:
        if sum(part.file_size for part in file.infolist()) > os.path.getsize(path):
            raise ValueError("its parts claim more bytes than it has")
        pickles = [file.read(name) for name in file.namelist() if name.endswith("data.pkl")]
    for raw in pickles:
        for operation, name, _ in pickletools.genops(raw):
            # weights_only allows torch.Tensor(3, 2), whose values are what was in memory.
            if operation.name == "GLOBAL" and re.fullmatch("torch \\w*Tensor", str(name)):
                raise ValueError(f"it asks for {name}, a tensor without data")
