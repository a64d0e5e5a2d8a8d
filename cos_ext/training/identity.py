"""What identifies a run of training, so that none goes on from the state of another.

Nothing is trained and no file is written here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset, TensorDataset

from ..data import ImageSet
from ..neuron import IFNode
from ..qcfs import QCFS
from .config import TrainConfig

DATA = ("training images", "training labels", "test images", "test labels", "noise images")

Identity = dict[str, Any]  # by a name that a message can use; None: it cannot be known


def identity(
    model: nn.Module, batches: Any, test_batches: Iterable[Any], config: TrainConfig
) -> Identity:
    """All that a run depends on, but its weights and the device: numbers and strings.

    Args:
        model: before its first step, since its thresholds are then those it starts from.
        batches: images and labels are digested if they are an ``ImageSet``'s, a ``TensorDataset``'s
            or in a list. Of a folder it is names, sizes of files and labels.
        test_batches: likewise.
        config: every setting.
    """
    generator = getattr(batches, "generator", None)
    return {
        **asdict(config),
        **_of_model(model),
        **{f"training {key}": value for key, value in _of_data(_source(batches)).items()},
        **{f"test {key}": value for key, value in _of_data(_source(test_batches)).items()},
        "batches in all": config.epochs * len(batches),
        "batch_size": getattr(batches, "batch_size", None),
        "augmentation": _augmentation(batches),
        "shuffling": _shuffling(batches),
        "seed of the batches": None if generator is None else generator.initial_seed(),
    }


def images_of(batches: Any) -> str | None:
    """A digest of the images that batches hold; None where it would take a pass over them."""
    return _of_data(_source(batches))["images"]


def unknown(run: Identity) -> str:
    """What of the data cannot be compared, for a message; "" if all can be."""
    return ", ".join(key for key in DATA if key in run and run[key] is None)


def differences(theirs: Identity, ours: Identity) -> str:
    """Which entries differ, and how, for a message; "" if none does. Unknown ones agree."""
    found = []
    for key in sorted(theirs.keys() | ours.keys()):
        a, b = theirs.get(key), ours.get(key)
        if a is not None and b is not None and a != b:
            found.append(f"{key} ({_shown(a, b)} there, {_shown(b, a)} now)")
    return ", ".join(found)


def _shown(value: Any, other: Any) -> str:
    """The value, and of many lines the first that the other does not have."""
    if not isinstance(value, str) or "\n" not in value + str(other):
        return str(value)
    return next((line for line in value.split("\n") if line not in str(other).split("\n")), "less")


def _of_model(model: nn.Module) -> Identity:
    """Its modules with their settings, and apart from them what QCFS has."""
    lines = []
    for name, module in model.named_modules():
        # A threshold is trained, and is shown as it is.
        settings = "" if isinstance(module, QCFS) else module.extra_repr()
        if isinstance(module, IFNode):
            settings = str(sorted(module._settings.items(), key=str))
        lines.append(f"{name}: {type(module).__name__}({settings})")
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        lines.append(f"{name}: {value.dtype} {list(value.shape)} trained={value.requires_grad}")
    neurons = [module for module in model.modules() if isinstance(module, QCFS)]
    return {
        "architecture": "\n".join(lines),
        "levels": _short([module.levels for module in neurons]),
        "noise": _short([module.noise or "none" for module in neurons]),
        "initial thresholds": _short(
            [value for module in neurons for value in module.threshold.detach().flatten().tolist()]
        ),
    }


def _short(values: list[Any]) -> str:
    same = len(set(values)) == 1
    return str(values[0]) if same else str(values)


def _source(batches: Any) -> Any:
    """What the batches are made of."""
    for name in ("source", "dataset"):
        if hasattr(batches, name):
            return getattr(batches, name)
    return batches


def _of_data(source: Any) -> Identity:
    """Digests of images and labels; None where they cannot be known without a pass over them."""
    if isinstance(source, Subset):
        inner, chosen = _of_data(source.dataset), digest(*source.indices)
        return {key: value and f"{value} of {chosen}" for key, value in inner.items()}
    if isinstance(source, ConcatDataset):
        parts = [_of_data(part) for part in source.datasets]
        return {key: _all_of([part[key] for part in parts]) for key in ("images", "labels")}
    if isinstance(source, ImageSet):
        images = digest(source.images, source.mean, source.std)
        return {"images": images, "labels": digest(source.labels)}
    if isinstance(source, TensorDataset):
        return {"images": digest(source.tensors[0]), "labels": digest(*source.tensors[1:])}
    if isinstance(source, (list, tuple)) and all(
        isinstance(item, (list, tuple)) and len(item) == 2 for item in source
    ):
        images = digest(*(images for images, _ in source))
        return {"images": images, "labels": digest(*(labels for _, labels in source))}
    samples = getattr(source, "samples", None)
    if samples is not None and hasattr(source, "root"):
        files = [(os.path.relpath(path, source.root), os.path.getsize(path)) for path, _ in samples]
        return {"images": digest(*files), "labels": digest(*(label for _, label in samples))}
    labels = getattr(source, "targets", getattr(source, "labels", None))
    return {"images": None, "labels": None if labels is None else digest(torch.as_tensor(labels))}


def _all_of(digests: list[str | None]) -> str | None:
    return None if None in digests else digest(*digests)


def digest(*values: Any) -> str:
    """A short digest; of tensors it is of the dtype, the shape and every element."""
    digest = hashlib.sha256()
    for value in values:
        if isinstance(value, Tensor):
            digest.update(f"{value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().flatten().view(torch.uint8)
            digest.update(flat.numpy().data)
        else:
            digest.update(f"{value!r};".encode(errors="surrogatepass"))
    return digest.hexdigest()[:16]


def _augmentation(batches: Any) -> str | None:
    source = _source(batches)
    if isinstance(source, ImageSet):
        source = batches
    settings = [(key, getattr(source, key, None)) for key in ("augment", "size", "transform")]
    known = [f"{key}={value}" for key, value in settings if value is not None]
    return "\n".join(known) or None


def _shuffling(batches: Any) -> str | None:
    if isinstance(batches, DataLoader):
        return f"{type(batches.sampler).__name__}, drop_last={batches.drop_last}"
    if not hasattr(batches, "shuffle"):
        return None
    return f"shuffle={batches.shuffle}, drop_last={getattr(batches, 'drop_last', False)}"
