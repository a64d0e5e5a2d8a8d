"""Data sets, batches, loading ahead, and several processes. Nothing here knows a network."""

from .cifar import cifar10, cifar100
from .datasets import DATASETS, load
from .events import EventFrames
from .fashion import ASSETS, fashion_mnist, read_idx
from .folder import ImageFolder
from .images import Batches, ImageSet

__all__ = [
    "ASSETS",
    "DATASETS",
    "Batches",
    "EventFrames",
    "ImageFolder",
    "ImageSet",
    "cifar10",
    "cifar100",
    "fashion_mnist",
    "load",
    "read_idx",
]
