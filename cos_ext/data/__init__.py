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

__all__ = [
    "ASSETS",
    "DATASETS",
    "Batches",
    "ImageFolder",
    "ImageSet",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "load",
    "read_idx",
]
