"""Data sets, batches, loading ahead, and several processes. Nothing here knows a network."""

from .datasets import (
    ASSETS,
    DATASETS,
    Batches,
    ImageFolder,
    ImageSet,
    cifar10,
    cifar100,
    fashion_mnist,
    load,
    read_idx,
)

# The network that `python -m cos_ext demo` converts, trained on Fashion-MNIST; a JSON beside it.
DEMO_CHECKPOINT = ASSETS / "resnet20-fashion-mnist.safetensors"

__all__ = [
    "ASSETS",
    "DATASETS",
    "DEMO_CHECKPOINT",
    "Batches",
    "ImageFolder",
    "ImageSet",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "load",
    "read_idx",
]
